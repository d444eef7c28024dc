// The broker's ROUTER: wire messages to and from groups, with the broker's term on each. Used by
// the broker's loop, and over inproc by `penstock generate`. Owner's thread only.
#ifndef PENSTOCK_BROKER_PEERS_H
#define PENSTOCK_BROKER_PEERS_H

#include "broker/allow.h"
#include "broker/fleet.h"
#include "broker/refusals.h"
#include "common/plan.h"
#include "common/wire.h"
#include "common/wire_socket.h"

#include <stdbool.h>

struct peers {
    struct wire_socket wire;
    uint64_t term;
    const struct allow *allow; // borrowed; set it after init. NULL: plain, anyone may speak
    struct refusals refusals;
    int64_t told_ms;  // when malformed frames were logged last
    uint64_t n_quiet; // of those since
};

// `socket`: a libzmq ROUTER, bound by the caller and borrowed.
void peers_init(struct peers *p, void *socket, uint64_t term);
void peers_deinit(struct peers *p);

// False if the peer is gone or the message can't be encoded (logged).
bool peers_send(struct peers *p, const struct peer *to, const struct wire_message *m);

enum peers_got {
    PEERS_NOTHING,
    PEERS_MESSAGE, // release it with wire_message_deinit before the next call
    PEERS_REFUSED, // malformed, or under a key that is not allowed (any more): answered ERROR
};

enum peers_got peers_receive(struct peers *p, struct peer *from, struct wire_message *m);

// Hands on what is there, TURN_MESSAGES_MAX messages at most, good or bad: whoever sends without
// end must not keep the loop from all else. False: there may be more.
bool peers_turn(struct peers *p,
                void (*fn)(void *arg, const struct peer *from, const struct wire_message *m),
                void *arg);

// Answers ERROR to the HELLO of a group that cannot be had, and logs it once a reason.
void peers_refuse(struct peers *p, const struct peer *from, const char *name,
                  const struct error *why);

// What every ASSIGN of a plan says, whatever the stage.
struct wire_assign peers_template(const struct plan *p, const char *plan_hash, bool f32,
                                  bool fp8_kv, bool score);

// For fleet_actions: what the fleet wants said. `template` holds the fields that don't depend on
// the stage (limits, tp, precision, plan).
bool peers_assign(struct peers *p, const struct group *g, const struct wire_assign *template,
                  const struct fleet_assign *a);
bool peers_link(struct peers *p, const struct group *g, const struct pipeline *pipeline,
                const char *next);
bool peers_unassign(struct peers *p, const struct group *g, uint64_t pipeline, uint64_t epoch);

// HELLO, READY, LINKED, FAILED, BYE and DRAIN go to the fleet. True if m was one of these. A HELLO
// that is refused is answered ERROR.
bool peers_to_fleet(struct peers *p, struct fleet *f, const struct peer *from,
                    const struct wire_message *m, int64_t now_ms);

#endif
