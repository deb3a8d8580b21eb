/* One decode step of attention for slots that share prompts: memory.py computes the same with torch.

   A block is up to `block` slots that go on from the same prompt. Each of its queries first meets its own words, in one
   pass over memory; then all of them meet the prompt together, as a small matrix product (each key is read once for
   all), and the two looks become one softmax. Every row is computed in an order of its own, so that it does not depend
   on its neighbours. Given when this is compiled: WIDTH, of a head, a multiple of 2 LANES; STORED, the type that keys
   and values are kept in: float, or uint16_t for bfloat16.

   queries [S, H, WIDTH], fresh keys and values [S, K, WIDTH], prompt keys [P, K, WIDTH, prompt_room] (transposed),
   prompt values [P, K, prompt_room, WIDTH], words [S, room / LANES, K, 2, LANES * WIDTH] (tiles of keys, transposed,
   and of values), seen [S, H, WIDTH]. `prompt_room` is a multiple of 2 LANES, `room` of LANES. */

#include "vectors.h"

MULTIPLY(multiply, STORED)

/* What a query has seen so far: values weighed by e^(score - top), the weights side by side, and top. */
typedef struct {
    vec value[PARTS], weight;
    float top;
} Look;

/* Go on with scores up to `top`: what was seen so far counts less. */
static inline void raise(Look *look, float top) {
    if (top <= look->top) return;
    float less = expf(look->top - top);
    for (int p = 0; p < PARTS; p++) look->value[p] *= less;
    look->weight *= less;
    look->top = top;
}

/* Meet the first `n` <= LANES words of a tile. */
static inline void meet(Look *look, const float *q, const STORED *tile, int64_t n) {
    vec a = {0}, b = {0}, c = {0}, d = {0}, value[PARTS]; /* four sums, so that none waits for itself */
    for (int i = 0; i < WIDTH; i += 4) {
        a += q[i] * LOAD(tile + i * LANES);
        b += q[i + 1] * LOAD(tile + (i + 1) * LANES);
        c += q[i + 2] * LOAD(tile + (i + 2) * LANES);
        d += q[i + 3] * LOAD(tile + (i + 3) * LANES);
    }
    vec score = first(n, (a + b) + (c + d), -INFINITY);
    raise(look, largest(score));
    score = first(n, exponential(score - look->top), 0.0f);
    look->weight += score;
    memcpy(value, look->value, sizeof value);
    for (int64_t t = 0; t < n; t++)
        for (int p = 0; p < PARTS; p++) value[p] += score[t] * LOAD(tile + TILE + t * WIDTH + p * LANES);
    memcpy(look->value, value, sizeof value);
}

void attend(int64_t threads, int64_t blocks, int64_t block, const int64_t *start, const int64_t *prompt,
            const int64_t *slot, const int64_t *prompt_length, const int64_t *said, int64_t heads, int64_t key_heads,
            int64_t prompt_room, int64_t room, const float *queries, const float *fresh_keys,
            const float *fresh_values, const STORED *prompt_keys, const STORED *prompt_values, STORED *words,
            float *seen) {
    const int64_t times = heads / key_heads, most = (block * times + ROWS - 1) / ROWS * ROWS;
    const float scale = 1.0f / sqrtf((float)WIDTH);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t n = start[b + 1] - start[b], rows = n * times, read = prompt_length[prompt[b]];
        const int64_t *who = slot + start[b];
        Look *looks = aligned_alloc(sizeof(vec), key_heads * most * sizeof(Look)); /* [K, rows] */
        float *q = calloc(key_heads * most * WIDTH, sizeof(float));                /* [K, rows, WIDTH] */
        float *score = malloc(ROWS * prompt_room * sizeof(float));
        memset(looks, 0, key_heads * most * sizeof(Look));

        for (int64_t i = 0; i < n; i++) {
            const int64_t s = who[i], last = said[s];
            STORED *mine = words + s * room * key_heads * 2 * WIDTH;
            for (int64_t k = 0; k < key_heads; k++) {
                STORED *tile = mine + (last / LANES * key_heads + k) * 2 * TILE;
                for (int d = 0; d < WIDTH; d++) {
                    tile[d * LANES + last % LANES] = KEEP(fresh_keys[(s * key_heads + k) * WIDTH + d]);
                    tile[TILE + last % LANES * WIDTH + d] = KEEP(fresh_values[(s * key_heads + k) * WIDTH + d]);
                }
                for (int64_t j = 0; j < times; j++) {
                    const int64_t row = k * most + i * times + j;
                    for (int d = 0; d < WIDTH; d++)
                        q[row * WIDTH + d] = scale * queries[(s * heads + k * times + j) * WIDTH + d];
                    looks[row].top = -INFINITY;
                }
            }
            for (int64_t t = 0; t <= last; t += LANES)
                for (int64_t k = 0; k < key_heads; k++)
                    for (int64_t j = 0; j < times; j++) {
                        const int64_t row = k * most + i * times + j, left = last + 1 - t;
                        meet(looks + row, q + row * WIDTH, mine + (t / LANES * key_heads + k) * 2 * TILE,
                             left < LANES ? left : LANES);
                    }
        }
        for (int64_t k = 0; k < key_heads; k++) {
            const STORED *keys = prompt_keys + (prompt[b] * key_heads + k) * WIDTH * prompt_room;
            const STORED *values = prompt_values + (prompt[b] * key_heads + k) * WIDTH * prompt_room;
            for (int64_t r = 0; r < rows; r += ROWS) {
                Look *look = looks + k * most + r;
                for (int64_t t = 0; t < read; t += 2 * LANES) {
                    vec part[ROWS][2] = {{{0}}};
                    multiply(part, q + (k * most + r) * WIDTH, WIDTH, 1, keys + t, prompt_room, WIDTH);
                    for (int i = 0; i < ROWS; i++) memcpy(score + i * prompt_room + t, part[i], sizeof part[i]);
                }
                for (int i = 0; i < ROWS; i++) {
                    float *mine = score + i * prompt_room;
                    vec top = first(read, of_float(mine), -INFINITY);
                    for (int64_t t = LANES; t < read; t += LANES) {
                        vec x = first(read - t, of_float(mine + t), -INFINITY);
                        top = pick(x > top, x, top);
                    }
                    raise(look + i, largest(top));
                    for (int64_t t = 0; t < read; t += LANES) {
                        vec x = first(read - t, exponential(of_float(mine + t) - look[i].top), 0.0f);
                        look[i].weight += x;
                        memcpy(mine + t, &x, sizeof x);
                    }
                }
                for (int p = 0; p < PARTS; p += 2) {
                    vec part[ROWS][2];
                    for (int i = 0; i < ROWS; i++) memcpy(part[i], look[i].value + p, sizeof part[i]);
                    multiply(part, score, prompt_room, 1, values + p * LANES, WIDTH, read);
                    for (int i = 0; i < ROWS; i++) memcpy(look[i].value + p, part[i], sizeof part[i]);
                }
                for (int64_t i = 0; i < ROWS && r + i < rows; i++) {
                    const int64_t s = who[(r + i) / times], head = k * times + (r + i) % times;
                    float *to = seen + (s * heads + head) * WIDTH, least = 1.0f / sum(look[i].weight);
                    for (int p = 0; p < PARTS; p++) {
                        vec x = look[i].value[p] * least;
                        memcpy(to + p * LANES, &x, sizeof x);
                    }
                }
            }
        }
        free(looks), free(q), free(score);
    }
}
