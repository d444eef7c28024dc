// Penalties on the logits of a sequence's own tokens, in place, so that no row is copied: what was
// there is kept in patches. Pure; no allocation.
#ifndef PENSTOCK_KERNELS_SAMPLER_PENALTY_H
#define PENSTOCK_KERNELS_SAMPLER_PENALTY_H

#include "common/sampler_sizes.h"
#include "common/sampling.h"

#include <stdbool.h>
#include <stdint.h>

bool penalty_any(const struct sampling *s);

// What marks the tokens of one row; all zeros before and after.
struct penalty_marks {
    uint64_t *seen;   // (ceil(vocab_n / 64)) a bit a token
    uint32_t *counts; // (vocab_n)
};

// Changes the logits l (vocab_n) of the ids [vocab_begin, vocab_begin + vocab_n) that occur in ids
// (n), of which the first n_prompt are prompt. patches (1 + min(n, vocab_n)): where, and the logit
// that was there; returns how many. max: block maxima (struct scan), raised where a logit became
// larger; if a block's largest became smaller, that one is among the patches. Time is in proportion
// to n.
int penalty_apply(const struct sampling *s, float *l, int vocab_begin, int vocab_n,
                  const int32_t *ids, int n, int n_prompt, const struct penalty_marks *marks,
                  float *max, struct sampler_patch *patches);

// Exchanges the logits with those in the patches.
void penalty_swap(float *l, struct sampler_patch *patches, int n);

#endif
