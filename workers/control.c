#include "workers/control.h"

#include "common/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

enum {
    REFUSED_AGAIN_MS = 1000, // until a refused key is tried again
    TELL_AGAIN_MS = 30000,   // a failure that goes on is said so often
};

// Handshakes that fail are told of by a PAIR socket. Without it all works, but silently.
static void open_monitor(struct control *c)
{
    static _Atomic unsigned n;
    char name[48];
    if (strncmp(c->options.endpoint, "inproc://", 9) == 0) return;
    snprintf(name, sizeof name, "inproc://control-monitor-%u", n++);
    int events = ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
    if (zmq_socket_monitor(c->socket, name, events) != 0) return;
    c->monitor = zmq_socket(c->context, ZMQ_PAIR);
    if (c->monitor == NULL || zmq_connect(c->monitor, name) == 0) return;
    zmq_close(c->monitor);
    c->monitor = NULL;
}

static enum status open_socket(struct control *c, struct error *e)
{
    const struct control_options *o = &c->options;
    c->socket = zmq_socket(c->context, ZMQ_DEALER);
    if (c->socket == NULL) {
        return error_set(e, ERR_IO, NULL, "no socket for the broker: %s", zmq_strerror(errno));
    }
    int one = 1, retry_ms = 100, retry_most_ms = 1000;
    wire_socket_init(&c->wire, c->socket, false);
    zmq_setsockopt(c->socket, ZMQ_IMMEDIATE, &one, sizeof one);
    zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL, &retry_ms, sizeof retry_ms);
    zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL_MAX, &retry_most_ms, sizeof retry_most_ms);
    enum status status = OK;
    if (o->pair != NULL) status = curve_apply(c->socket, o->pair, o->broker_key, e);
    if (status == OK) open_monitor(c);
    if (status == OK && zmq_connect(c->socket, o->endpoint) != 0) {
        status = error_set(e, ERR_INPUT, "bad_endpoint", "cannot connect to the broker at %s: %s",
                           o->endpoint, zmq_strerror(errno));
    }
    if (status != OK) control_close(c, 0);
    return status;
}

enum status control_open(struct control *c, void *context, const struct control_options *o,
                         struct error *e)
{
    *c = (struct control){.options = *o, .context = context};
    return open_socket(c, e);
}

void control_close(struct control *c, int linger_ms)
{
    if (c->socket == NULL) return;
    wire_socket_deinit(&c->wire);
    zmq_setsockopt(c->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    if (c->monitor != NULL) {
        zmq_socket_monitor(c->socket, NULL, 0);
        zmq_close(c->monitor);
    }
    zmq_close(c->socket);
    c->socket = c->monitor = NULL;
}

// --- handshakes

static void tell(struct control *c, const char *event, const char *code, const char *text,
                 int64_t now_ms)
{
    if (c->told_ms != 0 && now_ms - c->told_ms < TELL_AGAIN_MS) return;
    c->told_ms = now_ms;
    log_line(LOG_ERROR, event, log_str("code", code), log_str("broker", c->options.endpoint),
             log_str("error", text),
             log_str("key", c->options.pair != NULL ? c->options.pair->public_key : ""));
}

static void on_handshake(struct control *c, int event, int64_t now_ms)
{
    bool keys = c->options.pair != NULL;
    if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
        if (c->told_ms != 0) log_line(LOG_INFO, "connected");
        c->n_failed = 0;
        c->told_ms = 0;
        return;
    }
    c->n_failed++;
    // After these libzmq does not try again by itself.
    bool final = event != ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
    if (final) c->reopen_ms = now_ms + REFUSED_AGAIN_MS;
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
        tell(c, "refused", "not_allowed",
             "the broker does not allow this group's key: put its public key into the folder that "
             "the broker's --allow names", now_ms);
    } else if (final || c->n_failed > 1) { // one may be a broker that just went away
        tell(c, "refused", keys ? "wrong_broker_key" : "no_key",
             keys ? "the broker does not answer to the key given as --broker-key: is it that "
                    "broker's public key, and does it run with --key?"
                  : "the broker breaks the connection off: does it want keys? Then give --key and "
                    "--broker-key", now_ms);
    }
}

void control_watch(struct control *c, int64_t now_ms)
{
    while (c->monitor != NULL) {
        uint8_t bytes[6];
        uint16_t event;
        char address[ENDPOINT_MAX];
        if (zmq_recv(c->monitor, bytes, sizeof bytes, ZMQ_DONTWAIT) < 0) break;
        zmq_recv(c->monitor, address, sizeof address, 0); // the second frame is there already
        memcpy(&event, bytes, sizeof event);
        on_handshake(c, event, now_ms);
    }
    if (c->reopen_ms == 0 || now_ms < c->reopen_ms) return;
    struct error e = {0};
    c->reopen_ms = 0;
    control_close(c, 0);
    if (open_socket(c, &e) == OK) return;
    check(false, "the broker's socket cannot be made anew: %s", e.text);
}

// --- messages

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

bool control_error_is_new(struct control *c, const struct wire_error *error)
{
    if (strcmp(c->refusal.code, error->code) == 0 &&
        strcmp(c->refusal.message, error->message) == 0) {
        return false;
    }
    c->refusal = *error;
    return true;
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
            // It is taken for a member again.
            if (m->command == WIRE_ASSIGN) c->refusal = (struct wire_error){0};
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
