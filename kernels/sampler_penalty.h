// Penalties on the logits of a sequence's own tokens, in place, so that no row is copied: what was
// there is kept in patches. Pure; no allocation.
#ifndef PENSTOCK_KERNELS_SAMPLER_PENALTY_H
#define PENSTOCK_KERNELS_SAMPLER_PENALTY_H

#include "common/sampler_sizes.h"
#include "common/sampling.h"
#include "kernels/sampler_record.h"

#include <stdbool.h>
#include <stdint.h>

bool penalty_any(const struct sampling *s);

// Changes the logits l (vocab_n) of the slice's ids that occur in ids (n), which are marked
// (sampler_record.h) and of which the first n_prompt are prompt. counts (vocab_n): all zeros before
// and after. patches (1 + min(n, vocab_n)): where, and the logit that was there; returns how many.
// NaN stays NaN. Time is in proportion to n.
int penalty_apply(const struct sampling *s, float *l, const struct record_slice *slice,
                  const int32_t *ids, int n, int n_prompt, uint32_t *counts,
                  struct sampler_patch *patches);

// Puts back the logits that are in the patches; exchanges them with those.
void penalty_undo(float *l, const struct sampler_patch *patches, int n);
void penalty_swap(float *l, struct sampler_patch *patches, int n);

#endif
