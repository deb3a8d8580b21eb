/* What a decoder computes of each row alone, and the gradients: root mean square norms, norm and rotation of the heads
   of queries and keys, gates. Rows are read once and written once, in what products take and give (STORED); sums are in
   float32. No row's bits depend on another row; gradients of weights are summed by `parts` of the rows. */

#include "vectors.h"

static inline float squares(const float *x, int64_t n) {
    vec sums = {0};
    for (int64_t c = 0; c < n; c += LANES) {
        vec v = some_floats(x + c, n - c);
        sums += v * v;
    }
    return sum(sums);
}

/* out [N, C] = x / rms(x) * weight */
void norm(int64_t threads, int64_t rows, int64_t size, float eps, const float *x, const float *weight, STORED *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * size, less = 1.0f / sqrtf(squares(row, size) / size + eps);
        for (int64_t c = 0; c < size; c += LANES)
            put(out + r * size + c, less * some_floats(row + c, size - c) * some_floats(weight + c, size - c), size - c);
    }
}

/* x_gradient [N, C] and, for each part of the rows, weight_gradient [parts, C] */
void unnorm(int64_t threads, int64_t rows, int64_t size, float eps, int64_t parts, const float *x, const float *weight,
            const STORED *towards, float *x_gradient, float *weight_gradient) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < parts; p++) {
        float *dweight = weight_gradient + p * size;
        memset(dweight, 0, size * sizeof(float));
        for (int64_t r = rows * p / parts; r < rows * (p + 1) / parts; r++) {
            const float *row = x + r * size, less = 1.0f / sqrtf(squares(row, size) / size + eps);
            const STORED *dout = towards + r * size;
            vec sums = {0};
            for (int64_t c = 0; c < size; c += LANES) {
                const int64_t n = size - c;
                vec there = less * some_floats(row + c, n), d = some(dout + c, n);
                put_floats(dweight + c, some_floats(dweight + c, n) + d * there, n);
                sums += d * there * some_floats(weight + c, n);
            }
            const float common = sum(sums) / size;
            for (int64_t c = 0; c < size; c += LANES) {
                const int64_t n = size - c;
                vec there = less * some_floats(row + c, n), d = some(dout + c, n) * some_floats(weight + c, n);
                put_floats(x_gradient + r * size + c, less * (d - common * there), n);
            }
        }
    }
}

/* A head as float vectors, normed where there is a weight; gives 1 / rms (1 without a norm). WIDTH is the head's. */
static inline float head(vec x[PARTS], const STORED *from, const float *weight, float eps) {
    vec sums = {0};
    for (int i = 0; i < PARTS; i++) {
        x[i] = LOAD(from + i * LANES);
        sums += x[i] * x[i];
    }
    return weight ? 1.0f / sqrtf(sum(sums) / WIDTH + eps) : 1.0f;
}

static inline vec as_stored(vec x) {
    NUMBERS numbers = NUMBERS_OF(x);
    return LOAD((const STORED *)&numbers);
}

/* out [N, H, WIDTH] in float32, rounded to STORED where `rounded`: heads normed (weight may be NULL), then rotated
   by angles whose cosines and sines are [N, WIDTH / 2]. Rows of x are `stride` numbers apart. */
void turn_heads(int64_t threads, int64_t rows, int64_t heads, int64_t stride, float eps, int64_t rounded,
                const STORED *x, const float *weight, const float *cosine, const float *sine, float *out) {
    enum { HALF = PARTS / 2 };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            float *to = out + (r * heads + h) * WIDTH;
            vec v[PARTS];
            const float less = head(v, x + r * stride + h * WIDTH, weight, eps);
            for (int i = 0; weight && i < PARTS; i++) v[i] = less * v[i] * of_float(weight + i * LANES);
            for (int i = 0; i < HALF; i++) {
                vec c = of_float(cosine + r * WIDTH / 2 + i * LANES), s = of_float(sine + r * WIDTH / 2 + i * LANES);
                vec left = v[i] * c - v[i + HALF] * s, right = v[i + HALF] * c + v[i] * s;
                if (rounded) left = as_stored(left), right = as_stored(right);
                memcpy(to + i * LANES, &left, sizeof left);
                memcpy(to + (i + HALF) * LANES, &right, sizeof right);
            }
        }
}

/* x_gradient [N, H, WIDTH] from that of `out`, and weight_gradient [parts, WIDTH] where there is a weight */
void unturn_heads(int64_t threads, int64_t rows, int64_t heads, int64_t stride, float eps, int64_t parts,
                  const STORED *x, const float *weight, const float *cosine, const float *sine, const float *towards,
                  STORED *x_gradient, float *weight_gradient) {
    enum { HALF = PARTS / 2 };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < parts; p++) {
        vec dweight[PARTS] = {{0}};
        for (int64_t r = rows * p / parts; r < rows * (p + 1) / parts; r++)
            for (int64_t h = 0; h < heads; h++) {
                const float *dout = towards + (r * heads + h) * WIDTH;
                STORED *to = x_gradient + (r * heads + h) * WIDTH;
                vec v[PARTS], d[PARTS], sums = {0};
                const float less = head(v, x + r * stride + h * WIDTH, weight, eps);
                for (int i = 0; i < HALF; i++) {
                    vec c = of_float(cosine + r * WIDTH / 2 + i * LANES), s = of_float(sine + r * WIDTH / 2 + i * LANES);
                    vec left = of_float(dout + i * LANES), right = of_float(dout + (i + HALF) * LANES);
                    d[i] = left * c + right * s;
                    d[i + HALF] = right * c - left * s;
                }
                for (int i = 0; weight && i < PARTS; i++) {
                    v[i] *= less;
                    dweight[i] += d[i] * v[i];
                    d[i] *= of_float(weight + i * LANES);
                    sums += d[i] * v[i];
                }
                const float common = weight ? sum(sums) / WIDTH : 0.0f;
                for (int i = 0; i < PARTS; i++) put(to + i * LANES, less * (d[i] - common * v[i]), LANES);
            }
        if (weight) memcpy(weight_gradient + p * WIDTH, dweight, sizeof dweight);
    }
}

static inline vec sigmoid(vec x) {
    vec e = exponential(pick(x > 0.0f, -x, x)), one = all(1.0f);
    return pick(x > 0.0f, one, e) / (one + e);
}

/* out = gate * sigmoid(gate) * up, all [n] */
void open_gate(int64_t threads, int64_t n, const STORED *gate, const STORED *up, STORED *out) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += LANES) {
        vec g = some(gate + i, n - i);
        put(out + i, g * sigmoid(g) * some(up + i, n - i), n - i);
    }
}

void unopen_gate(int64_t threads, int64_t n, const STORED *gate, const STORED *up, const STORED *towards,
                 STORED *gate_gradient, STORED *up_gradient) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i += LANES) {
        vec g = some(gate + i, n - i), u = some(up + i, n - i), d = some(towards + i, n - i), s = sigmoid(g);
        put(up_gradient + i, d * g * s, n - i);
        put(gate_gradient + i, d * u * s * (1.0f + g * (1.0f - s)), n - i);
    }
}
