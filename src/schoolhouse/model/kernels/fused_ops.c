/* Operations of a decoder on single rows, with their gradients: RMSNorm, norm and rotary embedding (RoPE) of query and
   key heads, SwiGLU. Each row is read once and written once, in DTYPE. No bit of a row depends on another row;
   gradients of weights are summed within `num_parts` parts of the rows, and the caller adds the parts. */

#include "team.h"

/* For so few numbers, no threads are started: waiting for threads takes longer than computing. */
#define FEW_NUMBERS 8192

static inline float sum_of_squares(const float *x, int64_t n) {
    vec sums = {0};
    for (int64_t c = 0; c < n; c += LANES) {
        vec v = load_partial_float(x + c, n - c);
        sums += v * v;
    }
    return sum_lanes(sums);
}

/* out [N, C] = x / rms(x) * weight */
void rms_norm_forward(int64_t threads, int64_t rows, int64_t width, float eps, const float *x, const float *weight,
                      DTYPE *out) {
    if (rows * width <= FEW_NUMBERS) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * width, inv_rms = 1.0f / sqrtf(sum_of_squares(row, width) / width + eps);
        for (int64_t c = 0; c < width; c += LANES) {
            const int64_t n = width - c;
            store_partial(out + r * width + c,
                          inv_rms * load_partial_float(row + c, n) * load_partial_float(weight + c, n), n);
        }
    }
}

/* grad_x [N, C], and for each part of the rows grad_weight [num_parts, C] */
void rms_norm_backward(int64_t threads, int64_t rows, int64_t width, float eps, int64_t num_parts, const float *x,
                       const float *weight, const DTYPE *grad_out, float *grad_x, float *grad_weight) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < num_parts; p++) {
        float *part_grad = grad_weight + p * width;
        memset(part_grad, 0, width * sizeof(float));
        for (int64_t r = rows * p / num_parts; r < rows * (p + 1) / num_parts; r++) {
            const float *row = x + r * width, inv_rms = 1.0f / sqrtf(sum_of_squares(row, width) / width + eps);
            const DTYPE *row_grad_out = grad_out + r * width;
            vec sums = {0};
            for (int64_t c = 0; c < width; c += LANES) {
                const int64_t n = width - c;
                vec normed = inv_rms * load_partial_float(row + c, n), d = load_partial(row_grad_out + c, n);
                store_partial_float(part_grad + c, load_partial_float(part_grad + c, n) + d * normed, n);
                sums += d * normed * load_partial_float(weight + c, n);
            }
            const float mean = sum_lanes(sums) / width;
            for (int64_t c = 0; c < width; c += LANES) {
                const int64_t n = width - c;
                vec normed = inv_rms * load_partial_float(row + c, n);
                vec d = load_partial(row_grad_out + c, n) * load_partial_float(weight + c, n);
                store_partial_float(grad_x + r * width + c, inv_rms * (d - mean * normed), n);
            }
        }
    }
}

/* Loads one head; gives 1 / rms of it where there is a norm (`weight`), else 1. */
static inline float load_head(vec x[HEAD_VECS], const DTYPE *from, const float *weight, float eps) {
    vec sums = {0};
    for (int i = 0; i < HEAD_VECS; i++) {
        x[i] = LOAD(from + i * LANES);
        sums += x[i] * x[i];
    }
    return weight ? 1.0f / sqrtf(sum_lanes(sums) / HEAD_DIM + eps) : 1.0f;
}

static inline vec round_to_dtype(vec x) {
    DTYPE_VEC converted = VEC_TO_DTYPE(x);
    return LOAD((const DTYPE *)&converted);
}

/* Norms one head (unless `weight` is NULL) and rotates it by angles with `cosine` and `sine` [HEAD_DIM / 2]. */
static inline void rotate_head(vec v[HEAD_VECS], float inv_rms, const float *weight, const float *cosine,
                               const float *sine) {
    enum { HALF = HEAD_VECS / 2 };
    for (int i = 0; weight && i < HEAD_VECS; i++) v[i] = inv_rms * v[i] * load_float(weight + i * LANES);
    for (int i = 0; i < HALF; i++) {
        vec c = load_float(cosine + i * LANES), s = load_float(sine + i * LANES);
        vec left = v[i] * c - v[i + HALF] * s, right = v[i + HALF] * c + v[i] * s;
        v[i] = left, v[i + HALF] = right;
    }
}

void rotate_in_team(int64_t rows, int64_t heads, int64_t stride, float eps, const float *weight, const float *cosine,
                    const float *sine, float *x) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            vec v[HEAD_VECS], sums = {0};
            float *head = x + r * stride + h * HEAD_DIM;
            memcpy(v, head, sizeof v);
            for (int i = 0; i < HEAD_VECS; i++) sums += v[i] * v[i];
            const float inv_rms = weight ? 1.0f / sqrtf(sum_lanes(sums) / HEAD_DIM + eps) : 1.0f;
            rotate_head(v, inv_rms, weight, cosine + r * HEAD_DIM / 2, sine + r * HEAD_DIM / 2);
            memcpy(head, v, sizeof v);
        }
}

/* out [N, H, HEAD_DIM] in float32, rounded to DTYPE where `round_output`: heads are normed (unless `weight` is NULL),
   then rotated by angles with cosines and sines [N, HEAD_DIM / 2]. Rows of x are `stride` numbers apart. */
void rotary_forward(int64_t threads, int64_t rows, int64_t heads, int64_t stride, float eps, int64_t round_output,
                    const DTYPE *x, const float *weight, const float *cosine, const float *sine, float *out) {
    if (rows * heads * HEAD_DIM <= FEW_NUMBERS) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            float *to = out + (r * heads + h) * HEAD_DIM;
            vec v[HEAD_VECS];
            const float inv_rms = load_head(v, x + r * stride + h * HEAD_DIM, weight, eps);
            rotate_head(v, inv_rms, weight, cosine + r * HEAD_DIM / 2, sine + r * HEAD_DIM / 2);
            for (int i = 0; i < HEAD_VECS; i++) {
                if (round_output) v[i] = round_to_dtype(v[i]);
                memcpy(to + i * LANES, v + i, sizeof v[i]);
            }
        }
}

/* grad_x [N, H, HEAD_DIM], and grad_weight [num_parts, HEAD_DIM] where there is a weight */
void rotary_backward(int64_t threads, int64_t rows, int64_t heads, int64_t stride, float eps, int64_t num_parts,
                     const DTYPE *x, const float *weight, const float *cosine, const float *sine,
                     const float *grad_out, DTYPE *grad_x, float *grad_weight) {
    enum { HALF = HEAD_VECS / 2 };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < num_parts; p++) {
        vec part_grad[HEAD_VECS] = {{0}};
        for (int64_t r = rows * p / num_parts; r < rows * (p + 1) / num_parts; r++)
            for (int64_t h = 0; h < heads; h++) {
                const float *head_grad_out = grad_out + (r * heads + h) * HEAD_DIM;
                DTYPE *to = grad_x + (r * heads + h) * HEAD_DIM;
                vec v[HEAD_VECS], d[HEAD_VECS], sums = {0};
                const float inv_rms = load_head(v, x + r * stride + h * HEAD_DIM, weight, eps);
                for (int i = 0; i < HALF; i++) {
                    vec c = load_float(cosine + r * HEAD_DIM / 2 + i * LANES);
                    vec s = load_float(sine + r * HEAD_DIM / 2 + i * LANES);
                    vec left = load_float(head_grad_out + i * LANES);
                    vec right = load_float(head_grad_out + (i + HALF) * LANES);
                    d[i] = left * c + right * s;
                    d[i + HALF] = right * c - left * s;
                }
                for (int i = 0; weight && i < HEAD_VECS; i++) {
                    v[i] *= inv_rms;
                    part_grad[i] += d[i] * v[i];
                    d[i] *= load_float(weight + i * LANES);
                    sums += d[i] * v[i];
                }
                const float mean = weight ? sum_lanes(sums) / HEAD_DIM : 0.0f;
                for (int i = 0; i < HEAD_VECS; i++)
                    store_partial(to + i * LANES, inv_rms * (d[i] - mean * v[i]), LANES);
            }
        if (weight) memcpy(grad_weight + p * HEAD_DIM, part_grad, sizeof part_grad);
    }
}

static inline vec sigmoid(vec x) {
    vec e = exp_nonpositive((vec)((int_vec)x | INT32_MIN)), one = splat(1.0f); /* e^-|x| */
    return where(x > 0.0f, one, e) / (one + e);
}

/* `count` is LANES, or less at the end. With a constant count, the compiler makes fast code for whole vectors. */
static inline void swiglu_vector(int64_t count, const DTYPE *gate, const DTYPE *up, DTYPE *out) {
    vec g = load_partial(gate, count);
    store_partial(out, g * sigmoid(g) * load_partial(up, count), count);
}

/* out = gate * sigmoid(gate) * up, all [n] */
void swiglu_forward(int64_t threads, int64_t n, const DTYPE *gate, const DTYPE *up, DTYPE *out) {
    const int64_t whole = n / LANES * LANES;
    if (n <= FEW_NUMBERS) {
        for (int64_t i = 0; i < whole; i += LANES) swiglu_vector(LANES, gate + i, up + i, out + i);
    } else {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < whole; i += LANES) swiglu_vector(LANES, gate + i, up + i, out + i);
    }
    if (whole < n) swiglu_vector(n - whole, gate + whole, up + whole, out + whole);
}

static inline void swiglu_gradient(int64_t count, const DTYPE *gate, const DTYPE *up, const DTYPE *grad_out,
                                   DTYPE *grad_gate, DTYPE *grad_up) {
    vec g = load_partial(gate, count), u = load_partial(up, count), d = load_partial(grad_out, count);
    vec s = sigmoid(g);
    store_partial(grad_up, d * g * s, count);
    store_partial(grad_gate, d * u * s * (1.0f + g * (1.0f - s)), count);
}

void swiglu_backward(int64_t threads, int64_t n, const DTYPE *gate, const DTYPE *up, const DTYPE *grad_out,
                     DTYPE *grad_gate, DTYPE *grad_up) {
    const int64_t whole = n / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < whole; i += LANES)
        swiglu_gradient(LANES, gate + i, up + i, grad_out + i, grad_gate + i, grad_up + i);
    if (whole < n)
        swiglu_gradient(n - whole, gate + whole, up + whole, grad_out + whole, grad_gate + whole, grad_up + whole);
}
