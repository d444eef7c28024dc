// Products of FP8 weights with FP8 rows on Hopper's tensor cores: rows quantised by token and block
// of 128 inputs (a scale each, f32), both sides read from shared memory (wgmma m64nNk32), a block's
// sum scaled in f32. For steps of many rows: a row's error is that of e4m3, about 2.5%, where bf16
// has 0.2%.
#ifndef PENSTOCK_KERNELS_CUDA_FP8_CUH
#define PENSTOCK_KERNELS_CUDA_FP8_CUH

#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/tma.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    FP8_ROWS_ALIGN = 256,  // the largest tile of tokens
    DESCRIPTOR_BYTES = 16, // what a descriptor's place counts
};

// Rows in FP8: (n_rows, pitch) bytes, and scales (pitch / 128, scale_pitch) f32, a block's scales
// of all rows side by side.
struct fp8_rows {
    uint8_t *rows;
    float *scales;
    size_t pitch, scale_pitch;
};

// Bytes of n_rows rows of `pitch` inputs with their scales, and how they lie in memory at `base`.
uint64_t fp8_bytes(size_t pitch, int n_rows);
struct fp8_rows fp8_lay(void *base, size_t pitch, int n_rows);

// Whether products with this matrix may take FP8 rows: there are enough of them.
bool fp8_takes(const struct device *d, enum dtype dtype, int n_rows);

// Quantises rows at phase phases[0], zeros around them.
void fp8_quantise(struct device *d, const struct gemm_rows *r, const struct fp8_rows *to);

// out (n_rows, n) = rows x W^T. w: an FP8 matrix, whatever its phases; rows quantised at its
// col_phase.
void fp8_gemm(struct device *d, const struct mat *w, const struct fp8_rows *x, int n_rows,
              float *out, size_t out_stride);

// Whether outputs of a tile may be written four at a time.
static inline bool fp8_by_fours(const struct mat *w, const float *out, size_t out_stride)
{
    return (uintptr_t) out % 16 == 0 && out_stride % 4 == 0 && w->row_phase % 4 == 0;
}

// The same without Hopper's instructions.
void fp8_mma_gemm(struct device *d, const struct mat *w, const struct fp8_rows *x, int n_rows,
                  float *out, size_t out_stride);

// The scale of a block of inputs with this largest magnitude, and what values are multiplied with:
// powers of two, which cost e4m3 no precision, so that rows in FP8 are exact in bf16, too.
static __device__ __forceinline__ float fp8_scale(float largest, float *factor)
{
    float most = fminf(fmaxf(largest, 1e-30f), 3e38f);
    uint32_t bits = (__float_as_uint(most / 448.0f) + 0x7fffffu) & 0xff800000u; // rounded up
    *factor = __uint_as_float(0x7f000000u - bits);
    return __uint_as_float(bits);
}

// Four values, to e4m3; beyond it: its largest; NaN stays.
static __device__ __forceinline__ uint32_t fp8_pack(float a, float b, float c, float d)
{
    uint32_t low, high;
    asm("{\n.reg .b16 h;\ncvt.rn.satfinite.e4m3x2.f32 h, %1, %2;\ncvt.u32.u16 %0, h;\n}\n"
        : "=r"(low) : "f"(b), "f"(a));
    asm("{\n.reg .b16 h;\ncvt.rn.satfinite.e4m3x2.f32 h, %1, %2;\ncvt.u32.u16 %0, h;\n}\n"
        : "=r"(high) : "f"(d), "f"(c));
    return low | high << 16;
}

// Two eights of outputs of a token, of which a thread has two values each (a, b), as tensor cores
// leave them: neighbours exchange theirs, and each has four in a row, from output fp8_fours_at() of
// the sixteen on.
static __device__ __forceinline__ float4 fp8_fours(float2 a, float2 b)
{
    bool odd = threadIdx.x % 2 != 0;
    float2 mine = odd ? a : b, other;
    other.x = __shfl_xor_sync(~0u, mine.x, 1);
    other.y = __shfl_xor_sync(~0u, mine.y, 1);
    return odd ? make_float4(other.x, other.y, b.x, b.y) : make_float4(a.x, a.y, other.x, other.y);
}

static __device__ __forceinline__ int fp8_fours_at()
{
    return threadIdx.x % 2 * 8 + threadIdx.x % 4 / 2 * 4;
}

// Those of outputs at .. at + 3 that are among the n of the row. `whole`: all are, and aligned.
static __device__ __forceinline__ void fp8_put(float *row, int at, int n, bool whole, float4 v)
{
    if (whole) {
        __stcs((float4 *) (row + at), v);
        return;
    }
    float each[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (at + i >= 0 && at + i < n) row[at + i] = each[i];
    }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// d = a b (+ d if `keep`): 64 rows of a, 32 inputs; descriptors of tiles in shared memory.
static __device__ __forceinline__ void fp8_step(float (&d)[16], uint64_t a, uint64_t b,
                                                int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]),
          "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
          "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15])
        : "l"(a), "l"(b), "r"(keep));
}

static __device__ __forceinline__ void fp8_step(float (&d)[32], uint64_t a, uint64_t b,
                                                int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]),
          "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
          "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(keep));
}

static __device__ __forceinline__ void fp8_step(float (&d)[48], uint64_t a, uint64_t b,
                                                int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, %48, %49, p, 1, 1;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]),
          "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
          "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
          "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]),
          "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
        : "l"(a), "l"(b), "r"(keep));
}

static __device__ __forceinline__ void fp8_step(float (&d)[64], uint64_t a, uint64_t b,
                                                int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]),
          "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
          "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
          "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]),
          "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),
          "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(keep));
}

// A tile's descriptor (wgmma_descriptor) from its lower half, in which the place is: counted along,
// it stays in registers that a warp has once.
static __device__ __forceinline__ uint64_t fp8_tile(uint32_t low)
{
    return (uint64_t) (1u << 30 | 1024 >> 4) << 32 | low;
}

// Begins d = 64 rows of `a` times the rows of `b`, one block of 128 inputs; lower halves of
// descriptors.
template <int N>
static __device__ __forceinline__ void fp8_begin(float (&d)[N], uint32_t a, uint32_t b)
{
    wgmma_fence(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int s = 0; s < 4; s++) fp8_step(d, fp8_tile(a + 2 * s), fp8_tile(b + 2 * s), s > 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// What was begun is complete.
template <int N> static __device__ __forceinline__ void fp8_end(float (&d)[N])
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    wgmma_fence(d);
}

// Both.
template <int N>
static __device__ __forceinline__ void fp8_block(float (&d)[N], const char *a, const char *b)
{
    fp8_begin(d, (uint32_t) wgmma_descriptor(a), (uint32_t) wgmma_descriptor(b));
    fp8_end(d);
}

#endif

#endif
