// What this rank has of row i of a batch whose logits the host reads: lists, masses, penalties,
// draws. Knows no other rank.
#ifndef PENSTOCK_KERNELS_SAMPLER_SHARE_H
#define PENSTOCK_KERNELS_SAMPLER_SHARE_H

#include "kernels/sampler_state.h"

// Marks the first n ids of the slot's record (sampler_record.h).
void share_mark(struct sampler *s, int slot, int n);

// row_head_words: enum sampler_head, the list, the raw list. The row's penalties are in its logits
// afterwards, until share_restore.
void share_head(struct sampler *s, int i, uint64_t *words);
void share_restore(struct sampler *s, int i);

// Two words of a row that row_needs_mass, the second of the raw logits. ahead: the logits that are
// read next, or NULL.
void share_total(struct sampler *s, int i, uint64_t *to, const float *ahead);

// The mass of what is kept.
uint64_t share_kept(struct sampler *s, int i);

// The id in which a draw falls that this rank owns.
int32_t share_walk(const struct sampler *s, int i, struct kept kept, struct draw draw);

// The mass before the row's token: a rank alone stops as soon as that decides.
uint64_t share_before(const struct sampler *s, int i);

// One word for who knows a token: its id and its logit; 0 for the other ranks.
uint64_t share_token(const struct sampler *s, int i, int32_t id);

// Of the search of a cut-off: its beginning, and a round's histogram.
void share_floor(struct sampler *s, int i);
void share_histogram(struct sampler *s, int i, struct histogram *h);

// After a batch: the counts' memory is all zeros again.
void share_clear(struct sampler *s);

#endif
