// How one sequence chooses its next token: the parameters, their bounds, and the counter-based
// random numbers. Shared by the job codec, the step header and the sampler. Pure.
#ifndef PENSTOCK_COMMON_SAMPLING_H
#define PENSTOCK_COMMON_SAMPLING_H

#include "common/limits.h"
#include "common/status.h"

#include <stdint.h>

// Plain old data: travels in JOB and in a step's OPEN record.
struct sampling {
    float temperature; // 0: greedy (ties: lowest id); else 0 < t <= 100
    float top_p;       // (0, 1]; 1: off
    float min_p;       // [0, 1]; 0: off
    float repetition_penalty; // (0, 10]; 1: off; over prompt and output
    float presence_penalty;   // [-2, 2]; over output
    float frequency_penalty;  // [-2, 2]; over output
    int32_t top_k;     // 0: off
    int32_t n_logprobs; // -1: none; 0: the chosen token's; n: and the n most likely
    uint64_t seed;
};

// Greedy, no penalties, no logprobs.
struct sampling sampling_default(void);

// ERR_INPUT bad_sampling names the field, its value and its bounds; NaN is never in bounds.
enum status sampling_check(const struct sampling *s, struct error *e);

// The random number that sequence `seed` draws for the token at `position` (0-based index in the
// whole sequence): 64 uniform bits, a function of the two alone.
uint64_t sampling_random(uint64_t seed, uint64_t position);

#endif
