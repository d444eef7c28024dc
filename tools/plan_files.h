// Which files of a checkpoint each stage of a plan reads, from config.json and the index alone: the
// files themselves need not be there. Main thread.
#ifndef PENSTOCK_TOOLS_PLAN_FILES_H
#define PENSTOCK_TOOLS_PLAN_FILES_H

#include "common/checkpoint_index.h"
#include "common/model_config.h"
#include "common/plan.h"

struct plan_files {
    struct checkpoint_index index;
    int n_stages;
    bool *reads; // (n_stages, index.n_files)
};

// `model` is a checkpoint directory. ERR_INPUT bad_checkpoint also where the index lacks a tensor
// that config.json implies; no_checkpoint where there is neither index nor single file.
enum status plan_files_find(struct plan_files *f, const char *model, const struct model_config *c,
                            const struct plan *p, struct error *e);
void plan_files_deinit(struct plan_files *f);

// The name of the file if the stage reads it, else NULL; i < index.n_files.
const char *plan_files_name(const struct plan_files *f, int stage, int i);

#endif
