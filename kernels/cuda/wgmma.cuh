// The inner part of the bf16 matrix products on Hopper where there are many tokens: 64 rows of
// weights a warpgroup against 32 to 128 tokens (wgmma m64nNk16). Weights go from memory into
// registers and are widened there, as in mma.cuh; tokens are read by the tensor cores straight from
// shared memory, so that neither side loads anything twice.
//
// Tokens lie in scratch with the inputs of each block of 128 in the order in which threads hold
// weights (gemm_round); in shared memory two halves of 64 inputs, rows of 128 bytes, 16-byte pieces
// swizzled by row. Built for sm_90a; elsewhere the kernels are empty and never launched.
#ifndef PENSTOCK_KERNELS_CUDA_WGMMA_CUH
#define PENSTOCK_KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/mma.cuh"

// N: tokens. SIZE: bytes of a weight. A block: two warpgroups.
template <int N, int SIZE> struct wgmma_shape {
    static constexpr int WK = 1;
    static constexpr int TOKENS = N;
    static constexpr int ROWS = 128;
    static constexpr int HALF_BYTES = N * 128;
    static constexpr int STAGE_BYTES = 2 * HALF_BYTES;
    static constexpr int STAGES = N == 128 ? 3 : 4;
    static constexpr int SUM_PITCH = ROWS + 4;
    static constexpr int BYTES = STAGES * STAGE_BYTES + 1024; // aligned to 1024
    // Blocks of weights in registers: as many as there is room for.
    static constexpr int DEPTH = N != 64 ? 2 : SIZE == 1 ? 4 : 3;
    static constexpr int LOADS = SIZE == 1 ? 2 : 4;
    static_assert(TOKENS * SUM_PITCH * 4 <= STAGES * STAGE_BYTES, "the sums have room");
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The compiler moves no use of the sums over this.
template <int N> static __device__ __forceinline__ void wgmma_fence(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// d = a b (+ d if `keep`): 64 rows a warpgroup, 16 inputs.
static __device__ __forceinline__ void wgmma_step(float (&d)[4], const uint32_t (&a)[4],
                                                  uint64_t b, int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3"
        "}, {%4, %5, %6, %7}, %8, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

static __device__ __forceinline__ void wgmma_step(float (&d)[8], const uint32_t (&a)[4],
                                                  uint64_t b, int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, {%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

static __device__ __forceinline__ void wgmma_step(float (&d)[16], const uint32_t (&a)[4],
                                                  uint64_t b, int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

static __device__ __forceinline__ void wgmma_step(float (&d)[32], const uint32_t (&a)[4],
                                                  uint64_t b, int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

static __device__ __forceinline__ void wgmma_step(float (&d)[64], const uint32_t (&a)[4],
                                                  uint64_t b, int keep)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
          "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
          "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

static __device__ __forceinline__ uint64_t wgmma_descriptor(const char *shared)
{
    uint64_t at = (uint64_t) __cvta_generic_to_shared(shared);
    // Rows of 128 bytes swizzled in groups of 8, which are 1024 bytes apart.
    return (at & 0x3ffff) >> 4 | (uint64_t) 1 << 16 | (uint64_t) (1024 >> 4) << 32 |
           (uint64_t) 1 << 62;
}

template <typename S>
static __device__ __forceinline__ void wgmma_stage(char *stage, const struct feed<S> &f,
                                                   const __nv_bfloat16 *x, int block, int end)
{
    int piece = threadIdx.x % 16, token0 = threadIdx.x / 16;
    // 16 tokens a round: the swizzle, by a token's last three bits, is the same in all of them.
    char *to = stage + piece / 8 * S::HALF_BYTES + token0 * 128 + (piece % 8 ^ token0 % 8) * 16;
    const __nv_bfloat16 *from = x + (size_t) block * SCALE_BLOCK;
#pragma unroll
    for (int j = 0; j < feed<S>::PIECES; j++) {
        if (block < end && f.from[j] != feed<S>::NONE) {
            copy_async(to + j * 16 * 128, from + (size_t) f.from[j] * 8);
        }
    }
    copy_commit();
}

// Sums of the block's tile over input blocks [begin, end), left in shared memory: (TOKENS,
// SUM_PITCH) f32. `row`: the warpgroup's first row in its matrix `m`. Otherwise as mma_tile.
template <int N, int SIZE>
static __device__ __forceinline__ void wgmma_tile(const struct mat &m, int row,
                                                  const __nv_bfloat16 *x, size_t x_pitch,
                                                  const int32_t *token_rows, int begin, int end,
                                                  char *shared)
{
    using S = wgmma_shape<N, SIZE>;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int blocks = mat_blocks(m.col_phase, m.k), local = warp % 4 * 16 + g;
    const uint8_t *from[2];
    const float *scales[2] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = row + local + 8 * i < m.n ? row + local + 8 * i : m.n - 1;
        from[i] = m.rows + (size_t) r * blocks * SCALE_BLOCK * SIZE + t * 16;
        if (SIZE == 1) scales[i] = m.scales + (size_t) ((m.row_phase + r) / SCALE_BLOCK) * blocks;
    }
    uint4 w[S::DEPTH][2][S::LOADS];
    float total[N / 2] = {}, acc[N / 2];
    auto load = [&](uint4 (&to)[2][S::LOADS], int block) {
        if (block >= end) return;
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int l = 0; l < S::LOADS; l++) {
                to[i][l] = load_weights(from[i] + (size_t) block * SCALE_BLOCK * SIZE + l * 64);
            }
        }
    };
#pragma unroll
    for (int i = 0; i < S::DEPTH; i++) load(w[i], begin + i);
    struct feed<S> f;
    feed_init(f, token_rows, x_pitch);
#pragma unroll
    for (int i = 0; i + 1 < S::STAGES; i++) {
        wgmma_stage<S>(shared + i * S::STAGE_BYTES, f, x, begin + i, end);
    }
    float next0 = SIZE == 1 && begin < end ? scales[0][begin] : 1;
    float next1 = SIZE == 1 && begin < end ? scales[1][begin] : 1;
    int stage = 0; // of `block`
    for (int first = begin; first < end; first += S::DEPTH) {
#pragma unroll
        for (int i = 0; i < S::DEPTH; i++) {
            int block = first + i;
            if (block >= end) break;
            copy_wait<S::STAGES - 2>();
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            __syncthreads();
            int before = stage > 0 ? stage - 1 : S::STAGES - 1;
            wgmma_stage<S>(shared + before * S::STAGE_BYTES, f, x, block + S::STAGES - 1, end);
            uint32_t a[8][4];
#pragma unroll
            for (int octet = 0; octet < 4; octet++) {
#pragma unroll
                for (int r = 0; r < 2; r++) widen_octet<SIZE>(w[i][r], octet, r, a);
            }
            load(w[i], block + S::DEPTH);
            const char *tokens = shared + stage * S::STAGE_BYTES;
            stage = stage + 1 < S::STAGES ? stage + 1 : 0;
            uint64_t b[2] = {wgmma_descriptor(tokens), wgmma_descriptor(tokens + S::HALF_BYTES)};
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int s = 0; s < 8; s++) {
                uint64_t at = b[s / 4] + (uint64_t) (s % 4 * 2);
                if (SIZE == 1) wgmma_step(acc, a[s], at, s > 0);
                else wgmma_step(total, a[s], at, 1);
            }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            float s0 = next0, s1 = next1;
            if (SIZE == 1 && block + 1 < end) {
                next0 = scales[0][block + 1];
                next1 = scales[1][block + 1];
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
            for (int n = 0; SIZE == 1 && n < N / 2; n++) {
                total[n] = fmaf(acc[n], n % 4 < 2 ? s0 : s1, total[n]);
            }
        }
    }
    copy_wait<0>();
    __syncthreads();
    float *sums = (float *) shared + warp / 4 * 64 + local;
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
        sums[(size_t) (n / 4 * 8 + t * 2 + n % 2) * S::SUM_PITCH + n % 4 / 2 * 8] = total[n];
    }
    __syncthreads();
}

#else

template <int N, int SIZE>
static __device__ __forceinline__ void wgmma_tile(const struct mat &, int, const __nv_bfloat16 *,
                                                  size_t, const int32_t *, int, int, char *)
{
    __trap();
}

#endif

// The block's dynamic shared memory from its first 1024-byte boundary on.
static __device__ __forceinline__ char *wgmma_shared(char *dynamic)
{
    uint32_t at = (uint32_t) __cvta_generic_to_shared(dynamic);
    return dynamic + (1024 - at % 1024) % 1024;
}

#endif
