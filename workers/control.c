#include "workers/control.h"

#include "common/log.h"

#include <errno.h>
#include <zmq.h>

enum status control_open(struct control *c, void *context, const char *endpoint, struct error *e)
{
    *c = (struct control){0};
    c->socket = zmq_socket(context, ZMQ_DEALER);
    if (c->socket == NULL) {
        return error_set(e, ERR_IO, NULL, "no socket for the broker: %s", zmq_strerror(errno));
    }
    int one = 1, retry_ms = 100, retry_most_ms = 1000;
    wire_socket_init(&c->wire, c->socket, false);
    zmq_setsockopt(c->socket, ZMQ_IMMEDIATE, &one, sizeof one);
    zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL, &retry_ms, sizeof retry_ms);
    zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL_MAX, &retry_most_ms, sizeof retry_most_ms);
    if (zmq_connect(c->socket, endpoint) == 0) return OK;
    enum status status = error_set(e, ERR_INPUT, "bad_endpoint", "cannot connect to the broker at "
                                   "%s: %s", endpoint, zmq_strerror(errno));
    control_close(c, 0);
    return status;
}

void control_close(struct control *c, int linger_ms)
{
    if (c->socket == NULL) return;
    wire_socket_deinit(&c->wire);
    zmq_setsockopt(c->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_close(c->socket);
    c->socket = NULL;
}

bool control_send(struct control *c, const struct wire_message *m)
{
    struct wire_message stamped = *m;
    struct error e = {0};
    stamped.term = c->term;
    enum status status = wire_socket_send(&c->wire, NULL, 0, &stamped, &e);
    if (status == OK) return true;
    if (status == ERR_UNAVAILABLE) {
        c->n_dropped++;
    } else {
        log_line(LOG_ERROR, "not_sent", log_str("command", wire_command_name(m->command)),
                 log_str("code", e.code), log_str("error", e.text));
    }
    return false;
}

bool control_receive(struct control *c, struct wire_message *m, int64_t now_ms)
{
    for (;;) {
        struct error e = {0};
        struct wire_message answer;
        enum status status = wire_socket_receive(&c->wire, NULL, NULL, m, &e);
        if (status == ERR_UNAVAILABLE) return false;
        c->heard_ms = now_ms;
        if (status == OK && m->term >= c->term) {
            c->term = m->term;
            return true;
        }
        if (status == OK) {
            answer = wire_error_message("stale_term", "a newer broker leads");
        } else {
            log_line(LOG_WARN, "bad_command", log_str("code", e.code), log_str("error", e.text));
            answer = wire_error_message(e.code, e.text);
        }
        wire_message_deinit(m);
        // An ERROR is never answered by one.
        if (m->command != WIRE_ERROR) control_send(c, &answer);
    }
}
