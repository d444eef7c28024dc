// The model that a broker serves, as far as a broker must know it: config, manifest, tokenizer,
// chat template. No weights. Immutable after load; any thread.
#ifndef PENSTOCK_BROKER_MODEL_H
#define PENSTOCK_BROKER_MODEL_H

#include "common/limits.h"
#include "common/model_config.h"
#include "common/status.h"

enum { MODEL_HASH_SIZE = 33 };

struct tokenizer;
struct chat;

struct model {
    char name[JOB_MODEL_MAX + 1]; // what a job's `model` must be, if it names one
    struct model_config config;
    char hash[MODEL_HASH_SIZE];   // of the checkpoint's manifest
    struct tokenizer *tokenizer;  // NULL: none; jobs of ids only
    struct chat *chat;            // NULL where there is no tokenizer
};

// `spec` is DIR or NAME=DIR; the name is the directory's own unless given. ERR_INPUT bad_usage for
// a bad name; else the errors of the files.
enum status model_load(struct model *m, const char *spec, struct error *e);
void model_deinit(struct model *m);

#endif
