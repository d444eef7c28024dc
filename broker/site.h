// One model's place in the broker: which groups have its checkpoint, the plan that they make
// possible, and the fleet that carries it out. The loop's thread. Knows no jobs; what is to be said
// leaves through the ROUTER that it borrows.
//
// The plan is made once enough groups are there, from the least memory any of them has; groups that
// come later must do with it, unless nothing runs for want of groups: then it is made anew. From
// the same options and groups it comes out the same, so that a new broker adopts what an earlier
// one has set up.
#ifndef PENSTOCK_BROKER_SITE_H
#define PENSTOCK_BROKER_SITE_H

#include "broker/groups.h"
#include "broker/peers.h"

enum { ADOPT_MS = 6000 }; // how long all stages of a pipeline that runs are waited for

// A group that has said HELLO before there was a plan.
struct candidate {
    bool used;
    struct peer peer;
    char name[GROUP_NAME_MAX + 1];
    uint64_t bytes; // of its smallest device
    enum device_kind device;
    int tp;
    bool wants_f32;
    char plan[PLAN_HASH_MAX + 1]; // of the stage it runs; empty: none
    uint64_t epoch;               // of that stage
    int stage, n_stages;
    int64_t seen_ms;
};

struct site {
    const struct groups_options *options; // borrowed, as what follows
    const struct model *model;
    int index; // of the model
    struct peers *peers;
    uint64_t *epoch; // the one given last, by any site
    struct candidate candidates[FLEET_GROUPS_MAX];
    int64_t plan_ms; // not planned earlier
    struct error refused; // why there is no plan, though there are groups
    bool planned;
    struct plan plan;
    char plan_hash[PLAN_HASH_SIZE];
    bool f32;
    struct wire_assign template; // of ASSIGN
    struct fleet fleet;          // once there is a plan
    uint64_t up_epoch;           // of the pipeline that came up last
    int64_t now_ms;
};

// `s` is zeros. What the options alone break, for a machine without limits, is said at once
// (ERR_INPUT bad_plan); that machine's plan is told to options->planned.
enum status site_init(struct site *s, const struct groups_options *o, int index,
                      struct peers *peers, uint64_t *epoch, struct error *e);

// A group with this model says HELLO. Groups of an earlier broker are waited for until muster_ms
// before there is a plan.
void site_hello(struct site *s, const struct peer *from, const struct wire_message *m,
                int64_t muster_ms, int64_t now_ms);

// Whether the fleet knows this peer, which has just spoken.
bool site_seen(struct site *s, const struct peer *from, int64_t now_ms);

// What is not about jobs is taken care of. False: m is for others.
bool site_message(struct site *s, const struct peer *from, const struct wire_message *m);

// Call a few times a second.
void site_tick(struct site *s, int64_t muster_ms, int64_t now_ms);

// Groups whose key is not allowed any more are lost.
void site_recheck(struct site *s);

void site_ping(struct site *s, uint64_t seq);

#endif
