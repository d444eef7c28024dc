// The manifest: which bytes a checkpoint's tensors had when they were first read, as a file of
// hashes (JSON: {"model", "tensors": {name: hash}}). Later loads compare, so that a disk that rots
// or a file that was replaced is found before anything is computed from it. One thread at a time.
// Knows no layout and reads no tensor.
#ifndef PENSTOCK_COMMON_MANIFEST_H
#define PENSTOCK_COMMON_MANIFEST_H

#include "common/status.h"
#include "common/tensor_hash.h"

struct manifest;

// Opens `path`, which need not be there yet. `model`: checkpoint_manifest_hash of the checkpoint.
// ERR_INPUT bad_manifest if it is no manifest or one of another model, ERR_LIMIT beyond
// MANIFEST_MAX bytes, ERR_IO, ERR_NOMEM.
enum status manifest_open(struct manifest **manifest, const char *path, const char *model,
                          struct error *e);
void manifest_close(struct manifest **manifest);

// Compares with what is known of the tensor, or learns it. ERR_INPUT damaged names the tensor and
// `file`, which holds it.
enum status manifest_check(struct manifest *m, const char *tensor, const char *file,
                           const char *hash, struct error *e);

// Tensors that were compared, and that were learnt, since it was opened.
int manifest_n_compared(const struct manifest *m);
int manifest_n_learnt(const struct manifest *m);

// Writes the file anew if anything was learnt: whole or not at all, and with what other processes
// learnt meanwhile. Those wait for each other at PATH.lock. ERR_IO, ERR_NOMEM; as manifest_open if
// what is there now is no manifest of this model: it stays as it is.
enum status manifest_save(struct manifest *m, struct error *e);

#endif
