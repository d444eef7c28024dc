// How the KV of a step's rows is cut into parts for the GPU's multiprocessors. Grids follow from
// the row count alone: each block reads all rows' positions and finds its own part. Every block
// decides the same, by the positions, so that results are the same from run to run.
#ifndef PENSTOCK_KERNELS_CUDA_MLA_PARTS_CUH
#define PENSTOCK_KERNELS_CUDA_MLA_PARTS_CUH

#include "kernels/cuda/mla_mma.cuh"
#include "kernels/cuda/overlap.cuh"

enum {
    PARTS_THREADS = 256, // that work here: more may call, for the block's barriers
    PARTS_CUTS = 32,     // how many ways to cut are compared
    PARTS_FEW_ROWS = 16, // the parts of so few are added by several warps a head
};

// Where the parts of a row that is cut leave their sums.
struct row_parts {
    int32_t first, n; // n 1: the row is whole and has no place
};

// What a block has of a row: tiles [begin, end) of KV_BLOCK_ROWS tokens. `slot`: -1: all of it.
struct part {
    int row, begin, end, slot; // row -1: none
};

struct parts_shared {
    int32_t tiles[CUDA_MLA_CUT_ROWS];
    int32_t counts[PARTS_THREADS / WARP][PARTS_CUTS];
    int32_t sums[2][PARTS_THREADS / WARP];
    int32_t most, total, cut;
    int32_t live; // rows that are no padding
    struct part part;
};

// Parts beyond one a row; rows that are cut have at most twice as many.
static inline __host__ __device__ int parts_more(int n_sm, int groups)
{
    int more = (n_sm < CUDA_MLA_BLOCKS ? n_sm : CUDA_MLA_BLOCKS) / groups;
    return more > 1 ? more : 1;
}

static __device__ __forceinline__ int parts_divisor(int i)
{
    return i < 8 ? i + 1 : i < 16 ? 10 + (i - 8) * 2 : i < 24 ? 28 + (i - 16) * 4
                                                              : 64 + (i - 24) * 9;
}

static __device__ __forceinline__ int ceil_of(int n, int by) { return (n + by - 1) / by; }

// The tiles of a part. Time is guessed, in tiles: waves of blocks times the mean part and what a
// block takes beside its tiles; a longest part; and what adding the parts of a row takes.
static __device__ __forceinline__ int parts_cut(struct parts_shared *s, int n_rows, int groups,
                                                int n_sm)
{
    constexpr float BLOCK_COST = 6;
    float add_cost = n_rows <= PARTS_FEW_ROWS ? 0.07f : 0.12f; // the former by more warps
    int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    int most = s->most, tiles = ceil_of(most, parts_divisor(lane));
    if (tiles < 1) tiles = 1;
    if (thread < PARTS_THREADS) {
        uint32_t factor = 0xffffffffu / (uint32_t) tiles + 1; // exact for what tiles can be
        int n = 0;
        for (int row = warp; row < n_rows; row += PARTS_THREADS / WARP) {
            uint32_t up = (uint32_t) (s->tiles[row] + tiles - 1);
            n += (int) (tiles == 1 ? up : __umulhi(up, factor));
        }
        s->counts[warp][lane] = n;
    }
    __syncthreads();
    if (warp == 0) {
        int n = 0;
        for (int i = 0; i < PARTS_THREADS / WARP; i++) n += s->counts[i][lane];
        int waves = ceil_of(n * groups, n_sm);
        float mean = (float) s->total / (float) (n > 0 ? n : 1);
        float time = fmaxf((float) waves * (mean + BLOCK_COST), (float) tiles + BLOCK_COST) +
                     add_cost * (float) (most / tiles);
        if (n > s->live + parts_more(n_sm, groups)) time = INFINITY; // places of sums
        float best = time;
        for (int i = WARP / 2; i > 0; i /= 2) best = fminf(best, __shfl_xor_sync(~0u, best, i));
        uint32_t which = __ballot_sync(~0u, time == best);
        if (lane == __ffs((int) which) - 1) s->cut = tiles;
    }
    __syncthreads();
    return s->cut;
}

// The block's part, its index among all blocks of a group of heads: `index`. All threads call.
// The grid's first block leaves in `rows` where parts are, once all before have ended.
static __device__ __forceinline__ struct part parts_find(struct parts_shared *s,
                                                         const struct mla &m, int index,
                                                         int groups, int n_sm,
                                                         struct row_parts *rows, bool first)
{
    int thread = threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    if (m.n_rows > CUDA_MLA_CUT_ROWS) {
        int pos = m.in.pos[index];
        return {pos < 0 ? -1 : index, 0, pos / KV_BLOCK_ROWS + 1, -1};
    }
    if (thread == 0) {
        s->most = 0;
        s->total = 0;
        s->live = 0;
        s->part.row = -1;
    }
    __syncthreads();
    constexpr int EACH = CUDA_MLA_CUT_ROWS / PARTS_THREADS; // neighbours
    int most = 0, total = 0, live = 0, row0 = thread * EACH;
    for (int row = row0; row < row0 + EACH && row < m.n_rows; row++) {
        int pos = m.in.pos[row], tiles = pos < 0 ? 0 : pos / KV_BLOCK_ROWS + 1;
        s->tiles[row] = tiles;
        most = most > tiles ? most : tiles;
        total += tiles;
        live += tiles > 0;
    }
    if (total > 0) {
        atomicMax(&s->most, most); // integers: in any order the same
        atomicAdd(&s->total, total);
        atomicAdd(&s->live, live);
    }
    __syncthreads();
    int cut = parts_cut(s, m.n_rows, groups, n_sm), n[EACH], cuts[EACH], sum = 0, cut_sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        bool there = thread < PARTS_THREADS && row0 + i < m.n_rows;
        n[i] = there ? ceil_of(s->tiles[row0 + i], cut) : 0;
        cuts[i] = n[i] > 1 ? n[i] : 0;
        sum += n[i];
        cut_sum += cuts[i];
    }
    int before = sum, cut_before = cut_sum;
    for (int i = 1; i < WARP; i *= 2) {
        int x = __shfl_up_sync(~0u, before, i), y = __shfl_up_sync(~0u, cut_before, i);
        if (lane >= i) {
            before += x;
            cut_before += y;
        }
    }
    if (lane == WARP - 1 && thread < PARTS_THREADS) {
        s->sums[0][warp] = before;
        s->sums[1][warp] = cut_before;
    }
    __syncthreads();
    before -= sum;
    cut_before -= cut_sum;
    if (first) overlap_wait();
    for (int i = 0; i < warp && i < PARTS_THREADS / WARP; i++) {
        before += s->sums[0][i];
        cut_before += s->sums[1][i];
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int row = row0 + i, at = index - before;
        if (at >= 0 && at < n[i]) {
            int tiles = s->tiles[row];
            s->part = {row, tiles * at / n[i], tiles * (at + 1) / n[i],
                       n[i] > 1 ? cut_before + at : -1};
        }
        if (first && thread < PARTS_THREADS && row < m.n_rows) rows[row] = {cut_before, n[i]};
        before += n[i];
        cut_before += cuts[i];
    }
    __syncthreads();
    return s->part;
}

#endif
