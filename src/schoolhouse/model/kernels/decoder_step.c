/* All layers of a decode step, in one parallel region: one new token for each busy slot. packed_decoder.py computes the
   same with one call for each product. Attention reads and extends the KV cache of native_attention.py. */

#include "team.h"

/* The weights and the KV cache of one layer. Python writes the fields, 8 bytes each. The norms of queries and keys are
   NULL in most models. */
typedef struct {
    Linear qkv, o, gate_up, down;
    const float *norm, *mlp_norm, *q_norm, *k_norm;
} Layer;
typedef struct {
    const DTYPE *prompt_keys, *prompt_values;
    DTYPE *kv_tiles;
} Stores;
_Static_assert(sizeof(Layer) == 4 * sizeof(Linear) + 4 * 8, "Python writes 8 bytes for each field");

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Changes x [slots, C] from embeddings to the output of the last layer, before the last norm. The rows of x, of
   `cosine` and of `sine` [slots, HEAD_DIM / 2] are those of the busy slots. */
void decoder_step(int64_t threads, int64_t num_layers, int64_t rows, float eps, const Layer *layers,
                  const Stores *stores, const float *cosine, const float *sine, int64_t num_blocks, int64_t block_size,
                  const int64_t *block_start, const int64_t *block_prompt, const int64_t *slot_order,
                  const int64_t *prompt_length, const int64_t *length, int64_t heads, int64_t kv_heads,
                  int64_t prompt_capacity, int64_t capacity, float *x) {
    const Slots slots = {num_blocks, block_size, block_start, block_prompt, slot_order, prompt_length,
                         length,     heads,      kv_heads,    prompt_capacity, capacity};
    const int64_t width = (heads + 2 * kv_heads) * HEAD_DIM;
    int64_t bytes = 0;
    for (const Layer *layer = layers; layer < layers + num_layers; layer++)
        bytes = larger(bytes, larger(larger(work_bytes(&layer->qkv, rows), work_bytes(&layer->o, rows)),
                                     larger(work_bytes(&layer->gate_up, rows), work_bytes(&layer->down, rows))));
    char *work = aligned_alloc(64, bytes);
    float *qkv = malloc(rows * width * sizeof(float)), *attended = malloc(rows * heads * HEAD_DIM * sizeof(float));
    float *gate_up = malloc(rows * layers->gate_up.out * sizeof(float));
    float *keys = qkv + heads * HEAD_DIM, *values = keys + kv_heads * HEAD_DIM;
    const Input plain = {PLAIN, 0.0f, NULL}, swiglu = {SWIGLU, 0.0f, NULL};
#pragma omp parallel num_threads(threads)
    for (int64_t l = 0; l < num_layers; l++) {
        const Layer *layer = layers + l;
        linear_in_team(threads, &layer->qkv, (Input){NORM, eps, layer->norm}, rows, 0, x, qkv, work);
        rotate_in_team(rows, heads, width, eps, layer->q_norm, cosine, sine, qkv);
        rotate_in_team(rows, kv_heads, width, eps, layer->k_norm, cosine, sine, keys);
        attend_in_team(threads, &slots, width, width, qkv, keys, values, stores[l].prompt_keys, stores[l].prompt_values,
                       stores[l].kv_tiles, attended);
        linear_in_team(threads, &layer->o, plain, rows, 1, attended, x, work);
        linear_in_team(threads, &layer->gate_up, (Input){NORM, eps, layer->mlp_norm}, rows, 0, x, gate_up, work);
        linear_in_team(threads, &layer->down, swiglu, rows, 1, gate_up, x, work);
    }
    free(work), free(qkv), free(attended), free(gate_up);
}
