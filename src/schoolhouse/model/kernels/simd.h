/* Shared by all kernels: vectors of GCC and Clang, e^x, and a small matrix product.

   Set when the kernels are compiled: HEAD_DIM, the width of a head, a multiple of 2 LANES; DTYPE, the number type of
   activations and of the KV cache: float, or uint16_t for bfloat16. Sums are always in float32.

   A vector has as many numbers as a register of the processor: compilers split longer vectors badly. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* LANES: numbers of one vector; also the tokens of one tile of the KV cache.
   ROW_TILE: rows of a matrix product that are computed together. The 2 ROW_TILE sums of the rows stay in registers. */
#if defined(__AVX512F__) /* 32 registers */
#define LANES 16
#define ROW_TILE 8
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif defined(__AVX__) /* 16 registers */
#define LANES 8
#define ROW_TILE 6
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#elif defined(__ARM_NEON) /* 32 registers */
#define LANES 4
#define ROW_TILE 8
#define LANE_NUMBERS 0, 1, 2, 3
#else /* SSE: 16 registers */
#define LANES 4
#define ROW_TILE 4
#define LANE_NUMBERS 0, 1, 2, 3
#endif
_Static_assert(HEAD_DIM % (2 * LANES) == 0, "the width of a head must be a multiple of two vectors");
#define KV_TILE (LANES * HEAD_DIM)
#define HEAD_VECS (HEAD_DIM / LANES)

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t int_vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uint_vec __attribute__((vector_size(4 * LANES)));
typedef uint16_t bfloat16_vec __attribute__((vector_size(2 * LANES)));

static inline vec splat(float x) { return (vec){0} + x; }
static inline vec load_float(const float *x) {
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}
static inline vec load_bfloat16(const uint16_t *x) {
#if defined(__AVX512F__) /* GCC converts in two halves */
    return (vec)((int_vec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)) << 16);
#else
    bfloat16_vec h;
    memcpy(&h, x, sizeof h);
    return (vec)(__builtin_convertvector(h, int_vec) << 16);
#endif
}
static inline float to_float(float x) { return x; }
static inline uint16_t to_bfloat16(float x) { /* the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline float from_float(float x) { return x; }
static inline float from_bfloat16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline vec vec_to_float(vec x) { return x; }
static inline bfloat16_vec vec_to_bfloat16(vec x) {
    int_vec bits = (int_vec)x;
    return __builtin_convertvector((uint_vec)(bits + 0x7fff + ((bits >> 16) & 1)) >> 16, bfloat16_vec);
}

/* Conversions between float and DTYPE, of one number and of a vector. */
#define TO_DTYPE(x) _Generic((DTYPE)0, float: to_float, default: to_bfloat16)(x)
#define FROM_DTYPE(x) _Generic((x), float: from_float, default: from_bfloat16)(x)
#define VEC_TO_DTYPE(x) _Generic((DTYPE)0, float: vec_to_float, default: vec_to_bfloat16)(x)
#define DTYPE_VEC __typeof__(VEC_TO_DTYPE(splat(0.0f)))
#define LOAD(x) _Generic((x), const float *: load_float, float *: load_float, default: load_bfloat16)(x)

static inline vec where(int_vec mask, vec x, vec otherwise) { /* x where `mask` is -1, else `otherwise` */
    return (vec)((mask & (int_vec)x) | (~mask & (int_vec)otherwise));
}
static inline vec mask_after(int64_t n, vec x, float fill) { /* the first n numbers of x, then `fill` */
    const int_vec lane = {LANE_NUMBERS};
    return where(lane < (int32_t)(n < LANES ? n : LANES), x, splat(fill));
}
static inline float sum_lanes(vec x) {
    float total = 0.0f;
    for (int l = 0; l < LANES; l++) total += x[l];
    return total;
}
static inline float max_lanes(vec x) {
#if defined(__clang__)
    float max = x[0];
    for (int l = 1; l < LANES; l++) max = x[l] > max ? x[l] : max;
    return max;
#else /* halves against halves: one after the other, each comparison waits for the last */
    const int_vec lane = {LANE_NUMBERS};
#if LANES > 8
    vec eight = __builtin_shuffle(x, lane ^ 8);
    x = where(x > eight, x, eight);
#endif
#if LANES > 4
    vec four = __builtin_shuffle(x, lane ^ 4);
    x = where(x > four, x, four);
#endif
    vec two = __builtin_shuffle(x, lane ^ 2);
    x = where(x > two, x, two);
    return x[0] > x[1] ? x[0] : x[1];
#endif
}

/* e^x for x <= 0, to about 1e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cody and Waite's reduction) */
static inline vec exp_nonpositive(vec x) {
    x = where(x < -87.0f, splat(-87.0f), x);
    int_vec n = __builtin_convertvector(x * 1.44269504f - 0.5f, int_vec); /* towards zero: the nearest, as x <= 0 */
    vec m = __builtin_convertvector(n, vec), r = (x - m * 0.693359375f) + m * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((n + 127) << 23);
}

/* Load or store the first n numbers of a vector; n may be more than LANES. Missing numbers are read as 0. */
static inline vec load_partial(const DTYPE *x, int64_t n) {
    DTYPE part[LANES] = {0};
    if (n >= LANES) return LOAD(x);
    memcpy(part, x, n * sizeof(DTYPE));
    return LOAD((const DTYPE *)part);
}
static inline vec load_partial_float(const float *x, int64_t n) {
    float part[LANES] = {0};
    if (n >= LANES) return load_float(x);
    memcpy(part, x, n * sizeof(float));
    return load_float(part);
}
static inline void store_partial(DTYPE *to, vec x, int64_t n) {
    DTYPE_VEC converted = VEC_TO_DTYPE(x);
    if (n >= LANES) memcpy(to, &converted, sizeof converted);
    else memcpy(to, &converted, n * sizeof(DTYPE));
}
static inline void store_partial_float(float *to, vec x, int64_t n) {
    if (n >= LANES) memcpy(to, &x, sizeof x);
    else memcpy(to, &x, n * sizeof(float));
}

/* Without this GCC loads a vector from memory again for each of its products. */
#if defined(__x86_64__)
#define KEEP_IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define KEEP_IN_REGISTER(x) (void)0
#endif

/* Defines a function: part [rows, 2 LANES] += a [rows, n] b [n, 2 LANES]. Strides: rows of a are `a_row` numbers apart,
   its columns `a_column`, rows of b `b_row`. Every matrix product of attention is computed here: 2 `rows` sums stay in
   registers. */
#define DEFINE_MATMUL(name, type, rows)                                                                                \
    static inline void name(vec part[rows][2], const float *a, int64_t a_row, int64_t a_column, const type *b,     \
                            int64_t b_row, int64_t n) {                                                                \
        vec sum[rows][2];                                                                                              \
        memcpy(sum, part, sizeof sum);                                                                                 \
        for (int64_t x = 0; x < n; x++) {                                                                              \
            vec left = LOAD(b + x * b_row), right = LOAD(b + x * b_row + LANES);                                       \
            KEEP_IN_REGISTER(left);                                                                                    \
            KEEP_IN_REGISTER(right);                                                                                   \
            for (int i = 0; i < rows; i++) {                                                                           \
                sum[i][0] += a[i * a_row + x * a_column] * left;                                                       \
                sum[i][1] += a[i * a_row + x * a_column] * right;                                                      \
            }                                                                                                          \
        }                                                                                                              \
        memcpy(part, sum, sizeof sum);                                                                                 \
    }
