// What the leader says of itself and its fleet in Redis (ps:{queue}:fleet, README.md has the form):
// for `penstock fleet`, `top` and `doctor`. It listens to what groups report, and walks the sites
// when it is time to say something. The loop's thread; knows no jobs.
#ifndef PENSTOCK_BROKER_FLEET_RECORD_H
#define PENSTOCK_BROKER_FLEET_RECORD_H

#include "broker/figures.h"
#include "broker/fleet.h"
#include "common/wire.h"

struct groups;
struct json_t;

// What a group has reported of itself.
struct fleet_report {
    bool used;
    struct peer peer;
    int64_t heard_ms; // its last HELLO or PONG
    char name[GROUP_NAME_MAX + 1];
    int n_ranks;
    uint64_t device_bytes; // of its smallest device
    uint64_t loaded_bytes, load_bytes;
    bool ready;
    struct wire_ready ledger; // of READY
    char code[ERROR_CODE_SIZE], text[ERROR_TEXT_SIZE]; // of the last FAILED since
    struct group_figures figures;
};

struct fleet_record {
    struct fleet_report at[FLEET_GROUPS_MAX];
    struct json_t *said;  // last, without its time; NULL: nothing
    int64_t looked_ms, said_ms;
    size_t n_said;        // bytes
    bool news;            // figures have changed since
    struct model_figures models[MODELS_MAX];
};

struct fleet_leader {
    const char *name, *endpoint;
    uint64_t term;
    int64_t since_ms; // wall clock
};

void fleet_record_deinit(struct fleet_record *r);

// A message of a group. Once all places are used a new group takes the one that was heard longest
// ago.
void fleet_record_hear(struct fleet_record *r, const struct peer *from,
                       const struct wire_message *m, int64_t now_ms);

// A group's PONG: it has this stage (-1: none) of the model with this index.
void fleet_record_count(struct fleet_record *r, const struct peer *from, int model, int stage,
                        const struct wire_pong *pong, int64_t now_ms);

// What a connected group has reported; NULL: nothing.
const struct fleet_report *fleet_record_of(const struct fleet_record *r, const struct peer *peer);

// paused_load: how many jobs a pipeline that is paused holds, by its epoch; -1: it is not paused.
struct fleet_loads {
    void *arg;
    int (*paused_load)(void *arg, uint64_t epoch);
};

// JSON that the caller frees, where there is something new to be said or nothing was said for long;
// else NULL. Figures alone are said once a second, or, where they are many, so that they take
// FIGURES_RATE bytes a second at most.
char *fleet_record_due(struct fleet_record *r, const struct fleet_leader *leader,
                       const struct groups *g, int n_models, const struct fleet_loads *loads,
                       int64_t now_ms);

#endif
