/* One decode step of attention for slots that share prompts. kv_cache.py computes the same with torch.

   A block is up to `block_size` slots with the same prompt. Each of its queries first attends to the slot's own tokens,
   in one pass over memory. Then all queries attend to the prompt together, as one small matrix product: each key of the
   prompt is read once for the block. Both parts are merged into one softmax. The order of operations in a row is fixed,
   so that its result does not depend on other rows.

   queries [S, H, HEAD_DIM], new keys and values [S, K, HEAD_DIM], prompt keys [P, K, HEAD_DIM, prompt_capacity]
   (transposed), prompt values [P, K, prompt_capacity, HEAD_DIM], kv_tiles [S, capacity / LANES, K, 2, LANES * HEAD_DIM]
   (a tile of keys, transposed, then one of values), out [S, H, HEAD_DIM]. `prompt_capacity` is a multiple of 2 LANES,
   `capacity` one of LANES. */

#include "team.h"

/* The number of lanes of the compiled kernels. Python needs this number for the layout of kv_tiles. */
int64_t lanes(void) { return LANES; }

#define FEW_ROWS (ROW_TILE / 2)
DEFINE_MATMUL(matmul, DTYPE, ROW_TILE)
DEFINE_MATMUL(matmul_few, DTYPE, FEW_ROWS)

/* Queries that attend to a tile together: each key and each value is then converted to float once for all of them. */
#define TOGETHER (LANES == 16 ? 4 : 2)
#define LINE ((int)(64 / sizeof(DTYPE))) /* numbers of a cache line */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

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

/* Q queries attend to the first `n` <= LANES tokens of a tile. The tile `next` is read into the cache meanwhile. */
INLINE void attend_tile(const int Q, PartialSoftmax *partial, const float *q, const DTYPE *tile, const DTYPE *next,
                        int64_t n) {
    vec sum[TOGETHER][4] = {{{0}}}; /* four sums for each query: no addition waits for the one before */
    float weight[TOGETHER][LANES];
    for (int d = 0; d < HEAD_DIM; d += 4) {
        UNROLL for (int line = 0; line < 8 * LANES; line += LINE) __builtin_prefetch(next + d * 2 * LANES + line);
        UNROLL for (int i = 0; i < 4; i++) {
            vec key = LOAD(tile + (d + i) * LANES);
            UNROLL for (int j = 0; j < Q; j++) sum[j][i] += q[j * HEAD_DIM + d + i] * key;
        }
    }
    for (int j = 0; j < Q; j++) {
        vec score = mask_after(n, (sum[j][0] + sum[j][1]) + (sum[j][2] + sum[j][3]), -INFINITY);
        raise_max(partial + j, max_lanes(score));
        score = mask_after(n, exp_nonpositive(score - partial[j].max), 0.0f);
        partial[j].weight += score;
        memcpy(weight[j], &score, sizeof score);
    }
    for (int p = 0; p < HEAD_VECS; p += 2) {
        vec value[TOGETHER][2];
        UNROLL for (int j = 0; j < Q; j++) memcpy(value[j], partial[j].value + p, sizeof value[j]);
        for (int64_t t = 0; t < n; t++) {
            const DTYPE *from = tile + KV_TILE + t * HEAD_DIM + p * LANES;
            vec left = LOAD(from), right = LOAD(from + LANES);
            UNROLL for (int j = 0; j < Q; j++) {
                value[j][0] += weight[j][t] * left;
                value[j][1] += weight[j][t] * right;
            }
        }
        UNROLL for (int j = 0; j < Q; j++) memcpy(partial[j].value + p, value[j], sizeof value[j]);
    }
}

/* `queries` queries attend to the first `n` <= LANES tokens of a tile. */
static void attend_own(int64_t queries, PartialSoftmax *partial, const float *q, const DTYPE *tile, const DTYPE *next,
                       int64_t n) {
    for (int64_t j = 0; j < queries; j += TOGETHER, partial += TOGETHER, q += TOGETHER * HEAD_DIM)
        switch (queries - j) {
        case 1: attend_tile(1, partial, q, tile, next, n); break;
#if LANES == 16
        case 2: attend_tile(2, partial, q, tile, next, n); break;
        case 3: attend_tile(3, partial, q, tile, next, n); break;
#endif
        default: attend_tile(TOGETHER, partial, q, tile, next, n);
        }
}

/* T queries attend to the `count` tokens of a prompt. `score` has room for T rows of `capacity` numbers. */
INLINE void attend_prompt(const int T, PartialSoftmax *partial, const float *q, const DTYPE *keys, const DTYPE *values,
                          int64_t capacity, int64_t count, float *score) {
    for (int64_t t = 0; t < count; t += 2 * LANES) {
        vec part[ROW_TILE][2] = {{{0}}};
        if (T == ROW_TILE) matmul(part, q, HEAD_DIM, 1, keys + t, capacity, HEAD_DIM);
        else matmul_few(part, q, HEAD_DIM, 1, keys + t, capacity, HEAD_DIM);
        for (int i = 0; i < T; i++) memcpy(score + i * capacity + t, part[i], sizeof part[i]);
    }
    for (int i = 0; i < T; i++) {
        float *row_score = score + i * capacity;
        vec maxima = mask_after(count, load_float(row_score), -INFINITY);
        for (int64_t t = LANES; t < count; t += LANES) {
            vec x = mask_after(count - t, load_float(row_score + t), -INFINITY);
            maxima = where(x > maxima, x, maxima);
        }
        raise_max(partial + i, max_lanes(maxima));
        for (int64_t t = 0; t < count; t += LANES) {
            vec x = mask_after(count - t, exp_nonpositive(load_float(row_score + t) - partial[i].max), 0.0f);
            partial[i].weight += x;
            memcpy(row_score + t, &x, sizeof x);
        }
    }
    for (int p = 0; p < HEAD_VECS; p += 2) {
        vec part[ROW_TILE][2];
        for (int i = 0; i < T; i++) memcpy(part[i], partial[i].value + p, sizeof part[i]);
        if (T == ROW_TILE) matmul(part, score, capacity, 1, values + p * LANES, HEAD_DIM, count);
        else matmul_few(part, score, capacity, 1, values + p * LANES, HEAD_DIM, count);
        for (int i = 0; i < T; i++) memcpy(partial[i].value + p, part[i], sizeof part[i]);
    }
}

void attend_in_team(int64_t threads, const Slots *slots, int64_t q_stride, int64_t kv_stride, const float *queries,
                    const float *new_keys, const float *new_values, const DTYPE *prompt_keys,
                    const DTYPE *prompt_values, DTYPE *kv_tiles, float *out) {
    const int64_t heads = slots->heads, kv_heads = slots->kv_heads, group = heads / kv_heads;
    const int64_t max_rows = (slots->block_size * group + ROW_TILE - 1) / ROW_TILE * ROW_TILE;
    const int64_t capacity = slots->prompt_capacity, tile_size = 2 * KV_TILE;
    /* The tiles of all heads lie side by side, so a thread takes all heads of a block, unless there are few blocks. */
    const int64_t parts = slots->num_blocks < 2 * threads ? kv_heads : 1, k_count = kv_heads / parts;
    const float scale = 1.0f / sqrtf((float)HEAD_DIM);
    PartialSoftmax *partials = aligned_alloc(sizeof(vec), k_count * max_rows * sizeof(PartialSoftmax)); /* [K, rows] */
    float *q = calloc(k_count * max_rows * HEAD_DIM, sizeof(float)); /* [K, rows, HEAD_DIM] */
    float *score = malloc(ROW_TILE * capacity * sizeof(float));
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < slots->num_blocks * parts; item++) {
        const int64_t b = item / parts, first_k = item % parts * k_count;
        const int64_t *members = slots->slot_order + slots->block_start[b];
        const int64_t rows = (slots->block_start[b + 1] - slots->block_start[b]) * group;
        for (int64_t k = 0; k < k_count; k++)
            for (int64_t r = k * max_rows; r < k * max_rows + rows + ROW_TILE - 1 && r < (k + 1) * max_rows; r++)
                partials[r] = (PartialSoftmax){{{0}}, {0}, -INFINITY};

        /* Each slot's own tokens: store the new one, then attend tile by tile. */
        for (int64_t r = 0; r < rows; r += group) {
            const int64_t s = members[r / group], last = slots->length[s], at = last % LANES;
            DTYPE *tiles = kv_tiles + (s * slots->capacity / LANES * kv_heads + first_k) * tile_size;
            const DTYPE *tiles_after = kv_tiles + (r + group < rows ? members[r / group + 1] : s) * slots->capacity /
                                                      LANES * kv_heads * tile_size + first_k * tile_size;
            for (int64_t k = 0; k < k_count; k++) {
                const float *key = new_keys + s * kv_stride + (first_k + k) * HEAD_DIM;
                const float *value = new_values + s * kv_stride + (first_k + k) * HEAD_DIM;
                const float *query = queries + s * q_stride + (first_k + k) * group * HEAD_DIM;
                DTYPE *tile = tiles + (last / LANES * kv_heads + k) * tile_size;
                for (int d = 0; d < HEAD_DIM; d++) tile[d * LANES + at] = TO_DTYPE(key[d]);
                for (int d = 0; d < HEAD_DIM; d++) tile[KV_TILE + at * HEAD_DIM + d] = TO_DTYPE(value[d]);
                for (int64_t d = 0; d < group * HEAD_DIM; d++)
                    q[(k * max_rows + r) * HEAD_DIM + d] = scale * query[d];
            }
            for (int64_t t = 0; t <= last; t += LANES, tiles += kv_heads * tile_size)
                for (int64_t k = 0; k < k_count; k++) {
                    const int64_t row = k * max_rows + r, left = last + 1 - t;
                    const DTYPE *next = left > LANES ? tiles + kv_heads * tile_size : tiles_after;
                    attend_own(group, partials + row, q + row * HEAD_DIM, tiles + k * tile_size, next + k * tile_size,
                               left < LANES ? left : LANES);
                }
        }
        const int64_t prompt = slots->block_prompt[b], count = slots->prompt_length[prompt];
        for (int64_t k = 0; k < k_count; k++) {
            const DTYPE *keys = prompt_keys + (prompt * kv_heads + first_k + k) * HEAD_DIM * capacity;
            const DTYPE *values = prompt_values + (prompt * kv_heads + first_k + k) * HEAD_DIM * capacity;
            for (int64_t r = 0, step; r < rows; r += step) {
                PartialSoftmax *partial = partials + k * max_rows + r;
                const float *from = q + (k * max_rows + r) * HEAD_DIM;
                step = rows - r <= FEW_ROWS ? FEW_ROWS : ROW_TILE;
                if (step == FEW_ROWS) attend_prompt(FEW_ROWS, partial, from, keys, values, capacity, count, score);
                else attend_prompt(ROW_TILE, partial, from, keys, values, capacity, count, score);
            }
            for (int64_t r = 0; r < rows; r++) {
                const PartialSoftmax *partial = partials + k * max_rows + r;
                const int64_t head = (first_k + k) * group + r % group;
                const float inv_sum = 1.0f / sum_lanes(partial->weight);
                for (int p = 0; p < HEAD_VECS; p++) {
                    vec x = partial->value[p] * inv_sum;
                    memcpy(out + (members[r / group] * heads + head) * HEAD_DIM + p * LANES, &x, sizeof x);
                }
            }
        }
    }
    free(partials), free(q), free(score);
}

void decode_attention(int64_t threads, int64_t num_blocks, int64_t block_size, const int64_t *block_start,
                      const int64_t *block_prompt, const int64_t *slot_order, const int64_t *prompt_length,
                      const int64_t *length, int64_t heads, int64_t kv_heads, int64_t prompt_capacity,
                      int64_t capacity, const float *queries, const float *new_keys, const float *new_values,
                      const DTYPE *prompt_keys, const DTYPE *prompt_values, DTYPE *kv_tiles, float *out) {
    const Slots slots = {num_blocks, block_size, block_start, block_prompt, slot_order, prompt_length,
                         length,     heads,      kv_heads,    prompt_capacity, capacity};
#pragma omp parallel num_threads(threads)
    attend_in_team(threads, &slots, heads * HEAD_DIM, kv_heads * HEAD_DIM, queries, new_keys, new_values, prompt_keys,
                   prompt_values, kv_tiles, out);
}
