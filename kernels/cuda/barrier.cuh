// Barriers in shared memory on which threads arrive and Hopper's copies end. Device code is for
// sm_90a. A new barrier is in phase 0.
#ifndef PENSTOCK_KERNELS_CUDA_BARRIER_CUH
#define PENSTOCK_KERNELS_CUDA_BARRIER_CUH

#include "kernels/cuda/device.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ uint32_t shared_at(const void *p)
{
    return (uint32_t) __cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void bar_init(uint64_t *bar, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_at(bar)), "r"(arrivals)
                 : "memory");
}

// After all inits, before other threads or the copy engine see them.
static __device__ __forceinline__ void bar_init_end()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void bar_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(bar)) : "memory");
}

// By its place in shared memory, where a kernel counts along barriers; from the threads that `may`.
static __device__ __forceinline__ void bar_arrive_at(uint32_t bar, bool may)
{
    asm volatile("{\n.reg .pred may;\nsetp.ne.u32 may, %1, 0;\n"
                 "@may mbarrier.arrive.shared::cta.b64 _, [%0];\n}\n" ::"r"(bar),
                 "r"((uint32_t) may) : "memory");
}

// Arrives, and lets the phase end only when so many bytes were copied.
static __device__ __forceinline__ void bar_expect(uint64_t *bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(bar)),
                 "r"(bytes) : "memory");
}

// Waits until the phase of this parity has ended.
static __device__ __forceinline__ void bar_wait_at(uint32_t bar, uint32_t parity)
{
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}\n" ::"r"(bar), "r"(parity) : "memory");
}

static __device__ __forceinline__ void bar_wait(uint64_t *bar, uint32_t parity)
{
    bar_wait_at(shared_at(bar), parity);
}

// Whether it has.
static __device__ __forceinline__ bool bar_passed_at(uint32_t bar, uint32_t parity)
{
    uint32_t passed;
    asm volatile("{\n.reg .pred done;\nmbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, done;\n}\n" : "=r"(passed) : "r"(bar), "r"(parity)
                 : "memory");
    return passed != 0;
}

#endif

#endif
