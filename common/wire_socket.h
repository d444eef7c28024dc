// Wire messages over a ZeroMQ socket: a group's DEALER, or the broker's ROUTER, where a routing id
// comes first. Never blocks. The owner's thread only. Judges neither terms nor commands.
#ifndef PENSTOCK_COMMON_WIRE_SOCKET_H
#define PENSTOCK_COMMON_WIRE_SOCKET_H

#include "common/buffer.h"
#include "common/status.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stddef.h>
#include <zmq.h>

struct wire_socket {
    void *socket; // borrowed
    bool routed;  // a ROUTER
    struct buffer space; // of the message being sent
    zmq_msg_t frames[1 + WIRE_FRAMES]; // of the message received last
    int n_frames;
};

// Sets what both sides need: MAXMSGSIZE, high-water marks, no lingering; on a ROUTER, MANDATORY.
void wire_socket_init(struct wire_socket *w, void *socket, bool routed);
void wire_socket_deinit(struct wire_socket *w);

// Sends m (to the peer `id` on a ROUTER). ERR_UNAVAILABLE peer_away if it can't leave now; else the
// errors of wire_encode.
enum status wire_socket_send(struct wire_socket *w, const void *id, size_t n_id,
                             const struct wire_message *m, struct error *e);

// Receives one message; it points into the socket's frames until the next call, as *id does
// (ROUTER). ERR_UNAVAILABLE none if there is none now. After any other error *id says who sent it.
// Release a message with wire_message_deinit.
enum status wire_socket_receive(struct wire_socket *w, const void **id, size_t *n_id,
                                struct wire_message *m, struct error *e);

// The CURVE public key that the sender of the message received last has proved to own, as Z85;
// empty on a plain connection.
const char *wire_socket_key(struct wire_socket *w);

// An ERROR message.
struct wire_message wire_error_message(const char *code, const char *text);

#endif
