// Hopper's own instructions, as attention uses them: barriers in shared memory on which copies
// complete, copies of boxes out of a matrix, and products whose sides lie in shared memory.
//
// A matrix lies in shared memory as chunks of 64 columns: rows of 128 bytes, 16-byte pieces
// swizzled by the row's last three bits, chunks on boundaries of 1024 bytes. Only sources built
// for sm_90a call what is inside the guard.
#ifndef PENSTOCK_KERNELS_CUDA_HOPPER_CUH
#define PENSTOCK_KERNELS_CUDA_HOPPER_CUH

#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/device.cuh"

#include <cuda.h>
#include <cuda_bf16.h>

enum { CHUNK_COLUMNS = 64, CHUNK_ROW_BYTES = 128, WARPGROUP = 128 };

// Describes a bf16 matrix (rows, columns) in device memory to the copy engine, which brings boxes
// of box_rows rows and 64 columns. Faults are kept (device_note). In tma.cu, with tma_map.
CUtensorMap hopper_map(struct device *d, const void *base, uint64_t rows, uint64_t columns,
                       int box_rows);

// The block's dynamic shared memory from its first 1024-byte boundary on.
static __device__ __forceinline__ char *hopper_shared(char *dynamic)
{
    uint32_t at = (uint32_t) __cvta_generic_to_shared(dynamic);
    return dynamic + (1024 - at % 1024) % 1024;
}

// Where 8 values of a row are, from column 8 * piece on, in chunks of `rows` rows.
static __device__ __forceinline__ uint32_t chunk_place(int row, int piece, int rows)
{
    return (uint32_t) (piece / 8 * rows * CHUNK_ROW_BYTES + row * CHUNK_ROW_BYTES +
                       (piece % 8 ^ row % 8) * 16);
}

static __device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    return bits;
}

static __device__ __forceinline__ float low_bf16(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float high_bf16(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

static __device__ __forceinline__ uint4 pack_bf16(float4 a, float4 b)
{
    return make_uint4(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y),
                      pack_bf16(b.z, b.w));
}

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// --- named barriers: of 2 or 3 warpgroups, `id` from 1 on

static __device__ __forceinline__ void group_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

static __device__ __forceinline__ void group_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- registers a thread, of a whole warpgroup: a block of three has 168 each

template <int N> static __device__ __forceinline__ void registers_give()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> static __device__ __forceinline__ void registers_take()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// --- copies

// The box at (row, column) to `to`; completes on the barrier.
static __device__ __forceinline__ void box_load(char *to, const CUtensorMap *map, int column,
                                                int row, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_at(to)), "l"(map), "r"(column),
                 "r"(row), "r"(shared_at(bar)) : "memory");
}

// Brings the box at (row, column) into the second level cache.
static __device__ __forceinline__ void box_prefetch(const CUtensorMap *map, int column, int row)
{
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map),
                 "r"(column), "r"(row) : "memory");
}

// A box from shared memory to its place; the thread's later stores_wait tells of it.
static __device__ __forceinline__ void box_store(const CUtensorMap *map, int column, int row,
                                                 const char *from)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::
                     "l"(map), "r"(column), "r"(row), "r"(shared_at(from)) : "memory");
}

static __device__ __forceinline__ void stores_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// All committed boxes have left shared memory.
static __device__ __forceinline__ void stores_wait()
{
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

static __device__ __forceinline__ void map_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// What this thread stored in shared memory is seen by the tensor cores and the copy engine, once
// others have passed a barrier with it.
static __device__ __forceinline__ void stored_for_engines()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- products

static __device__ __forceinline__ void products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int LEFT> static __device__ __forceinline__ void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// Keeps the compiler from moving uses of registers that products write over the waits.
template <int N> static __device__ __forceinline__ void products_hold(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The same value, of which the compiler knows nothing: what follows from it is computed where it is
// used, not kept in registers all along.
static __device__ __forceinline__ uint32_t unknown(uint32_t x)
{
    asm volatile("" : "+r"(x));
    return x;
}

// A side whose inner dimension lies along rows: 64 values of it in a chunk. 16 values on: + 2.
static __device__ __forceinline__ uint64_t side_along(uint32_t chunk)
{
    uint64_t high = (uint64_t) (1u << 30 | 1024 >> 4) << 32;
    return high | ((chunk & 0x3ffff) >> 4 | 1u << 16);
}

static __device__ __forceinline__ uint64_t side_along(const char *chunk)
{
    return side_along(shared_at(chunk));
}

// The right side with its inner dimension across rows (a row is a value of it), 64 columns in each
// chunk of `chunk_bytes`. 16 values on: + 2048 / 16.
static __device__ __forceinline__ uint64_t side_across(uint32_t chunk, int chunk_bytes)
{
    uint64_t high = (uint64_t) (1u << 30 | 1024 >> 4) << 32;
    return high | ((chunk & 0x3ffff) >> 4 | (uint32_t) (chunk_bytes >> 4) << 16);
}

static __device__ __forceinline__ uint64_t side_across(const char *chunk, int chunk_bytes)
{
    return side_across(shared_at(chunk), chunk_bytes);
}

#define HOPPER_D8(i)                                                                             \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),  \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define HOPPER_D32(i) HOPPER_D8(i), HOPPER_D8(i + 8), HOPPER_D8(i + 16), HOPPER_D8(i + 24)
#define HOPPER_R32                                                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HOPPER_R64                                                                               \
    HOPPER_R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "   \
    "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HOPPER_R128                                                                              \
    HOPPER_R64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, "   \
    "%79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, " \
    "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "    \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
    "%127"

// d = a b (+ d if keep): 64 rows a warpgroup, 64, 128 or 256 columns, 16 values of the inner
// dimension. Both sides from shared memory; ACROSS: the right one by side_across.
template <int ACROSS>
static __device__ __forceinline__ void product(float (&d)[32], uint64_t a, uint64_t b, int keep)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" HOPPER_R32
                 "}, %32, %33, p, 1, 1, 0, %35;\n}\n"
                 : HOPPER_D32(0)
                 : "l"(a), "l"(b), "r"(keep), "n"(ACROSS));
}

template <int ACROSS>
static __device__ __forceinline__ void product(float (&d)[64], uint64_t a, uint64_t b, int keep)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" HOPPER_R64
                 "}, %64, %65, p, 1, 1, 0, %67;\n}\n"
                 : HOPPER_D32(0), HOPPER_D32(32)
                 : "l"(a), "l"(b), "r"(keep), "n"(ACROSS));
}

template <int ACROSS>
static __device__ __forceinline__ void product(float (&d)[128], uint64_t a, uint64_t b, int keep)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" HOPPER_R128
                 "}, %128, %129, p, 1, 1, 0, %131;\n}\n"
                 : HOPPER_D32(0), HOPPER_D32(32), HOPPER_D32(64), HOPPER_D32(96)
                 : "l"(a), "l"(b), "r"(keep), "n"(ACROSS));
}

// d += a b, the left side from registers (which a thread has as sums of a product have them).
template <int ACROSS>
static __device__ __forceinline__ void product(float (&d)[64], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" HOPPER_R64
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, %69;\n}\n"
                 : HOPPER_D32(0), HOPPER_D32(32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ACROSS));
}

template <int ACROSS>
static __device__ __forceinline__ void product(float (&d)[128], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" HOPPER_R128
                 "}, {%128, %129, %130, %131}, %132, p, 1, 1, %133;\n}\n"
                 : HOPPER_D32(0), HOPPER_D32(32), HOPPER_D32(64), HOPPER_D32(96)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ACROSS));
}

#endif
#endif
