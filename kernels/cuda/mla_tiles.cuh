// Shared memory of a block of attention on Hopper (mla_wgmma.cu), and how tiles of KV come there:
// by the copy engine, chunk by chunk. In FP8 it leaves a piece of 128 columns of latents where the
// second of its two chunks in bf16 will be, and the third warpgroup widens it in place, a warp its
// own 16 rows; rope keys are bf16 in any case.
#ifndef PENSTOCK_KERNELS_CUDA_MLA_TILES_CUH
#define PENSTOCK_KERNELS_CUDA_MLA_TILES_CUH

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/kv_fp8.cuh"
#include "kernels/cuda/mla_parts.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/tma.cuh"

enum {
    LORA = CUDA_MLA_LORA,
    WIDTH = LORA + CUDA_MLA_ROPE,
    HEADS = CUDA_MLA_MANY_HEADS,
    TILE = KV_BLOCK_ROWS,
    CHUNK = TILE * CHUNK_ROW_BYTES, // bytes; heads and tokens are 64 both
    CHUNKS = WIDTH / CHUNK_COLUMNS,
    HALF_CHUNKS = LORA / CHUNK_COLUMNS / 2, // of a warpgroup's sum
    STAGE = CHUNKS * CHUNK,
    STAGES = 2,
    AHEAD = 1, // tiles
    COMPUTERS = 2 * WARPGROUP,
    THREADS = COMPUTERS + WARPGROUP, // registers move between whole warpgroups
    PIECES = LORA / TMA_ROW, // of a tile's latents in FP8
};

struct shared {
    char q[CHUNKS * CHUNK];
    char kv[STAGES][STAGE];
    char weights[CHUNK];
    float keep[HEADS], factor[HEADS];
    uint64_t full[STAGES][CHUNKS];
    uint64_t empty[STAGES][2]; // of the first group's half and the rope values; of the second's
    uint64_t raw[STAGES][PIECES]; // FP8: pieces that are to be widened
};

// The pool: all of it; in FP8 its latents and its rope keys.
struct pool_maps {
    CUtensorMap rows, keys;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The order in which a tile's chunks come and are multiplied: rope values first.
static __device__ __forceinline__ int chunk_at(int i) { return i == 0 ? CHUNKS - 1 : i - 1; }

// Where `shares` blocks read the same, tiles go into the second level cache before there is room
// for them here: block `share` does a part of that. (Alone, a block's loads keep memory busy.)
static __device__ __forceinline__ void bring(struct shared *s, const CUtensorMap *map,
                                             const struct mla &m, const struct part &part,
                                             int share, int shares)
{
    int lane = threadIdx.x % WARP, n = part.end - part.begin, ids = 0, later = 0;
    int written = m.in.pos[part.row] / KV_BLOCK_ROWS - part.begin; // the tile of the row itself
    bool waits = true;
    const int32_t *blocks =
        m.in.blocks + (size_t) m.in.slot[part.row] * m.in.max_blocks + part.begin;
    for (int i = 0; i < n; i++) {
        if (waits && (m.n_rows > 1 || i == written)) { // rows of a step may read each other's KV
            overlap_wait();
            waits = false;
        }
        if (i % WARP == 0) { // of the next 32 tiles, and of those behind them
            ids = i > 0 ? later : lane < n ? blocks[lane] : 0;
            later = i + WARP + lane < n ? blocks[i + WARP + lane] : 0;
            if (ids < 0 || ids >= m.kv.n_blocks) __trap();
        }
        int row = __shfl_sync(~0u, ids, i % WARP) * KV_BLOCK_ROWS, stage = i % STAGES;
        int next = i % WARP + AHEAD; // behind the 32: among the later ones
        int next_row = __shfl_sync(~0u, next < WARP ? ids : later, next % WARP) * KV_BLOCK_ROWS;
        if (lane != 0) continue;
        for (int c = share; shares > 1 && i + AHEAD < n && c < CHUNKS; c += shares) {
            box_prefetch(map, c * CHUNK_COLUMNS, next_row);
        }
        uint32_t parity = (uint32_t) (i / STAGES + 1) % 2; // what was never full is empty
        for (int j = 0; j < CHUNKS; j++) {
            int c = chunk_at(j);
            if (j == 0) bar_wait(&s->empty[stage][0], parity);
            if (j == 1 + HALF_CHUNKS) bar_wait(&s->empty[stage][1], parity);
            bar_expect(&s->full[stage][c], CHUNK);
            box_load(s->kv[stage] + c * CHUNK, map, c * CHUNK_COLUMNS, row, &s->full[stage][c]);
        }
    }
}

// --- FP8

static __device__ __forceinline__ void piece_prefetch(const CUtensorMap *map, int byte, int block)
{
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(map),
                 "r"(byte), "r"(0), "r"(block) : "memory");
}

static __device__ __forceinline__ uint4 shared_load(uint32_t from)
{
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}

static __device__ __forceinline__ void shared_store(uint32_t to, uint4 x)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y),
                 "r"(x.z), "r"(x.w) : "memory");
}

// Asks for tile i of the part, whose blocks are these, of which there are n.
static __device__ __forceinline__ void ask(struct shared *s, const struct pool_maps *maps,
                                           const int32_t *blocks, int i, int n, int share,
                                           int shares)
{
    int stage = i % STAGES, block = blocks[i];
    uint32_t parity = (uint32_t) (i / STAGES + 1) % 2; // what was never full is empty
    char *kv = s->kv[stage];
    for (int piece = share; i + AHEAD < n && piece < PIECES; piece += shares) {
        piece_prefetch(&maps->rows, piece * TMA_ROW, blocks[i + AHEAD]);
    }
    bar_wait(&s->empty[stage][0], parity);
    bar_expect(&s->full[stage][CHUNKS - 1], CHUNK);
    tma_load(kv + (CHUNKS - 1) * CHUNK, &maps->keys, 0, 0, block, &s->full[stage][CHUNKS - 1]);
#pragma unroll 1
    for (int piece = 0; piece < PIECES; piece++) {
        if (piece == PIECES / 2) bar_wait(&s->empty[stage][1], parity);
        bar_expect(&s->raw[stage][piece], CHUNK);
        tma_load(kv + (piece * 2 + 1) * CHUNK, &maps->rows, piece * TMA_ROW, 0, block,
                 &s->raw[stage][piece]);
    }
}

// A warp's 16 rows of a piece whose first chunk is at `low`. `factors`: of row `lane` % 16, of two
// pieces; `select` (of __byte_perm) takes this one's.
static __device__ __forceinline__ void widen_piece(uint32_t low, uint32_t factors, uint32_t select)
{
    constexpr uint32_t STEP = 4 * CHUNK_ROW_BYTES; // 4 rows on: the other half of the swizzle
    constexpr uint32_t SWAP = 4 * 16;
    int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    uint32_t row = (uint32_t) lane / 8, column = (uint32_t) lane % 8, upper = column / 4;
    low += ((uint32_t) warp * 16 + row) * CHUNK_ROW_BYTES;
    uint32_t from = low + CHUNK + (column ^ row) * 16;
    // Half of the lanes begin with the second 8 values: no two in the same bank.
    uint32_t to = low + upper * CHUNK + ((column % 4 * 2 + upper) ^ row) * 16;
    uint4 codes[4];
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) codes[j] = shared_load((from ^ j % 2 * SWAP) + j * STEP);
    __syncwarp(); // the rows are overwritten from here on
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        uint32_t factor = __shfl_sync(~0u, factors, (int) (row + j * 4));
        factor = __byte_perm(factor, factor, select);
        uint32_t at = (to ^ j % 2 * SWAP) + j * STEP;
        uint2 a = make_uint2(codes[j].x, codes[j].y), b = make_uint2(codes[j].z, codes[j].w);
        uint4 first = e4m3_widen_8(upper ? b : a, factor);
        uint4 second = e4m3_widen_8(upper ? a : b, factor);
        shared_store(at, first);
        shared_store(at ^ 16, second);
    }
}

// Of all four warps: the first one asks, too.
static __device__ __forceinline__ void bring_fp8(struct shared *s, const struct pool_maps *maps,
                                                 const struct mla &m, const struct part &part,
                                                 int share, int shares)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x % WARPGROUP / WARP;
    int n = part.end - part.begin;
    const int32_t *blocks =
        m.in.blocks + (size_t) m.in.slot[part.row] * m.in.max_blocks + part.begin;
    bool asks = threadIdx.x % WARPGROUP == 0;
    overlap_wait();
    for (int i = 0; asks && i < STAGES && i < n; i++) ask(s, maps, blocks, i, n, share, shares);
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        int id = blocks[i];
        if (id < 0 || id >= m.kv.n_blocks) __trap();
        const char *scales = (const char *) m.kv.pool + (size_t) id * KV8_BLOCK + KV8_SCALES_AT;
        float4 four = ((const float4 *) scales)[warp * 16 + lane % 16];
        uint32_t first = __byte_perm(e4m3_factor(four.x), e4m3_factor(four.y), 0x5410);
        uint32_t second = __byte_perm(e4m3_factor(four.z), e4m3_factor(four.w), 0x5410);
        uint32_t kv = shared_at(s->kv[i % STAGES]), parity = (uint32_t) (i / STAGES % 2);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            bar_wait(&s->raw[i % STAGES][piece], parity);
            widen_piece(kv + (uint32_t) (piece * 2 * CHUNK), piece < 2 ? first : second,
                        piece % 2 ? 0x3232 : 0x1010);
            stored_for_engines();
            __syncwarp();
            if (lane < 2) bar_arrive(&s->full[i % STAGES][piece * 2 + lane]);
        }
        // The stage of the tile before is given back once this one is there.
        if (asks && i + 1 >= STAGES && i + 1 < n) ask(s, maps, blocks, i + 1, n, share, shares);
    }
}

#endif

#endif
