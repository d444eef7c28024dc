// The stage links: one PUSH (connects) to one PULL (binds) per epoch, for activations and for
// chosen tokens; over tcp, ipc or inproc alike. Never blocks: what cannot be sent at once is an
// error, since credits keep every queue shorter than its high-water mark. Leader's thread only.
// Knows frames, not what is in them.
#ifndef PENSTOCK_WORKERS_LINK_H
#define PENSTOCK_WORKERS_LINK_H

#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zmq.h>

enum {
    LINK_FRAMES = 2,         // a header and a payload, which may be empty
    LINK_FIRST_FRAMES = 512, // two blocks of libzmq's queue; from then on it uses them in turn
};

struct link_in {
    void *socket;
    char endpoint[ENDPOINT_MAX]; // as bound: a wildcard port is resolved
};

struct link_out {
    void *socket;
    uint64_t n_frames; // sent so far
};

// One received message. Close with link_message_close; a payload may be read until then.
struct link_message {
    zmq_msg_t frames[LINK_FRAMES];
};

// Binds `endpoint` (tcp://address:* takes a free port). At most `depth` messages queue, none larger
// than max_bytes. ERR_IO port_taken names the endpoint.
enum status link_in_open(struct link_in *l, void *context, const char *endpoint, int depth,
                         int64_t max_bytes, struct error *e);
void link_in_close(struct link_in *l);

// The next message. ERR_UNAVAILABLE if there is none now; ERR_INPUT bad_frames if it has not
// LINK_FRAMES frames (it is dropped). libzmq allocated it when it came, and frees it when it is
// closed: a line of the host ledger, and the one thing of a step's way that is not sealed.
enum status link_receive(struct link_in *l, struct link_message *m, struct error *e);
void link_message_close(struct link_message *m);

enum status link_out_open(struct link_out *l, void *context, const char *endpoint, int depth,
                          struct error *e);
void link_out_close(struct link_out *l);

// True once the peer can be sent to.
bool link_out_connected(const struct link_out *l);

// Sends copies of two standing messages (standing.h), which share their bytes: nothing is allocated
// but, with the first LINK_FIRST_FRAMES frames of a link, libzmq's two blocks of its queue.
// `payload` NULL is empty. ERR_UNAVAILABLE link_lost if it can't be sent at once.
enum status link_send(struct link_out *l, zmq_msg_t *header, zmq_msg_t *payload, struct error *e);

#endif
