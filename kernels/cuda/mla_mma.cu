// A block takes 16 or 64 heads of a row and a part of its KV, TILE tokens at a time through shared
// memory (two stages, cp.async; latents in FP8 pass through registers, where they become bf16). 8
// warps: scores, softmax and weighted sum, online; where a row's
// KV is split over blocks, a second kernel adds the parts in order.
#include "kernels/cuda/mla_mma.cuh"

#include "kernels/cuda/kv_fp8.cuh"
#include "kernels/cuda/mma.cuh"

#include <cuda_bf16.h>

enum {
    LORA = CUDA_MLA_LORA,
    ROPE = CUDA_MLA_ROPE,
    WIDTH = LORA + ROPE,
    TILE = 32,
    PITCH = WIDTH + 8,   // of rows in shared memory: ldmatrix reads all banks
    SCORE_PITCH = TILE + 4,
    P_PITCH = TILE + 8,
    THREADS = 256,
    PART = CUDA_MLA_PART,
    SPLITS_MAX = 32,
};

bool mla_mma_takes(int kv_lora, int rope) { return kv_lora == LORA && rope == ROPE; }

// MT: tiles of 16 heads.
template <int MT> struct mla_shape {
    static constexpr int HEADS = 16 * MT;
    static constexpr int WM = MT;          // warps over heads
    static constexpr int WN = 8 / MT;      // warps over columns of the sum
    static constexpr int K_PARTS = MT == 1 ? 2 : 1; // scores are split over warps by k
    static constexpr int NV = LORA / WN / 8;        // column tiles of a warp
    static constexpr int Q_BYTES = HEADS * PITCH * 2;
    static constexpr int STAGE_BYTES = TILE * PITCH * 2;
    static constexpr int SCORE_BYTES = K_PARTS * HEADS * SCORE_PITCH * 4;
    static constexpr int P_BYTES = HEADS * P_PITCH * 2;
    static constexpr int BYTES = Q_BYTES + 2 * STAGE_BYTES + SCORE_BYTES + P_BYTES + HEADS * 12;
};

static __device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void *shared)
{
    uint32_t at = (uint32_t) __cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

static __device__ __forceinline__ void load_turned(uint32_t (&r)[4], const void *shared)
{
    uint32_t at = (uint32_t) __cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// Tokens [begin, begin + TILE) of the row's sequence; zeros from `end` on.
static __device__ __forceinline__ void load_tile(char *stage, const struct mla &m,
                                                 const int32_t *blocks, int begin, int end)
{
    constexpr int CHUNKS = WIDTH * 2 / 16;
    for (int i = threadIdx.x; i < TILE * CHUNKS; i += THREADS) {
        int token = begin + i / CHUNKS, at = i % CHUNKS;
        bool there = token < end;
        int known = there ? token : begin;
        const char *from = (const char *) m.kv.pool +
                           ((size_t) blocks[known / KV_BLOCK_ROWS] * KV_BLOCK_ROWS +
                            known % KV_BLOCK_ROWS) * WIDTH * 2 + at * 16;
        char *place = stage + (size_t) (i / CHUNKS) * PITCH * 2 + at * 16;
        uint32_t to = (uint32_t) __cvta_generic_to_shared(place);
        int bytes = there ? 16 : 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                     "r"(bytes) : "memory");
    }
    copy_commit();
}

// What a thread has of the next tile's latents in FP8: 16 values of a few tokens, and their scales.
struct fp8_piece {
    uint4 codes;
    float scale;
};

enum { FP8_PIECES = LORA / 16, FP8_EACH = TILE * FP8_PIECES / THREADS };
static_assert(TILE * ROPE / 8 == THREADS, "a thread has a piece of the rope keys");

// The same tokens of a pool in FP8: rope keys to the stage, latents on their way to registers.
static __device__ __forceinline__ void ask_tile(fp8_piece (&pieces)[FP8_EACH], char *stage,
                                                const struct mla &m, const int32_t *blocks,
                                                int begin, int end)
{
    const char *block =
        (const char *) m.kv.pool + (size_t) blocks[begin / KV_BLOCK_ROWS] * KV8_BLOCK;
    int row0 = begin % KV_BLOCK_ROWS;
#pragma unroll
    for (int i = 0; i < FP8_EACH; i++) {
        int at = threadIdx.x + i * THREADS, token = at / FP8_PIECES, piece = at % FP8_PIECES;
        int row = begin + token < end ? row0 + token : row0;
        const float *scales = (const float *) (block + KV8_SCALES_AT) + row * KV8_SCALES;
        pieces[i].codes = ((const uint4 *) (block + row * LORA))[piece];
        pieces[i].scale = scales[piece / (KV_SCALE_VALUES / 16)];
    }
    int token = threadIdx.x / (ROPE / 8), piece = threadIdx.x % (ROPE / 8);
    bool there = begin + token < end;
    const char *from = block + KV8_ROPE_AT + (there ? row0 + token : row0) * ROPE * 2 + piece * 16;
    uint32_t to = (uint32_t) __cvta_generic_to_shared(stage + (token * PITCH + LORA) * 2 +
                                                      piece * 16);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0) : "memory");
    copy_commit();
}

// `n`: tokens of the tile that count; zeros behind them.
static __device__ __forceinline__ void put_tile(const fp8_piece (&pieces)[FP8_EACH], char *stage,
                                                int n)
{
#pragma unroll
    for (int i = 0; i < FP8_EACH; i++) {
        int at = threadIdx.x + i * THREADS, token = at / FP8_PIECES;
        uint32_t factor = token < n ? e4m3_factor(pieces[i].scale) : 0;
        uint4 codes = pieces[i].codes;
        uint4 *to = (uint4 *) (stage + token * PITCH * 2) + at % FP8_PIECES * 2;
        to[0] = e4m3_widen_8(make_uint2(codes.x, codes.y), factor);
        to[1] = e4m3_widen_8(make_uint2(codes.z, codes.w), factor);
    }
}

// Scores of the tile, not yet scaled: (K_PARTS, HEADS, SCORE_PITCH).
template <int MT>
static __device__ __forceinline__ void score_tile(const char *q, const char *kv, float *scores)
{
    using S = mla_shape<MT>;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int row = MT == 1 ? 0 : warp % 4 * 16;
    const char *a_at = q + ((size_t) (row + lane % 16) * PITCH + lane / 16 * 8) * 2;
    if (MT == 1) {
        constexpr int HALF = WIDTH / 2; // of k for a warp, 8 tokens
        int token = warp % 4 * 8, k0 = warp / 4 * HALF;
        const char *b_at = kv + ((size_t) (token + lane % 8) * PITCH + lane / 8 * 8) * 2;
        float c[4] = {};
#pragma unroll 3
        for (int k = k0; k < k0 + HALF; k += 32) {
            uint32_t a[4], a2[4], b[4];
            load_matrices(a, a_at + k * 2);
            load_matrices(a2, a_at + (k + 16) * 2);
            load_matrices(b, b_at + k * 2);
            mma_bf16(c, a[0], a[1], a[2], a[3], b[0], b[1]);
            mma_bf16(c, a2[0], a2[1], a2[2], a2[3], b[2], b[3]);
        }
        float *to = scores + (size_t) (warp / 4 * S::HEADS + g) * SCORE_PITCH + token + t * 2;
        to[0] = c[0];
        to[1] = c[1];
        to[8 * SCORE_PITCH] = c[2];
        to[8 * SCORE_PITCH + 1] = c[3];
        return;
    }
    int token = warp / 4 * 16;
    const char *b_at = kv + ((size_t) (token + lane / 16 * 8 + lane % 8) * PITCH +
                             lane / 8 % 2 * 8) * 2;
    float c[2][4] = {};
#pragma unroll 4
    for (int k = 0; k < WIDTH; k += 16) {
        uint32_t a[4], b[4];
        load_matrices(a, a_at + k * 2);
        load_matrices(b, b_at + k * 2);
        mma_bf16(c[0], a[0], a[1], a[2], a[3], b[0], b[1]);
        mma_bf16(c[1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
    for (int i = 0; i < 2; i++) {
        float *to = scores + (size_t) (row + g) * SCORE_PITCH + token + i * 8 + t * 2;
        to[0] = c[i][0];
        to[1] = c[i][1];
        to[8 * SCORE_PITCH] = c[i][2];
        to[8 * SCORE_PITCH + 1] = c[i][3];
    }
}

// p = exp2(scores - maximum) in bf16; keeps each head's maximum and mass, and by how much its sums
// shrink. `n`: tokens of the tile that count. THREADS / HEADS neighbours take a head.
template <int MT>
static __device__ __forceinline__ void soften(const float *scores, __nv_bfloat16 *p, float *most,
                                              float *mass, float *keep, float scale, int n)
{
    using S = mla_shape<MT>;
    constexpr int EACH = THREADS / S::HEADS, VALUES = TILE / EACH;
    int head = threadIdx.x / EACH, at = threadIdx.x % EACH;
    float value[VALUES], highest = most[head], before = highest, sum = 0;
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        int token = at + i * EACH;
        float s = scores[(size_t) head * SCORE_PITCH + token];
        if (S::K_PARTS == 2) s += scores[(size_t) (S::HEADS + head) * SCORE_PITCH + token];
        value[i] = token < n ? s * scale : -INFINITY;
        highest = fmaxf(highest, value[i]);
    }
#pragma unroll
    for (int lane = EACH / 2; lane > 0; lane /= 2) {
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, lane));
    }
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        __nv_bfloat16 rounded = __float2bfloat16_rn(exp2f(value[i] - highest));
        p[(size_t) head * P_PITCH + at + i * EACH] = rounded;
        sum += __bfloat162float(rounded);
    }
#pragma unroll
    for (int lane = EACH / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
    __syncwarp();
    if (at == 0) {
        float shrink = exp2f(before - highest);
        keep[head] = shrink;
        most[head] = highest;
        mass[head] = mass[head] * shrink + sum;
    }
}

// sums = sums * keep + p times the tile's latents.
template <int MT>
static __device__ __forceinline__ void add_tile(const __nv_bfloat16 *p, const char *kv,
                                                const float *keep,
                                                float (&sums)[mla_shape<MT>::NV][4])
{
    using S = mla_shape<MT>;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int row = warp % S::WM * 16, column = warp / S::WM * (LORA / S::WN);
    float k0 = keep[row + lane / 4], k1 = keep[row + lane / 4 + 8];
#pragma unroll
    for (int n = 0; n < S::NV; n++) {
        sums[n][0] *= k0;
        sums[n][1] *= k0;
        sums[n][2] *= k1;
        sums[n][3] *= k1;
    }
#pragma unroll
    for (int k = 0; k < TILE; k += 16) {
        uint32_t a[4];
        load_matrices(a, p + (size_t) (row + lane % 16) * P_PITCH + k + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < S::NV; n += 2) {
            uint32_t b[4];
            load_turned(b, kv + ((size_t) (k + lane % 16) * PITCH + column + n * 8 +
                                 lane / 16 * 8) * 2);
            mma_bf16(sums[n], a[0], a[1], a[2], a[3], b[0], b[1]);
            mma_bf16(sums[n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
        }
    }
}

// Grid: splits, groups of heads, rows.
template <int MT, bool FP8>
static __global__ void __launch_bounds__(THREADS, MT == 1 ? 2 : 1)
attend_mma(const __grid_constant__ struct mla m)
{
    using S = mla_shape<MT>;
    extern __shared__ __align__(128) char shared[];
    char *q = shared, *stages = q + S::Q_BYTES;
    float *scores = (float *) (stages + 2 * S::STAGE_BYTES);
    __nv_bfloat16 *p = (__nv_bfloat16 *) ((char *) scores + S::SCORE_BYTES);
    float *most = (float *) ((char *) p + S::P_BYTES), *mass = most + S::HEADS;
    float *keep = mass + S::HEADS;
    int row = blockIdx.z, head0 = blockIdx.y * S::HEADS, pos = m.in.pos[row];
    if (pos < 0) return;
    if (pos / KV_BLOCK_ROWS >= m.in.max_blocks) __trap();
    const int32_t *blocks = m.in.blocks + (size_t) m.in.slot[row] * m.in.max_blocks;
    int tiles = pos / TILE + 1, split = blockIdx.x;
    int tile = tiles * split / m.splits, last = tiles * (split + 1) / m.splits;

    fp8_piece pieces[FP8_EACH];
    if (tile < last && FP8) {
        ask_tile(pieces, stages, m, blocks, tile * TILE, pos + 1);
        put_tile(pieces, stages, pos + 1 - tile * TILE);
    } else if (tile < last) {
        load_tile(stages, m, blocks, tile * TILE, pos + 1);
    }
    for (int i = threadIdx.x; i < S::HEADS * WIDTH; i += THREADS) {
        int head = head0 + i / WIDTH, at = i % WIDTH;
        if (head >= m.n_heads) head = m.n_heads - 1;
        float value = at < LORA ? m.q_abs[((size_t) row * m.n_heads + head) * LORA + at]
                                : m.q_pe[(size_t) row * m.q_stride +
                                         (size_t) head * m.q_head_stride + at - LORA];
        ((__nv_bfloat16 *) q)[(size_t) (i / WIDTH) * PITCH + at] = __float2bfloat16_rn(value);
    }
    if (threadIdx.x < S::HEADS) {
        most[threadIdx.x] = -INFINITY;
        mass[threadIdx.x] = 0;
    }
    float sums[S::NV][4] = {};
    for (int stage = 0; tile < last; tile++, stage ^= 1) {
        const char *kv = stages + stage * S::STAGE_BYTES;
        copy_wait<0>();
        __syncthreads();
        char *next = stages + (stage ^ 1) * S::STAGE_BYTES;
        if (tile + 1 < last) {
            int begin = (tile + 1) * TILE;
            if (FP8) ask_tile(pieces, next, m, blocks, begin, pos + 1);
            else load_tile(next, m, blocks, begin, pos + 1);
        }
        score_tile<MT>(q, kv, scores);
        __syncthreads();
        soften<MT>(scores, p, most, mass, keep, m.scale * 1.44269504f, pos + 1 - tile * TILE);
        __syncthreads();
        add_tile<MT>(p, kv, keep, sums);
        if (FP8 && tile + 1 < last) put_tile(pieces, next, pos + 1 - (tile + 1) * TILE);
    }
    __syncthreads();

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int column = warp / S::WM * (LORA / S::WN) + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int local = warp % S::WM * 16 + lane / 4 + 8 * half, head = head0 + local;
        if (head >= m.n_heads) continue;
        size_t index = (size_t) row * m.n_heads + head;
        float *to = m.splits == 1 ? m.out + index * LORA
                                  : m.partial + (index * m.splits + blockIdx.x) * PART;
        float factor = m.splits == 1 ? 1.0f / mass[local] : 1.0f;
#pragma unroll
        for (int n = 0; n < S::NV; n++) {
            to[column + n * 8] = sums[n][half * 2] * factor;
            to[column + n * 8 + 1] = sums[n][half * 2 + 1] * factor;
        }
        if (m.splits > 1 && column == 0) {
            to[LORA] = most[local];
            to[LORA + 1] = mass[local];
        }
    }
}

// out = the splits' sums, in their order. Grid: heads, rows.
static __global__ void add_parts(const __grid_constant__ struct mla m)
{
    int head = blockIdx.x, row = blockIdx.y;
    if (m.in.pos[row] < 0) return;
    size_t index = (size_t) row * m.n_heads + head;
    const float *parts = m.partial + index * m.splits * PART;
    float most = -INFINITY, mass = 0, factors[SPLITS_MAX];
    for (int s = 0; s < m.splits; s++) most = fmaxf(most, parts[(size_t) s * PART + LORA]);
    for (int s = 0; s < m.splits; s++) {
        factors[s] = exp2f(parts[(size_t) s * PART + LORA] - most);
        mass += parts[(size_t) s * PART + LORA + 1] * factors[s];
    }
    for (int i = threadIdx.x; i < LORA; i += blockDim.x) {
        float sum = 0;
        for (int s = 0; s < m.splits; s++) sum += parts[(size_t) s * PART + i] * factors[s];
        m.out[index * LORA + i] = sum / mass;
    }
}

template <int MT, bool FP8> static void run(struct device *d, struct mla m, int parts)
{
    using S = mla_shape<MT>;
    unsigned groups = (unsigned) ceil_div(m.n_heads, S::HEADS);
    int blocks = (int) groups * m.n_rows;
    m.splits = parts / blocks < 1 ? 1 : parts / blocks < SPLITS_MAX ? parts / blocks : SPLITS_MAX;
    device_allow(d, (const void *) attend_mma<MT, FP8>, S::BYTES, "mla");
    dim3 grid((unsigned) m.splits, groups, (unsigned) m.n_rows);
    attend_mma<MT, FP8><<<grid, THREADS, S::BYTES, d->stream>>>(m);
    if (m.splits == 1) return;
    device_launched(d, "mla");
    dim3 heads((unsigned) m.n_heads, (unsigned) m.n_rows);
    add_parts<<<heads, 128, 0, d->stream>>>(m);
}

void mla_mma_run(struct device *d, struct mla m)
{
    bool many = m.n_heads >= CUDA_MLA_MANY_HEADS && d->block_bytes >= mla_shape<4>::BYTES;
    if (many && m.kv.fp8) run<4, true>(d, m, CUDA_MLA_MANY_PARTS);
    else if (many) run<4, false>(d, m, CUDA_MLA_MANY_PARTS);
    else if (m.kv.fp8) run<1, true>(d, m, CUDA_MLA_FEW_PARTS);
    else run<1, false>(d, m, CUDA_MLA_FEW_PARTS);
}
