// Penalties on the logits of a sequence's own tokens. Pure; no allocation.
#ifndef PENSTOCK_KERNELS_SAMPLER_PENALTY_H
#define PENSTOCK_KERNELS_SAMPLER_PENALTY_H

#include "common/sampling.h"

#include <stdbool.h>
#include <stdint.h>

bool penalty_any(const struct sampling *s);

// Changes in place the logits l (vocab_n) of the ids [vocab_begin, vocab_begin + vocab_n) that
// occur in ids (n), of which the first n_prompt are prompt. seen (vocab_n) is all zeros before and
// after. Time is in proportion to n.
void penalty_apply(const struct sampling *s, float *l, int vocab_begin, int vocab_n, uint32_t *seen,
                   const int32_t *ids, int n, int n_prompt);

#endif
