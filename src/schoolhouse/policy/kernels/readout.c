/* Log-probability of one token of each row of logits [N, V], entropy of the row, and the gradient of the former: one
   pass over a row finds its top, a second sums. What the logits are multiplied with is 1 / temperature. */

#include "vectors.h"

static inline vec some(const STORED *x, int64_t n) { /* the first n numbers, as much as there is of a vector */
    STORED part[LANES] = {0};
    if (n >= LANES) return LOAD(x);
    memcpy(part, x, n * sizeof(STORED));
    return LOAD((const STORED *)part);
}

static inline void keep(STORED *to, vec x, int64_t n) {
    STORED part[LANES];
    for (int l = 0; l < LANES; l++) part[l] = KEEP(x[l]);
    memcpy(to, part, (n < LANES ? n : LANES) * sizeof(STORED));
}

/* logprob, entropy and spread (log of the sum of e^logit) [N] */
void read_out(int64_t threads, int64_t rows, int64_t size, float scale, const STORED *logits, const int64_t *token,
              float *logprob, float *entropy, float *spread) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const STORED *row = logits + r * size;
        vec best = all(-INFINITY), sums = {0}, weighed = {0};
        for (int64_t v = 0; v < size; v += LANES) {
            vec x = first(size - v, scale * some(row + v, size - v), -INFINITY);
            best = pick(x > best, x, best);
        }
        const float top = largest(best), mine = scale * LOAD_ONE(row[token[r]]) - top;
        for (int64_t v = 0; v < size; v += LANES) {
            vec x = scale * some(row + v, size - v) - top, w = first(size - v, exponential(x), 0.0f);
            sums += w;
            weighed += w * x;
        }
        const float whole = sum(sums), beyond = logf(whole);
        logprob[r] = mine - beyond;
        entropy[r] = beyond - sum(weighed) / whole;
        spread[r] = top + beyond;
    }
}

/* gradient [N, V] of the logits from that of the log-probabilities [N] */
void unread(int64_t threads, int64_t rows, int64_t size, float scale, const STORED *logits, const int64_t *token,
            const float *spread, const float *towards, STORED *gradient) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const STORED *row = logits + r * size;
        STORED *to = gradient + r * size;
        const float less = scale * towards[r], mine = expf(scale * LOAD_ONE(row[token[r]]) - spread[r]);
        for (int64_t v = 0; v < size; v += LANES) {
            vec x = scale * some(row + v, size - v) - spread[r];
            keep(to + v, -less * exponential(x), size - v);
        }
        to[token[r]] = KEEP(less * (1.0f - mine));
    }
}
