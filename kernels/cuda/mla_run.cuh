// Attention of a run of rows by expanded keys and values, on Hopper, for V3's shape: the parts of
// cuda_mla_run.
#ifndef PENSTOCK_KERNELS_CUDA_MLA_RUN_CUH
#define PENSTOCK_KERNELS_CUDA_MLA_RUN_CUH

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/matrix.cuh"

enum {
    RUN_HEAD = CUDA_MLA_HEAD, // values of a key before rope, and of a value
    RUN_ROPE = CUDA_MLA_ROPE,
    RUN_LORA = CUDA_MLA_LORA,
    RUN_KEYS = CUDA_MLA_KEYS,
};

// Some heads of a run.
struct run {
    int pos, n;      // rows [pos, pos + n) of the sequence are its queries
    int n_heads;     // at once
    int padded;      // its tokens, to whole tiles
    const int32_t *blocks; // of its sequence; NULL: one behind the other
    int n_blocks;    // of the pool
    float scale;
    const float *q;  // of the first head
    size_t q_stride, q_head_stride;
    float *out;
    size_t out_stride;
};

static __device__ __forceinline__ int run_block(const struct run &r, int i)
{
    int block = r.blocks != nullptr ? r.blocks[i] : i;
    if (block < 0 || block >= r.n_blocks) __trap();
    return block;
}

// A layer of bf16 at `to` that has the sequence's KV in FP8: n blocks, one behind the other.
struct kv_layer run_widen_kv(struct device *d, const struct kv_layer *kv, const int32_t *blocks,
                             int n, char *to);

// keys (n_heads, padded, RUN_HEAD), values (n_heads, padded, RUN_HEAD) bf16 in `expanded`, from the
// latents; zeros where the run has no token. `widened` by run_widen.
void run_expand(struct device *d, const struct run *r, const struct kv_layer *kv, char *widened,
                char *expanded);

// to (n_heads, 2 * RUN_HEAD, RUN_LORA) bf16 = uk turned, below it uv, scaled.
void run_widen(struct device *d, const struct matrix *uk, const struct matrix *uv, int n_heads,
               char *to);

// out = softmax(scale * q k^T) v, causal; the keys' rope part from the pool.
void run_attend(struct device *d, const struct run *r, const struct kv_layer *kv,
                const char *expanded);

#endif
