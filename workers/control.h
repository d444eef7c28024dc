// A group's connections to its brokers: a DEALER for each that speaks the wire protocol. One of
// them leads, under the highest term; the others stand by and are only kept aware of this group.
// Never blocks and never queues while the leader is away: what can't be sent now is dropped and
// said again by those who must. With keys the connections are encrypted (CURVE); when a broker
// refuses the key, which libzmq takes as final, a new socket tries again, since the key may be
// allowed later. Leader's thread only. Knows terms, not what the commands mean.
#ifndef PENSTOCK_WORKERS_CONTROL_H
#define PENSTOCK_WORKERS_CONTROL_H

#include "common/curve.h"
#include "common/limits.h"
#include "common/status.h"
#include "common/wire.h"
#include "common/wire_socket.h"

#include <stdbool.h>
#include <stdint.h>

struct control_broker {
    const char *endpoint; // borrowed, as the key
    const char *key;      // its public one; NULL: plain
};

struct control_options {
    struct control_broker brokers[BROKERS_MAX];
    int n_brokers;
    const struct curve_pair *pair; // the group's; NULL: plain; borrowed
};

// The connection to one broker.
struct control_link {
    struct control_broker broker;
    void *socket;
    void *monitor;      // tells of handshakes that fail; NULL on inproc
    int n_failed;       // handshakes in a row
    int64_t told_ms;    // when that was logged last
    int64_t reopen_ms;  // 0: not refused
    struct wire_socket wire;
    bool stands_by;     // as it said last
    int64_t heard_ms;   // when it last said anything
    int64_t greeted_ms; // when it was last told of this group; the owner's
};

struct control {
    struct control_options options;
    void *context;
    struct control_link links[BROKERS_MAX];
    int n_links;
    int leader;         // index of the link; -1: not known
    int next;           // the link that is read first the next time
    uint64_t term;      // highest seen; 0: none
    uint64_t n_dropped; // sends that found no leader
    struct wire_error refusal; // what the broker said last of what it refuses
};

enum status control_open(struct control *c, void *context, const struct control_options *o,
                         struct error *e);

// Call a few times a second: says what is wrong with a connection that is never made, and makes a
// refused one anew; then its socket is another one.
void control_watch(struct control *c, int64_t now_ms);

// Whether an ERROR says what the last one did not: a group that is refused asks again and again.
bool control_error_is_new(struct control *c, const struct wire_error *error);

// linger_ms: how long a last message (BYE) may take to leave.
void control_close(struct control *c, int linger_ms);

// Sends m with the current term to the leader. False if it is away or not known, or m cannot be
// encoded (logged).
bool control_send(struct control *c, const struct wire_message *m);

// To one broker, whatever it is.
bool control_send_to(struct control *c, int link, const struct wire_message *m);

// The next message; it points into the connection's frames until the next call. False if there is
// none. It comes from the leader, or is STANDBY. Malformed and stale ones are answered ERROR and
// skipped.
bool control_receive(struct control *c, struct wire_message *m, int64_t now_ms);

// It has said nothing for two heartbeats, and was told nothing of this group (greeted_ms, which the
// caller sets) for one.
bool control_silent(const struct control *c, int link, int64_t now_ms);

// How long the leader has said nothing; INT64_MAX if there is none.
int64_t control_leader_silence(const struct control *c, int64_t now_ms);

#endif
