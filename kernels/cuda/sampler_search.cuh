// The search of a row's cut-off (kernels/sampler_narrow.h): a round finds 8 bits of its key from a
// histogram over the keys that begin with those known. Then, if not all logits equal to it are
// kept, which are.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_SEARCH_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_SEARCH_CUH

#include "kernels/cuda/sampler_draws.cuh"
#include "kernels/cuda/sampler_parts.cuh"

enum {
    BINS = SAMPLER_BINS, LANE_BINS = BINS / WARP,
    ROUND_BITS = 8, ROUNDS = 32 / ROUND_BITS,
};

static_assert((int) BINS == (int) THREADS && BINS == 1 << ROUND_BITS, "a thread has a bin");

// Of a row, in device memory.
struct bins {
    unsigned long long mass[BINS];
    unsigned count[BINS];
};

static_assert(sizeof(struct bins) == SAMPLER_NARROW_WORDS * sizeof(uint64_t), "the plan has room");

// Of a part, in the place of a list's entries.
struct part_bins {
    unsigned long long mass[BINS];
    unsigned count[WARPS][BINS];
};

static_assert(sizeof(struct part_bins) <= sizeof(struct selection), "they lie there");

static __device__ struct bins *bins_of(const struct order &o, int i)
{
    return (struct bins *) o.v.parts.bins + i;
}

// Thread 0. The row's bins are all zeros before each round.
static __device__ void begin_search(const struct order &o, int i, bool by_mass, uint64_t want)
{
    struct record *r = &o.records[i];
    r->searched = true;
    r->search.by_mass = by_mass;
    r->search.round = 0;
    r->search.prefix = 0;
    r->search.want = want;
    r->search.above = 0;
    publish(o, i, PHASE_SEARCH);
}

// Thread 0, with the key of the cut-off and how many logits have it: row_decide_narrow.
static __device__ void end_search(const struct order &o, int i, const float *table, uint64_t n_here)
{
    struct record *r = &o.records[i];
    const struct sampler_wish &w = r->wish;
    const struct softmax softmax = r->softmax;
    float last = key_logit_on(r->search.prefix);
    uint64_t mass = mass_on(table, &softmax, last), want = r->search.want, ties = want;
    if (!r->search.by_mass && w.top_p != 0) {
        begin_search(o, i, true, need_on(w, r->search.above + want * mass));
        return;
    }
    r->tie_end = 0;
    if (!(exponent_on(&softmax, last) >= w.least)) { // min_p cuts before
        r->above = float_below_on(softmax, w.least);
        publish(o, i, PHASE_MASSES);
        return;
    }
    if (r->search.by_mass) ties = (want + mass - 1) / mass;
    r->above = last;
    r->n_ties = ties;
    if (ties >= n_here) r->tie_end = o.v.vocab_n;
    publish(o, i, ties < n_here ? PHASE_TIES : PHASE_MASSES);
}

// By all threads, after the row's histogram: narrow_step.
static __device__ __noinline__ void decide_search(const struct order &o, struct room *room, int i)
{
    struct record *r = &o.records[i];
    struct bins *bins = bins_of(o, i);
    struct part_bins *h = (struct part_bins *) &room->s;
    int thread = threadIdx.x, lane = thread % WARP;
    h->mass[thread] = __ldcg(&bins->mass[thread]);
    h->count[0][thread] = __ldcg(&bins->count[thread]);
    bins->mass[thread] = 0;
    bins->count[thread] = 0;
    __syncthreads();
    if (thread < WARP) { // a lane has some bins, the highest first
        bool by_mass = r->search.by_mass;
        uint64_t want = r->search.want, reach = 0, mass = 0;
        int high = BINS - 1 - LANE_BINS * lane;
        for (int j = 0; j < LANE_BINS; j++) {
            reach += by_mass ? h->mass[high - j] : h->count[0][high - j];
            mass += h->mass[high - j];
        }
        uint64_t before = warp_prefix(reach, lane) - reach;
        uint64_t above = warp_prefix(mass, lane) - mass;
        if (before < want && want - before <= reach) {
            int bin = high;
            for (;; bin--) {
                uint64_t here = by_mass ? h->mass[bin] : h->count[0][bin];
                if (want - before <= here) break;
                before += here;
                above += h->mass[bin];
            }
            r->search.want = want - before;
            r->search.above += above;
            r->search.prefix = r->search.prefix << ROUND_BITS | (uint32_t) bin;
            room->draw = h->count[0][bin];
        }
    }
    __syncthreads();
    if (thread != 0) return;
    if (++r->search.round < ROUNDS) {
        publish(o, i, PHASE_SEARCH);
    } else {
        end_search(o, i, room->table, room->draw);
    }
}

template <int PER, bool ALIGNED>
static __device__ __noinline__ void do_search(const struct order &o, struct room *room,
                                              const struct task &t)
{
    struct record *r = &o.records[t.i];
    struct part_bins *h = (struct part_bins *) &room->s;
    struct bins *bins = bins_of(o, t.i);
    const struct softmax softmax = r->softmax;
    int thread = thread_now(), lane = thread % WARP, warp = thread / WARP, row = o.row[t.i];
    int block = (t.part * WARPS + warp) * PER, shift = 32 - ROUND_BITS * r->search.round;
    uint32_t prefix = r->search.prefix;
    bool masses = r->wish.top_p != 0;
    h->mass[thread] = 0;
    for (int k = 0; k < WARPS; k++) h->count[k][thread] = 0;
    __syncthreads();
    uint32_t least = shift < 32 ? prefix << shift : 0;
    uint32_t wanted = wanted_blocks<PER>(o, row, block, lane,
                                         [&](uint32_t key) { return key >= least; });
    for (int b = 0; b < PER; b++) {
        float x[1][LANE_LOGITS];
        if ((wanted >> b & 1) == 0) continue;
        read_wanted<1, ALIGNED>(o, row, block + b, lane, 1, x);
        for (int j = 0; j < LANE_LOGITS; j++) {
            uint32_t key = key_on(x[0][j]);
            int place = (block + b) * SAMPLER_BLOCK + place_of(ALIGNED, lane, j);
            if (place >= o.v.vocab_n || (shift < 32 && key >> shift != prefix)) continue;
            uint32_t bin = key >> (shift - ROUND_BITS) & (BINS - 1);
            atomicAdd(&h->count[warp][bin], 1);
            uint32_t mass = masses ? mass_on(room->table, &softmax, x[0][j]) : 0;
            if (mass != 0) atomicAdd(&h->mass[bin], (unsigned long long) mass);
        }
    }
    __syncthreads();
    unsigned count = 0;
    for (int k = 0; k < WARPS; k++) count += h->count[k][thread];
    if (count != 0) atomicAdd(&bins->count[thread], count);
    if (h->mass[thread] != 0) atomicAdd(&bins->mass[thread], h->mass[thread]);
    __threadfence();
    __syncthreads();
    if (ends_phase(o, room, t.i)) decide_search(o, room, t.i);
}

// One warp, after the counts by chunk: the index of the first equal one that is not kept.
static __device__ void decide_ties(const struct order &o, int i)
{
    struct record *r = &o.records[i];
    int lane = threadIdx.x % WARP, row = o.row[i], vocab_n = o.v.vocab_n;
    int n_chunks = count_of(vocab_n, SAMPLER_CHUNK);
    uint64_t left = r->n_ties;
    int chunk = find_chunk(o.v.parts.chunks + (size_t) row * n_chunks, n_chunks, &left);
    for (int b = 0; b < BLOCKS; b++) {
        int begin = chunk * SAMPLER_CHUNK + b * SAMPLER_BLOCK + lane * LANE_LOGITS;
        float x[LANE_LOGITS];
        read_run(row_of(o.v, row), vocab_n, begin, o.aligned, x);
        uint32_t mine = 0;
        for (int j = 0; j < LANE_LOGITS; j++) mine += x[j] == r->above;
        uint64_t prefix = warp_prefix(mine, lane), all = __shfl_sync(~0u, prefix, WARP - 1);
        if (left >= all) {
            left -= all;
            continue;
        }
        uint64_t before = prefix - mine;
        for (int j = 0; j < LANE_LOGITS; j++) {
            if (x[j] == r->above && before++ == left) r->tie_end = begin + j;
        }
        break;
    }
    __syncwarp();
    if (lane == 0) publish(o, i, PHASE_MASSES);
}

template <int PER, bool ALIGNED>
static __device__ __noinline__ void do_ties(const struct order &o, struct room *room,
                                            const struct task &t)
{
    enum { OF_CHUNK = BLOCKS / PER };
    int thread = thread_now(), lane = thread % WARP, warp = thread / WARP, row = o.row[t.i];
    int block = (t.part * WARPS + warp) * PER, n_chunks = count_of(o.v.vocab_n, SAMPLER_CHUNK);
    float above = o.records[t.i].above;
    uint32_t count = 0;
    for (int b = 0; b < PER; b++) {
        float x[1][LANE_LOGITS]; // -inf beyond the row: no cut-off with ties to choose from
        read_wanted<1, ALIGNED>(o, row, block + b, lane, 1, x);
        for (int j = 0; j < LANE_LOGITS; j++) count += x[0][j] == above;
    }
    count = __reduce_add_sync(~0u, count);
    if (lane == 0) room->sums[0][warp] = count;
    __syncthreads();
    int chunk = t.part * PER + thread;
    if (thread < PER && chunk < n_chunks) {
        uint64_t sum = 0;
        for (int k = 0; k < OF_CHUNK; k++) sum += room->sums[0][thread * OF_CHUNK + k];
        o.v.parts.chunks[(size_t) row * n_chunks + chunk] = sum;
    }
    __syncthreads();
    if (ends_phase(o, room, t.i) && thread < WARP) decide_ties(o, t.i);
}

#endif
