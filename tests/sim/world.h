// The deployment that is simulated: brokers and worker groups, each the true program in a process
// of its own, started again by a supervisor when it ends. Knows no jobs.
#ifndef PENSTOCK_TESTS_SIM_WORLD_H
#define PENSTOCK_TESTS_SIM_WORLD_H

#include "common/model_config.h"
#include "tests/sim/sim_stage.h"

struct head;

enum { BROKERS_IN_WORLD = 2, GROUPS_IN_WORLD = 64 };

#define WORLD_QUEUE "q"

struct world_options {
    const struct model_config *config;
    int n_brokers;
    int n_groups, n_stages, tp;
    int layers[PP_MAX]; // layers[0] == 0: chosen
    int pipelines, spares;
    int slots, kv_blocks, max_context, max_rows, chunk; // 0: chosen
    int urgent_percent;
    int64_t age_ms;
    enum device_kind device; // whose rates the heads begin with
    uint64_t device_bytes;
    int64_t step_deadline_ms;
    bool fragile; // processes that end are started again after a while, not at once
};

struct world_node {
    struct sim_proc *proc; // of its present life; NULL: none
    const char *name;
    int stop_fd;           // group: asks it to leave
    void *owned;           // broker: struct jobs; group: struct head; NULL: none
};

extern struct world {
    struct world_options options;
    struct world_node brokers[BROKERS_IN_WORLD], groups[GROUPS_IN_WORLD];
    int n_died; // groups' lives that ended
} world;

// A seed's room, in which nothing runs yet. at_once: the work of brokers' pools takes no time.
void world_open(uint64_t seed, bool trace, bool at_once, const struct sim_devices *devices);
void world_close(void);

void world_begin(const struct world_options *o);

// Of the first group that has one; NULL: none has.
const struct head *world_head(void);

// Of the processes: what it is and which. NULL: neither.
struct world_node *world_broker_of(const struct sim_proc *p);
struct world_node *world_group_of(const struct sim_proc *p);

void world_kill(struct world_node *n);
void world_stop(struct world_node *n); // as SIGTERM

// Invariants of what this process holds now; sim_fail if one is broken.
void world_check(struct sim_proc *p);

// Whether all that was granted is free again, everywhere, and nothing is kept. `why` says what not.
bool world_is_idle(char *why, size_t n);

#endif
