#include "common/wire_socket.h"

#include "common/handover.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { WIRE_HWM = 10000 }; // never reached: credits bound what is said

void wire_socket_init(struct wire_socket *w, void *socket, bool routed)
{
    *w = (struct wire_socket){.socket = socket, .routed = routed};
    buffer_init(&w->space, (size_t) (WIRE_HEADER_MAX + WIRE_BODY_MAX));
    int zero = 0, one = 1, hwm = WIRE_HWM;
    int64_t most = WIRE_BODY_MAX;
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(socket, ZMQ_SNDHWM, &hwm, sizeof hwm);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &hwm, sizeof hwm);
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &most, sizeof most);
    if (routed) zmq_setsockopt(socket, ZMQ_ROUTER_MANDATORY, &one, sizeof one);
}

static void close_frames(struct wire_socket *w)
{
    for (int i = 0; i < w->n_frames; i++) zmq_msg_close(&w->frames[i]);
    w->n_frames = 0;
}

void wire_socket_deinit(struct wire_socket *w)
{
    close_frames(w);
    buffer_deinit(&w->space);
    *w = (struct wire_socket){0};
}

static enum status send_frame(struct wire_socket *w, const void *data, size_t n, int flags,
                              struct error *e)
{
    handover_send();
    if (zmq_send(w->socket, n > 0 ? data : "", n, ZMQ_DONTWAIT | flags) >= 0) return OK;
    return error_set(e, ERR_UNAVAILABLE, "peer_away", "the peer can't be sent to: %s",
                     zmq_strerror(errno));
}

enum status wire_socket_send(struct wire_socket *w, const void *id, size_t n_id,
                             const struct wire_message *m, struct error *e)
{
    struct wire_frame frames[WIRE_FRAMES];
    try(wire_encode(m, &w->space, frames, e));
    if (w->routed) try(send_frame(w, id, n_id, ZMQ_SNDMORE, e));
    for (int i = 0; i < WIRE_FRAMES; i++) {
        int more = i + 1 < WIRE_FRAMES ? ZMQ_SNDMORE : 0;
        try(send_frame(w, frames[i].data, frames[i].n, more, e));
    }
    return OK;
}

// All frames of one message; what is too many is dropped, and counted so that decoding refuses it.
static int receive_frames(struct wire_socket *w)
{
    int n = 0, most = WIRE_FRAMES + (w->routed ? 1 : 0), more = 1;
    size_t size = sizeof more;
    for (; more; n++) {
        zmq_msg_t extra, *frame = n < most ? &w->frames[n] : &extra;
        zmq_msg_init(frame);
        if (zmq_msg_recv(frame, w->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(frame);
            break;
        }
        zmq_getsockopt(w->socket, ZMQ_RCVMORE, &more, &size);
        if (frame == &extra) {
            zmq_msg_close(frame);
        } else {
            w->n_frames = n + 1;
        }
    }
    handover_receive();
    return n;
}

enum status wire_socket_receive(struct wire_socket *w, const void **id, size_t *n_id,
                                struct wire_message *m, struct error *e)
{
    close_frames(w);
    *m = (struct wire_message){0};
    int n = receive_frames(w);
    if (n == 0) return error_set(e, ERR_UNAVAILABLE, "none", "nothing received yet");
    int first = w->routed ? 1 : 0;
    if (w->routed) {
        *id = zmq_msg_data(&w->frames[0]);
        *n_id = zmq_msg_size(&w->frames[0]);
    }
    struct wire_frame frames[WIRE_FRAMES];
    for (int i = first; i < w->n_frames; i++) {
        frames[i - first] =
            (struct wire_frame){zmq_msg_data(&w->frames[i]), zmq_msg_size(&w->frames[i])};
    }
    return wire_decode(m, frames, (size_t) (n - first), e);
}

const char *wire_socket_key(struct wire_socket *w)
{
    // What the ZAP answer named; the routing id's frame does not always carry it.
    const char *key = w->n_frames > 0 ? zmq_msg_gets(&w->frames[w->n_frames - 1], "User-Id") : NULL;
    return key != NULL ? key : "";
}

struct wire_message wire_error_message(const char *code, const char *text)
{
    struct wire_message m = {.command = WIRE_ERROR};
    snprintf(m.error.code, sizeof m.error.code, "%s", code);
    snprintf(m.error.message, sizeof m.error.message, "%s", text);
    return m;
}
