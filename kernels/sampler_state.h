// A sampler's memory, as its files share it: sampler.c, sampler_rounds.c, sampler_share.c. Nobody
// else includes this.
#ifndef PENSTOCK_KERNELS_SAMPLER_STATE_H
#define PENSTOCK_KERNELS_SAMPLER_STATE_H

#include "kernels/sampler.h"

#include "kernels/sampler_device.h"
#include "kernels/sampler_penalty.h"
#include "kernels/sampler_row.h"

enum {
    // Rows that share their collectives.
    BATCH_MAX = SAMPLER_DEVICE_BATCH > SAMPLER_BATCH_MAX ? SAMPLER_DEVICE_BATCH : SAMPLER_BATCH_MAX,
};

struct sequence {
    bool open;
    int n_prompt;
    int n_marked; // of its ids, from the first on, as if there were no others
    struct rule rule;
};

struct sampler {
    struct sampler_shape shape;
    struct comm *comm;
    const struct scan *scan;
    int rank;
    int n_counts_used; // of the counts' memory, for another purpose
    struct sampler_counts counts;
    struct sequence *sequences; // (slots)
    struct row *rows;           // (batch)
    struct sampler_parts parts;
    struct sampler_device device;
    bool by_device; // this batch's logits lie there
    bool penalised; // they have their penalties, and keep them
};

_Static_assert(sizeof(struct sampler) <= SAMPLER_STATE_BYTES, "the plan has room for it");
_Static_assert(sizeof(struct sequence) <= SAMPLER_SEQUENCE_BYTES, "the plan has room for it");
_Static_assert(sizeof(struct row) <= SAMPLER_ROW_BYTES, "the plan has room for it");

static inline int32_t *history_of(const struct sampler *s, int slot)
{
    return s->parts.history + (size_t) slot * (size_t) s->shape.max_context;
}

static inline struct record_slice record_slice_of(const struct sampler *s)
{
    return (struct record_slice){s->shape.vocab_begin, s->shape.vocab_n, s->parts.seen};
}

#endif
