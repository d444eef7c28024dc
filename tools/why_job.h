// Why a job waits, in one line: from what the queue says of it (queue_admin_why) and what the
// leader says of its fleet. Pure: no Redis, no clock.
#ifndef PENSTOCK_TOOLS_WHY_JOB_H
#define PENSTOCK_TOOLS_WHY_JOB_H

#include "common/limits.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum { WHY_SENTENCE_SIZE = 1024, WHY_VALUE_SIZE = 384, WHY_FIELDS_MAX = 64 };

// What the queue says: names and values.
struct why_fields {
    int n;
    struct {
        char name[24], value[WHY_VALUE_SIZE];
    } at[WHY_FIELDS_MAX];
};

// What is not known of a number.
#define WHY_UNKNOWN (-1)

// The room that pipelines of the job's model have, as the leader last had it.
struct why_room {
    int n_pipelines;  // that serve; n_paused of them are paused
    int n_paused;
    int64_t free_blocks, free_slots; // of the one with a free slot and most free blocks
    int64_t all_blocks;              // of the largest one
    int64_t running;                 // jobs in all of them
    int64_t reserved_blocks, total_blocks; // of all of them
    double tokens_per_s;             // output of all of them, measured
};

struct why {
    char state[16]; // unknown, inbox, taken, queued, waiting, running, done, failed, ...
    char waits[24]; // what for; empty: for nothing
    int64_t need_blocks, position, class; // or WHY_UNKNOWN
    struct why_room room;
    double seconds; // until it starts, about; < 0: unknown
    char sentence[WHY_SENTENCE_SIZE];
};

// Keeps a pair, its value as far as there is room for whole characters of valid UTF-8; the arg of
// queue_admin_why is a struct why_fields.
void why_keep(void *fields, const char *name, const char *value);

// fleet: the leader's record (broker/README.md); NULL: it said nothing. False: nothing is known of
// the job.
bool why_tell(struct why *why, const struct why_fields *f, const char *tenant, const char *id,
              const json_t *fleet);

// For programs: a new reference.
json_t *why_json(const struct why *why, const char *tenant, const char *id);

#endif
