#include "workers/link.h"

#include "common/handover.h"
#include "common/seal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void *open_socket(void *context, int type, int depth)
{
    void *socket = zmq_socket(context, type);
    if (socket == NULL) return NULL;
    int zero = 0, one = 1;
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(socket, ZMQ_SNDHWM, &depth, sizeof depth);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &depth, sizeof depth);
    zmq_setsockopt(socket, ZMQ_IMMEDIATE, &one, sizeof one);
    return socket;
}

enum status link_in_open(struct link_in *l, void *context, const char *endpoint, int depth,
                         int64_t max_bytes, struct error *e)
{
    l->socket = open_socket(context, ZMQ_PULL, depth);
    if (l->socket == NULL) {
        return error_set(e, ERR_IO, NULL, "no socket for a stage link: %s", zmq_strerror(errno));
    }
    zmq_setsockopt(l->socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof max_bytes);
    size_t n = sizeof l->endpoint;
    if (zmq_bind(l->socket, endpoint) != 0 ||
        zmq_getsockopt(l->socket, ZMQ_LAST_ENDPOINT, l->endpoint, &n) != 0) {
        enum status status = error_set(e, ERR_IO, errno == EADDRINUSE ? "port_taken" : NULL,
                                       "cannot bind %s for a stage link: %s", endpoint,
                                       zmq_strerror(errno));
        link_in_close(l);
        return status;
    }
    return OK;
}

void link_in_close(struct link_in *l)
{
    if (l->socket != NULL) zmq_close(l->socket);
    *l = (struct link_in){0};
}

static int receive_frames(struct link_in *l, struct link_message *m)
{
    int n = 0, more = 1;
    size_t size = sizeof more;
    for (; more; n++) {
        zmq_msg_t extra, *frame = n < LINK_FRAMES ? &m->frames[n] : &extra;
        zmq_msg_init(frame);
        // Messages are atomic: once the first frame is there the others are too.
        int received = zmq_msg_recv(frame, l->socket, ZMQ_DONTWAIT);
        if (received < 0) {
            zmq_msg_close(frame);
            break;
        }
        zmq_getsockopt(l->socket, ZMQ_RCVMORE, &more, &size);
        if (frame == &extra) zmq_msg_close(frame);
    }
    handover_receive();
    return n;
}

enum status link_receive(struct link_in *l, struct link_message *m, struct error *e)
{
    bool was = seal_set(false);
    int n = receive_frames(l, m);
    for (int i = 0; n != LINK_FRAMES && i < n && i < LINK_FRAMES; i++) {
        zmq_msg_close(&m->frames[i]);
    }
    seal_set(was);
    if (n == 0) return error_set(e, ERR_UNAVAILABLE, NULL, "nothing received yet");
    if (n == LINK_FRAMES) return OK;
    return error_set(e, ERR_INPUT, "bad_frames", "a stage message of %d frames, not %d", n,
                     LINK_FRAMES);
}

void link_message_close(struct link_message *m)
{
    bool was = seal_set(false);
    for (int i = 0; i < LINK_FRAMES; i++) zmq_msg_close(&m->frames[i]);
    seal_set(was);
}

enum status link_out_open(struct link_out *l, void *context, const char *endpoint, int depth,
                          struct error *e)
{
    l->socket = open_socket(context, ZMQ_PUSH, depth);
    if (l->socket == NULL || zmq_connect(l->socket, endpoint) != 0) {
        enum status status = error_set(e, ERR_IO, NULL, "cannot connect to %s: %s", endpoint,
                                       zmq_strerror(errno));
        link_out_close(l);
        return status;
    }
    return OK;
}

void link_out_close(struct link_out *l)
{
    if (l->socket != NULL) zmq_close(l->socket);
    *l = (struct link_out){0};
}

bool link_out_connected(const struct link_out *l)
{
    int events = 0;
    size_t n = sizeof events;
    return l->socket != NULL && zmq_getsockopt(l->socket, ZMQ_EVENTS, &events, &n) == 0 &&
           (events & ZMQ_POLLOUT) != 0;
}

static bool send_frame(struct link_out *l, zmq_msg_t *standing, int flags)
{
    zmq_msg_t copy;
    zmq_msg_init(&copy);
    bool sent = (standing == NULL || zmq_msg_copy(&copy, standing) == 0) &&
                zmq_msg_send(&copy, l->socket, ZMQ_DONTWAIT | flags) >= 0;
    if (!sent) zmq_msg_close(&copy);
    l->n_frames++;
    return sent;
}

enum status link_send(struct link_out *l, zmq_msg_t *header, zmq_msg_t *payload, struct error *e)
{
    // Looking first makes libzmq take notice of what the peer has read; zmq_send alone does so only
    // about once a millisecond, and would call a link full that is not.
    if (!link_out_connected(l)) {
        return error_set(e, ERR_UNAVAILABLE, "link_lost",
                         "the next stage is gone, or does not read");
    }
    handover_send();
    bool was = seal_set(false);
    seal_set(was && l->n_frames >= LINK_FIRST_FRAMES);
    bool sent = send_frame(l, header, ZMQ_SNDMORE) && send_frame(l, payload, 0);
    seal_set(was);
    if (!sent) {
        return error_set(e, ERR_UNAVAILABLE, "link_lost", "the next stage can't be sent to: %s",
                         zmq_strerror(errno));
    }
    return OK;
}
