// The logits of a part of a phase: a warp has PER blocks of them, of which some are of no interest.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_PARTS_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_PARTS_CUH

#include "kernels/cuda/sampler_order.cuh"

enum {
    FEW = 2,       // blocks of a warp where rows are few
    AT_A_TIME = 4, // whose masses are made together
};

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

// A lane's sum over those of which in(b, j) holds.
template <int N, typename IN>
static __device__ __forceinline__ uint64_t sum_where(const float x[N][LANE_LOGITS],
                                                     uint32_t wanted, const float *table,
                                                     const struct softmax &s, IN in)
{
    uint64_t sum = 0;
#pragma unroll
    for (int b = 0; b < N; b++) {
        if ((wanted >> b & 1) == 0) continue;
#pragma unroll
        for (int j = 0; j < LANE_LOGITS; j++) sum += in(b, j) ? mass_on(table, &s, x[b][j]) : 0;
    }
    return sum;
}

// Over all of those.
template <int N>
static __device__ uint64_t sum_wanted(const float x[N][LANE_LOGITS], uint32_t wanted,
                                      const float *table, const struct softmax &s)
{
    return sum_where<N>(x, wanted, table, s, [](int, int) { return true; });
}

// Over those beyond `logit`, and those equal to it at indices below `at`, from here on.
template <int N, bool ALIGNED>
static __device__ uint64_t sum_before(const float x[N][LANE_LOGITS], uint32_t wanted,
                                      const float *table, const struct softmax &s, float logit,
                                      int at, int lane)
{
    return sum_where<N>(x, wanted, table, s, [&](int b, int j) {
        bool lower = b * SAMPLER_BLOCK + place_of(ALIGNED, lane, j) < at;
        return x[b][j] > logit || (x[b][j] == logit && lower);
    });
}

#endif
