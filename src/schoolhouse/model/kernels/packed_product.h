/* Panels of packed weights, and the product of a tile of rows with panels. packed_linear.c says what they are for. */

#include "team.h"

#define PANEL (2 * LANES)
#define STEP 4 /* inputs that are multiplied without a branch; a multiple of the inputs of a word */
#define SCALED 32 /* inputs that share a scale in int8 */
#define CACHED_BYTES (1 << 18)
#define ALIGNED_OUTPUTS 32 /* a multiple of PANEL on every processor: the caller need not know PANEL */
#if defined(__AVX512F__)
#define TILE 12
#define IN_REGISTER_ROWS 12 /* up to this many rows, weights are expanded in registers */
#else
#define TILE 6
#define IN_REGISTER_ROWS 4
#endif
/* Without this GCC loads a vector from memory again for each of its products. */
#if (LANES == 16 && defined(__AVX512F__)) || (LANES == 8 && defined(__AVX__)) || (LANES == 4 && defined(__SSE2__))
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x) (void)0
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* The inputs whose weights share a 32-bit word. A panel has one word per output for each such group of inputs. */
INLINE int inputs_of_word(int64_t type) { return type == FLOAT ? 1 : type == BFLOAT16 ? 2 : 4; }
/* A panel of int8 has the scales of its outputs before each SCALED inputs; the other types have none. */
INLINE int64_t scaled_inputs(int64_t type, int64_t in) { return type == INT8 ? SCALED : in; }
INLINE int64_t panel_bytes_of(int64_t type, int64_t in) {
    return in / inputs_of_word(type) * PANEL * 4 + (type == INT8 ? (in + SCALED - 1) / SCALED * PANEL * 4 : 0);
}

INLINE uint_vec load_words(const char *x) { /* one vector at a time: GCC copies longer pieces through memory */
    uint_vec words;
    memcpy(&words, x, sizeof words);
    return words;
}

/* Weights of input `j` of a vector of words. */
INLINE vec unpack(int64_t type, uint_vec words, int j) {
    if (type == FLOAT) return (vec)words;
    if (type == BFLOAT16) return (vec)(j ? words & 0xffff0000u : words << 16);
    return __builtin_convertvector((int_vec)(words << (24 - 8 * j)) >> 24, vec);
}

/* out [T, 2 P] = x [in, T] panels [P]. T, P and the type are constants. */
INLINE void multiply(const int T, const int P, const int64_t type, int64_t in, const float *x, const char *panels,
                     vec (*out)[8]) {
    const int group = inputs_of_word(type);
    const int64_t panel_bytes = panel_bytes_of(type, in);
    vec sum[TILE][8];
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int p = 0; p < 2 * P; p++) sum[i][p] = splat(0.0f);
    for (int64_t first = 0, span = scaled_inputs(type, in); first < in; first += span) {
        const int64_t end = in - first < span ? in : first + span;
        vec scale[8];
        if (type == INT8) {
            UNROLL for (int p = 0; p < 2 * P; p++) scale[p] =
                (vec)load_words(panels + p / 2 * panel_bytes + p % 2 * sizeof(vec));
            panels += PANEL * 4;
        }
        for (int64_t k = first; k < end; k += STEP, x += STEP * T, panels += STEP / group * PANEL * 4) {
            UNROLL for (int p = 0; p < 2 * P; p += 2) UNROLL for (int j = 0; j < STEP; j++) {
                const char *words = panels + p / 2 * panel_bytes + j / group * (PANEL * 4);
                vec left = unpack(type, load_words(words), j % group);
                vec right = unpack(type, load_words(words + sizeof(vec)), j % group);
                if (type == INT8) left *= scale[p], right *= scale[p + 1];
                IN_REGISTER(left);
                IN_REGISTER(right);
                UNROLL for (int i = 0; i < T; i++) {
                    sum[i][p] += x[j * T + i] * left;
                    sum[i][p + 1] += x[j * T + i] * right;
                }
            }
        }
    }
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int p = 0; p < 2 * P; p++) out[i][p] = sum[i][p];
}

#if defined(__AVX512BF16__)
#define PAIRS 1
/* The same from pairs of inputs in bfloat16: x [in / 2, T]. */
INLINE void multiply_pairs(const int T, const int P, int64_t in, const uint32_t *x, const char *panels,
                           vec (*out)[8]) {
    const int64_t panel_bytes = panel_bytes_of(BFLOAT16, in);
    __m512 sum[TILE][8];
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int p = 0; p < 2 * P; p++) sum[i][p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < in / 2; k++) {
        __m512i w[8];
        UNROLL for (int p = 0; p < 2 * P; p++) {
            const char *words = panels + p / 2 * panel_bytes + (2 * k + p % 2) * 64;
            w[p] = _mm512_loadu_si512(words);
            IN_REGISTER(w[p]);
        }
        UNROLL for (int i = 0; i < T; i++) {
            __m512i pair = _mm512_set1_epi32((int)x[k * T + i]);
            IN_REGISTER(pair);
            UNROLL for (int p = 0; p < 2 * P; p++) sum[i][p] =
                _mm512_dpbf16_ps(sum[i][p], (__m512bh)pair, (__m512bh)w[p]);
        }
    }
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int p = 0; p < 2 * P; p++) out[i][p] = (vec)sum[i][p];
}
#define MULTIPLY_BFLOAT16(T, P) multiply_pairs(T, P, in, x, panels, out)
#else
#define PAIRS 0
#define MULTIPLY_BFLOAT16(T, P) multiply(T, P, BFLOAT16, in, x, panels, out)
#endif

#if (LANES == 16 && defined(__AVX512BW__)) || (LANES == 8 && defined(__AVX2__))
#define INTEGERS 1
typedef int16_t short_vec __attribute__((vector_size(4 * LANES)));

INLINE int_vec add_pairs(int_vec sum, int_vec x, short_vec w) { /* sum + x[0] w[0] + x[1] w[1] in each 32 bits */
#if defined(__AVX512VNNI__)
    return (int_vec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif LANES == 16
    return sum + (int_vec)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#else
    return sum + (int_vec)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#endif
}

/* The same from inputs of 16 bits: for each SCALED inputs the scales of T rows, then for each four inputs the pairs
   (0, 2) of T rows and the pairs (1, 3) of T rows. 32 products of 15 and 7 bits fit into 32 bits. */
INLINE void multiply_integers(const int T, const int P, int64_t in, const int32_t *x, const char *panels,
                              vec (*out)[8]) {
    const int64_t panel_bytes = panel_bytes_of(INT8, in);
    vec sum[TILE / 2][8];
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int p = 0; p < 2 * P; p++) sum[i][p] = splat(0.0f);
    for (int64_t first = 0; first < in; first += SCALED) {
        const int64_t end = in - first < SCALED ? in : first + SCALED;
        const char *scales = panels;
        const float *row_scales = (const float *)x;
        int_vec part[TILE / 2][8];
        UNROLL for (int i = 0; i < T; i++) UNROLL for (int p = 0; p < 2 * P; p++) part[i][p] = (int_vec){0};
        x += T, panels += PANEL * 4;
        for (int64_t k = first; k < end; k += 4, x += 2 * T, panels += PANEL * 4)
            UNROLL for (int p = 0; p < 2 * P; p++) {
                const char *words = panels + p / 2 * panel_bytes + p % 2 * sizeof(vec);
                    short_vec both = (short_vec)load_words(words), even = (both << 8) >> 8, odd = both >> 8;
                IN_REGISTER(even);
                IN_REGISTER(odd);
                UNROLL for (int i = 0; i < T; i++) {
                    part[i][p] = add_pairs(part[i][p], (int_vec){0} + x[i], even);
                    part[i][p] = add_pairs(part[i][p], (int_vec){0} + x[T + i], odd);
                }
            }
        UNROLL for (int p = 0; p < 2 * P; p++) {
            vec scale = (vec)load_words(scales + p / 2 * panel_bytes + p % 2 * sizeof(vec));
            UNROLL for (int i = 0; i < T; i++) sum[i][p] +=
                __builtin_convertvector(part[i][p], vec) * (scale * row_scales[i]);
        }
    }
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int p = 0; p < 2 * P; p++) out[i][p] = sum[i][p];
}
#define MULTIPLY_INT8(T, P) multiply_integers(T, P, in, x, panels, out)
#else
#define INTEGERS 0
#define MULTIPLY_INT8(T, P) multiply(T, P, INT8, in, x, panels, out)
#endif

/* One function for each size of a tile: GCC keeps the sums in registers only in small functions. */
#define DEFINE_PRODUCTS(T, P)                                                                                          \
    static __attribute__((noinline)) void float_##T##_##P(int64_t in, const void *x, const char *panels, Sums out) {   \
        multiply(T, P, FLOAT, in, x, panels, out);                                                                     \
    }                                                                                                                  \
    static __attribute__((noinline)) void half_##T##_##P(int64_t in, const void *x, const char *panels, Sums out) {    \
        MULTIPLY_BFLOAT16(T, P);                                                                                       \
    }                                                                                                                  \
    static __attribute__((noinline)) void byte_##T##_##P(int64_t in, const void *x, const char *panels, Sums out) {    \
        if (T <= TILE / 2 || !INTEGERS) MULTIPLY_INT8(T, P);                                                           \
    }
typedef vec (*Sums)[8];
typedef void Product(int64_t in, const void *x, const char *panels, Sums out);
#define PRODUCTS(T, P) {float_##T##_##P, half_##T##_##P, byte_##T##_##P}
DEFINE_PRODUCTS(1, 4)
DEFINE_PRODUCTS(2, 2)
DEFINE_PRODUCTS(1, 1)
DEFINE_PRODUCTS(2, 1)
DEFINE_PRODUCTS(3, 1)
DEFINE_PRODUCTS(4, 1)
DEFINE_PRODUCTS(5, 1)
DEFINE_PRODUCTS(6, 1)
#if TILE > 6
DEFINE_PRODUCTS(7, 1)
DEFINE_PRODUCTS(8, 1)
DEFINE_PRODUCTS(9, 1)
DEFINE_PRODUCTS(10, 1)
DEFINE_PRODUCTS(11, 1)
DEFINE_PRODUCTS(12, 1)
#endif
static Product *const products[TILE + 1][3] = {
    {0},
    PRODUCTS(1, 1), PRODUCTS(2, 1), PRODUCTS(3, 1), PRODUCTS(4, 1), PRODUCTS(5, 1), PRODUCTS(6, 1),
#if TILE > 6
    PRODUCTS(7, 1), PRODUCTS(8, 1), PRODUCTS(9, 1), PRODUCTS(10, 1), PRODUCTS(11, 1), PRODUCTS(12, 1),
#endif
};
static Product *const wide_products[3][3] = {{0}, PRODUCTS(1, 4), PRODUCTS(2, 2)};

/* Multiplies one tile of rows by up to four panels; returns their number. Few rows need several panels: an addition
   takes a few cycles, and the next one to the same sum waits for it. */
static int multiply_tile(int64_t rows, int64_t panels_left, int64_t type, int64_t in, const void *x,
                         const char *panels, Sums out) {
    const int wide = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    if (wide > 1 && panels_left >= wide) {
        wide_products[rows][type](in, x, panels, out);
        return wide;
    }
    products[rows][type](in, x, panels, out);
    return 1;
}
