// Kernels that begin while the one before on the stream still runs: they do what depends on
// nothing, as bringing weights, and then wait. Only Hopper has that; elsewhere they follow as all
// others do. All of a decode step's kernels are such: each may begin as soon as every block of the
// one before has, so several wait at once, weights in hand. A kernel ends after it has waited,
// hence after all before it. What others write is read behind the wait, and never by ld.global.nc,
// which the compiler may move before it.
#ifndef PENSTOCK_KERNELS_CUDA_OVERLAP_CUH
#define PENSTOCK_KERNELS_CUDA_OVERLAP_CUH

#include "kernels/cuda/device.cuh"

// In the kernel: the next one may begin, if it was launched as one that waits.
static __device__ __forceinline__ void overlap_next()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// In the kernel, before it reads or writes what others write or read: all before have ended.
static __device__ __forceinline__ void overlap_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches a kernel that calls overlap_wait in all threads that read or write what others do;
// `overlaps`: so that it begins early, unless it is in a branch or follows what is no kernel.
template <typename... ARGS>
static void overlap_launch(struct device *d, const char *op, bool overlaps,
                           void (*kernel)(ARGS...), dim3 grid, int threads, size_t shared,
                           const ARGS &...args)
{
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned) threads);
    config.dynamicSmemBytes = shared;
    config.stream = d->stream;
    config.attrs = &overlap;
    config.numAttrs = overlaps && d->hopper && !d->branched && !d->barred ? 1 : 0;
    if (!d->branched) d->barred = false;
    device_note(d, cudaLaunchKernelEx(&config, kernel, args...), op);
}

#endif
