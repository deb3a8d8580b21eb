/* Causal attention of packed sequences and its gradient: memory.py computes the forward pass with torch, padded.

   A sequence is a line of `place` [S, 4]: where its prefix begins and how long that is, where its own tokens begin and
   how many they are. The prefix is the beginning of the first sequence of its family, so that a prompt is there once;
   a first sequence has none. Queries [N, H, WIDTH], keys and values [N, K, WIDTH], seen [N, H, WIDTH], spread [N, H]
   (log of the sum of e^score) in float32. Keys and values of a sequence and head are laid out as products want them,
   then met by ROWS (forward) or SPAN (backward) queries at a time; scores of keys behind a query are never computed but
   in the last tile. No sum depends on another family. */

#include "vectors.h"

#define SPAN 64 /* queries that the gradient is computed for at a time; a multiple of 2 LANES */

MULTIPLY(product, float)

static inline int64_t whole_tiles(int64_t n) { return (n + 2 * LANES - 1) / (2 * LANES) * (2 * LANES); }

static void gather(float *to, const float *from, int64_t n, int64_t stride, float scale) { /* n rows of a head */
    for (int64_t t = 0; t < n; t++)
        for (int d = 0; d < WIDTH; d++) to[t * WIDTH + d] = scale * from[t * stride + d];
}

typedef struct {
    int64_t prefix_start, prefix, start, own;
} Place;

/* Rows of one head of a sequence, prefix and own. */
static void gather_all(float *to, const float *from, const Place *place, int64_t heads, int64_t head) {
    gather(to, from + (place->prefix_start * heads + head) * WIDTH, place->prefix, heads * WIDTH, 1.0f);
    gather(to + place->prefix * WIDTH, from + (place->start * heads + head) * WIDTH, place->own, heads * WIDTH, 1.0f);
}

static void turn(float *to, const float *from, int64_t n, int64_t room) { /* [n, WIDTH] -> [WIDTH, room] */
    for (int64_t t = 0; t < n; t++)
        for (int d = 0; d < WIDTH; d++) to[d * room + t] = from[t * WIDTH + d];
}

/* to [rows, room] = a [rows, WIDTH] b [WIDTH, room], for columns up to `until`; `rows` a multiple of ROWS */
static void against(float *to, const float *a, const float *b, int64_t rows, int64_t room, int64_t until) {
    for (int64_t r = 0; r < rows; r += ROWS)
        for (int64_t t = 0; t < until; t += 2 * LANES) {
            vec part[ROWS][2] = {{{0}}};
            product(part, a + r * WIDTH, WIDTH, 1, b + t, room, WIDTH);
            for (int i = 0; i < ROWS; i++) memcpy(to + (r + i) * room + t, part[i], sizeof part[i]);
        }
}

/* to [rows, WIDTH] += a [rows, n] b [n, WIDTH], where a is read with these strides; `rows` a multiple of ROWS */
static void add_product(float *to, const float *a, int64_t row, int64_t column, const float *b, int64_t rows,
                        int64_t n) {
    for (int64_t r = 0; r < rows; r += ROWS)
        for (int d = 0; d < WIDTH; d += 2 * LANES) {
            vec part[ROWS][2];
            for (int i = 0; i < ROWS; i++) memcpy(part[i], to + (r + i) * WIDTH + d, sizeof part[i]);
            product(part, a + r * row, row, column, b + d, WIDTH, n);
            for (int i = 0; i < ROWS; i++) memcpy(to + (r + i) * WIDTH + d, part[i], sizeof part[i]);
        }
}

void see(int64_t threads, int64_t sequences, const Place *places, int64_t heads, int64_t key_heads,
         const float *queries, const float *keys, const float *values, float *seen, float *spread) {
    const int64_t times = heads / key_heads;
    const float scale = 1.0f / sqrtf((float)WIDTH);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < sequences * key_heads; task++) {
        const Place *place = places + task / key_heads;
        const int64_t head = task % key_heads, from = place->start, before = place->prefix, n = place->own;
        const int64_t room = whole_tiles(before + n);
        float *k = calloc((3 * room + 2 * ROWS) * WIDTH + ROWS * room, sizeof(float));
        float *flat = k + room * WIDTH, *v = flat + room * WIDTH, *q = v + room * WIDTH, *out = q + ROWS * WIDTH;
        float *score = out + ROWS * WIDTH;

        gather_all(flat, keys, place, key_heads, head);
        turn(k, flat, before + n, room);
        gather_all(v, values, place, key_heads, head);
        for (int64_t j = 0; j < times; j++)
            for (int64_t r = 0; r < n; r += ROWS) {
                const int64_t rows = n - r < ROWS ? n - r : ROWS, at = (from + r) * heads + head * times + j;
                const int64_t reach = before + r + rows;
                gather(q, queries + at * WIDTH, rows, heads * WIDTH, scale);
                against(score, q, k, ROWS, room, reach);
                float less[ROWS];
                for (int64_t i = 0; i < ROWS; i++) {
                    float *mine = score + i * room;
                    const int64_t until = i < rows ? before + r + i + 1 : 1;
                    vec top = first(until, of_float(mine), -INFINITY), sums = {0};
                    for (int64_t t = LANES; t < until; t += LANES) {
                        vec x = first(until - t, of_float(mine + t), -INFINITY);
                        top = pick(x > top, x, top);
                    }
                    const float most = largest(top);
                    for (int64_t t = 0; t < reach; t += LANES) {
                        vec x = first(until > t ? until - t : 0, exponential(of_float(mine + t) - most), 0.0f);
                        sums += x;
                        memcpy(mine + t, &x, sizeof x);
                    }
                    less[i] = 1.0f / sum(sums);
                    if (i < rows) spread[at + i * heads] = most - logf(less[i]);
                }
                memset(out, 0, ROWS * WIDTH * sizeof(float));
                add_product(out, score, room, 1, v, ROWS, reach);
                for (int64_t i = 0; i < rows; i++)
                    for (int d = 0; d < WIDTH; d++) seen[(at + i * heads) * WIDTH + d] = out[i * WIDTH + d] * less[i];
            }
        free(k);
    }
}

/* Gradients [N, H, WIDTH], [N, K, WIDTH], [N, K, WIDTH] from those of what was seen (Dao et al. 2022, arXiv 2205.14135,
   appendix B.2: weights are computed again from `spread`). */
void unsee(int64_t threads, int64_t families, const int64_t *family, const Place *places, int64_t heads,
           int64_t key_heads, const float *queries, const float *keys, const float *values, const float *seen,
           const float *spread, const float *seen_gradient, float *query_gradient, float *key_gradient,
           float *value_gradient) {
    const int64_t times = heads / key_heads;
    const float scale = 1.0f / sqrtf((float)WIDTH);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < families * key_heads; task++)
        for (int64_t s = family[task / key_heads]; s < family[task / key_heads + 1]; s++) {
            const Place *place = places + s;
            const int64_t head = task % key_heads, from = place->start, before = place->prefix, n = place->own;
            const int64_t room = whole_tiles(before + n);
            float *k = calloc((6 * room + 4 * SPAN) * WIDTH + 2 * SPAN * room, sizeof(float));
            float *turned_k = k + room * WIDTH, *v = turned_k + room * WIDTH, *turned_v = v + room * WIDTH;
            float *dk = turned_v + room * WIDTH, *dv = dk + room * WIDTH, *q = dv + room * WIDTH;
            float *out = q + SPAN * WIDTH, *dout = out + SPAN * WIDTH, *dq = dout + SPAN * WIDTH;
            float *weight = dq + SPAN * WIDTH, *dscore = weight + SPAN * room;

            gather_all(k, keys, place, key_heads, head);
            gather_all(v, values, place, key_heads, head);
            turn(turned_k, k, before + n, room);
            turn(turned_v, v, before + n, room);
            for (int64_t j = 0; j < times; j++)
                for (int64_t r = 0; r < n; r += SPAN) {
                    const int64_t rows = n - r < SPAN ? n - r : SPAN, at = (from + r) * heads + head * times + j;
                    const int64_t until = before + r + rows, tiles = whole_tiles(until);
                    const int64_t rounded = (rows + ROWS - 1) / ROWS * ROWS;
                    memset(q, 0, 4 * SPAN * WIDTH * sizeof(float));
                    gather(q, queries + at * WIDTH, rows, heads * WIDTH, scale);
                    gather(out, seen + at * WIDTH, rows, heads * WIDTH, 1.0f);
                    gather(dout, seen_gradient + at * WIDTH, rows, heads * WIDTH, 1.0f);
                    against(weight, q, turned_k, rounded, room, until);
                    against(dscore, dout, turned_v, rounded, room, until);
                    for (int64_t i = 0; i < rounded; i++) {
                        float common = 0.0f, *w = weight + i * room, *ds = dscore + i * room;
                        const int64_t mine = i < rows ? before + r + i + 1 : 0;
                        const float less = i < rows ? spread[at + i * heads] : 0.0f;
                        for (int d = 0; d < WIDTH; d++) common += out[i * WIDTH + d] * dout[i * WIDTH + d];
                        for (int64_t t = 0; t < tiles; t += LANES) {
                            const int64_t left = mine > t ? mine - t : 0;
                            vec x = first(left, of_float(w + t) - less, -87.0f), y = of_float(ds + t) - common;
                            x = first(left, exponential(x), 0.0f);
                            y = first(left, x * y, 0.0f);
                            memcpy(w + t, &x, sizeof x);
                            memcpy(ds + t, &y, sizeof y);
                        }
                    }
                    add_product(dq, dscore, room, 1, k, rounded, until);
                    for (int64_t i = 0; i < rows; i++)
                        for (int d = 0; d < WIDTH; d++)
                            query_gradient[(at + i * heads) * WIDTH + d] = scale * dq[i * WIDTH + d];
                    add_product(dv, weight, 1, room, dout, (until + ROWS - 1) / ROWS * ROWS, rows);
                    add_product(dk, dscore, 1, room, q, (until + ROWS - 1) / ROWS * ROWS, rows);
                }
            for (int64_t t = 0; t < before + n; t++) { /* the first of the family has written where others add */
                const int64_t to = t < before ? place->prefix_start + t : from + t - before;
                for (int d = 0; d < WIDTH; d++) {
                    const int64_t number = (to * key_heads + head) * WIDTH + d;
                    key_gradient[number] = dk[t * WIDTH + d] + (t < before ? key_gradient[number] : 0.0f);
                    value_gradient[number] = dv[t * WIDTH + d] + (t < before ? value_gradient[number] : 0.0f);
                }
            }
            free(k);
        }
}
