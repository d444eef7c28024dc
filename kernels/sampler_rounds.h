// The rounds in which a batch of rows chooses (sampler_row.h decides): each fills this rank's words
// for the rows it concerns, gathers those of all ranks, and lets every row decide.
#ifndef PENSTOCK_KERNELS_SAMPLER_ROUNDS_H
#define PENSTOCK_KERNELS_SAMPLER_ROUNDS_H

#include "kernels/sampler_state.h"

// Rows [0, n) of s->rows, which are new; the first is row first_row of the call. Afterwards each is
// ROW_CHOSEN or, of a device's batch, ROW_HOSTED. ahead: the logits that are read next, or NULL.
enum status rounds_run(struct sampler *s, int n, int first_row, const float *ahead,
                       struct error *e);

// ERR_STATE bad_logits: what row `row` of the call has.
#define SAMPLER_NAN "a logit of NaN"
#define SAMPLER_NO_TOKEN "no token with a logit above -inf"
enum status sampler_bad_logits(struct error *e, int row, const char *what);

#endif
