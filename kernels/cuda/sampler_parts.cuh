// The logits of a part of a phase: a warp has PER blocks of them, of which some are of no interest.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_PARTS_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_PARTS_CUH

#include "kernels/cuda/sampler_order.cuh"

// threadIdx.x, read anew: what follows from it is not kept from task to task, which would take the
// registers of a task's logits.
static __device__ __forceinline__ int thread_now()
{
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// Which of a warp's PER blocks from `block` on have a largest logit that `wants` it: a mask.
template <int PER, typename WANTS>
static __device__ uint32_t wanted_blocks(const struct order &o, int row, int block, int lane,
                                         WANTS wants)
{
    int n_blocks = count_of(o.v.vocab_n, SAMPLER_BLOCK);
    bool mine = false;
    if (lane < PER && block + lane < n_blocks) {
        mine = wants(o.v.parts.maxima[(size_t) row * n_blocks + block + lane]);
    }
    return __ballot_sync(~0u, mine);
}

// The logits of N of these blocks, `wanted` beginning with the first; undefined in others.
template <int N, bool ALIGNED>
static __device__ void read_wanted(const struct order &o, int row, int block, int lane,
                                   uint32_t wanted, float x[N][LANE_LOGITS])
{
#pragma unroll
    for (int b = 0; b < N; b++) {
        int begin = (block + b) * SAMPLER_BLOCK;
        if ((wanted >> b & 1) == 0) continue;
        read_block(row_of(o.v, row), o.v.vocab_n, begin, lane, ALIGNED, x[b]);
    }
}

// Calls see(x, b) for the blocks from b on, N at a time, of a warp's PER, while the next are on
// their way. It is there twice: what it does once a row had better be elsewhere, since code that
// is run for the first time comes more slowly than logits.
template <int PER, int N, bool ALIGNED, typename SEE>
static __device__ __forceinline__ void sweep(const struct order &o, int row, int block, int lane,
                                             uint32_t wanted, SEE see)
{
    float x[N][LANE_LOGITS], y[N][LANE_LOGITS];
    read_wanted<N, ALIGNED>(o, row, block, lane, wanted, x);
#pragma unroll 1
    for (int b = 0; b < PER; b += 2 * N) {
        bool more = b + N < PER;
        if (more) read_wanted<N, ALIGNED>(o, row, block + b + N, lane, wanted >> (b + N), y);
        see(x, b);
        if (b + 2 * N < PER) {
            read_wanted<N, ALIGNED>(o, row, block + b + 2 * N, lane, wanted >> (b + 2 * N), x);
        }
        if (more) see(y, b + N);
    }
}

// The mass of a part's logits beyond `above`, and of those equal to it at indices below `end`: by
// chunk into the row's chunks if `keeps`, and onto *to unless it is NULL. By all threads.
template <int PER, bool ALIGNED, bool PLAIN>
static __device__ __noinline__ void sum_part(const struct order &o, struct room *room, int row,
                                             int part, const struct softmax *softmax, float above,
                                             int end, bool keeps, unsigned long long *to)
{
    // Chunks of a warp, or warps of a chunk.
    enum { N = 2, CHUNKS = count_of(PER, BLOCKS), OF_CHUNK = count_of(BLOCKS, PER) };
    enum { ALL = WARPS * PER / BLOCKS, APART = ALIGNED ? 1 : WARP };
    const struct softmax s = *softmax;
    int thread = thread_now(), lane = thread % WARP, warp = thread / WARP;
    int block = (part * WARPS + warp) * PER, n_chunks = count_of(o.v.vocab_n, SAMPLER_CHUNK);
    float below = nextafterf(above, -INFINITY);
    uint32_t wanted = wanted_blocks<PER>(o, row, block, lane, [&](uint32_t key) {
        float l = key_logit_on(key);
        return l >= above && !none_on(s, l);
    });
    end -= block * SAMPLER_BLOCK + place_of(ALIGNED, lane, 0);
    uint64_t sum = 0;
    sweep<PER, N, ALIGNED>(o, row, block, lane, wanted, [&](float x[][LANE_LOGITS], int b) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            if ((wanted >> (b + k) & 1) == 0) continue;
#pragma unroll
            for (int j = 0; j < LANE_LOGITS; j++) {
                float least = (b + k) * SAMPLER_BLOCK + j * APART < end ? below : above;
                uint32_t mass = PLAIN ? plain_on(room->table, x[k][j], s.scale, s.grid, s.least)
                                      : mass_on(room->table, &s, x[k][j]);
                sum += x[k][j] > least ? mass : 0;
            }
        }
        if ((b + N) % BLOCKS != 0 && b + N < PER) return;
        sum = warp_sum(sum); // a chunk, or the warp's share of one
        if (lane == 0) room->chunks[warp * CHUNKS + b / BLOCKS] = sum;
        sum = 0;
    });
    __syncthreads();
    int chunk = part * ALL + thread;
    if (keeps && thread < ALL && chunk < n_chunks) {
        uint64_t mass = 0;
        for (int k = 0; k < OF_CHUNK; k++) mass += room->chunks[thread * OF_CHUNK + k];
        o.v.parts.chunks[(size_t) row * n_chunks + chunk] = mass;
    }
    if (to != NULL && thread < WARP) {
        uint64_t all = warp_sum(thread < WARPS * CHUNKS ? room->chunks[thread] : 0);
        if (thread == 0 && all != 0) atomicAdd(to, all);
    }
    __syncthreads();
}

template <int PER, bool ALIGNED>
static __device__ void add_part(const struct order &o, struct room *room, const struct task &t,
                                const struct softmax *s, float above, int end, bool keeps,
                                unsigned long long *to)
{
    if (s->plain) {
        sum_part<PER, ALIGNED, true>(o, room, o.row[t.i], t.part, s, above, end, keeps, to);
    } else {
        sum_part<PER, ALIGNED, false>(o, room, o.row[t.i], t.part, s, above, end, keeps, to);
    }
}

#endif
