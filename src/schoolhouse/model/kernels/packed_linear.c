/* Linear layers with weights that are packed once and used often: y [rows, out] = f(x) weight^T (+ bias) (+ y).

   A panel holds the weights of PANEL outputs, for all inputs, in the order in which a product reads them. A product
   with few rows reads each weight from memory once, in order. The inputs are packed too, in tiles of up to TILE rows.
   The sums of a tile stay in registers. Each sum adds the inputs in the same order for every number of rows, so the
   bits of a row do not depend on other rows.

   Weights are stored as float, as bfloat16, or as int8 with a float scale for SCALED inputs of an output. Pairs of
   inputs are stored side by side in bfloat16, for the instruction that multiplies such pairs. With int8, inputs are
   rounded to 16 bits with a scale for SCALED inputs of a row, and pairs of them are multiplied in integers. Without
   these instructions bfloat16 and int8 are expanded to float: in registers for one tile of rows, panel by panel for
   several tiles. */

#include "packed_product.h"

/* Packs one output of a float weight into a panel; `o` is the output's index in the panel. `row` NULL means zeros. */
static void pack_output(int64_t type, int64_t in, const float *row, int64_t o, char *panel) {
    const int64_t group = inputs_of_word(type);
    for (int64_t first = 0, span = scaled_inputs(type, in); first < in; first += span) {
        const int64_t end = in - first < span ? in : first + span;
        float inverse = 0.0f;
        if (type == INT8) {
            float largest = 0.0f;
            for (int64_t k = first; row && k < end; k++) largest = fabsf(row[k]) > largest ? fabsf(row[k]) : largest;
            ((float *)panel)[o] = largest / 127.0f;
            inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
            panel += PANEL * 4;
        }
        for (int64_t k = 0; k < end - first; k++) {
            const float value = row ? row[first + k] : 0.0f;
            const int64_t at = (k / group * PANEL + o) * group + k % group;
            if (type == FLOAT) ((float *)panel)[at] = value;
            if (type == BFLOAT16) ((uint16_t *)panel)[at] = to_bfloat16(value);
            if (type == INT8) ((int8_t *)panel)[at] = (int8_t)lrintf(value * inverse);
        }
        panel += (end - first) / group * PANEL * 4;
    }
}

/* Packs a float weight [out, in]; `in` is a multiple of STEP. `packed` has room for the panels of a multiple of
   ALIGNED_OUTPUTS outputs. */
void pack_weight(int64_t threads, int64_t type, int64_t out, int64_t in, const float *weight, void *packed) {
    const int64_t panels = (out + ALIGNED_OUTPUTS - 1) / ALIGNED_OUTPUTS * (ALIGNED_OUTPUTS / PANEL);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t o = 0; o < PANEL; o++)
            pack_output(type, in, p * PANEL + o < out ? weight + (p * PANEL + o) * in : NULL, o,
                        (char *)packed + p * panel_bytes_of(type, in));
}

INLINE vec sigmoid_of(vec x) {
    vec e = exp_nonpositive(where(x > 0.0f, -x, x)), one = splat(1.0f);
    return where(x > 0.0f, one, e) / (one + e);
}

/* Inputs `first` to `end` (both multiples of SCALED, or the end) of one row, in float. */
static void read_row(const Input *input, int64_t in, const float *row, int64_t first, int64_t end, float *to) {
    float inv_rms = 1.0f;
    if (input->kind == NORM) {
        vec sums = {0};
        for (int64_t k = 0; k < in; k += LANES) {
            vec v = load_partial_float(row + k, in - k);
            sums += v * v;
        }
        inv_rms = 1.0f / sqrtf(sum_lanes(sums) / in + input->eps);
    }
    for (int64_t k = first; k < end; k += LANES) {
        vec v = load_partial_float(row + k, end - k);
        if (input->kind == NORM) v = inv_rms * v * load_partial_float(input->weight + k, end - k);
        if (input->kind == SWIGLU) v = v * sigmoid_of(v) * load_partial_float(row + in + k, end - k);
        store_partial_float(to + k - first, v, end - k);
    }
}

/* Whether the inputs of a product are rounded to 16 bits, and the bytes of a packed row of inputs. */
INLINE int rounds_inputs(int64_t type) { return (type == BFLOAT16 && PAIRS) || (type == INT8 && INTEGERS); }
INLINE int64_t row_bytes(int64_t type, int64_t in) {
    return !rounds_inputs(type) ? 4 * in : type == BFLOAT16 ? 2 * in : 2 * in + (in + SCALED - 1) / SCALED * 4;
}
/* Rows that are multiplied together. Integers need two sums for each row. */
INLINE int64_t tile_rows(int64_t type) { return type == INT8 && INTEGERS ? TILE / 2 : TILE; }

/* Row `i` of T, from the inputs `first` to `end` (a multiple of SCALED, or the end), as multiply_pairs reads it. */
static void pack_pairs(const float *values, int64_t T, int64_t i, int64_t first, int64_t end, uint32_t *to) {
    for (int64_t k = first; k < end; k += LANES) {
        const bfloat16_vec rounded = vec_to_bfloat16(load_partial_float(values + k - first, end - k));
        uint32_t pair[LANES / 2];
        memcpy(pair, &rounded, sizeof pair);
        for (int64_t j = 0; j < LANES / 2 && k + 2 * j < end; j++) to[(k / 2 + j) * T + i] = pair[j];
    }
}

/* The same as multiply_integers reads it. */
static void pack_integers(const float *values, int64_t T, int64_t i, int64_t first, int64_t end, uint32_t *to) {
    to += first / SCALED * (1 + SCALED / 2) * T + i;
    for (int64_t n; first < end; first += n, values += n, to += (1 + n / 2) * T) {
        n = end - first < SCALED ? end - first : SCALED;
        vec largest = splat(0.0f);
        for (int64_t k = 0; k < n; k += LANES) {
            vec v = load_partial_float(values + k, n - k);
            v = where(v < 0.0f, -v, v);
            largest = where(v > largest, v, largest);
        }
        const float scale = max_lanes(largest) / 32767.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        int32_t rounded[SCALED];
        for (int64_t k = 0; k < n; k += LANES) {
            vec v = inverse * load_partial_float(values + k, n - k);
            int_vec nearest = __builtin_convertvector(v + where(v < 0.0f, splat(-0.5f), splat(0.5f)), int_vec);
            memcpy(rounded + k, &nearest, sizeof nearest);
        }
        memcpy(to, &scale, sizeof scale);
        for (int64_t k = 0; k < n; k += 4)
            for (int j = 0; j < 2; j++)
                to[(1 + k / 2 + j) * T] = (rounded[k + j] & 0xffff) | (uint32_t)rounded[k + 2 + j] << 16;
    }
}

/* Packs the inputs from `first` to `end` of T rows, in the form that the product with weights of `type` reads. */
static void pack_tile(const Input *input, int64_t type, int64_t in, const float *x, int64_t T, int64_t first,
                      int64_t end, void *to) {
    const int64_t row_size = input->kind == SWIGLU ? 2 * in : in;
    float *values = malloc((end - first) * sizeof(float));
    for (int64_t i = 0; i < T; i++) {
        read_row(input, in, x + i * row_size, first, end, values);
        if (!rounds_inputs(type))
            for (int64_t k = first; k < end; k++) ((float *)to)[k * T + i] = values[k - first];
        else if (type == BFLOAT16) pack_pairs(values, T, i, first, end, to);
        else pack_integers(values, T, i, first, end, to);
    }
    free(values);
}

static void expand_panel(int64_t type, int64_t in, const char *panel, float *expanded) {
    const int group = inputs_of_word(type);
    vec scale[2] = {splat(1.0f), splat(1.0f)};
    for (int64_t k = 0; k < in; k += group) {
        if (type == INT8 && k % SCALED == 0) {
            memcpy(scale, panel, sizeof scale);
            panel += sizeof scale;
        }
        uint_vec words[2];
        memcpy(words, panel, sizeof words);
        panel += sizeof words;
        for (int j = 0; j < group; j++)
            for (int half = 0; half < 2; half++) {
                vec w = type == BFLOAT16 ? unpack(BFLOAT16, words[half], j) : unpack(INT8, words[half], j);
                w *= scale[half];
                memcpy(expanded + (k + j) * PANEL + half * LANES, &w, sizeof w);
            }
    }
}

static void product_in_team(int64_t threads, const Linear *linear, Input input, int64_t rows, int64_t add,
                            const float *x, float *y, char *packed_x) {
    const int64_t type = linear->type, in = linear->in, out = linear->out;
    const int64_t panels = (out + PANEL - 1) / PANEL, tiles = (rows + tile_rows(type) - 1) / tile_rows(type);
    const int64_t row_size = input.kind == SWIGLU ? 2 * in : in, panel_bytes = panel_bytes_of(type, in);
    const int64_t bytes = row_bytes(type, in), pieces = tiles < threads ? threads : 1;
    const int expand = rows > IN_REGISTER_ROWS && type != FLOAT && !rounds_inputs(type);
    /* panels that stay in the cache while all tiles of rows are multiplied by them */
    const int64_t fitting = CACHED_BYTES / (bytes * PANEL), block = fitting > 4 ? fitting / 4 * 4 : 4;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < tiles * pieces; part++) {
        const int64_t t = part / pieces, row = rows * t / tiles, T = rows * (t + 1) / tiles - row;
        const int64_t spans = (in + SCALED - 1) / SCALED, first = spans * (part % pieces) / pieces * SCALED;
        const int64_t end = spans * (part % pieces + 1) / pieces * SCALED;
        pack_tile(&input, type, in, x + row * row_size, T, first, end < in ? end : in, packed_x + row * bytes);
    }
    float *expanded = expand ? aligned_alloc(64, block * PANEL * in * sizeof(float)) : NULL;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < threads; part++)
        for (int64_t p = panels * part / threads, end = panels * (part + 1) / threads; p < end; p += block) {
            const int64_t count = end - p < block ? end - p : block;
            const char *weights = linear->packed + p * panel_bytes;
            for (int64_t b = 0; expand && b < count; b++)
                expand_panel(type, in, weights + b * panel_bytes, expanded + b * PANEL * in);
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t row = rows * t / tiles, T = rows * (t + 1) / tiles - row;
                for (int64_t b = 0, step; b < count; b += step) {
                    const char *panel = expand ? (char *)(expanded + b * PANEL * in) : weights + b * panel_bytes;
                    vec sum[TILE][8];
                    step = multiply_tile(T, count - b, expand ? FLOAT : type, in, packed_x + row * bytes, panel,
                                         sum);
                    for (int64_t i = 0; i < T; i++)
                        for (int64_t v = 0; v < 2 * step; v++) {
                            const int64_t o = (p + b) * PANEL + v * LANES, n = out - o;
                            if (n <= 0) break;
                            float *to = y + (row + i) * out + o;
                            vec result = sum[i][v];
                            if (linear->bias) result += load_partial_float(linear->bias + o, n);
                            if (add) result += load_partial_float(to, n);
                            store_partial_float(to, result, n);
                        }
                }
            }
        }
    free(expanded);
}

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* The packed inputs, and the result of the first matrix of the adapter. */
int64_t work_bytes(const Linear *linear, int64_t rows) {
    const int64_t widest = linear->in > linear->rank ? linear->in : linear->rank;
    return aligned(rows * widest * 4) + aligned(rows * linear->rank * 4);
}

void linear_in_team(int64_t threads, const Linear *linear, Input input, int64_t rows, int64_t add, const float *x,
                    float *y, char *work) {
    product_in_team(threads, linear, input, rows, add, x, y, work);
    if (!linear->low) return;
    const int64_t rank = linear->rank;
    float *narrow = (float *)(work + work_bytes(linear, rows) - aligned(rows * rank * 4));
    const Linear low = {FLOAT, linear->in, rank, 0, linear->low, NULL, NULL, NULL};
    const Linear high = {FLOAT, rank, linear->out, 0, linear->high, NULL, NULL, NULL};
    product_in_team(threads, &low, input, rows, 0, x, narrow, work);
    product_in_team(threads, &high, (Input){PLAIN, 0.0f, NULL}, rows, 1, narrow, y, work);
}

/* y [rows, out] = f(x) weight^T, plus `bias` [out] unless NULL, plus the old y if `add`. f is nothing (`kind` PLAIN,
   x [rows, in]), RMSNorm (NORM, with the weight `norm`), or SwiGLU (SWIGLU, x [rows, 2 in]). */
void packed_linear(int64_t threads, int64_t type, int64_t kind, int64_t rows, int64_t out, int64_t in, int64_t add,
                   float eps, const float *x, const float *norm, const char *packed, const float *bias, float *y) {
    const Linear linear = {type, in, out, 0, packed, bias, NULL, NULL};
    char *work = aligned_alloc(64, work_bytes(&linear, rows));
#pragma omp parallel num_threads(threads)
    linear_in_team(threads, &linear, (Input){kind, eps, norm}, rows, add, x, y, work);
    free(work);
}
