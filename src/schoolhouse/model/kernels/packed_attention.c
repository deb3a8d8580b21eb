/* Causal attention of packed sequences and its gradient. kv_cache.py computes the same forward pass with torch, padded.

   A sequence is one row of `spans` [S, 4]: where its prefix begins, the length of the prefix, where its own tokens
   begin, and how many they are. Sequences that share a prompt form a group. The first one holds the prompt and has no
   prefix; the prefix of the others is the beginning of the first. So a prompt is stored once.
   Queries [N, H, HEAD_DIM], keys and values [N, K, HEAD_DIM], out [N, H, HEAD_DIM], logsumexp of the scores [N, H], all
   float32. Keys and values of one sequence and one head are first copied into the layout that the products read. Then
   ROW_TILE (forward) or QUERY_TILE (backward) queries attend at a time. Scores of keys behind a query are computed in
   the last tile alone. No sum depends on another group. */

#include "simd.h"

#define QUERY_TILE (ROW_TILE == 6 ? 48 : 64) /* queries of one step of the backward pass; a multiple of ROW_TILE */

DEFINE_MATMUL(matmul, float, ROW_TILE)

static inline int64_t round_to_tiles(int64_t n) { return (n + 2 * LANES - 1) / (2 * LANES) * (2 * LANES); }
static inline int64_t round_to_rows(int64_t n) { return (n + ROW_TILE - 1) / ROW_TILE * ROW_TILE; }

/* The memory for a row of n numbers, an odd number of cache lines. So the numbers of one column lie in different sets
   of the cache. With a power of two, all numbers of a column would lie in the same set. */
static inline int64_t row_room(int64_t n) { return (n + 31) / 32 * 32 + 16; }

/* Copies n rows of one head. */
static void gather_rows(float *to, const float *from, int64_t n, int64_t stride, float scale) {
    for (int64_t t = 0; t < n; t++)
        for (int d = 0; d < HEAD_DIM; d++) to[t * HEAD_DIM + d] = scale * from[t * stride + d];
}

typedef struct {
    int64_t prefix_start, prefix_len, start, len;
} Span;

/* Copies the rows of one head of a sequence: its prefix, then its own. */
static void gather_sequence(float *to, const float *from, const Span *span, int64_t heads, int64_t head) {
    const int64_t stride = heads * HEAD_DIM;
    const float *prefix = from + (span->prefix_start * heads + head) * HEAD_DIM;
    const float *own = from + (span->start * heads + head) * HEAD_DIM;
    gather_rows(to, prefix, span->prefix_len, stride, 1.0f);
    gather_rows(to + span->prefix_len * HEAD_DIM, own, span->len, stride, 1.0f);
}

/* [n, HEAD_DIM] -> [HEAD_DIM, padded_len] */
static void transpose(float *to, const float *from, int64_t n, int64_t padded_len) {
    for (int64_t t = 0; t < n; t++)
        for (int d = 0; d < HEAD_DIM; d++) to[d * padded_len + t] = from[t * HEAD_DIM + d];
}

/* to [rows, padded_len] = a [rows, HEAD_DIM] b [HEAD_DIM, padded_len], columns up to `until`; `rows` a multiple of
   ROW_TILE */
static void matmul_columns(float *to, const float *a, const float *b, int64_t rows, int64_t padded_len, int64_t until) {
    for (int64_t r = 0; r < rows; r += ROW_TILE)
        for (int64_t t = 0; t < until; t += 2 * LANES) {
            vec part[ROW_TILE][2] = {{{0}}};
            matmul(part, a + r * HEAD_DIM, HEAD_DIM, 1, b + t, padded_len, HEAD_DIM);
            for (int i = 0; i < ROW_TILE; i++) memcpy(to + (r + i) * padded_len + t, part[i], sizeof part[i]);
        }
}

/* to [rows, HEAD_DIM] += a [rows, n] b [n, HEAD_DIM]. The strides are those of a; `rows` a multiple of ROW_TILE */
static void matmul_add(float *to, const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t rows,
                       int64_t n) {
    for (int64_t r = 0; r < rows; r += ROW_TILE)
        for (int d = 0; d < HEAD_DIM; d += 2 * LANES) {
            vec part[ROW_TILE][2];
            for (int i = 0; i < ROW_TILE; i++) memcpy(part[i], to + (r + i) * HEAD_DIM + d, sizeof part[i]);
            matmul(part, a + r * a_row, a_row, a_column, b + d, HEAD_DIM, n);
            for (int i = 0; i < ROW_TILE; i++) memcpy(to + (r + i) * HEAD_DIM + d, part[i], sizeof part[i]);
        }
}

void attention_forward(int64_t threads, int64_t sequences, const Span *spans, int64_t heads, int64_t kv_heads,
                       const float *queries, const float *keys, const float *values, float *out, float *logsumexp) {
    const int64_t queries_per_kv = heads / kv_heads;
    const float scale = 1.0f / sqrtf((float)HEAD_DIM);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < sequences * kv_heads; task++) {
        const Span *span = spans + task / kv_heads;
        const int64_t head = task % kv_heads, start = span->start, prefix_len = span->prefix_len, n = span->len;
        const int64_t padded_len = row_room(prefix_len + n);
        float *k = calloc((3 * padded_len + 2 * ROW_TILE) * HEAD_DIM + ROW_TILE * padded_len, sizeof(float));
        float *flat_k = k + padded_len * HEAD_DIM, *v = flat_k + padded_len * HEAD_DIM, *q = v + padded_len * HEAD_DIM;
        float *row_out = q + ROW_TILE * HEAD_DIM, *score = row_out + ROW_TILE * HEAD_DIM;

        gather_sequence(flat_k, keys, span, kv_heads, head);
        transpose(k, flat_k, prefix_len + n, padded_len);
        gather_sequence(v, values, span, kv_heads, head);
        for (int64_t j = 0; j < queries_per_kv; j++)
            for (int64_t r = 0; r < n; r += ROW_TILE) {
                const int64_t rows = n - r < ROW_TILE ? n - r : ROW_TILE;
                const int64_t at = (start + r) * heads + head * queries_per_kv + j;
                const int64_t until = prefix_len + r + rows;
                gather_rows(q, queries + at * HEAD_DIM, rows, heads * HEAD_DIM, scale);
                matmul_columns(score, q, k, ROW_TILE, padded_len, until);
                float inv_sum[ROW_TILE];
                for (int64_t i = 0; i < ROW_TILE; i++) {
                    float *row_score = score + i * padded_len;
                    const int64_t visible = i < rows ? prefix_len + r + i + 1 : 1;
                    vec maxima = mask_after(visible, load_float(row_score), -INFINITY), sums = {0};
                    for (int64_t t = LANES; t < visible; t += LANES) {
                        vec x = mask_after(visible - t, load_float(row_score + t), -INFINITY);
                        maxima = where(x > maxima, x, maxima);
                    }
                    const float max = max_lanes(maxima);
                    for (int64_t t = 0; t < until; t += LANES) {
                        vec x = exp_nonpositive(load_float(row_score + t) - max);
                        x = mask_after(visible > t ? visible - t : 0, x, 0.0f);
                        sums += x;
                        memcpy(row_score + t, &x, sizeof x);
                    }
                    inv_sum[i] = 1.0f / sum_lanes(sums);
                    if (i < rows) logsumexp[at + i * heads] = max - logf(inv_sum[i]);
                }
                memset(row_out, 0, ROW_TILE * HEAD_DIM * sizeof(float));
                matmul_add(row_out, score, padded_len, 1, v, ROW_TILE, until);
                for (int64_t i = 0; i < rows; i++)
                    for (int d = 0; d < HEAD_DIM; d++)
                        out[(at + i * heads) * HEAD_DIM + d] = row_out[i * HEAD_DIM + d] * inv_sum[i];
            }
        free(k);
    }
}

/* Gradients [N, H, HEAD_DIM], [N, K, HEAD_DIM], [N, K, HEAD_DIM] from that of `out` (Dao et al. 2022, arXiv 2205.14135,
   appendix B.2: attention weights are computed again from `logsumexp`). */
void attention_backward(int64_t threads, int64_t num_groups, const int64_t *group_start, const Span *spans,
                        int64_t heads, int64_t kv_heads, const float *queries, const float *keys, const float *values,
                        const float *out, const float *logsumexp, const float *grad_out, float *grad_queries,
                        float *grad_keys, float *grad_values) {
    const int64_t queries_per_kv = heads / kv_heads;
    const float scale = 1.0f / sqrtf((float)HEAD_DIM);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < num_groups * kv_heads; task++)
        for (int64_t s = group_start[task / kv_heads]; s < group_start[task / kv_heads + 1]; s++) {
            const Span *span = spans + s;
            const int64_t head = task % kv_heads, start = span->start, prefix_len = span->prefix_len, n = span->len;
            const int64_t padded_len = row_room(prefix_len + n);
            const int64_t size = (6 * padded_len + 4 * QUERY_TILE) * HEAD_DIM + 2 * QUERY_TILE * padded_len;
            float *k = calloc(size, sizeof(float));
            float *k_transposed = k + padded_len * HEAD_DIM, *v = k_transposed + padded_len * HEAD_DIM;
            float *v_transposed = v + padded_len * HEAD_DIM, *dk = v_transposed + padded_len * HEAD_DIM;
            float *dv = dk + padded_len * HEAD_DIM, *q = dv + padded_len * HEAD_DIM;
            float *row_out = q + QUERY_TILE * HEAD_DIM, *row_dout = row_out + QUERY_TILE * HEAD_DIM;
            float *dq = row_dout + QUERY_TILE * HEAD_DIM;
            float *weight = dq + QUERY_TILE * HEAD_DIM, *dscore = weight + QUERY_TILE * padded_len;

            gather_sequence(k, keys, span, kv_heads, head);
            gather_sequence(v, values, span, kv_heads, head);
            transpose(k_transposed, k, prefix_len + n, padded_len);
            transpose(v_transposed, v, prefix_len + n, padded_len);
            for (int64_t j = 0; j < queries_per_kv; j++)
                for (int64_t r = 0; r < n; r += QUERY_TILE) {
                    const int64_t rows = n - r < QUERY_TILE ? n - r : QUERY_TILE;
                    const int64_t at = (start + r) * heads + head * queries_per_kv + j;
                    const int64_t until = prefix_len + r + rows, key_rows = round_to_rows(until);
                    const int64_t padded_until = round_to_tiles(key_rows), padded_rows = round_to_rows(rows);
                    memset(q, 0, 4 * QUERY_TILE * HEAD_DIM * sizeof(float));
                    gather_rows(q, queries + at * HEAD_DIM, rows, heads * HEAD_DIM, scale);
                    gather_rows(row_out, out + at * HEAD_DIM, rows, heads * HEAD_DIM, 1.0f);
                    gather_rows(row_dout, grad_out + at * HEAD_DIM, rows, heads * HEAD_DIM, 1.0f);
                    matmul_columns(weight, q, k_transposed, padded_rows, padded_len, until);
                    matmul_columns(dscore, row_dout, v_transposed, padded_rows, padded_len, until);
                    for (int64_t i = 0; i < padded_rows; i++) {
                        float out_dot_dout = 0.0f, *w = weight + i * padded_len, *ds = dscore + i * padded_len;
                        const int64_t visible = i < rows ? prefix_len + r + i + 1 : 0;
                        const float row_logsumexp = i < rows ? logsumexp[at + i * heads] : 0.0f;
                        for (int d = 0; d < HEAD_DIM; d++)
                            out_dot_dout += row_out[i * HEAD_DIM + d] * row_dout[i * HEAD_DIM + d];
                        for (int64_t t = 0; t < padded_until; t += LANES) {
                            const int64_t left = visible > t ? visible - t : 0;
                            vec x = mask_after(left, load_float(w + t) - row_logsumexp, -87.0f);
                            vec y = load_float(ds + t) - out_dot_dout;
                            x = mask_after(left, exp_nonpositive(x), 0.0f);
                            y = mask_after(left, x * y, 0.0f);
                            memcpy(w + t, &x, sizeof x);
                            memcpy(ds + t, &y, sizeof y);
                        }
                    }
                    matmul_add(dq, dscore, padded_len, 1, k, padded_rows, until);
                    for (int64_t i = 0; i < rows; i++)
                        for (int d = 0; d < HEAD_DIM; d++)
                            grad_queries[(at + i * heads) * HEAD_DIM + d] = scale * dq[i * HEAD_DIM + d];
                    matmul_add(dv, weight, 1, padded_len, row_dout, key_rows, rows);
                    matmul_add(dk, dscore, 1, padded_len, q, key_rows, rows);
                }
            /* The first sequence of the group writes the gradient of the prompt; the others add to it. */
            for (int64_t t = 0; t < prefix_len + n; t++) {
                const int64_t to = t < prefix_len ? span->prefix_start + t : start + t - prefix_len;
                for (int d = 0; d < HEAD_DIM; d++) {
                    const int64_t at = (to * kv_heads + head) * HEAD_DIM + d;
                    grad_keys[at] = dk[t * HEAD_DIM + d] + (t < prefix_len ? grad_keys[at] : 0.0f);
                    grad_values[at] = dv[t * HEAD_DIM + d] + (t < prefix_len ? grad_values[at] : 0.0f);
                }
            }
            free(k);
        }
}
