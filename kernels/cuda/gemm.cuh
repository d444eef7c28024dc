// What matrix products share with moe.cu: rows rounded to bf16 where the tensor cores read them.
#ifndef PENSTOCK_KERNELS_CUDA_GEMM_CUH
#define PENSTOCK_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/matrix.cuh"

// Rows of f32, of several heads, each for a matrix with a phase of its own.
struct gemm_rows {
    const float *x;
    size_t x_stride, x_head_stride;
    int n_rows, k;
    int phases[CUDA_HEADS_MAX];
};

// to (n_heads, n_rows, cuda_input_pitch(k)) bf16 = the rows, at their phases, zeros around them.
void gemm_round(struct device *d, const struct gemm_rows *r, int n_heads, void *to);

// Whether products with such weights run on the tensor cores; else they are exact.
static inline bool gemm_tensor_cores(const struct device *d, enum dtype dtype)
{
    return d->precision == PRECISION_BF16 && dtype != DTYPE_F32;
}

#endif
