// A group's connection to its broker: one DEALER that speaks the wire protocol. Never blocks and
// never queues while the broker is away: what can't be sent now is dropped and said again by those
// who must. Leader's thread only. Knows terms, not what the commands mean.
#ifndef PENSTOCK_WORKERS_CONTROL_H
#define PENSTOCK_WORKERS_CONTROL_H

#include "common/status.h"
#include "common/wire.h"
#include "common/wire_socket.h"

#include <stdbool.h>
#include <stdint.h>

struct control {
    void *socket;
    struct wire_socket wire;
    uint64_t term;      // highest seen; 0: none
    int64_t heard_ms;   // when the broker last said anything
    uint64_t n_dropped; // sends that found no broker
};

enum status control_open(struct control *c, void *context, const char *endpoint, struct error *e);

// linger_ms: how long a last message (BYE) may take to leave.
void control_close(struct control *c, int linger_ms);

// Sends m with the current term. False if the broker is away or m cannot be encoded (logged).
bool control_send(struct control *c, const struct wire_message *m);

// The next message of the current or a higher term; it points into the connection's frames until
// the next call. False if there is none. Malformed and stale ones are answered ERROR and skipped.
bool control_receive(struct control *c, struct wire_message *m, int64_t now_ms);

#endif
