// The index of a checkpoint: which file holds which tensor, from model.safetensors.index.json
// alone, or that all are in model.safetensors. Immutable after reading; any thread. Knows nothing
// of what the files hold.
#ifndef PENSTOCK_COMMON_CHECKPOINT_INDEX_H
#define PENSTOCK_COMMON_CHECKPOINT_INDEX_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

#define CHECKPOINT_SINGLE "model.safetensors" // the one file where there is no index

struct checkpoint_index {
    void *root;         // parsed JSON; NULL: there is no index
    const char **files; // (n_files) names, ascending, each once; they point into the index
    int n_files;
};

// Reads the index of `dir`; without one, CHECKPOINT_SINGLE is its only file, which need not be
// there. ERR_INPUT bad_checkpoint, ERR_LIMIT, ERR_IO.
enum status checkpoint_index_read(struct checkpoint_index *x, const char *dir, struct error *e);
void checkpoint_index_deinit(struct checkpoint_index *x);

bool checkpoint_index_is_single(const struct checkpoint_index *x);

// The file (index into `files`) that holds the tensor; -1: none does.
int checkpoint_index_find(const struct checkpoint_index *x, const char *tensor);

// Calls `visit` with each tensor and its file's name until it returns something but OK.
typedef enum status checkpoint_index_visit(void *arg, const char *tensor, const char *file,
                                           struct error *e);
enum status checkpoint_index_walk(const struct checkpoint_index *x, checkpoint_index_visit *visit,
                                  void *arg, struct error *e);

#endif
