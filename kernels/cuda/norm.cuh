// The RMS norm of a row that a block keeps in registers, for the kernels of rows.cu and rope.cu.
#ifndef PENSTOCK_KERNELS_CUDA_NORM_CUH
#define PENSTOCK_KERNELS_CUDA_NORM_CUH

#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/reduce.cuh"

enum { NORM_VECTORS = 4, NORM_FEW = 128, NORM_MANY = 512 }; // float4s of a thread; threads of a row

struct norm {
    const float *x, *weight;
    int x_stride, dim;
    float eps;
    float *out;
    float *sum;       // x, where a row of `add` is added to it first
    const float *add; // null: none is
};

static __device__ __forceinline__ float4 plus(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// out = row `at` of x, normed. A row stays in registers: NORM_VECTORS a thread, which are asked for
// at once, as are the weights. All N threads of the block call.
template <int N, bool ADD>
static __device__ __forceinline__ void norm_row(const struct norm &n, int at)
{
    const float4 *from = (const float4 *) (n.x + (size_t) at * n.x_stride);
    const float4 *by = (const float4 *) n.weight;
    size_t row = (size_t) at * n.dim;
    float4 *to = (float4 *) (n.out + row), v[NORM_VECTORS], w[NORM_VECTORS];
    float sum = 0;
    overlap_next();
#pragma unroll
    for (int j = 0; j < NORM_VECTORS; j++) {
        int i = threadIdx.x + j * N;
        w[j] = i < n.dim / 4 ? by[i] : make_float4(0, 0, 0, 0);
    }
    overlap_wait();
#pragma unroll
    for (int j = 0; j < NORM_VECTORS; j++) {
        int i = threadIdx.x + j * N;
        v[j] = i < n.dim / 4 ? from[i] : make_float4(0, 0, 0, 0);
        if (ADD && i < n.dim / 4) v[j] = plus(v[j], ((const float4 *) (n.add + row))[i]);
    }
#pragma unroll
    for (int j = 0; ADD && j < NORM_VECTORS; j++) {
        int i = threadIdx.x + j * N;
        if (i < n.dim / 4) ((float4 *) (n.sum + row))[i] = v[j];
    }
#pragma unroll
    for (int j = 0; j < NORM_VECTORS; j++) {
        sum = fmaf(v[j].x, v[j].x, fmaf(v[j].y, v[j].y, sum));
        sum = fmaf(v[j].z, v[j].z, fmaf(v[j].w, v[j].w, sum));
    }
    float s = 1.0f / sqrtf(block_sum<N>(sum) / (float) n.dim + n.eps);
#pragma unroll
    for (int j = 0; j < NORM_VECTORS; j++) {
        int i = threadIdx.x + j * N;
        if (i >= n.dim / 4) continue;
        to[i] = make_float4(v[j].x * s * w[j].x, v[j].y * s * w[j].y, v[j].z * s * w[j].z,
                            v[j].w * s * w[j].w);
    }
}

static inline bool in_vectors(const void *a, const void *b, const void *c)
{
    return (((uintptr_t) a | (uintptr_t) b | (uintptr_t) c) & (sizeof(float4) - 1)) == 0;
}

// Whether rows are for whole vectors, and short enough for N threads.
static inline bool norm_fits(const struct norm &n, int threads)
{
    return in_vectors(n.x, n.weight, n.out) && n.x_stride % 4 == 0 && n.dim % 4 == 0 &&
           (n.add == NULL || in_vectors(n.add, n.sum, n.sum)) &&
           n.dim <= threads * NORM_VECTORS * 4;
}

#endif
