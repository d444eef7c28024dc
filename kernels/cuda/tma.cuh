// Hopper's copy engine (TMA) and the barriers in shared memory on which its copies end. One thread
// of a block asks for whole tiles; a stage's `full` barrier opens when all of its bytes are there,
// its `empty` one when all who read it are done. Tiles are rows of 128 bytes, their 16-byte pieces
// swizzled by row, as wgmma reads them. Device code is for sm_90a.
#ifndef PENSTOCK_KERNELS_CUDA_TMA_CUH
#define PENSTOCK_KERNELS_CUDA_TMA_CUH

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/device.cuh"

#include <cuda.h>

enum { TMA_ROW = 128 }; // bytes of a tile's row

// Equal matrices at equal distances: (n_matrices, n_rows, row_bytes), row_bytes a multiple of
// TMA_ROW, a box of which is box_rows rows of TMA_ROW bytes. Beyond the edges, below 0 too, boxes
// are zeros.
struct tma_tensor {
    const void *base; // aligned to 16 bytes, as is `step`
    uint64_t row_bytes;
    int n_rows, n_matrices;
    uint64_t step; // bytes from one matrix to the next
    int box_rows;
};

// The map of a tensor, to be passed to a kernel by value. A failure is noted.
CUtensorMap tma_map(struct device *d, const struct tma_tensor *t);

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The box of matrix `matrix` at (row, byte) to shared memory aligned to 1024 bytes.
static __device__ __forceinline__ void tma_load(void *shared, const CUtensorMap *map, int byte,
                                                int row, int matrix, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_at(shared)), "l"(map),
                 "r"(shared_at(barrier)), "r"(byte), "r"(row), "r"(matrix) : "memory");
}

// What such a box is read once with: it leaves the second level cache before others do.
static __device__ __forceinline__ uint64_t read_once()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

static __device__ __forceinline__ void tma_load(void *shared, const CUtensorMap *map, int byte,
                                                int row, int matrix, uint64_t *barrier,
                                                uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_at(shared)),
                 "l"(map), "r"(shared_at(barrier)), "r"(byte), "r"(row), "r"(matrix), "l"(policy)
                 : "memory");
}

// Bytes that lie one after the other; all a multiple of 16.
static __device__ __forceinline__ void bulk_load(void *shared, const void *from, uint32_t bytes,
                                                 uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(shared_at(shared)), "l"(from), "r"(bytes),
                 "r"(shared_at(barrier)) : "memory");
}

// Registers a thread of the calling warpgroup may have from here on.
template <int N> static __device__ __forceinline__ void fewer_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> static __device__ __forceinline__ void more_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// A place in a ring of stages, and the parity of its round.
template <int STAGES> struct ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void next()
    {
        stage++;
        if (stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

#endif

#endif
