// The broker: one loop that wires Redis (queue, ingest, claims), the running attempts (jobs) and
// the groups together, and keeps time. While another broker leads it stands by. Main thread.
#ifndef PENSTOCK_BROKER_BROKER_H
#define PENSTOCK_BROKER_BROKER_H

#include "broker/door.h"
#include "broker/groups.h"
#include "common/status.h"

#include <stdbool.h>

struct broker_options {
    const char *redis;  // URL
    const char *queue;
    struct door_options door;
    const char *name;   // of this broker, as the owner of the leader's lease; NULL: HOST:PORT
    struct option_list models;     // DIR or NAME=DIR
    struct option_list pp, layers; // of options_stages
    int pipelines, spares;         // of groups_options
    enum groups_precision precision;
    bool fp8_kv;
    int tp;                   // ranks of each group; 0: as the first one has
    int slots, max_context, max_rows, chunk, kv_blocks; // 0: chosen
    int fill_ms, step_ms;     // of the heads' schedulers: workers/sched.h
    int default_max_tokens;
    int pool_threads;   // of each of the two pools
    int urgent_percent; // of a pipeline, kept free for class 0
    int64_t age_ms;     // a ready job counts as a class higher for each; 0: never
    int64_t max_queued_bytes; // of messages that wait or run; 0: no limit
    bool accept_loss;
    const char *metrics; // where HTTP is listened to (http_check); NULL: nowhere
    const char *status; // file that the broker's health is written to; NULL: none
};

// Runs until SIGTERM or SIGINT (OK), or until nothing but a person helps: port_taken, a model that
// cannot be read, a Redis that is refused. Groups go on with what they run; the jobs stay theirs
// under their leases, and the next broker takes both over.
enum status broker_run(const struct broker_options *o, struct error *e);

#endif
