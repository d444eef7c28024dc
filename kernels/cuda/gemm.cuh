// What matrix products share with moe.cu: rows rounded to bf16 where the tensor cores read them.
#ifndef PENSTOCK_KERNELS_CUDA_GEMM_CUH
#define PENSTOCK_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/matrix.cuh"

enum { ROUNDING_ROWS = 16 }; // up to so many tokens are rounded by the product itself

// Rows of f32, of several heads, each for a matrix with a phase of its own.
struct gemm_rows {
    const float *x;
    size_t x_stride, x_head_stride;
    int n_rows, k;
    int phases[CUDA_HEADS_MAX];
};

// In which order a block's 128 inputs lie: as they are, or as threads hold weights of one byte or
// of two (wgmma.cuh).
enum input_order { INPUT_PLAIN, INPUT_BY_BYTES, INPUT_BY_HALVES };

// to (n_heads, n_rows, cuda_input_pitch(k)) bf16 = the rows, at their phases, zeros around them.
void gemm_round(struct device *d, const struct gemm_rows *r, int n_heads, enum input_order order,
                void *to);

// Which input of its block lies at place `at` of the block.
static inline __host__ __device__ int input_at(enum input_order order, int at)
{
    int step = at / 16, t = at % 8 / 2, high = at / 8 % 2, low = at % 2;
    if (order == INPUT_BY_BYTES) return step / 4 * 64 + t * 16 + step % 4 * 4 + high * 2 + low;
    if (order == INPUT_BY_HALVES) return step / 2 * 32 + t * 8 + step % 2 * 4 + high * 2 + low;
    return at;
}

// At which place of its block input k of the block lies: the other way round.
static inline __host__ __device__ int place_of(enum input_order order, int k)
{
    int low = k % 2, high = k / 2 % 2;
    if (order == INPUT_BY_BYTES) {
        return (k / 64 * 4 + k / 4 % 4) * 16 + high * 8 + k / 16 % 4 * 2 + low;
    }
    if (order == INPUT_BY_HALVES) {
        return (k / 32 * 2 + k / 4 % 2) * 16 + high * 8 + k / 8 % 4 * 2 + low;
    }
    return k;
}

// Whether products with such weights run on the tensor cores; else they are exact.
static inline bool gemm_tensor_cores(const struct device *d, enum dtype dtype)
{
    return d->precision == PRECISION_BF16 && dtype != DTYPE_F32;
}

// How the rows of a product are to lie: one for wgmma, or any other.
static inline enum input_order gemm_order(enum dtype dtype, bool wide)
{
    if (!wide) return INPUT_PLAIN;
    return dtype == DTYPE_F8_E4M3 ? INPUT_BY_BYTES : INPUT_BY_HALVES;
}

#endif
