// The best tokens of one row, by a block of THREADS: from the maxima of blocks of logits a floor
// that as many blocks reach as tokens are wanted, then all logits that reach it, in order.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_LISTS_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_LISTS_CUH

#include "kernels/cuda/sampler_masses.cuh"

enum {
    ENTRY_ROOM = 4096, // of the entries that reach the floor
    BLOCK_ROOM = 1024, // of the blocks that have them
    KEY_ROOM = 2048,   // of the keys that are looked at in shared memory
    AT_ONCE = 5,       // blocks that a warp asks for before it looks at one
};

struct selection {
    uint64_t entries[ENTRY_ROOM];
    uint32_t keys[KEY_ROOM];
    uint16_t blocks[BLOCK_ROOM];
    uint32_t counts[2][WARPS], least[WARPS], most[WARPS];
    uint32_t n_entries, n_blocks;
};

// The sum over the block's warps of what lane 0 of each has in `x`. `turn` is another than in the
// call before: then one barrier is enough.
static inline __device__ uint32_t count_all(struct selection *s, uint32_t x, int turn)
{
    if (threadIdx.x % WARP == 0) s->counts[turn][threadIdx.x / WARP] = x;
    __syncthreads();
    uint32_t sum = 0;
    for (int w = 0; w < WARPS; w++) sum += s->counts[turn][w];
    return sum;
}

// A key between `least` and `most`, as all keys (n) are, that at least `want` reach, and, if keys
// differ, not many more.
static inline __device__ uint32_t find_floor(struct selection *s, const uint32_t *keys, int n,
                                             uint32_t want, uint32_t least, uint32_t most)
{
    for (int turn = 0; least < most; turn ^= 1) {
        uint32_t middle = least + (most - least + 1) / 2, mine = 0;
        for (int i = threadIdx.x; i < n; i += THREADS) mine += keys[i] >= middle;
        uint32_t count = count_all(s, __reduce_add_sync(~0u, mine), turn);
        if (count < want) {
            most = middle - 1;
            continue;
        }
        least = middle;
        if (count <= want + want / 4) break;
    }
    return least;
}

static inline __device__ void take_blocks(struct selection *s, const uint32_t *keys, int n,
                                          uint32_t floor)
{
    for (int i = threadIdx.x; i < n; i += THREADS) {
        if (keys[i] < floor) continue;
        uint32_t at = atomicAdd(&s->n_blocks, 1);
        if (at < BLOCK_ROOM) s->blocks[at] = (uint16_t) i;
    }
    __syncthreads();
}

static inline __device__ void take_entries(struct selection *s, const struct sampler_view &v,
                                           int row, bool aligned, uint32_t floor)
{
    int lane = threadIdx.x % WARP, n = s->n_blocks < BLOCK_ROOM ? s->n_blocks : BLOCK_ROOM;
    for (int i = threadIdx.x / WARP; i < n; i += WARPS * AT_ONCE) {
        float x[AT_ONCE][LANE_LOGITS];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int at = i + k * WARPS < n ? i + k * WARPS : i;
            int begin = s->blocks[at] * SAMPLER_BLOCK;
            read_block(row_of(v, row), v.vocab_n, begin, lane, aligned, x[k]);
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (i + k * WARPS >= n) break;
            int begin = s->blocks[i + k * WARPS] * SAMPLER_BLOCK;
            for (int j = 0; j < LANE_LOGITS; j++) {
                int place = begin + place_of(aligned, lane, j);
                if (place >= v.vocab_n || key_on(x[k][j]) < floor) continue;
                uint32_t at = atomicAdd(&s->n_entries, 1);
                if (at < ENTRY_ROOM) s->entries[at] = entry_on(x[k][j], v.vocab_begin + place);
            }
        }
    }
    __syncthreads();
}

// Ascending; n entries, ENTRY_NONE behind them.
static inline __device__ void sort_entries(struct selection *s, int n)
{
    if (n <= THREADS) { // all differ: an entry's place is the number of lower ones
        uint64_t mine = (int) threadIdx.x < n ? s->entries[threadIdx.x] : ENTRY_NONE;
        int place = 0;
        for (int i = 0; i < n; i++) place += s->entries[i] < mine;
        __syncthreads();
        s->entries[(int) threadIdx.x < n ? place : (int) threadIdx.x] = mine;
        __syncthreads();
        return;
    }
    int size = 2;
    while (size < n) size *= 2;
    for (int i = n + threadIdx.x; i < size; i += THREADS) s->entries[i] = ENTRY_NONE;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
        for (int step = run / 2; step > 0; step /= 2) {
            for (int i = threadIdx.x; i < size / 2; i += THREADS) {
                int a = 2 * i - i % step, b = a + step;
                uint64_t x = s->entries[a], y = s->entries[b];
                if ((x > y) == ((a & run) == 0)) {
                    s->entries[a] = y;
                    s->entries[b] = x;
                }
            }
            __syncthreads();
        }
    }
}

// Fills s->entries with the best `want` tokens of the row in order, ENTRY_NONE behind them, from
// the maxima of its blocks. By all threads; `most`: the largest key.
static inline __device__ enum sampler_head select_list(struct selection *s,
                                                       const struct sampler_view &v, int row,
                                                       int want, bool aligned, uint32_t *most_key)
{
    int n = count_of(v.vocab_n, SAMPLER_BLOCK), warp = threadIdx.x / WARP;
    const uint32_t *keys = v.parts.maxima + (size_t) row * n;
    bool staged = n <= KEY_ROOM;
    uint32_t most = 0, least = NAN_KEY;
    if (threadIdx.x == 0) s->n_entries = s->n_blocks = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        uint32_t key = keys[i];
        if (staged) s->keys[i] = key;
        most = max(most, key);
        least = min(least, key);
    }
    most = __reduce_max_sync(~0u, most);
    least = __reduce_min_sync(~0u, least);
    if (threadIdx.x % WARP == 0) s->most[warp] = most, s->least[warp] = least;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        most = max(most, s->most[w]);
        least = min(least, s->least[w]);
    }
    *most_key = most;
    if (most == NAN_KEY) return HEAD_NAN;
    if (staged) keys = s->keys;
    uint32_t floor = want == 1 ? most : n > want ? find_floor(s, keys, n, want, least, most) : 0;
    take_blocks(s, keys, n, floor);
    take_entries(s, v, row, aligned, floor);
    int found = s->n_entries;
    if (s->n_blocks > BLOCK_ROOM || found > ENTRY_ROOM) return HEAD_HOST;
    sort_entries(s, found);
    for (int i = found + threadIdx.x; i < want; i += THREADS) s->entries[i] = ENTRY_NONE;
    __syncthreads();
    return HEAD_GOOD;
}

#endif
