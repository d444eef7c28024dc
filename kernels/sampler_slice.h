// One row's logits on this rank, whose maximum over the ranks is known: masses of all and of the
// kept ones, the token of a draw, the mass before a token. Pure; no allocation. Knows no other
// rank.
#ifndef PENSTOCK_KERNELS_SAMPLER_SLICE_H
#define PENSTOCK_KERNELS_SAMPLER_SLICE_H

#include "kernels/sampler_scan.h"

struct slice {
    const struct scan *scan;
    const float *l; // (n)
    int n;
    struct softmax softmax;
    // (ceil(n / SCAN_CHUNK)): masses of the sum made last, or while `bounded` what the logits lie
    // between, if there was none yet; NULL: not wanted.
    union sampler_chunk *chunks;
    bool bounded;
    float least; // no logit is below
};

// Logits beyond `above`, and the first `ties` equal to it.
struct kept {
    float above;
    uint64_t ties;
};

static const struct kept KEPT_ALL = {.above = -INFINITY};

// Mass of the kept logits, and of each chunk's. ahead (n): the logits that will be read next, or
// NULL.
uint64_t slice_mass(const struct slice *s, struct kept kept, const float *ahead);

// Index of the kept logit in which the draw falls, after slice_mass of the same kept ones; draw <
// their mass.
int slice_walk(const struct slice *s, struct kept kept, uint64_t draw);

// Mass of the logits that come before a token with logit l: those above, and those equal at indices
// below `at` (any number; beyond the slice for another rank's token). After slice_mass of all. May
// stop once what it has reaches `most`, or what it has left out is beyond `rest`.
uint64_t slice_before(const struct slice *s, float l, int at, uint64_t most, uint64_t rest);

#endif
