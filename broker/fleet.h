// The fleet of one model and plan: which groups there are, which stage each one has, and the lives
// of the pipelines they form: waiting for groups, loading, linking, serving, and the end of an
// epoch when one of them is lost. Pure: no sockets, no clock (`now_ms` comes in), no heap; what it
// decides leaves through the actions. Used by the broker's loop and, in one process, by `penstock
// generate`.
//
// All pipelines are replicas and draw on one pool of idle groups. A pipeline that lost a stage
// comes first, and may use up the spares; a further one is formed from a whole set of idle groups
// beyond the spares. The loss of a stage ends its own pipeline's epoch and no other's.
#ifndef PENSTOCK_BROKER_FLEET_H
#define PENSTOCK_BROKER_FLEET_H

#include "common/curve.h"
#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FLEET_GROUPS_MAX = 256, PEER_MAX = 32, PLAN_HASH_MAX = 32, LINK_TOKEN_SIZE = 16 };

#define FLEET_EPOCH_MAX (1ull << 62)

// A connection, as the ROUTER names it, and the CURVE key behind it ("": plain). A group is its key
// and its name: the same name under another key is another group.
struct peer {
    uint8_t bytes[PEER_MAX];
    uint8_t n;
    char key[CURVE_SIZE];
};

bool fleet_same_peer(const struct peer *a, const struct peer *b); // the connection

enum group_state {
    GROUP_IDLE,     // no stage: a spare
    GROUP_LOADING,  // has been sent ASSIGN
    GROUP_READY,    // weights loaded, endpoints bound
    GROUP_LINKING,  // has been sent LINK
    GROUP_LINKED,
};

const char *fleet_state_name(enum group_state state); // "idle", "loading", ...

struct group {
    bool used;
    struct peer peer;
    char name[GROUP_NAME_MAX + 1], node[GROUP_NAME_MAX + 1];
    uint64_t boot;      // random at each start of the process
    enum group_state state;
    int pipeline, stage; // place in the fleet's pipelines, and in that one; -1: none
    int held_first, held_last; // layers whose weights it still has; equal: none
    bool draining;
    bool failed;        // it could not load what it was given last: others go first
    char endpoint[ENDPOINT_MAX], tokens_endpoint[ENDPOINT_MAX];
    int64_t seen_ms;
};

enum pipeline_state {
    PIPELINE_NONE,    // a free place
    PIPELINE_WAITING, // it lost a stage: idle groups complete it
    PIPELINE_LOADING,
    PIPELINE_LINKING,
    PIPELINE_SERVING,
};

struct pipeline {
    uint64_t id;    // unique in its fleet, and kept over epochs
    uint64_t epoch; // never used twice, in any fleet of a queue
    uint8_t token[LINK_TOKEN_SIZE];
    enum pipeline_state state;
    int stages[PP_MAX]; // index of the group that has each stage; -1: none
};

// What HELLO says of a stage that the group still runs, from an earlier connection or broker.
struct held_assignment {
    bool some;
    uint64_t pipeline, epoch;
    int stage, first, last;
    char plan_hash[PLAN_HASH_MAX + 1];
    bool linked;
};

struct fleet_assign {
    uint64_t pipeline, epoch;
    int stage, n_stages, first, last;
    uint8_t token[LINK_TOKEN_SIZE];
};

// What the fleet wants done; `arg` is the owner's. Groups and pipelines point into the fleet.
struct fleet_actions {
    void *arg;
    void (*assign)(void *arg, const struct group *group, const struct fleet_assign *assign);
    // next: endpoint that takes this stage's output (the head's token endpoint for the last stage;
    // empty if there is a single stage).
    void (*link)(void *arg, const struct group *group, const struct pipeline *p, const char *next);
    void (*unassign)(void *arg, const struct group *group, uint64_t pipeline, uint64_t epoch);
    // The pipeline serves: jobs may go to `head`. adopted: an earlier broker set it up.
    void (*up)(void *arg, const struct pipeline *p, const struct group *head, bool adopted);
    // Its epoch has ended: its jobs go back. `reason` is for the log.
    void (*down)(void *arg, const struct pipeline *p, const char *reason);
    void (*random)(void *arg, void *bytes, size_t n);
};

struct fleet_options {
    int n_stages;
    int layers[PP_MAX];                // of each stage
    char plan_hash[PLAN_HASH_MAX + 1]; // of everything that stages must agree on
    int n_pipelines;                   // most of them; 0: as many as the groups allow
    int n_spares;                      // groups kept idle before a further pipeline is formed
    // The epoch given last, above every earlier broker's; its fleets share it.
    uint64_t *epoch;
    int64_t adopt_ms; // how long a fresh broker waits for whole sets of held assignments
    int64_t dead_ms;  // silence that ends a group
    int64_t retry_ms; // pause after a group could not load or lost a link
};

struct fleet {
    struct fleet_options options;
    struct fleet_actions actions;
    int n_groups; // places in use, free ones among them
    struct group groups[FLEET_GROUPS_MAX];
    struct pipeline pipelines[PIPELINES_MAX];
    // While a fresh broker looks for pipelines to adopt:
    bool adopting;
    int64_t adopt_until_ms;
    int64_t now_ms, not_before_ms; // the latest time told; no assignment earlier
    int64_t ticked_ms;
    struct held_assignment held[FLEET_GROUPS_MAX];
};

void fleet_init(struct fleet *f, const struct fleet_options *o, const struct fleet_actions *actions,
                int64_t now_ms);

// A group says HELLO. The same name and key with another boot id is a new life: the old one is
// lost.
// ERR_LIMIT fleet_full.
enum status fleet_hello(struct fleet *f, const struct peer *peer, const char *name,
                        const char *node, uint64_t boot, const struct held_assignment *held,
                        int64_t now_ms, struct error *e);

// READY and LINKED of an epoch; those of another epoch are ignored. Groups repeat them until they
// are told what comes next, so that a lost ASSIGN or LINK is said again.
void fleet_ready(struct fleet *f, const struct peer *peer, uint64_t epoch, const char *endpoint,
                 const char *tokens_endpoint);
void fleet_linked(struct fleet *f, const struct peer *peer, uint64_t epoch);

// The group could not load, or a link of its epoch broke.
void fleet_failed(struct fleet *f, const struct peer *peer, uint64_t epoch, const char *reason);

// It leaves (BYE), or asks to (DRAIN: where its pipeline serves the owner stops sending jobs, and
// calls fleet_drained with the epoch once none runs).
void fleet_bye(struct fleet *f, const struct peer *peer);
void fleet_drain(struct fleet *f, const struct peer *peer);
void fleet_drained(struct fleet *f, uint64_t epoch);

// Any traffic. False: nobody knows this peer (it is told to say HELLO again).
bool fleet_seen(struct fleet *f, const struct peer *peer, int64_t now_ms);

// Call a few times a second. What its caller slept through, stopped or busy, is held against no
// group: their words may still be unread.
void fleet_tick(struct fleet *f, int64_t now_ms);

// The group of a connection, or NULL.
const struct group *fleet_find(const struct fleet *f, const struct peer *peer);

// The pipeline in which a group has a stage, or NULL.
const struct pipeline *fleet_pipeline(const struct fleet *f, const struct group *group);

// The head's group while the pipeline serves, else NULL.
const struct group *fleet_head(const struct fleet *f, const struct pipeline *p);

// Groups that are there; pipelines in one of the states.
int fleet_n_groups(const struct fleet *f);
int fleet_n_pipelines(const struct fleet *f, enum pipeline_state state);

#endif
