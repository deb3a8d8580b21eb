/* Parts of a decode step. All threads of a parallel region call them together, and each part ends with a barrier: a
   region costs more than a barrier, and a step of a model with 30 layers has 240 parts. */

#include "simd.h"

enum { FLOAT, BFLOAT16, INT8 };
enum { PLAIN, NORM, SWIGLU };

/* Packed weights [out, in], and a LoRA adapter beside them: `low` is A [rank, in] and `high` is B [out, rank], both
   packed as float, or NULL. The fields are those of packed_linear.py, 8 bytes each. */
typedef struct {
    int64_t type, in, out, rank;
    const char *packed;
    const float *bias;
    const char *low, *high;
} Linear;
_Static_assert(sizeof(Linear) == 64, "Python writes 8 bytes for each field");

/* What a product does to its inputs first: nothing, RMSNorm with `weight`, or SwiGLU (a row is then [gates, ups]). */
typedef struct {
    int64_t kind;
    float eps;
    const float *weight;
} Input;

/* y [rows, out] = f(x) weight^T, plus the bias, plus the old y if `add`. `work` has work_bytes() bytes. */
void linear_in_team(int64_t threads, const Linear *linear, Input input, int64_t rows, int64_t add, const float *x,
                    float *y, char *work);
int64_t work_bytes(const Linear *linear, int64_t rows);

/* The busy slots, grouped by prompt into blocks (native_attention.py). */
typedef struct {
    int64_t num_blocks, block_size;
    const int64_t *block_start, *block_prompt, *slot_order, *prompt_length, *length;
    int64_t heads, kv_heads, prompt_capacity, capacity;
} Slots;

/* Rows of queries are `q_stride` numbers apart, and rows of new keys and of new values `kv_stride`. */
void attend_in_team(int64_t threads, const Slots *slots, int64_t q_stride, int64_t kv_stride, const float *queries,
                    const float *new_keys, const float *new_values, const DTYPE *prompt_keys,
                    const DTYPE *prompt_values, DTYPE *kv_tiles, float *out);

/* Norms (unless `weight` is NULL) and rotates heads in place. Rows of x are `stride` numbers apart. */
void rotate_in_team(int64_t rows, int64_t heads, int64_t stride, float eps, const float *weight, const float *cosine,
                    const float *sine, float *x);
