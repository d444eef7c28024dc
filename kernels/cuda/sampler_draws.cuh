// Draws of a row that chooses by itself: among the tokens of its list, by a block, or among all
// logits, by a warp.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_DRAWS_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_DRAWS_CUH

#include "common/philox.h"
#include "kernels/cuda/sampler_order.cuh"

// --- arithmetic

// top_p_mass
static __device__ __noinline__ uint64_t need_on(const struct sampler_wish &w, uint64_t left)
{
    if (w.top_p_shift > TOP_P_SHIFT_MAX) return 1;
    unsigned __int128 product = (unsigned __int128) w.top_p * left;
    unsigned __int128 rest = ((unsigned __int128) 1 << w.top_p_shift) - 1;
    uint64_t need = (uint64_t) ((product + rest) >> w.top_p_shift);
    return need > 0 ? need : 1;
}

// Whether all logits up to `l` surely have mass 0.
static __device__ bool none_on(const struct softmax &s, float l)
{
    return s.plain && __fsub_rn(__fmul_rn(l, s.scale), s.offset) < -32;
}

// The largest float below all whose exponent reaches `least`.
static __device__ __noinline__ float float_below_on(const struct softmax &s, float least)
{
    uint32_t out = KEY_MINUS_INFINITY, in = key_on(s.max);
    if (!(exponent_on(&s, -INFINITY) < least)) return -INFINITY;
    while (in - out > 1) {
        uint32_t middle = out + (in - out) / 2;
        if (exponent_on(&s, key_logit_on(middle)) >= least) {
            in = middle;
        } else {
            out = middle;
        }
    }
    return key_logit_on(out);
}

// --- draws

// A lane's entries of a list, in order.
struct lane_list {
    uint64_t entry[LANE_ENTRIES], mass[LANE_ENTRIES];
    uint64_t before[LANE_ENTRIES]; // mass of those before
    int n_reach;                   // of the whole list: entries that reach min_p's exponent
    uint64_t total;                // mass of the whole list
};

// The first `limit` of entries, whose masses are 0 beyond. By one warp.
static __device__ struct lane_list read_list(const uint64_t *entries, int limit,
                                             const float *table, const struct softmax &s,
                                             float least)
{
    struct lane_list l;
    int lane = threadIdx.x % WARP;
    uint64_t sum = 0;
    uint32_t reach = 0;
    for (int j = 0; j < LANE_ENTRIES; j++) {
        int at = lane * LANE_ENTRIES + j;
        bool in = at < limit;
        l.entry[j] = in ? entries[at] : ENTRY_NONE;
        float logit = entry_logit_on(l.entry[j]);
        l.mass[j] = in ? mass_on(table, &s, logit) : 0;
        l.before[j] = sum;
        sum += l.mass[j];
        reach += in && exponent_on(&s, logit) >= least;
    }
    uint64_t prefix = warp_prefix(sum, lane);
    for (int j = 0; j < LANE_ENTRIES; j++) l.before[j] += prefix - sum;
    l.total = __shfl_sync(~0u, prefix, WARP - 1);
    l.n_reach = (int) __reduce_add_sync(~0u, reach);
    return l;
}

// How many of the first `limit` have less than `need` before them.
static __device__ int count_before(const struct lane_list &l, int limit, uint64_t need)
{
    uint32_t count = 0;
    for (int j = 0; j < LANE_ENTRIES; j++) {
        count += (int) threadIdx.x % WARP * LANE_ENTRIES + j < limit && l.before[j] < need;
    }
    return (int) __reduce_add_sync(~0u, count);
}

// Draws among the kept ones of the list in room->s.entries: with top_k those that are left of the
// first top_k, else those that reach min_p's exponent and have less than `need` before them. By all
// threads. ENTRY_NONE: the list may not have all of these.
static __device__ __noinline__ uint64_t draw_listed(struct room *room,
                                                    const struct sampler_wish &w,
                                                    const struct softmax &s, uint64_t need,
                                                    int vocab_n)
{
    uint64_t *entries = room->s.entries, *words = entries + LIST;
    if (threadIdx.x < WARP) {
        int limit = w.top_k > 0 ? w.top_k : w.n_list;
        limit = limit < vocab_n ? limit : vocab_n;
        struct lane_list l = read_list(entries, limit, room->table, s, w.least);
        if (w.top_k > 0) need = w.top_p != 0 ? need_on(w, l.total) : UINT64_MAX;
        int n = count_before(l, limit, need);
        n = n < l.n_reach ? n : l.n_reach;
        uint64_t sum = 0;
        for (int j = 0; j < LANE_ENTRIES; j++) {
            int at = threadIdx.x * LANE_ENTRIES + j;
            words[at] = l.entry[j] << 32 | l.mass[j];
            sum += at < n ? l.mass[j] : 0;
        }
        sum = warp_sum(sum);
        if (threadIdx.x == 0) {
            bool known = w.top_k > 0 || n < limit || sum >= need || limit == vocab_n;
            room->n_kept = known ? n : 0;
            room->draw = __umul64hi(philox(w.seed, w.pos), sum);
            room->chosen = ENTRY_NONE;
        }
    }
    __syncthreads();
    if ((int) threadIdx.x < room->n_kept) { // by ascending id
        uint64_t mine = words[threadIdx.x], before = 0;
        for (int i = 0; i < room->n_kept; i++) {
            before += words[i] < mine ? (uint32_t) words[i] : 0;
        }
        bool here = room->draw >= before && room->draw - before < (uint32_t) mine;
        if (here) room->chosen = entries[threadIdx.x];
    }
    __syncthreads();
    return room->chosen;
}

// Neighbours from `at` on; -inf beyond n.
static __device__ void read_run(const float *l, int n, int at, bool aligned, float x[LANE_LOGITS])
{
    float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (aligned && at < n) v = *(const float4 *) (l + at);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    for (int j = 0; j < LANE_LOGITS && !aligned; j++) x[j] = at + j < n ? l[at + j] : -INFINITY;
}

// The chunk in which `draw` falls, of which less is left afterwards. By one warp.
static __device__ int find_chunk(const uint64_t *chunks, int n, uint64_t *draw)
{
    int lane = threadIdx.x % WARP;
    for (int c = 0; c < n; c += WARP) {
        uint64_t mass = c + lane < n ? chunks[c + lane] : 0;
        uint64_t prefix = warp_prefix(mass, lane);
        uint32_t beyond = __ballot_sync(~0u, prefix > *draw);
        if (beyond != 0) {
            int at = __ffs((int) beyond) - 1;
            *draw -= __shfl_sync(~0u, prefix - mass, at);
            return c + at;
        }
        *draw -= __shfl_sync(~0u, prefix, WARP - 1);
    }
    return 0; // the sums are of other logits
}

// The entry of the token in which `draw` falls among the logits beyond `above`, and those equal at
// indices below tie_end, whose sums by chunk are known. By one warp.
static __device__ __noinline__ uint64_t walk(const struct order &o, const float *l,
                                             const uint64_t *chunks, const float *table,
                                             const struct softmax &s, float above, int tie_end,
                                             uint64_t draw)
{
    int lane = threadIdx.x % WARP, vocab_n = o.v.vocab_n;
    int chunk = find_chunk(chunks, count_of(vocab_n, SAMPLER_CHUNK), &draw);
    int begin = chunk * SAMPLER_CHUNK + lane * LANE_LOGITS;
    uint64_t entry = ENTRY_NONE;
    float x[BLOCKS][LANE_LOGITS];
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        read_run(l, vocab_n, begin + b * SAMPLER_BLOCK, o.aligned, x[b]);
    }
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        uint32_t mass[LANE_LOGITS];
        uint64_t sum = 0;
#pragma unroll
        for (int j = 0; j < LANE_LOGITS; j++) {
            bool tie = x[b][j] == above && begin + b * SAMPLER_BLOCK + j < tie_end;
            mass[j] = x[b][j] > above || tie ? mass_on(table, &s, x[b][j]) : 0;
            sum += mass[j];
        }
        uint64_t all = warp_sum(sum);
        if (draw >= all) {
            draw -= all;
            continue;
        }
        uint64_t before = warp_prefix(sum, lane) - sum;
        bool here = draw >= before && draw - before < sum, found = false;
        uint64_t left = draw - before;
#pragma unroll
        for (int j = 0; j < LANE_LOGITS; j++) {
            if (!found && left < mass[j]) {
                entry = entry_on(x[b][j], begin + b * SAMPLER_BLOCK + j);
                found = true;
            }
            left -= mass[j];
        }
        return __shfl_sync(~0u, entry, __ffs((int) __ballot_sync(~0u, here)) - 1);
    }
    return ENTRY_NONE; // the sums are of other logits
}

#endif
