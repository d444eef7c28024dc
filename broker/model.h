// The models that a broker serves, as far as a broker must know them: config, manifest, tokenizer,
// chat template, stages. No weights. Immutable after load; any thread.
#ifndef PENSTOCK_BROKER_MODEL_H
#define PENSTOCK_BROKER_MODEL_H

#include "common/layout_types.h"
#include "common/limits.h"
#include "common/model_config.h"
#include "common/options.h"
#include "common/status.h"

enum { MODEL_HASH_SIZE = 33 };

struct tokenizer;
struct chat;

struct model {
    char name[JOB_MODEL_MAX + 1]; // what a job's `model` is that means this one
    struct model_config config;
    struct layout_types types;    // of the checkpoint's tensors
    char hash[MODEL_HASH_SIZE];   // of the checkpoint's manifest
    struct tokenizer *tokenizer;  // NULL: none; jobs of ids only
    struct chat *chat;            // NULL where there is no tokenizer
    int pp;                       // stages of its pipelines
    int layers[PP_MAX];           // layers[0] == 0: chosen
};

struct models {
    int n;
    struct model at[MODELS_MAX]; // the first is for jobs that name none
};

// A value of --model: DIR or NAME=DIR; without a name it is the directory's own. ERR_INPUT
// bad_usage for a name that is not of [A-Za-z0-9._-].
enum status model_spec(const char *spec, char name[JOB_MODEL_MAX + 1], const char **dir,
                       struct error *e);

// pp, layers: as options_stages has them. ERR_INPUT bad_usage; else the errors of the files.
enum status models_load(struct models *m, const struct option_list *specs,
                        const struct option_list *pp, const struct option_list *layers,
                        struct error *e);
void models_deinit(struct models *m);

// Its index; of the first one for "". -1: it is not served.
int models_find(const struct models *m, const char *name);

// Their names, with manifest hashes if asked for, as far as there is room.
void models_list(const struct models *m, bool hashes, char *to, size_t n);

#endif
