// A batch whose logits lie on a device: with one rank its choices, else the rounds, of which this
// rank's words for all rows (sampler.c) have the layout of the rounds on the host. Rows: of one
// batch, their logits one behind the other from rows->logits on. A device's fault is what its sync
// reports.
#ifndef PENSTOCK_KERNELS_SAMPLER_DEVICE_H
#define PENSTOCK_KERNELS_SAMPLER_DEVICE_H

#include "kernels/sampler_ops.h"
#include "kernels/sampler_row.h"

struct sampler_device {
    const struct backend *backend;
    struct device *device;
    struct sampler_device_parts parts;
    bool alone;    // one rank, whose rows choose by themselves
    unsigned turn; // how often they did
    int rank, vocab_begin, vocab_n;
};

// Alone: choices (n) of the rows of logits (.., vocab_n) that ask for them: wishes (n). Penalties
// stay in the logits.
enum status sampler_device_choose(struct sampler_device *d, float *logits,
                                  const struct sampler_wish *wishes, int n,
                                  struct sampler_choice *choices, struct error *e);

// row_head_words of each row. Those of a row with penalties say that the host chooses for it.
enum status sampler_device_heads(const struct sampler_device *d, struct row *rows, int n,
                                 uint64_t *words, struct error *e);

// Two words of each that row_needs_mass: of the draw's masses, and of the raw logits'.
enum status sampler_device_totals(const struct sampler_device *d, const struct row *rows, int n,
                                  uint64_t *words, struct error *e);

// One of each row in `stage`, ROW_TRIAL or ROW_DRAWN: its draw's token, 0 on ranks that don't own
// it.
enum status sampler_device_walks(const struct sampler_device *d, const struct row *rows, int n,
                                 enum row_stage stage, uint64_t *words, struct error *e);

// One of each row in ROW_TEST: the mass before its token.
enum status sampler_device_tests(const struct sampler_device *d, const struct row *rows, int n,
                                 uint64_t *words, struct error *e);

#endif
