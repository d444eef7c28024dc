// One group's part in one epoch: its links and the steps that pass through it. On the head steps
// begin with the scheduler and end with tokens; elsewhere they come in by one link and leave by
// another. Leader's thread only. Knows no broker: what it has to say comes back as a status.
#ifndef PENSTOCK_WORKERS_EPOCH_H
#define PENSTOCK_WORKERS_EPOCH_H

#include "workers/head.h"
#include "workers/link.h"
#include "workers/stage.h"
#include "workers/standing.h"

struct epoch_options {
    void *zmq;
    const char *data;            // where links bind (group.h)
    const char *name;            // of the group; makes inproc endpoints differ
    struct link_id link;
    int stage, n_stages;
    int steps_in_flight;
    const struct model_config *config;
    enum precision precision;
    struct step_limits limits;
    int64_t step_deadline_ms;
    void *memory;                // epoch_bytes of `arena`, the group's; both outlive the epoch
    struct arena *arena;
};

// What belongs to one place of the stage's ring.
struct epoch_place {
    struct link_message held;    // frames that the place's step reads from; not on the head
    char *frame;                 // of its step, on its way out
    struct standing header, payload; // what is sent of `frame`, and of the step's out or logits
};

struct epoch {
    struct epoch_options options;
    struct stage *stage;         // borrowed
    struct head *head;           // borrowed; stage 0 only
    struct link_in in;           // activations; not on the head
    struct link_in tokens_in;    // the head's, if there is more than one stage
    struct link_out out;         // to the next stage, or from the last one to the head
    struct epoch_place *places;  // (steps_in_flight)
    struct step_token *tokens;   // (max_out) received ones
    int32_t *open_rows;          // (slots) of the steps received, see step_follow
    uint64_t n_in, n_out;        // steps begun (received) and ended (passed on, or tokens back)
    int n_flying;                // head: steps whose tokens are not back
    int64_t moved_ms;            // when a step last moved
    uint64_t n_stale;            // frames of another epoch, dropped
};

// Bytes of the epoch's buffers: frames on their way out, tokens on their way in. `memory`, `arena`
// and `link` need not be there yet.
uint64_t epoch_bytes(const struct epoch_options *o);

// Most bytes of frames that libzmq holds for this stage's links, which it takes from the heap as
// they come: what waits in queues, what is being received or sent, and the held ones.
uint64_t epoch_received_bytes(const struct epoch_options *o);

// Binds what this stage binds. The stage has loaded and is empty.
enum status epoch_open(struct epoch *ep, const struct epoch_options *o, struct stage *stage,
                       struct head *head, struct error *e);
void epoch_close(struct epoch *ep);

// Connects to the next stage, or from the last one to the head's token endpoint.
enum status epoch_link(struct epoch *ep, const char *endpoint, struct error *e);

// True once steps can be sent on.
bool epoch_linked(const struct epoch *ep);

// Moves all that can move now. An error ends the epoch: ERR_STATE with codes lost_step (a step is
// missing or repeated), step_deadline; ERR_UNAVAILABLE link_lost; ERR_INPUT bad_step.
// *device_failed: the ranks cannot go on at all.
enum status epoch_turn(struct epoch *ep, int64_t now_ms, bool *device_failed, struct error *e);

// Whether steps are on the way through this group.
bool epoch_busy(const struct epoch *ep);

#endif
