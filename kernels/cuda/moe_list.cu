#include "kernels/cuda/moe_list.cuh"

#include "kernels/cuda/overlap.cuh"

enum { SORT_THREADS = 256 };

// Exclusive sum of `value` over the block's threads, and in *all their total.
static __device__ int block_prefix(int value, int *all)
{
    __shared__ int sums[SORT_THREADS / WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, sum = value;
    for (int i = 1; i < WARP; i *= 2) {
        int other = __shfl_up_sync(~0u, sum, i);
        if (lane >= i) sum += other;
    }
    __syncthreads();
    if (lane == WARP - 1) sums[warp] = sum;
    __syncthreads();
    int before = 0, total = 0;
    for (int i = 0; i < SORT_THREADS / WARP; i++) {
        if (i < warp) before += sums[i];
        total += sums[i];
    }
    *all = total;
    return before + sum - value;
}

// One block an expert: it counts all pairs, so that no block waits for another, then lists its own
// in the order of their rows. Shared: counts (n_experts).
static __global__ void sort_pairs(struct moe_list s)
{
    extern __shared__ int counts[];
    int expert = blockIdx.x, n = s.n_rows * s.n_chosen;
    overlap_next();
    overlap_wait();
    for (int i = threadIdx.x; i < s.n_experts; i += SORT_THREADS) counts[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += SORT_THREADS) {
        bool padding = s.pos[i / s.n_chosen] < 0;
        if (padding && expert == 0) s.room.pair_of[i] = -1;
        if (padding) continue;
        int e = s.chosen[i];
        if (e < 0 || e >= s.n_experts) __trap();
        atomicAdd(&counts[e], 1);
    }
    __syncthreads();
    int pairs = 0, tiles = 0, first_pair, first_tile;
    for (int i = threadIdx.x; i < expert; i += SORT_THREADS) {
        pairs += counts[i];
        tiles += (counts[i] + s.tokens - 1) / s.tokens;
    }
    block_prefix(pairs, &first_pair);
    block_prefix(tiles, &first_tile);
    int mine = counts[expert], my_tiles = (mine + s.tokens - 1) / s.tokens;
    for (int i = threadIdx.x; i < my_tiles; i += SORT_THREADS) {
        int left = mine - i * s.tokens;
        s.room.tiles[first_tile + i] = (struct cuda_tile) {expert, first_pair + i * s.tokens,
                                                      left < s.tokens ? left : s.tokens};
    }
    if (expert == s.n_experts - 1 && threadIdx.x == 0) *s.room.n_tiles = first_tile + my_tiles;
    if (mine == 0) return;
    int next = first_pair;
    for (int i0 = 0; i0 < n; i0 += SORT_THREADS) {
        int i = i0 + threadIdx.x;
        bool here = i < n && s.chosen[i] == expert && s.pos[i / s.n_chosen] >= 0;
        int all, at = next + block_prefix(here, &all);
        if (here) {
            s.room.pair_row[at] = i / s.n_chosen;
            s.room.pair_of[i] = at;
        }
        next += all;
    }
}

void moe_list_make(struct device *d, const struct moe_list &list)
{
    overlap_launch(d, "moe", true, sort_pairs, dim3((unsigned) list.n_experts), SORT_THREADS,
                   (size_t) list.n_experts * 4, list);
}
