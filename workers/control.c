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
static void open_monitor(struct control *c, struct control_link *l)
{
    static _Atomic unsigned n;
    char name[48];
    if (strncmp(l->broker.endpoint, "inproc://", 9) == 0) return;
    snprintf(name, sizeof name, "inproc://control-monitor-%u", n++);
    int events = ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
    if (zmq_socket_monitor(l->socket, name, events) != 0) return;
    l->monitor = zmq_socket(c->context, ZMQ_PAIR);
    if (l->monitor == NULL || zmq_connect(l->monitor, name) == 0) return;
    zmq_close(l->monitor);
    l->monitor = NULL;
}

static void close_link(struct control_link *l, int linger_ms)
{
    if (l->socket == NULL) return;
    wire_socket_deinit(&l->wire);
    zmq_setsockopt(l->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    if (l->monitor != NULL) {
        zmq_socket_monitor(l->socket, NULL, 0);
        zmq_close(l->monitor);
    }
    zmq_close(l->socket);
    l->socket = l->monitor = NULL;
}

static enum status open_link(struct control *c, struct control_link *l, struct error *e)
{
    const struct control_options *o = &c->options;
    l->socket = zmq_socket(c->context, ZMQ_DEALER);
    if (l->socket == NULL) {
        return error_set(e, ERR_IO, NULL, "no socket for the broker: %s", zmq_strerror(errno));
    }
    int one = 1, retry_ms = 100, retry_most_ms = 1000;
    wire_socket_init(&l->wire, l->socket, false);
    zmq_setsockopt(l->socket, ZMQ_IMMEDIATE, &one, sizeof one);
    zmq_setsockopt(l->socket, ZMQ_RECONNECT_IVL, &retry_ms, sizeof retry_ms);
    zmq_setsockopt(l->socket, ZMQ_RECONNECT_IVL_MAX, &retry_most_ms, sizeof retry_most_ms);
    enum status status = OK;
    if (o->pair != NULL) status = curve_apply(l->socket, o->pair, l->broker.key, e);
    if (status == OK) open_monitor(c, l);
    if (status == OK && zmq_connect(l->socket, l->broker.endpoint) != 0) {
        status = error_set(e, ERR_INPUT, "bad_endpoint", "cannot connect to the broker at %s: %s",
                           l->broker.endpoint, zmq_strerror(errno));
    }
    if (status != OK) close_link(l, 0);
    return status;
}

enum status control_open(struct control *c, void *context, const struct control_options *o,
                         struct error *e)
{
    check(o->n_brokers >= 1 && o->n_brokers <= BROKERS_MAX);
    // Where there is only one broker it is the leader, whether or not it has spoken.
    *c = (struct control){.options = *o, .context = context, .leader = o->n_brokers == 1 ? 0 : -1};
    for (; c->n_links < o->n_brokers; c->n_links++) {
        struct control_link *l = &c->links[c->n_links];
        *l = (struct control_link){.broker = o->brokers[c->n_links]};
        enum status status = open_link(c, l, e);
        if (status == OK) continue;
        control_close(c, 0);
        return status;
    }
    return OK;
}

void control_close(struct control *c, int linger_ms)
{
    for (int i = 0; i < c->n_links; i++) close_link(&c->links[i], linger_ms);
}

// --- handshakes

static void tell(struct control *c, struct control_link *l, const char *code, const char *text,
                 int64_t now_ms)
{
    if (l->told_ms != 0 && now_ms - l->told_ms < TELL_AGAIN_MS) return;
    l->told_ms = now_ms;
    log_line(LOG_ERROR, "refused", log_str("code", code), log_str("broker", l->broker.endpoint),
             log_str("error", text),
             log_str("key", c->options.pair != NULL ? c->options.pair->public_key : ""));
}

static void on_handshake(struct control *c, struct control_link *l, int event, int64_t now_ms)
{
    bool keys = c->options.pair != NULL;
    if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
        if (l->told_ms != 0) log_line(LOG_INFO, "connected", log_str("broker", l->broker.endpoint));
        l->n_failed = 0;
        l->told_ms = 0;
        return;
    }
    l->n_failed++;
    // After these libzmq does not try again by itself.
    bool final = event != ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
    if (final) l->reopen_ms = now_ms + REFUSED_AGAIN_MS;
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
        tell(c, l, "not_allowed",
             "the broker does not allow this group's key: put its public key into the folder that "
             "the broker's --allow names", now_ms);
    } else if (final || l->n_failed > 1) { // one may be a broker that just went away
        tell(c, l, keys ? "wrong_broker_key" : "no_key",
             keys ? "the broker does not answer to the key given as --broker-key: is it that "
                    "broker's public key, and does it run with --key?"
                  : "the broker breaks the connection off: does it want keys? Then give --key and "
                    "--broker-key", now_ms);
    }
}

static void watch_link(struct control *c, struct control_link *l, int64_t now_ms)
{
    while (l->monitor != NULL) {
        uint8_t bytes[6];
        uint16_t event;
        char address[ENDPOINT_MAX];
        if (zmq_recv(l->monitor, bytes, sizeof bytes, ZMQ_DONTWAIT) < 0) break;
        zmq_recv(l->monitor, address, sizeof address, 0); // the second frame is there already
        memcpy(&event, bytes, sizeof event);
        on_handshake(c, l, event, now_ms);
    }
    if (l->reopen_ms == 0 || now_ms < l->reopen_ms) return;
    struct error e = {0};
    l->reopen_ms = 0;
    close_link(l, 0);
    if (open_link(c, l, &e) == OK) return;
    check(false, "the broker's socket cannot be made anew: %s", e.text);
}

void control_watch(struct control *c, int64_t now_ms)
{
    for (int i = 0; i < c->n_links; i++) watch_link(c, &c->links[i], now_ms);
}

// --- sending

static enum status send_on(struct control *c, int link, const struct wire_message *m)
{
    struct wire_message stamped = *m;
    struct error e = {0};
    stamped.term = c->term;
    enum status status = wire_socket_send(&c->links[link].wire, NULL, 0, &stamped, &e);
    if (status != OK && status != ERR_UNAVAILABLE) {
        log_line(LOG_ERROR, "not_sent", log_str("command", wire_command_name(m->command)),
                 log_str("code", e.code), log_str("error", e.text));
    }
    return status;
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

bool control_send_to(struct control *c, int link, const struct wire_message *m)
{
    return send_on(c, link, m) == OK;
}

bool control_send(struct control *c, const struct wire_message *m)
{
    enum status status = c->leader >= 0 ? send_on(c, c->leader, m) : ERR_UNAVAILABLE;
    if (status == ERR_UNAVAILABLE) c->n_dropped++;
    return status == OK;
}

bool control_silent(const struct control *c, int link, int64_t now_ms)
{
    const struct control_link *l = &c->links[link];
    bool spoke = l->heard_ms != 0 && now_ms - l->heard_ms <= 2 * HEARTBEAT_MS;
    return !spoke && now_ms - l->greeted_ms >= HEARTBEAT_MS;
}

int64_t control_leader_silence(const struct control *c, int64_t now_ms)
{
    if (c->leader < 0 || c->links[c->leader].heard_ms == 0) return INT64_MAX;
    return now_ms - c->links[c->leader].heard_ms;
}

// --- receiving

static void follow(struct control *c, int link)
{
    if (c->leader == link) return;
    c->leader = link;
    if (c->n_links == 1) return;
    log_line(LOG_INFO, "leader", log_str("broker", c->links[link].broker.endpoint),
             log_int("term", c->term));
}

// Whose word it is, and whether it counts. A leadership has one broker: what another one says under
// the leader's own term is as stale as a lower one.
static bool judge(struct control *c, int link, const struct wire_message *m)
{
    struct control_link *l = &c->links[link];
    bool newer = m->term > c->term, same = m->term == c->term;
    l->stands_by = m->command == WIRE_STANDBY;
    if (l->stands_by) {
        if (newer) c->term = m->term;
        // Who led under a lower term leads no more: a report to it would be lost, and HELLO under
        // the new term must not tell of less than what is reported after it.
        if (newer || c->leader == link) c->leader = -1;
        return true;
    }
    if (!newer && !(same && (c->leader == link || c->leader < 0))) return false;
    c->term = m->term;
    // Any broker may complain: but for unknown_peer an ERROR makes nobody the leader.
    bool complains = m->command == WIRE_ERROR && strcmp(m->error.code, "unknown_peer") != 0;
    if (!complains || c->leader == link) follow(c, link);
    else if (newer) c->leader = -1;
    // It is taken for a member again.
    if (m->command == WIRE_ASSIGN) c->refusal = (struct wire_error){0};
    return true;
}

static bool receive_from(struct control *c, int link, struct wire_message *m, int64_t now_ms)
{
    struct control_link *l = &c->links[link];
    for (;;) {
        struct error e = {0};
        struct wire_message answer;
        enum status status = wire_socket_receive(&l->wire, NULL, NULL, m, &e);
        if (status == ERR_UNAVAILABLE) return false;
        l->heard_ms = now_ms;
        if (status == OK && judge(c, link, m)) return true;
        if (status == OK) {
            answer = wire_error_message("stale_term", "a newer broker leads");
        } else {
            log_line(LOG_WARN, "bad_command", log_str("code", e.code), log_str("error", e.text));
            answer = wire_error_message(e.code, e.text);
        }
        wire_message_deinit(m);
        // An ERROR is never answered by one.
        if (m->command != WIRE_ERROR) control_send_to(c, link, &answer);
    }
}

bool control_receive(struct control *c, struct wire_message *m, int64_t now_ms)
{
    for (int i = 0; i < c->n_links; i++) {
        int link = (c->next + i) % c->n_links;
        if (!receive_from(c, link, m, now_ms)) continue;
        c->next = link;
        return true;
    }
    return false;
}
