// The loops of the sampler that read a whole slice of logits, by instruction set; the same result from
// each. Pure; any thread.
#ifndef PENSTOCK_KERNELS_SAMPLER_SCAN_H
#define PENSTOCK_KERNELS_SAMPLER_SCAN_H

#include "kernels/sampler_mass.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SCAN_BLOCK = 128,  // ids of one maximum
    SCAN_CHUNK = 1024, // ids of one sum
};

struct scan {
    // max (ceil(n / SCAN_BLOCK)) = the largest of each block. False if there is a NaN (then the
    // maxima mean nothing).
    bool (*maxima)(const float *l, int n, float *max);
    // Sum of the masses of l (n), n <= SCAN_CHUNK, of the logits beyond `above` whose exponent
    // reaches `least`.
    uint64_t (*mass)(const float *l, int n, struct softmax s, float above, float least);
    // key (n) and mass (n) of each logit, n <= SCAN_CHUNK.
    void (*list)(const float *l, int n, struct softmax s, uint32_t *key, uint64_t *mass);
};

// The best variant this CPU has (kernels/cpu/isa.h).
const struct scan *scan_best(void);

extern const struct scan scan_portable, scan_avx2, scan_avx512;

#endif
