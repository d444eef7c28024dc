// Finds a cut-off in the vocabulary's order without sorting it, for kept sets longer than the lists
// of candidates: the key of the last kept token, 8 bits a round, from the ranks' histograms of
// counts and masses. Every rank steps alike. Pure; no allocation.
#ifndef PENSTOCK_KERNELS_SAMPLER_NARROW_H
#define PENSTOCK_KERNELS_SAMPLER_NARROW_H

#include "kernels/sampler_scan.h"

#include <stddef.h>

enum {
    NARROW_BITS = SCAN_BITS,
    NARROW_BINS = SCAN_BINS,
    NARROW_ROUNDS = 32 / NARROW_BITS,
    NARROW_SAMPLE = SAMPLER_SLACK * SAMPLER_CANDIDATES_MAX,
};

// Logits of one rank by the next bits of their keys, among the keys that begin with the prefix.
struct histogram {
    uint64_t mass[NARROW_BINS];
    uint32_t count[NARROW_BINS];
};

struct narrow {
    bool by_mass;    // else by count
    int round;       // NARROW_ROUNDS: done, prefix is the key of the cut-off
    uint32_t prefix;
    uint64_t want;   // count or mass still to be reached among the keys that begin with prefix
    uint64_t above;  // mass of all keys beyond these
    // Once done: logits equal to the cut-off's, of lower ranks and of ours.
    uint64_t ties_before, ties_here;
};

// Searches the shortest prefix of the order with `want` tokens, or that much mass; want > 0, and
// all tokens together reach it.
struct narrow narrow_of(bool by_mass, uint64_t want);

// A logit that likely no fewer than `want` of l (n) reach, and not many more, from a sample of
// these; -INFINITY if they are too few, or `want` too many. scratch (NARROW_SAMPLE).
float narrow_floor(const float *l, int n, int want, uint64_t *scratch);

// l (n): this rank's logits, or those that reach a floor below the cut-off.
void narrow_fill(const struct narrow *n, const struct scan *scan, const float *l, int n_logits,
                 struct softmax s, struct histogram *h);

// One round: all ranks' histograms, `stride` bytes apart.
void narrow_step(struct narrow *n, const void *histograms, size_t stride, int n_ranks, int rank);

#endif
