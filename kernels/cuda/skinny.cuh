// Products of an FP8 matrix with few rows on Hopper, bound by memory: weights pass through shared
// memory, brought by the copy engine many stages ahead, and are widened to bf16 in registers (wgmma
// m64nNk16, rows from shared memory).
#ifndef PENSTOCK_KERNELS_CUDA_SKINNY_CUH
#define PENSTOCK_KERNELS_CUDA_SKINNY_CUH

#include "kernels/cuda/gemm.cuh"

// Whether this kernel takes a product of so many rows.
bool skinny_takes(const struct device *d, const struct mat *w, int n_rows);

// out (n_rows, n) = x W^T; x: the rows of one head. `room`: for them in bf16, n_rows times
// cuda_input_pitch(k) values. Faults are noted.
void skinny_gemm(struct device *d, const struct mat *w, const struct gemm_rows *x, void *room,
                 float *out, size_t out_stride);

#endif
