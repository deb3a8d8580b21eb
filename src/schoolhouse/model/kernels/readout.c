/* Log-probability of one token of each row of logits [N, V], entropy of the row, and the gradient of the former: one
   pass over a row finds its top, a second sums. What the logits are multiplied with is 1 / temperature. */

#include "vectors.h"

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

/* A token [N] of each row, drawn by inverting the cumulative distribution at `uniform` [N], and its log-probability.
   In two steps, the block and the token in it; the log-probability is read_out's to the bit. */
void draw(int64_t threads, int64_t rows, int64_t size, float scale, const STORED *logits, const double *uniform,
          int64_t *token, float *logprob) {
    enum { BLOCK = 4 * LANES };
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const STORED *row = logits + r * size;
        vec best = all(-INFINITY), sums = {0};
        for (int64_t v = 0; v < size; v += LANES) {
            vec x = first(size - v, scale * some(row + v, size - v), -INFINITY);
            best = pick(x > best, x, best);
        }
        const float top = largest(best);
        const int64_t blocks = (size + BLOCK - 1) / BLOCK;
        double *mass = malloc(blocks * sizeof(double)), whole = 0.0;
        for (int64_t b = 0; b < blocks; b++) {
            vec here = {0};
            for (int64_t v = b * BLOCK; v < size && v < (b + 1) * BLOCK; v += LANES) {
                vec x = scale * some(row + v, size - v) - top, w = first(size - v, exponential(x), 0.0f);
                here += pick(x > -87.0f, w, all(0.0f));
                sums += w;
            }
            whole += mass[b] = sum(here);
        }
        double left = uniform[r] * whole;
        int64_t b = 0, chosen = 0;
        while (b < blocks - 1 && left >= mass[b]) left -= mass[b++];
        vec w[BLOCK / LANES] = {{0}};
        double here = 0.0;
        for (int64_t v = b * BLOCK; v < size && v < (b + 1) * BLOCK; v += LANES) {
            vec x = scale * some(row + v, size - v) - top;
            w[v % BLOCK / LANES] = first(size - v, pick(x > -87.0f, exponential(x), all(0.0f)), 0.0f);
        }
        for (int i = 0; i < BLOCK; i++) here += w[i / LANES][i % LANES];
        left *= here / mass[b]; /* summed in another order: no rounding may carry it beyond the block */
        free(mass);
        for (int i = 0; i < BLOCK && left >= 0.0; i++) {
            const float one = w[i / LANES][i % LANES];
            if (one > 0.0f) chosen = b * BLOCK + i;
            left -= one;
        }
        token[r] = chosen;
        logprob[r] = scale * LOAD_ONE(row[chosen]) - top - logf(sum(sums));
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
            put(to + v, -less * exponential(x), size - v);
        }
        to[token[r]] = KEEP(less * (1.0f - mine));
    }
}
