// Penalties on the logits of a row's own tokens, in place (kernels/sampler_penalty.h). The ids come
// from memory of the host; each id once, where it occurs last (kernels/sampler_record.h).
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_PENALTY_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_PENALTY_CUH

#include "kernels/cuda/sampler_order.cuh"

extern "C" {
#include "kernels/sampler_record.h"
}

// Ids of the output that are counted, in the place of a list's entries.
struct counted {
    int32_t ids[SAMPLER_COUNTED_MAX];
    float logits[SAMPLER_COUNTED_MAX];
};

static_assert(sizeof(struct counted) <= sizeof(struct selection), "it lies there");

static __device__ float repeated_on(float l, float repetition)
{
    bool up = l > 0;
    return __fmul_rn(__fdiv_rn(l, up ? repetition : 1), up ? 1 : repetition);
}

// Where an id's logit is penalised; NULL: not here, or not in the vocabulary.
static __device__ float *place_on(const struct order &o, int i, int32_t id)
{
    bool in = (uint32_t) id < (uint32_t) o.v.vocab_n;
    return in ? o.v.logits + (size_t) o.row[i] * o.v.vocab_n + id : NULL;
}

// With a frequency penalty the output is one block's: while it counts, the logits are counters.
static __device__ void count_output(const struct order &o, struct counted *c, int i,
                                    const struct sampler_wish &w, int begin)
{
    int n = w.n_ids - begin;
    for (int k = threadIdx.x; k < n; k += THREADS) {
        int32_t id = w.ids[begin + k];
        float *at = place_on(o, i, id);
        c->ids[k] = id;
        if (at == NULL) continue;
        c->logits[k] = *at;
        *(int *) at = 0;
    }
    __threadfence();
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += THREADS) {
        float *at = place_on(o, i, (int32_t) ((uint32_t) c->ids[k] & ~RECORD_AGAIN));
        if (at != NULL) atomicAdd((int *) at, 1);
    }
    __threadfence();
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += THREADS) {
        float *at = place_on(o, i, c->ids[k]);
        if (at == NULL) continue;
        float count = (float) __ldcg((const int *) at);
        float less = __fadd_rn(__fmul_rn(w.frequency, count), w.presence);
        *at = __fsub_rn(repeated_on(c->logits[k], w.repetition), less);
    }
}

static __device__ __noinline__ void do_penalties(const struct order &o, struct room *room,
                                                 const struct task &t)
{
    enum { WORDS = sizeof(struct sampler_wish) / sizeof(uint32_t) };
    if (threadIdx.x < WORDS) {
        ((uint32_t *) &room->wish)[threadIdx.x] = ((const uint32_t *) &o.wishes[t.i])[threadIdx.x];
    }
    __syncthreads();
    const struct sampler_wish w = room->wish;
    int prompt = w.n_prompt < w.n_ids ? w.n_prompt : w.n_ids; // ids before are of the prompt
    bool counts = w.frequency != 0;
    int begin = w.repetition != 1 ? 0 : prompt, end = counts ? prompt : w.n_ids;
    for (int k = begin + t.part * THREADS + threadIdx.x; k < end; k += o.parts * THREADS) {
        float *at = place_on(o, t.i, w.ids[k]);
        if (at == NULL) continue;
        float l = repeated_on(*at, w.repetition);
        *at = k < prompt ? l : __fsub_rn(l, w.presence);
    }
    if (counts && t.part == 0) count_output(o, (struct counted *) &room->s, t.i, w, prompt);
    __syncthreads();
    if (ends_phase(o, room, t.i) && threadIdx.x == 0) publish(o, t.i, PHASE_LISTS);
}

#endif
