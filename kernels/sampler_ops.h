// What a sampler asks of a device whose memory the host does not read: numbers of many rows at
// once, which go to words of the host. They equal what the scans of the host give
// (sampler_slice.h, sampler_select.h) bit by bit. Ops are asynchronous on the device's stream; the
// words are there after sync. Knows no sampling parameters and no other rank.
#ifndef PENSTOCK_KERNELS_SAMPLER_OPS_H
#define PENSTOCK_KERNELS_SAMPLER_OPS_H

#include "common/sampler_sizes.h"
#include "kernels/sampler_mass.h"

#include <stdbool.h>
#include <stdint.h>

struct device;

// The logits of a batch on this rank, and memory of the device for what is kept of them from one
// op to the next (sampler_device_carve), whatever was in it before `heads`.
struct sampler_view {
    const float *logits; // (SAMPLER_DEVICE_BATCH, vocab_n), rows one behind the other
    int vocab_begin, vocab_n;
    struct sampler_device_parts parts;
};

// What the first of a row's words says.
enum sampler_head {
    HEAD_GOOD,
    HEAD_NAN,
    HEAD_HOST, // too many equal logits: the host has to choose for the row
};

// The first round: of row i a word of enum sampler_head and want[i] entries, ascending
// (select_top), from word to[i] on. want[i] == 0: neither. Then, unless scale[i] is 0, the mass of
// all logits goes to word sum_to[i], with that scale and the largest logit here, kept for walks.
struct sampler_heads {
    int32_t n;
    int32_t want[SAMPLER_DEVICE_BATCH], to[SAMPLER_DEVICE_BATCH], sum_to[SAMPLER_DEVICE_BATCH];
    float scale[SAMPLER_DEVICE_BATCH];
    bool sums; // some scale is not 0
};

// The mass of the logits of `row` that are above `above`, and of those equal to it at indices below
// `at`; -INFINITY and 0: of all. Or the token in which `draw` falls among those above, after a sum
// of the same that was kept: its id + 1 in the upper half, its logit's bits in the lower. The
// result goes to word `to`.
struct sampler_job {
    int32_t row, to;
    struct softmax softmax;
    float above;
    int32_t at;
    uint64_t draw;
};

struct sampler_jobs {
    int32_t n;
    struct sampler_job job[SAMPLER_DEVICE_BATCH];
};

_Static_assert(sizeof(struct softmax) == SAMPLER_SOFTMAX_BYTES, "the plan has room for it");

struct sampler_ops {
    void (*heads)(struct device *d, const struct sampler_view *v, const struct sampler_heads *h,
                  uint64_t *words);
    // kept: the chunks' masses are for walks; at most one job a row then.
    void (*masses)(struct device *d, const struct sampler_view *v, const struct sampler_jobs *j,
                   bool kept, uint64_t *words);
    void (*walks)(struct device *d, const struct sampler_view *v, const struct sampler_jobs *j,
                  uint64_t *words);
};

#endif
