// A broker that stands by: it listens, answers whatever a group says with STANDBY, and remembers
// who spoke. When it leads it asks all of these for HELLO, so that what runs is adopted without
// waiting for anybody's silence. The loop's thread. Knows no fleet and no jobs.
#ifndef PENSTOCK_BROKER_STANDBY_H
#define PENSTOCK_BROKER_STANDBY_H

#include "broker/peers.h"

struct standby {
    struct peers peers;
    struct peer known[FLEET_GROUPS_MAX];
    int n_known, next; // next: the place that is used again once all are
};

// Sets the socket's options: call it before the socket is bound. `allow` may be NULL; both are
// borrowed.
void standby_init(struct standby *s, void *socket, const struct allow *allow);
void standby_deinit(struct standby *s);

// Who leads, under which term.
void standby_follow(struct standby *s, uint64_t term);

// What has come in, up to a bound.
void standby_receive(struct standby *s);

// This broker leads under `term`: all that were heard are asked for HELLO.
void standby_ends(struct standby *s, uint64_t term);

#endif
