// The inner part of the bf16 matrix products: 16 rows of weights a warp against a few tokens, on
// the tensor cores (mma.sync m16n8k16), weights streamed from memory straight into registers.
//
// Tokens are the narrow side of the instruction, so that a step with one row wastes little. Within
// a block of 128 inputs every thread loads 16 contiguous bytes of a weight row; which input an
// instruction's k means is thereby permuted, for weights and tokens alike, which no sum shows. FP8
// becomes bf16 in registers exactly (its bits moved, then times 2^120), a block's sum is scaled in
// f32. 8 warps: WM of them side by side over rows, the others over blocks of inputs.
#ifndef PENSTOCK_KERNELS_CUDA_MMA_CUH
#define PENSTOCK_KERNELS_CUDA_MMA_CUH

#include "kernels/cuda/e4m3.cuh"
#include "kernels/cuda/matrix.cuh"

#include <cuda_bf16.h>

enum { MMA_THREADS = 256, MMA_WARPS = MMA_THREADS / WARP };

// NT: tiles of 8 tokens. WM: warps over rows. SIZE: bytes of a weight. XS: of a token's value.
template <int NT, int WM, int SIZE, int XS = 2> struct mma_shape {
    static constexpr int WK = MMA_WARPS / WM;
    static constexpr int TOKENS = 8 * NT;
    static constexpr int ROWS = 16 * WM;
    // Padded so that a quarter of a warp reads all banks (FP8 beside f32: half of them).
    static constexpr int X_PITCH = WK * SCALE_BLOCK + (SIZE == 1 ? 8 : XS == 2 ? 32 : 4);
    static constexpr int STAGE_BYTES = TOKENS * X_PITCH * XS;
    static constexpr int SUM_PITCH = ROWS + 4;
    static constexpr int SUM_BYTES = WK * TOKENS * SUM_PITCH * 4;
    static constexpr int BYTES = 2 * STAGE_BYTES > SUM_BYTES ? 2 * STAGE_BYTES : SUM_BYTES;
    // Blocks of weights in registers. Where there is one block of inputs it is all there is.
    static constexpr bool SINGLE = WK == 1 && NT < 4;
    static constexpr int DEPTH = SINGLE ? 1 : SIZE == 1 && NT < 8 ? 3 : 2;
    static constexpr bool RING = NT == 1 && SIZE == 1 && !SINGLE; // weights by shared memory
    static constexpr int BLOCKS = SIZE > 1 || NT > 1 ? 2 : SINGLE ? 4 : 3; // a multiprocessor
    static constexpr int LOADS = SIZE == 1 ? 2 : 4;           // of 16 bytes, a row and block
};

static __device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1,
                                                uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint4 load_weights(const uint8_t *from)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

static __device__ __forceinline__ void copy_async(void *shared, const void *global)
{
    uint32_t to = (uint32_t) __cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

static __device__ __forceinline__ void copy_async_or_zero(void *shared, const void *global,
                                                          bool there)
{
    uint32_t to = (uint32_t) __cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                 "r"(there ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int LEFT> static __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// What a thread brings of each stage: 16-byte pieces of tokens' rows, always the same ones. S: a
// shape of tiles. Places in x are in units of 8 values.
template <typename S> struct feed {
    static constexpr int ROW_PIECES = S::WK * SCALE_BLOCK / 8; // of a token and stage
    static constexpr int ALL = S::TOKENS * ROW_PIECES;
    static constexpr int PIECES = (ALL + MMA_THREADS - 1) / MMA_THREADS;
    static constexpr uint32_t NONE = ~0u;
    uint32_t from[PIECES]; // of stage 0
};

template <typename S>
static __device__ __forceinline__ void feed_init(struct feed<S> &f, const int32_t *token_rows,
                                                 size_t x_pitch)
{
    static_assert(feed<S>::ALL % MMA_THREADS == 0 || feed<S>::PIECES == 1, "whole rounds");
#pragma unroll
    for (int j = 0; j < feed<S>::PIECES; j++) {
        int i = threadIdx.x + j * MMA_THREADS;
        int row = i < feed<S>::ALL ? token_rows[i / feed<S>::ROW_PIECES] : -1;
        f.from[j] = feed<S>::NONE;
        if (row >= 0) {
            f.from[j] = (uint32_t) row * (uint32_t) (x_pitch / 8) + i % feed<S>::ROW_PIECES;
        }
    }
}

// Brings WK blocks of the inputs from `block` on, those before `end`.
template <typename S>
static __device__ __forceinline__ void mma_stage(char *stage, const struct feed<S> &f,
                                                 const __nv_bfloat16 *x, int block, int end)
{
#pragma unroll
    for (int j = 0; j < feed<S>::PIECES; j++) {
        int i = threadIdx.x + j * MMA_THREADS, at = i % feed<S>::ROW_PIECES;
        if (f.from[j] == feed<S>::NONE || block + at / (SCALE_BLOCK / 8) >= end) continue;
        copy_async(stage + i / feed<S>::ROW_PIECES * (S::X_PITCH * 2) + at * 16,
                   x + (size_t) f.from[j] * 8 + (size_t) block * SCALE_BLOCK);
    }
    copy_commit();
}

// The same for few tokens whose rows are f32 (aligned to 16 bytes, at phase 0, k a multiple of 4):
// rounded where they are multiplied, which saves a kernel before the product.
template <typename S>
static __device__ __forceinline__ void mma_stage_f32(char *stage, const int32_t *token_rows,
                                                     const float *x, size_t x_pitch, int k,
                                                     int block, int end)
{
    constexpr int ROW_PIECES = S::WK * SCALE_BLOCK / 4, ROUND = MMA_THREADS / ROW_PIECES;
    static_assert(MMA_THREADS % ROW_PIECES == 0, "a thread's pieces are one below the other");
    int at = threadIdx.x % ROW_PIECES, token = threadIdx.x / ROW_PIECES;
    int first = block * SCALE_BLOCK + at * 4;
    bool there = first < k; // weights beyond are zeros, but what lies there may be no number
    stage += (token * S::X_PITCH + at * 4) * (int) sizeof *x;
    if (block + at / (SCALE_BLOCK / 4) < end) {
#pragma unroll
        for (int j = 0; j < S::TOKENS; j += ROUND) {
            int row = token + j < S::TOKENS ? token_rows[token + j] : -1;
            if (row < 0) continue;
            copy_async_or_zero(stage + j * S::X_PITCH * (int) sizeof *x,
                               x + (size_t) row * x_pitch + (there ? first : 0), there);
        }
    }
    copy_commit();
}

// Asks for the NaN marks of ROWS outputs from n0 on; they are there when mma_tile has ended.
template <int ROWS>
static __device__ __forceinline__ void take_nans(uint8_t *nans, const struct mat &m, int n0)
{
    int n = n0 + (int) threadIdx.x * 16;
    if (m.nans == nullptr || threadIdx.x >= ROWS / 16 || n >= m.n) return;
    copy_async(nans + threadIdx.x * 16, m.nans + n); // marks are padded to whole pieces
}

// The fragments of two instructions (a[2 * octet], a[2 * octet + 1]) from an eighth of a row's 128
// weights; `row` 0 or 1: the upper or the lower half of the instruction's rows.
template <int SIZE, int LOADS, int STEPS>
static __device__ __forceinline__ void widen_octet(const uint4 (&w)[LOADS], int octet, int row,
                                                   uint32_t (&a)[STEPS][4])
{
    int to = STEPS == 2 ? 0 : octet * 2;
    if (SIZE == 1) {
        uint4 v = w[octet / 2 % LOADS];
        uint32_t first = octet % 2 == 0 ? v.x : v.z, second = octet % 2 == 0 ? v.y : v.w;
        a[to][row] = e4m3_pair(first, 0x1404, E4M3_UP);
        a[to][row + 2] = e4m3_pair(first, 0x3424, E4M3_UP);
        a[to + 1][row] = e4m3_pair(second, 0x1404, E4M3_UP);
        a[to + 1][row + 2] = e4m3_pair(second, 0x3424, E4M3_UP);
    } else {
        uint4 v = w[octet % LOADS];
        a[to][row] = v.x;
        a[to][row + 2] = v.y;
        a[to + 1][row] = v.z;
        a[to + 1][row + 2] = v.w;
    }
}

static __device__ __forceinline__ uint32_t round_pair(float low, float high)
{
    __nv_bfloat162 halves = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &halves, sizeof bits);
    return bits;
}

// Eight values of a token from shared memory, in bf16.
template <int XS> static __device__ __forceinline__ uint4 take_values(const char *from)
{
    if (XS == 2) return *(const uint4 *) from;
    float4 a = *(const float4 *) from, b = *(const float4 *) (from + 16);
    return make_uint4(round_pair(a.x, a.y), round_pair(a.z, a.w), round_pair(b.x, b.y),
                      round_pair(b.z, b.w));
}

// acc += one block of 128 inputs: weights of two rows, w[row][load]; tokens in shared memory, of
// which the thread gives the g-th of each 8.
template <typename S, int NT, int SIZE, int XS>
static __device__ __forceinline__ void mma_block(const uint4 (&w)[2][S::LOADS], const char *x,
                                                 int g, float (&acc)[NT][4])
{
    int t = threadIdx.x % 4;
#pragma unroll
    for (int octet = 0; octet < 4; octet++) {
        uint32_t a[2][4];
#pragma unroll
        for (int row = 0; row < 2; row++) widen_octet<SIZE>(w[row], octet, row, a);
        int k = SIZE == 1 ? octet / 2 * 64 + t * 16 + octet % 2 * 8 : octet * 32 + t * 8;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            uint4 b = take_values<XS>(x + ((size_t) (n * 8 + g) * S::X_PITCH + k) * XS);
            mma_bf16(acc[n], a[0][0], a[0][1], a[0][2], a[0][3], b.x, b.y);
            mma_bf16(acc[n], a[1][0], a[1][1], a[1][2], a[1][3], b.z, b.w);
        }
    }
}

// Sums of the block's tile over input blocks [begin, end), left in shared memory: (WK, TOKENS,
// SUM_PITCH) f32, to be added over WK in order. `row`: the warp's first row in its matrix `m`;
// rows beyond the matrix repeat the last. token_rows (TOKENS) in shared memory: rows of x (X: bf16,
// or f32 as mma_stage_f32 wants it; x_pitch values apart), -1: none, whose sums mean nothing. All
// threads call `before` once the first weights are asked for, and before token_rows and x are read.
// All threads call; synchronised at the end. SINGLE shapes: at most one block of inputs.
template <int NT, int WM, int SIZE, typename X, typename BEFORE>
static __device__ __forceinline__ void mma_tile(const struct mat &m, int row, const X *x,
                                                size_t x_pitch, const int32_t *token_rows,
                                                int begin, int end, char *shared, BEFORE before)
{
    constexpr int XS = sizeof(X);
    using S = mma_shape<NT, WM, SIZE, XS>;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int wm = warp % WM, wk = warp / WM, blocks = mat_blocks(m.col_phase, m.k);
    const uint8_t *from[2];
    const float *scales[2] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = row + g + 8 * i < m.n ? row + g + 8 * i : m.n - 1;
        from[i] = m.rows + (size_t) r * blocks * SCALE_BLOCK * SIZE + t * 16;
        if (SIZE == 1) {
            scales[i] = m.scales + (size_t) ((m.row_phase + r) / SCALE_BLOCK) * blocks;
        }
    }
    uint4 w[S::DEPTH][2][S::LOADS];
    float total[NT][4] = {};
    int n_steps = (end - begin + S::WK - 1) / S::WK;
    auto load = [&](uint4 (&to)[2][S::LOADS], int step) {
        int block = begin + step * S::WK + wk;
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
    for (int i = 0; i < (S::SINGLE ? 1 : S::DEPTH - 1); i++) load(w[i], i);
    float scale[2] = {1, 1}; // scales of the step to come, where there are registers for them
    auto load_scales = [&](int step) {
        int block = begin + step * S::WK + wk;
        for (int i = 0; SIZE == 1 && block < end && i < 2; i++) scale[i] = __ldg(scales[i] + block);
    };
    if (NT < 4) load_scales(0);
    before();
    struct feed<S> f;
    auto stage = [&](char *to, int block) {
        if constexpr (XS == 4) mma_stage_f32<S>(to, token_rows, x, x_pitch, m.k, block, end);
        else mma_stage<S>(to, f, x, block, end);
    };
    if (XS == 2) feed_init(f, token_rows, x_pitch);
    stage(shared, begin);
    for (int first = 0; first < n_steps; first += S::DEPTH) {
#pragma unroll
        for (int i = 0; i < S::DEPTH; i++) {
            int step = first + i, block = begin + step * S::WK + wk;
            if (step >= n_steps) break;
            if (!S::SINGLE) load(w[(i + S::DEPTH - 1) % S::DEPTH], step + S::DEPTH - 1);
            copy_wait<0>();
            __syncthreads();
            char *next = shared + (step + 1) % 2 * S::STAGE_BYTES;
            if (step + 1 < n_steps) stage(next, begin + (step + 1) * S::WK);
            const char *tokens = shared + step % 2 * S::STAGE_BYTES + wk * SCALE_BLOCK * XS;
            if (NT >= 4) load_scales(step);
            float s0 = scale[0], s1 = scale[1];
            if (NT < 4) load_scales(step + 1);
            if (SIZE == 1 && block < end) {
                float acc[NT][4] = {};
                mma_block<S, NT, SIZE, XS>(w[i], tokens, g, acc);
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    total[n][0] = fmaf(acc[n][0], s0, total[n][0]);
                    total[n][1] = fmaf(acc[n][1], s0, total[n][1]);
                    total[n][2] = fmaf(acc[n][2], s1, total[n][2]);
                    total[n][3] = fmaf(acc[n][3], s1, total[n][3]);
                }
            } else if (block < end) {
                mma_block<S, NT, SIZE, XS>(w[i], tokens, g, total);
            }
        }
    }
    __syncthreads();
    float *sums = (float *) shared + (size_t) wk * S::TOKENS * S::SUM_PITCH + wm * 16 + g;
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[(size_t) (n * 8 + t * 2 + i % 2) * S::SUM_PITCH + i / 2 * 8] = total[n][i];
        }
    }
    __syncthreads();
}

// The sum of one token and row of the tile that mma_tile left; S: its mma_shape.
template <typename S>
static __device__ __forceinline__ float tile_sum(const char *shared, int token, int row)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < S::WK; i++) {
        sum += ((const float *) shared)[(size_t) (i * S::TOKENS + token) * S::SUM_PITCH + row];
    }
    return sum;
}

#endif
