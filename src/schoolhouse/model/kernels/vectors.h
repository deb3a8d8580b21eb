/* What the kernels share: vectors of GCC and Clang, e^x, and small matrix products. WIDTH, of a head, is given. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16 /* numbers computed side by side; tokens of a tile of words */
#ifdef __AVX512F__
#define ROWS 8 /* queries that meet a prompt side by side: their sums stay in registers */
#else
#define ROWS 4
#endif
#define TILE (LANES * WIDTH)
#define PARTS (WIDTH / LANES)

/* Vectors of GCC and Clang: on processors with shorter registers, several of those. */
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef uint32_t unsigned_whole __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));

static inline vec all(float x) { return (vec){0} + x; }
static inline vec of_float(const float *x) {
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}
static inline vec of_bfloat16(const uint16_t *x) {
    half h;
    memcpy(&h, x, sizeof h);
    return (vec)(__builtin_convertvector(h, whole) << 16);
}
static inline float as_float(float x) { return x; }
static inline uint16_t as_bfloat16(float x) { /* the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline float of_one_float(float x) { return x; }
static inline float of_one_bfloat16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
#define KEEP(x) _Generic((STORED)0, float: as_float, default: as_bfloat16)(x)
#define LOAD_ONE(x) _Generic((x), float: of_one_float, default: of_one_bfloat16)(x)
static inline vec keep_float(vec x) { return x; }
static inline half keep_bfloat16(vec x) {
    whole bits = (whole)x;
    return __builtin_convertvector((unsigned_whole)(bits + 0x7fff + ((bits >> 16) & 1)) >> 16, half);
}
#define NUMBERS __typeof__(NUMBERS_OF(all(0.0f)))
#define NUMBERS_OF(x) _Generic((STORED)0, float: keep_float, default: keep_bfloat16)(x)
#define LOAD(x) _Generic((x), const float *: of_float, float *: of_float, default: of_bfloat16)(x)

static inline vec pick(whole yes, vec x, vec otherwise) { /* x where `yes` is -1, else `otherwise` */
    return (vec)((yes & (whole)x) | (~yes & (whole)otherwise));
}
static inline vec first(int64_t n, vec x, float otherwise) { /* the first n numbers of x */
    const whole place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return pick(place < (int32_t)(n < LANES ? n : LANES), x, all(otherwise));
}
static inline float sum(vec x) {
    float whole = 0.0f;
    for (int l = 0; l < LANES; l++) whole += x[l];
    return whole;
}
static inline float largest(vec x) {
    float top = x[0];
    for (int l = 1; l < LANES; l++) top = x[l] > top ? x[l] : top;
    return top;
}

/* e^x for x <= 0, to about 1e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cody and Waite's reduction) */
static inline vec exponential(vec x) {
    x = pick(x < -87.0f, all(-87.0f), x);
    whole n = __builtin_convertvector(x * 1.44269504f - 0.5f, whole); /* towards zero: the nearest, as x <= 0 */
    vec m = __builtin_convertvector(n, vec), r = (x - m * 0.693359375f) + m * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((n + 127) << 23);
}

/* The first n numbers of x, as much as there is of a vector, and back. */
static inline vec some(const STORED *x, int64_t n) {
    STORED part[LANES] = {0};
    if (n >= LANES) return LOAD(x);
    memcpy(part, x, n * sizeof(STORED));
    return LOAD((const STORED *)part);
}
static inline vec some_floats(const float *x, int64_t n) {
    float part[LANES] = {0};
    if (n >= LANES) return of_float(x);
    memcpy(part, x, n * sizeof(float));
    return of_float(part);
}
static inline void put(STORED *to, vec x, int64_t n) {
    NUMBERS numbers = NUMBERS_OF(x);
    if (n >= LANES) memcpy(to, &numbers, sizeof numbers);
    else memcpy(to, &numbers, n * sizeof(STORED));
}
static inline void put_floats(float *to, vec x, int64_t n) {
    if (n >= LANES) memcpy(to, &x, sizeof x);
    else memcpy(to, &x, n * sizeof(float));
}

/* part [ROWS, 2 LANES] += a [ROWS, n] b [n, 2 LANES]. Rows of a are `a_row` numbers apart and its columns `a_column`,
   rows of b `b_row`. The one place where products are computed: 2 ROWS sums stay in registers. */
#define MULTIPLY(name, type)                                                                                           \
    static inline void name(vec part[ROWS][2], const float *a, int64_t a_row, int64_t a_column, const type *b,          \
                            int64_t b_row, int64_t n) {                                                                \
        vec sum[ROWS][2];                                                                                              \
        memcpy(sum, part, sizeof sum);                                                                                 \
        for (int64_t x = 0; x < n; x++) {                                                                              \
            vec left = LOAD(b + x * b_row), right = LOAD(b + x * b_row + LANES);                                       \
            for (int i = 0; i < ROWS; i++) {                                                                           \
                sum[i][0] += a[i * a_row + x * a_column] * left;                                                       \
                sum[i][1] += a[i * a_row + x * a_column] * right;                                                      \
            }                                                                                                          \
        }                                                                                                              \
        memcpy(part, sum, sizeof sum);                                                                                 \
    }
