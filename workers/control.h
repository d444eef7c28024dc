// A group's connection to its broker: one DEALER that speaks the wire protocol. Never blocks and
// never queues while the broker is away: what can't be sent now is dropped and said again by those
// who must. With keys the connection is encrypted (CURVE); when the broker refuses the key, which
// libzmq takes as final, a new socket tries again, since the key may be allowed later. Leader's
// thread only. Knows terms, not what the commands mean.
#ifndef PENSTOCK_WORKERS_CONTROL_H
#define PENSTOCK_WORKERS_CONTROL_H

#include "common/curve.h"
#include "common/status.h"
#include "common/wire.h"
#include "common/wire_socket.h"

#include <stdbool.h>
#include <stdint.h>

struct control_options {
    const char *endpoint;            // borrowed, as the keys
    const struct curve_pair *pair;   // the group's; NULL: plain
    const char *broker_key;          // the broker's public one
};

struct control {
    struct control_options options;
    void *context, *socket;
    void *monitor;      // tells of handshakes that fail; NULL on inproc
    int n_failed;       // handshakes in a row
    int64_t told_ms;    // when that was logged last
    int64_t reopen_ms;  // 0: not refused
    struct wire_socket wire;
    uint64_t term;      // highest seen; 0: none
    int64_t heard_ms;   // when the broker last said anything
    uint64_t n_dropped; // sends that found no broker
    struct wire_error refusal; // what the broker said last of what it refuses
};

enum status control_open(struct control *c, void *context, const struct control_options *o,
                         struct error *e);

// Call a few times a second: says what is wrong with a connection that is never made, and makes a
// refused one anew; then `socket` is another one.
void control_watch(struct control *c, int64_t now_ms);

// Whether an ERROR says what the last one did not: a group that is refused asks again and again.
bool control_error_is_new(struct control *c, const struct wire_error *error);

// linger_ms: how long a last message (BYE) may take to leave.
void control_close(struct control *c, int linger_ms);

// Sends m with the current term. False if the broker is away or m cannot be encoded (logged).
bool control_send(struct control *c, const struct wire_message *m);

// The next message of the current or a higher term; it points into the connection's frames until
// the next call. False if there is none. Malformed and stale ones are answered ERROR and skipped.
bool control_receive(struct control *c, struct wire_message *m, int64_t now_ms);

#endif
