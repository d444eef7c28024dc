#include "tests/gpu/counted.h"

#include "common/status.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>

static _Atomic uint64_t calls;

uint64_t counted_calls(void) { return atomic_load(&calls); }

uint64_t counted_free(void)
{
    size_t free_bytes = 0, total = 0;
    check(cudaMemGetInfo(&free_bytes, &total) == cudaSuccess);
    return free_bytes;
}

// A counter before `name`; the linker's --wrap list has the same names.
#define COUNTED(name, parameters, arguments)                                                       \
    cudaError_t __real_##name parameters;                                                          \
    cudaError_t __wrap_##name parameters;                                                          \
    cudaError_t __wrap_##name parameters                                                           \
    {                                                                                              \
        atomic_fetch_add(&calls, 1);                                                               \
        return __real_##name arguments;                                                            \
    }

COUNTED(cudaMalloc, (void **p, size_t n), (p, n))
COUNTED(cudaMallocAsync, (void **p, size_t n, cudaStream_t s), (p, n, s))
COUNTED(cudaMallocManaged, (void **p, size_t n, unsigned flags), (p, n, flags))
COUNTED(cudaMallocHost, (void **p, size_t n), (p, n))
COUNTED(cudaHostAlloc, (void **p, size_t n, unsigned flags), (p, n, flags))
COUNTED(cudaHostRegister, (void *p, size_t n, unsigned flags), (p, n, flags))
COUNTED(cudaFree, (void *p), (p))
COUNTED(cudaFreeAsync, (void *p, cudaStream_t s), (p, s))
COUNTED(cudaFreeHost, (void *p), (p))
COUNTED(cudaHostUnregister, (void *p), (p))
COUNTED(cudaGraphInstantiate, (cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags),
        (e, g, flags))
COUNTED(cudaStreamCreateWithFlags, (cudaStream_t *s, unsigned flags), (s, flags))
COUNTED(cudaEventCreateWithFlags, (cudaEvent_t *e, unsigned flags), (e, flags))
