// What a group knows, and the two parts of its life beside the loop: what it says to the broker,
// and how an epoch begins and ends. Inside of group.c, group_say.c and group_epoch.c only.
#ifndef PENSTOCK_WORKERS_GROUP_STATE_H
#define PENSTOCK_WORKERS_GROUP_STATE_H

#include "common/health.h"
#include "workers/figures.h"
#include "workers/group.h"
#include "workers/host.h"
#include "workers/loading.h"

// What the ranks were built for: another ASSIGN of the same shape keeps their weights.
struct stage_shape {
    int first, last, steps_in_flight;
    enum precision precision;
    struct step_limits limits;
};

struct group {
    struct group_options options;
    struct control control;
    uint8_t boot[WIRE_ID_BYTES];
    struct stage *stage;
    struct stage_shape shape; // of `stage`
    struct host host;         // of `stage` and its epochs
    struct manifest *manifest; // while it loads; NULL: none
    bool assigned;
    struct wire_assign assign;
    enum wire_state state;    // WIRE_IDLE without an assignment
    bool open;                // `epoch` is
    bool ending;              // the epoch is over; its steps are not yet out of the ranks
    bool linking;             // LINK came; waits for the connection
    int64_t link_ms;          // since when
    char next[ENDPOINT_MAX + 1]; // where to
    struct epoch epoch;
    struct head *head;
    int stop;                 // times it was asked to
    int64_t stop_ms;
    int64_t said_ms, credit_ms;
    int64_t report_ms;        // TOKENS are due then
    uint64_t credit_slots, credit_blocks; // told last
    uint64_t steps;           // through this group, ever
    uint64_t heap_calls;      // under the seal (common/seal.h), as far as noticed
    struct figures figures;
    struct health_writer health;
    struct error trouble;     // why it has no stage
    struct loading loading;   // what people see of it
    bool leave;
    struct wire_running running[SLOTS_MAX];
    struct job_key kept[SLOTS_MAX];
};

// --- what the group says (group_say.c)

// HELLO to one broker. False if it could not be sent, as with the others.
bool group_say_hello(struct group *g, int link);

// A broker that is silent is told of this group: HELLO, or of one that stands by only a sign of
// life, since it asks for HELLO when it leads.
void group_greet(struct group *g, int64_t now_ms);

// To the leader.
void group_say_ready(struct group *g);
void group_say_linked(struct group *g);
void group_say_failed(struct group *g, const struct error *why);
void group_say_credit(struct group *g, int64_t now_ms);
void group_say(struct group *g, enum wire_command command); // without a body

// How the head reaches the broker: TOKENS, RESULT, LOGITS.
struct head_events group_head_events(struct group *g);

// --- the life of an epoch (group_epoch.c)

// ASSIGN: loads the stage, or keeps weights of the same shape.
void group_assign(struct group *g, const struct wire_assign *a);

// Once loading has ended, and what an earlier epoch left has settled: the links are bound, READY.
void group_try_ready(struct group *g, int64_t now_ms);

// LINK, and once the connection to the next stage is there: LINKED.
void group_link(struct group *g, const struct wire_link *l, int64_t now_ms);
void group_try_linked(struct group *g, int64_t now_ms);

// Drops the sequences; the links too, once the steps have left the ranks (group_settle). Weights
// stay.
void group_end_epoch(struct group *g);
void group_fail_epoch(struct group *g, const struct error *why);

// The steps of an ended epoch have left the ranks: its frames may go.
void group_settle(struct group *g);

#endif
