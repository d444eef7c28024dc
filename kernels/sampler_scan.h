// The loops of the sampler that read a whole slice of logits, by instruction set; the same result
// from each. Pure; any thread.
#ifndef PENSTOCK_KERNELS_SAMPLER_SCAN_H
#define PENSTOCK_KERNELS_SAMPLER_SCAN_H

#include "common/sampler_sizes.h"
#include "kernels/sampler_mass.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SCAN_BLOCK = SAMPLER_BLOCK, // ids of one maximum
    SCAN_CHUNK = SAMPLER_CHUNK, // ids of one sum
    SCAN_BITS = 8,
    SCAN_SLACK = 16,
    SCAN_BINS = 1 << SCAN_BITS,
};

struct scan {
    // max (ceil(n / SCAN_BLOCK)) = the largest of each block; chunk (ceil(n / SCAN_CHUNK)) = the
    // bounds of each. False if there is a NaN (then they mean nothing).
    bool (*maxima)(const float *l, int n, float *max, union sampler_chunk *chunk);
    // index (n): where l is at least `floor`, ascending; returns how many.
    int (*reach)(const float *l, int n, float floor, int32_t *index);
    // picked (n) = the logits of l (n) that are at least `floor`, in their order; returns how many.
    // Up to SCAN_SLACK behind these are overwritten.
    int (*pick)(const float *l, int n, float floor, float *picked);
    // bin (n) = the SCAN_BITS bits that follow the first `known` of each logit's key if those are
    // `prefix`, else SCAN_BINS. False if no key has the prefix.
    bool (*bins)(const float *l, int n, int known, uint32_t prefix, uint16_t *bin);
    // Of n <= SCAN_CHUNK logits between `bounds`: mass (n) of each; their sum; the sum over those
    // beyond `above`. ahead (n): logits that will be read next, or NULL.
    void (*list)(const float *l, int n, struct softmax s, uint64_t *mass);
    uint64_t (*sum)(const float *l, int n, struct softmax s, struct sampler_bounds bounds,
                    const float *ahead);
    uint64_t (*sum_above)(const float *l, int n, struct softmax s, struct sampler_bounds bounds,
                          float above);
};

// Between these lies every logit.
static const struct sampler_bounds BOUNDS_NONE = {-INFINITY, INFINITY};

// The best variant this CPU has (kernels/cpu/isa.h).
const struct scan *scan_best(void);

extern const struct scan scan_portable, scan_avx2, scan_avx512;

#endif
