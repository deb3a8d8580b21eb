/* One decode step of attention for slots that share prompts. kv_cache.py computes the same with torch.

   A block is up to `block_size` slots with the same prompt. Each of its queries first attends to the slot's own tokens,
   in one pass over memory. Then all queries attend to the prompt together, as one small matrix product: each key of the
   prompt is read once for the block. Both parts are merged into one softmax. The order of operations in a row is fixed,
   so that its result does not depend on other rows.

   queries [S, H, HEAD_DIM], new keys and values [S, K, HEAD_DIM], prompt keys [P, K, HEAD_DIM, prompt_capacity]
   (transposed), prompt values [P, K, prompt_capacity, HEAD_DIM], kv_tiles [S, capacity / LANES, K, 2, LANES * HEAD_DIM]
   (a tile of keys, transposed, then one of values), out [S, H, HEAD_DIM]. `prompt_capacity` is a multiple of 2 LANES,
   `capacity` one of LANES. */

#include "simd.h"

/* The number of lanes of the compiled kernels. Python needs this number for the layout of kv_tiles. */
int64_t lanes(void) { return LANES; }

DEFINE_MATMUL(matmul, DTYPE)

/* Attention of one query over the keys so far: values weighted by e^(score - max), the weights by lane, and max. */
typedef struct {
    vec value[HEAD_VECS], weight;
    float max;
} PartialSoftmax;

/* Scores up to `max` follow: scale down the sums so far. */
static inline void raise_max(PartialSoftmax *partial, float max) {
    if (max <= partial->max) return;
    float factor = expf(partial->max - max);
    for (int p = 0; p < HEAD_VECS; p++) partial->value[p] *= factor;
    partial->weight *= factor;
    partial->max = max;
}

/* Attends to the first `n` <= LANES tokens of a tile. */
static inline void attend_tile(PartialSoftmax *partial, const float *q, const DTYPE *tile, int64_t n) {
    vec a = {0}, b = {0}, c = {0}, d = {0}, value[HEAD_VECS]; /* four sums: no addition waits for the one before */
    for (int i = 0; i < HEAD_DIM; i += 4) {
        a += q[i] * LOAD(tile + i * LANES);
        b += q[i + 1] * LOAD(tile + (i + 1) * LANES);
        c += q[i + 2] * LOAD(tile + (i + 2) * LANES);
        d += q[i + 3] * LOAD(tile + (i + 3) * LANES);
    }
    vec score = mask_after(n, (a + b) + (c + d), -INFINITY);
    raise_max(partial, max_lanes(score));
    score = mask_after(n, exp_nonpositive(score - partial->max), 0.0f);
    partial->weight += score;
    memcpy(value, partial->value, sizeof value);
    for (int64_t t = 0; t < n; t++)
        for (int p = 0; p < HEAD_VECS; p++) value[p] += score[t] * LOAD(tile + KV_TILE + t * HEAD_DIM + p * LANES);
    memcpy(partial->value, value, sizeof value);
}

void decode_attention(int64_t threads, int64_t num_blocks, int64_t block_size, const int64_t *block_start,
                      const int64_t *block_prompt, const int64_t *slot_order, const int64_t *prompt_length,
                      const int64_t *length, int64_t heads, int64_t kv_heads, int64_t prompt_capacity,
                      int64_t capacity, const float *queries, const float *new_keys, const float *new_values,
                      const DTYPE *prompt_keys, const DTYPE *prompt_values, DTYPE *kv_tiles, float *out) {
    const int64_t queries_per_kv = heads / kv_heads;
    const int64_t max_rows = (block_size * queries_per_kv + ROW_TILE - 1) / ROW_TILE * ROW_TILE;
    const float scale = 1.0f / sqrtf((float)HEAD_DIM);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t b = 0; b < num_blocks; b++) {
        const int64_t n = block_start[b + 1] - block_start[b], rows = n * queries_per_kv;
        const int64_t prompt = block_prompt[b], prompt_len = prompt_length[prompt];
        const int64_t *slots = slot_order + block_start[b];
        PartialSoftmax *partials =
            aligned_alloc(sizeof(vec), kv_heads * max_rows * sizeof(PartialSoftmax)); /* [K, rows] */
        float *q = calloc(kv_heads * max_rows * HEAD_DIM, sizeof(float));             /* [K, rows, HEAD_DIM] */
        float *score = malloc(ROW_TILE * prompt_capacity * sizeof(float));
        memset(partials, 0, kv_heads * max_rows * sizeof(PartialSoftmax));

        /* Each slot's own tokens: store the new one, then attend tile by tile. */
        for (int64_t i = 0; i < n; i++) {
            const int64_t s = slots[i], last = length[s];
            DTYPE *slot_tiles = kv_tiles + s * capacity * kv_heads * 2 * HEAD_DIM;
            for (int64_t k = 0; k < kv_heads; k++) {
                DTYPE *tile = slot_tiles + (last / LANES * kv_heads + k) * 2 * KV_TILE;
                for (int d = 0; d < HEAD_DIM; d++) {
                    tile[d * LANES + last % LANES] = TO_DTYPE(new_keys[(s * kv_heads + k) * HEAD_DIM + d]);
                    tile[KV_TILE + last % LANES * HEAD_DIM + d] =
                        TO_DTYPE(new_values[(s * kv_heads + k) * HEAD_DIM + d]);
                }
                for (int64_t j = 0; j < queries_per_kv; j++) {
                    const int64_t row = k * max_rows + i * queries_per_kv + j;
                    for (int d = 0; d < HEAD_DIM; d++)
                        q[row * HEAD_DIM + d] = scale * queries[(s * heads + k * queries_per_kv + j) * HEAD_DIM + d];
                    partials[row].max = -INFINITY;
                }
            }
            for (int64_t t = 0; t <= last; t += LANES)
                for (int64_t k = 0; k < kv_heads; k++)
                    for (int64_t j = 0; j < queries_per_kv; j++) {
                        const int64_t row = k * max_rows + i * queries_per_kv + j, left = last + 1 - t;
                        attend_tile(partials + row, q + row * HEAD_DIM,
                                    slot_tiles + (t / LANES * kv_heads + k) * 2 * KV_TILE, left < LANES ? left : LANES);
                    }
        }
        /* The prompt: ROW_TILE queries at a time. */
        for (int64_t k = 0; k < kv_heads; k++) {
            const DTYPE *keys = prompt_keys + (prompt * kv_heads + k) * HEAD_DIM * prompt_capacity;
            const DTYPE *values = prompt_values + (prompt * kv_heads + k) * HEAD_DIM * prompt_capacity;
            for (int64_t r = 0; r < rows; r += ROW_TILE) {
                PartialSoftmax *partial = partials + k * max_rows + r;
                for (int64_t t = 0; t < prompt_len; t += 2 * LANES) {
                    vec part[ROW_TILE][2] = {{{0}}};
                    matmul(part, q + (k * max_rows + r) * HEAD_DIM, HEAD_DIM, 1, keys + t, prompt_capacity, HEAD_DIM);
                    for (int i = 0; i < ROW_TILE; i++) memcpy(score + i * prompt_capacity + t, part[i], sizeof part[i]);
                }
                for (int i = 0; i < ROW_TILE; i++) {
                    float *row_score = score + i * prompt_capacity;
                    vec maxima = mask_after(prompt_len, load_float(row_score), -INFINITY);
                    for (int64_t t = LANES; t < prompt_len; t += LANES) {
                        vec x = mask_after(prompt_len - t, load_float(row_score + t), -INFINITY);
                        maxima = where(x > maxima, x, maxima);
                    }
                    raise_max(partial + i, max_lanes(maxima));
                    for (int64_t t = 0; t < prompt_len; t += LANES) {
                        vec x = exp_nonpositive(load_float(row_score + t) - partial[i].max);
                        x = mask_after(prompt_len - t, x, 0.0f);
                        partial[i].weight += x;
                        memcpy(row_score + t, &x, sizeof x);
                    }
                }
                for (int p = 0; p < HEAD_VECS; p += 2) {
                    vec part[ROW_TILE][2];
                    for (int i = 0; i < ROW_TILE; i++) memcpy(part[i], partial[i].value + p, sizeof part[i]);
                    matmul(part, score, prompt_capacity, 1, values + p * LANES, HEAD_DIM, prompt_len);
                    for (int i = 0; i < ROW_TILE; i++) memcpy(partial[i].value + p, part[i], sizeof part[i]);
                }
                for (int64_t i = 0; i < ROW_TILE && r + i < rows; i++) {
                    const int64_t s = slots[(r + i) / queries_per_kv];
                    const int64_t head = k * queries_per_kv + (r + i) % queries_per_kv;
                    float *to = out + (s * heads + head) * HEAD_DIM, inv_sum = 1.0f / sum_lanes(partial[i].weight);
                    for (int p = 0; p < HEAD_VECS; p++) {
                        vec x = partial[i].value[p] * inv_sum;
                        memcpy(to + p * LANES, &x, sizeof x);
                    }
                }
            }
        }
        free(partials), free(q), free(score);
    }
}
