// ZeroMQ sockets in tests: waiting for them, and messages that our own code would not send.
#ifndef PENSTOCK_TESTS_SUPPORT_SOCKETS_H
#define PENSTOCK_TESTS_SUPPORT_SOCKETS_H

#include "common/wire_socket.h"

#include <stdbool.h>

enum { ENDPOINT_BYTES = 64 };

// A socket bound to inproc://NAME, or with `tcp` to a free port of 127.0.0.1; `endpoint` says
// which.
void *sockets_bind(void *context, int type, bool tcp, const char *name,
                   char endpoint[ENDPOINT_BYTES]);

// Waits until the socket can be read (ZMQ_POLLIN) or written (ZMQ_POLLOUT). Ends the program after
// a minute: then it never will.
void sockets_wait(void *socket, short events);

// Sends frames of text as one message; ends with NULL.
void sockets_send(void *socket, const char *frame, ...) __attribute__((sentinel));

// Waits for the next message. The id is valid until the next call (ROUTER).
enum status sockets_receive(struct wire_socket *w, const void **id, size_t *n_id,
                            struct wire_message *m, struct error *e);

#endif
