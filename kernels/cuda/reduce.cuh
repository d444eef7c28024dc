// Sums over a warp or a block, each in one fixed order; every thread gets the result.
#ifndef PENSTOCK_KERNELS_CUDA_REDUCE_CUH
#define PENSTOCK_KERNELS_CUDA_REDUCE_CUH

static __device__ __forceinline__ float warp_sum(float value)
{
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(~0u, value, lane);
    return value;
}

// For a block of THREADS threads, all of which call.
template <int THREADS> static __device__ float block_sum(float value)
{
    __shared__ float parts[THREADS / 32];
    value = warp_sum(value);
    __syncthreads(); // the last call's readers are done
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < THREADS / 32; i++) sum += parts[i];
    return sum;
}

#endif
