#include "tests/support/sockets.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void *sockets_bind(void *context, int type, bool tcp, const char *name,
                   char endpoint[ENDPOINT_BYTES])
{
    void *socket = zmq_socket(context, type);
    int zero = 0;
    size_t n = ENDPOINT_BYTES;
    check(socket != NULL);
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    snprintf(endpoint, ENDPOINT_BYTES, tcp ? "tcp://127.0.0.1:*" : "inproc://%s", name);
    check(zmq_bind(socket, endpoint) == 0, "%s: %s", endpoint, zmq_strerror(errno));
    check(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &n) == 0);
    return socket;
}

void sockets_wait(void *socket, short events)
{
    zmq_pollitem_t item = {.socket = socket, .events = events};
    check(zmq_poll(&item, 1, 60000) == 1, "waited a minute");
}

void sockets_send(void *socket, const char *frame, ...)
{
    va_list args;
    va_start(args, frame);
    while (frame != NULL) {
        const char *next = va_arg(args, const char *);
        int sent = zmq_send(socket, frame, strlen(frame), next != NULL ? ZMQ_SNDMORE : 0);
        check(sent >= 0, "%s", zmq_strerror(errno));
        frame = next;
    }
    va_end(args);
}

enum status sockets_receive(struct wire_socket *w, const void **id, size_t *n_id,
                            struct wire_message *m, struct error *e)
{
    sockets_wait(w->socket, ZMQ_POLLIN);
    return wire_socket_receive(w, id, n_id, m, e);
}
