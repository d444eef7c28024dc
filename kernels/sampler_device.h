// The rounds of a batch whose logits lie on a device: this rank's words for all rows of a round
// (sampler.c), in the layout of the rounds on the host. Rows: of one batch, their logits one behind
// the other from rows->logits on. A device's fault is what its sync reports.
#ifndef PENSTOCK_KERNELS_SAMPLER_DEVICE_H
#define PENSTOCK_KERNELS_SAMPLER_DEVICE_H

#include "kernels/sampler_ops.h"
#include "kernels/sampler_row.h"

struct sampler_device {
    const struct backend *backend;
    struct device *device;
    struct sampler_device_parts parts;
    bool alone; // one rank: the largest logit is known before the ranks meet
    int rank, vocab_begin, vocab_n;
};

// row_head_words of each row, and its `mass` if it is sure to be wanted. Those of a row with
// penalties say that the host chooses for it.
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
