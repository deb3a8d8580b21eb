/* Log-probabilities, entropies and samples from rows of logits [N, V], and the gradient of the log-probabilities. A
   first pass over a row finds its maximum, a second sums. `scale` multiplies the logits: 1 / temperature. */

#include "simd.h"

static inline float max_of_row(const DTYPE *row, int64_t vocab, float scale) {
    vec max = splat(-INFINITY);
    for (int64_t v = 0; v < vocab; v += LANES) {
        vec x = mask_after(vocab - v, scale * load_partial(row + v, vocab - v), -INFINITY);
        max = where(x > max, x, max);
    }
    return max_lanes(max);
}

/* logprob of `token`, entropy, and logsumexp (log of the sum of e^logit), each [N] */
void logprobs_forward(int64_t threads, int64_t rows, int64_t vocab, float scale, const DTYPE *logits,
                      const int64_t *token, float *logprob, float *entropy, float *logsumexp) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const DTYPE *row = logits + r * vocab;
        vec sums = {0}, weighted = {0};
        const float max = max_of_row(row, vocab, scale), target = scale * FROM_DTYPE(row[token[r]]) - max;
        for (int64_t v = 0; v < vocab; v += LANES) {
            vec x = scale * load_partial(row + v, vocab - v) - max;
            vec w = mask_after(vocab - v, exp_nonpositive(x), 0.0f);
            sums += w;
            weighted += w * x;
        }
        const float total = sum_lanes(sums), log_total = logf(total);
        logprob[r] = target - log_total;
        entropy[r] = log_total - sum_lanes(weighted) / total;
        logsumexp[r] = max + log_total;
    }
}

/* One token [N] for each row, sampled by inverting the cumulative distribution at `uniform` [N], and its
   log-probability. Two steps: the block of tokens, then the token in it. The log-probability has the same bits as that
   of logprobs_forward. */
void sample_tokens(int64_t threads, int64_t rows, int64_t vocab, float scale, const DTYPE *logits,
                   const double *uniform, int64_t *token, float *logprob) {
    enum { BLOCK = 4 * LANES };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const DTYPE *row = logits + r * vocab;
        vec sums = {0};
        const float max = max_of_row(row, vocab, scale);
        const int64_t blocks = (vocab + BLOCK - 1) / BLOCK;
        double *mass = malloc(blocks * sizeof(double)), total = 0.0;
        for (int64_t b = 0; b < blocks; b++) {
            vec block_sums = {0};
            for (int64_t v = b * BLOCK; v < vocab && v < (b + 1) * BLOCK; v += LANES) {
                vec x = scale * load_partial(row + v, vocab - v) - max;
                vec w = mask_after(vocab - v, exp_nonpositive(x), 0.0f);
                block_sums += where(x > -87.0f, w, splat(0.0f));
                sums += w;
            }
            total += mass[b] = sum_lanes(block_sums);
        }
        double remaining = uniform[r] * total;
        int64_t b = 0, sampled = 0;
        while (b < blocks - 1 && remaining >= mass[b]) remaining -= mass[b++];
        vec w[BLOCK / LANES] = {{0}};
        double block_total = 0.0;
        for (int64_t v = b * BLOCK; v < vocab && v < (b + 1) * BLOCK; v += LANES) {
            vec x = scale * load_partial(row + v, vocab - v) - max;
            w[v % BLOCK / LANES] =
                mask_after(vocab - v, where(x > -87.0f, exp_nonpositive(x), splat(0.0f)), 0.0f);
        }
        for (int i = 0; i < BLOCK; i++) block_total += w[i / LANES][i % LANES];
        remaining *= block_total / mass[b]; /* the orders of summation differ: rounding must not leave the block */
        free(mass);
        for (int i = 0; i < BLOCK && remaining >= 0.0; i++) {
            const float weight = w[i / LANES][i % LANES];
            if (weight > 0.0f) sampled = b * BLOCK + i;
            remaining -= weight;
        }
        token[r] = sampled;
        logprob[r] = scale * FROM_DTYPE(row[sampled]) - max - logf(sum_lanes(sums));
    }
}

/* grad_logits [N, V] from grad_logprob [N] */
void logprobs_backward(int64_t threads, int64_t rows, int64_t vocab, float scale, const DTYPE *logits,
                       const int64_t *token, const float *logsumexp, const float *grad_logprob, DTYPE *grad_logits) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const DTYPE *row = logits + r * vocab;
        DTYPE *to = grad_logits + r * vocab;
        const float grad = scale * grad_logprob[r];
        const float probability = expf(scale * FROM_DTYPE(row[token[r]]) - logsumexp[r]);
        for (int64_t v = 0; v < vocab; v += LANES) {
            vec x = scale * load_partial(row + v, vocab - v) - logsumexp[r];
            store_partial(to + v, -grad * exp_nonpositive(x), vocab - v);
        }
        to[token[r]] = TO_DTYPE(grad * (1.0f - probability));
    }
}
