// Absorbed attention on the tensor cores, for KV in bf16 or FP8 of V3's shape (512 + 64 values
// a token).
#ifndef PENSTOCK_KERNELS_CUDA_MLA_MMA_CUH
#define PENSTOCK_KERNELS_CUDA_MLA_MMA_CUH

#include "kernels/cuda/device.cuh"

// A call of mla, as kernels see it.
struct mla {
    int n_heads, kv_lora, rope, n_rows;
    float scale;
    const float *q_abs, *q_pe;
    size_t q_stride, q_head_stride;
    struct step_inputs in;
    struct kv_layer kv;
    float *out;
    float *partial; // what splits of a row's KV leave
    int splits;
    struct kv_block block; // of KV in FP8
};

bool mla_mma_takes(int kv_lora, int rope);
void mla_mma_run(struct device *d, struct mla m);

#endif
