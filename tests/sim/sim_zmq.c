// libzmq as far as the programs use it, over the network of sim_net.h.
#include "common/limits.h"
#include "tests/sim/sim_net.h"
#include "tests/sim/sim_parts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

enum { FRAMES_MAX = 4, ID_BYTES = 5, AGAIN_LEAST_MS = 100, AGAIN_MOST_MS = 400 };

// What frames hold; copies share it. With `let_go` the bytes are the sender's own, and read as late
// as can be: when the message arrives.
struct content {
    int refs;
    size_t n;
    char *bytes;
    zmq_free_fn *let_go;
    void *hint;
};

struct message {
    struct message *next;
    struct line *line;
    int to; // end of the line
    int n_frames;
    struct content *frames[FRAMES_MAX];
};

struct socket {
    struct socket *next; // of all
    struct sim_proc *owner;
    int type, hwm;
    bool closed;
    char bound[ENDPOINT_MAX], target[ENDPOINT_MAX];
    struct message *first, **last; // received
    int n_in;
    struct message *reading; // partly read
    int n_read;
    struct message *writing; // partly written
};

// A connection. End 0 connected, end 1 was bound.
struct line {
    struct line *next; // of all that an end still believes in
    struct socket *ends[2];
    bool up[2];
    bool cut;
    int64_t free_ns[2];    // when the last message of this end has left it
    int64_t arrived_ns[2]; // when the last message of this end is there
    int64_t lost_ns[2];    // what would be there later is lost
    int n_flying[2];
    uint8_t id[ID_BYTES];
};

struct hold {
    struct hold *next;
    struct sim_proc *proc;
    int64_t until_ns;
};

static struct {
    struct sim_net net;
    struct socket *sockets;
    struct line *lines;
    struct hold *holds;
    uint32_t ids;
    int ports;
} room;

void sim_zmq_begin(void)
{
    memset(&room, 0, sizeof room);
    room.net = (struct sim_net){.least_ns = 50000, .most_ns = 500000, .blind_ns = 5 * SIM_MS};
    room.ids = (uint32_t) sim_random();
    room.ports = 20000;
}

void sim_net_set(const struct sim_net *net) { room.net = *net; }

// --- connections

static void try_connect(void *arg);

static bool is_open(const struct socket *s) { return !s->closed && sim_alive(s->owner); }

static void drop_line(struct line *l)
{
    struct line **at = &room.lines;
    while (*at != NULL && *at != l) at = &(*at)->next;
    if (*at != NULL) *at = l->next;
}

// This end sees that the connection is gone.
static void lose(struct line *l, int end)
{
    struct socket *s = l->ends[end];
    if (!l->up[end]) return;
    l->up[end] = false;
    if (!l->up[0] && !l->up[1]) drop_line(l);
    if (!is_open(s)) return;
    sim_wake(s->owner);
    if (end == 0) {
        sim_at(sim_now() + sim_between(AGAIN_LEAST_MS, AGAIN_MOST_MS) * SIM_MS, try_connect, s);
    }
}

static void lose_first(void *arg) { lose(arg, 0); }
static void lose_second(void *arg) { lose(arg, 1); }

static void cut_line(struct line *l)
{
    if (l->cut) return;
    l->cut = true;
    for (int end = 0; end < 2; end++) {
        l->lost_ns[end] = sim_now() + sim_between(0, 2 * room.net.most_ns);
        int64_t blind = sim_between(0, room.net.blind_ns);
        sim_at(sim_now() + blind, end == 0 ? lose_first : lose_second, l);
    }
}

static int64_t held_until(const struct sim_proc *a, const struct sim_proc *b)
{
    int64_t until = 0;
    for (const struct hold *h = room.holds; h != NULL; h = h->next) {
        if ((h->proc == a || h->proc == b) && a != b && h->until_ns > until) until = h->until_ns;
    }
    return until;
}

void sim_net_hold(struct sim_proc *p, int64_t for_ns)
{
    struct hold *h = sim_alloc(sizeof *h);
    *h = (struct hold){room.holds, p, sim_now() + for_ns};
    room.holds = h;
}

void sim_net_break(const struct sim_proc *p, int percent)
{
    for (struct line *l = room.lines, *next; l != NULL; l = next) {
        next = l->next;
        bool mine = p == NULL || l->ends[0]->owner == p || l->ends[1]->owner == p;
        if (mine && !l->cut && sim_chance(percent)) cut_line(l);
    }
}

static int64_t way_ns(void) { return sim_between(room.net.least_ns, room.net.most_ns); }

static struct socket *bound_at(const char *endpoint)
{
    for (struct socket *s = room.sockets; s != NULL; s = s->next) {
        if (is_open(s) && strcmp(s->bound, endpoint) == 0) return s;
    }
    return NULL;
}

static void on_established(void *arg)
{
    struct line *l = arg;
    bool open = is_open(l->ends[0]) && is_open(l->ends[1]);
    if (!open || l->cut) {
        int64_t again = sim_now() + AGAIN_LEAST_MS * SIM_MS;
        if (is_open(l->ends[0])) sim_at(again, try_connect, l->ends[0]);
        return;
    }
    l->up[0] = l->up[1] = true;
    l->next = room.lines;
    room.lines = l;
    sim_wake(l->ends[0]->owner);
    sim_wake(l->ends[1]->owner);
}

static void try_connect(void *arg)
{
    struct socket *s = arg;
    if (!is_open(s)) return;
    struct socket *other = bound_at(s->target);
    if (other == NULL) {
        sim_at(sim_now() + sim_between(AGAIN_LEAST_MS, AGAIN_MOST_MS) * SIM_MS, try_connect, s);
        return;
    }
    struct line *l = sim_alloc(sizeof *l);
    *l = (struct line){.ends = {s, other}, .lost_ns = {INT64_MAX, INT64_MAX}};
    uint32_t id = ++room.ids;
    memcpy(l->id + 1, &id, sizeof id);
    int64_t held = held_until(s->owner, other->owner);
    sim_at((held > sim_now() ? held : sim_now()) + 2 * way_ns(), on_established, l);
}

// --- messages

static struct content *new_content(const void *bytes, size_t n)
{
    struct content *c = malloc(sizeof *c);
    *c = (struct content){.refs = 1, .n = n, .bytes = malloc(n > 0 ? n : 1)};
    if (n > 0) memcpy(c->bytes, bytes, n);
    return c;
}

static void release(struct content *c)
{
    if (c == NULL || --c->refs > 0) return;
    if (c->let_go != NULL) c->let_go(c->bytes, c->hint);
    else free(c->bytes);
    free(c);
}

static void free_message(struct message *m)
{
    for (int i = 0; i < m->n_frames; i++) release(m->frames[i]);
    free(m);
}

static void on_arrival(void *arg)
{
    struct message *m = arg;
    struct line *l = m->line;
    struct socket *s = l->ends[m->to];
    l->n_flying[1 - m->to]--;
    if (!is_open(s) || sim_now() > l->lost_ns[1 - m->to]) {
        free_message(m);
        return;
    }
    for (int i = 0; i < m->n_frames; i++) {
        struct content *c = m->frames[i];
        if (c->let_go == NULL) continue;
        m->frames[i] = new_content(c->bytes, c->n);
        release(c);
    }
    m->next = NULL;
    *s->last = m;
    s->last = &m->next;
    s->n_in++;
    sim_wake(s->owner);
}

static void send_message(struct message *m)
{
    struct line *l = m->line;
    int from = 1 - m->to;
    double size = 0, scale = room.net.payload_scale > 0 ? room.net.payload_scale : 1;
    bool link = l->ends[0]->type == ZMQ_PUSH;
    for (int i = 0; i < m->n_frames; i++) {
        size += (double) m->frames[i]->n * (link && i == 1 ? scale : 1);
    }
    int64_t begins = l->free_ns[from] > sim_now() ? l->free_ns[from] : sim_now();
    int64_t takes =
        room.net.bytes_per_s > 0 ? (int64_t) (size / room.net.bytes_per_s * 1e9) : 0;
    l->free_ns[from] = begins + takes;
    int64_t arrives = l->free_ns[from] + way_ns();
    int64_t held = held_until(l->ends[0]->owner, l->ends[1]->owner);
    if (held > arrives) arrives = held;
    if (l->arrived_ns[from] > arrives) arrives = l->arrived_ns[from];
    l->arrived_ns[from] = arrives;
    l->n_flying[from]++;
    sim_at(arrives, on_arrival, m);
}

// The line by which the socket sends now, or NULL.
static struct line *line_of(const struct socket *s, const void *id, size_t n)
{
    for (struct line *l = room.lines; l != NULL; l = l->next) {
        int end = s->type == ZMQ_ROUTER ? 1 : 0;
        if (l->ends[end] != s || !l->up[end]) continue;
        if (end == 1 && (n != ID_BYTES || memcmp(l->id, id, n) != 0)) continue;
        bool full = l->n_flying[end] + l->ends[1 - end]->n_in >= s->hwm;
        return full ? NULL : l;
    }
    return NULL;
}

// Takes the content over if it can be sent.
static int send_content(struct socket *s, struct content *c, int flags)
{
    size_t n = c->n;
    if (s->writing == NULL) {
        struct line *l = line_of(s, c->bytes, n);
        if (l == NULL) {
            errno = s->type == ZMQ_ROUTER ? EHOSTUNREACH : EAGAIN;
            return -1;
        }
        s->writing = calloc(1, sizeof *s->writing);
        s->writing->line = l;
        s->writing->to = s->type == ZMQ_ROUTER ? 0 : 1;
        if (s->type == ZMQ_ROUTER) { // the id does not travel
            release(c);
            return (int) n;
        }
    }
    struct message *m = s->writing;
    if (m->n_frames == FRAMES_MAX) sim_fail("a message of more than %d frames", FRAMES_MAX);
    m->frames[m->n_frames++] = c;
    if ((flags & ZMQ_SNDMORE) == 0) {
        s->writing = NULL;
        send_message(m);
    }
    return (int) n;
}

int zmq_send(void *socket, const void *data, size_t n, int flags)
{
    struct content *c = new_content(data, n);
    int sent = send_content(socket, c, flags);
    if (sent < 0) release(c);
    return sent;
}

static void set_content(zmq_msg_t *msg, struct content *c) { memcpy(msg, &c, sizeof c); }

static struct content *content_of(const zmq_msg_t *msg)
{
    struct content *c;
    memcpy(&c, msg, sizeof c);
    return c;
}

int zmq_msg_init(zmq_msg_t *msg)
{
    set_content(msg, NULL);
    return 0;
}

int zmq_msg_init_data(zmq_msg_t *msg, void *data, size_t n, zmq_free_fn *let_go, void *hint)
{
    struct content *c = malloc(sizeof *c);
    *c = (struct content){1, n, data, let_go, hint};
    set_content(msg, c);
    return 0;
}

int zmq_msg_copy(zmq_msg_t *to, zmq_msg_t *from)
{
    struct content *c = content_of(from);
    release(content_of(to));
    if (c != NULL) c->refs++;
    set_content(to, c);
    return 0;
}

int zmq_msg_close(zmq_msg_t *msg)
{
    release(content_of(msg));
    return zmq_msg_init(msg);
}

void *zmq_msg_data(zmq_msg_t *msg)
{
    const struct content *c = content_of(msg);
    return c != NULL ? c->bytes : NULL;
}

size_t zmq_msg_size(const zmq_msg_t *msg)
{
    const struct content *c = content_of(msg);
    return c != NULL ? c->n : 0;
}

const char *zmq_msg_gets(const zmq_msg_t *msg, const char *property)
{
    (void) msg, (void) property;
    return NULL;
}

int zmq_msg_send(zmq_msg_t *msg, void *socket, int flags)
{
    struct content *c = content_of(msg);
    if (c == NULL) c = new_content(NULL, 0);
    int sent = send_content(socket, c, flags);
    if (sent >= 0) zmq_msg_init(msg);
    else if (content_of(msg) == NULL) release(c);
    return sent;
}

int zmq_msg_recv(zmq_msg_t *msg, void *socket, int flags)
{
    struct socket *s = socket;
    (void) flags;
    if (s->reading == NULL && s->first == NULL) {
        errno = EAGAIN;
        return -1;
    }
    if (s->reading == NULL) {
        s->reading = s->first;
        s->first = s->first->next;
        if (s->first == NULL) s->last = &s->first;
        s->n_in--;
        s->n_read = 0;
        if (s->type == ZMQ_ROUTER) {
            set_content(msg, new_content(s->reading->line->id, ID_BYTES));
            return ID_BYTES;
        }
    }
    struct content *c = s->reading->frames[s->n_read];
    s->reading->frames[s->n_read++] = NULL;
    set_content(msg, c);
    int n = (int) c->n;
    if (s->n_read == s->reading->n_frames) {
        free_message(s->reading);
        s->reading = NULL;
    }
    return n;
}

int zmq_recv(void *socket, void *to, size_t n, int flags)
{
    (void) socket, (void) to, (void) n, (void) flags;
    errno = EAGAIN; // monitors and ZAP, which are silent here
    return -1;
}

// --- sockets

void *zmq_ctx_new(void) { return sim_alloc(1); }
int zmq_ctx_term(void *context)
{
    (void) context;
    return 0;
}

void *zmq_socket(void *context, int type)
{
    struct socket *s = sim_alloc(sizeof *s);
    (void) context;
    *s = (struct socket){.next = room.sockets, .owner = sim_self(), .type = type, .hwm = 1000};
    s->last = &s->first;
    room.sockets = s;
    return s;
}

static void close_socket(struct socket *s)
{
    if (s->closed) return;
    s->closed = true;
    while (s->first != NULL) {
        struct message *m = s->first;
        s->first = m->next;
        free_message(m);
    }
    if (s->reading != NULL) free_message(s->reading);
    if (s->writing != NULL) free_message(s->writing);
    for (struct line *l = room.lines, *next; l != NULL; l = next) {
        next = l->next;
        for (int end = 0; end < 2; end++) {
            if (l->ends[end] != s || !l->up[end]) continue;
            cut_line(l);
            l->lost_ns[end] = sim_now() + room.net.most_ns; // what was said last may still arrive
        }
    }
    struct socket **at = &room.sockets;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
}

int zmq_close(void *socket)
{
    close_socket(socket);
    return 0;
}

void sim_zmq_died(struct sim_proc *p)
{
    for (struct socket *s = room.sockets, *next; s != NULL; s = next) {
        next = s->next;
        if (s->owner == p) close_socket(s);
    }
}

int zmq_bind(void *socket, const char *endpoint)
{
    struct socket *s = socket;
    size_t n = strlen(endpoint);
    if (n > 2 && strcmp(endpoint + n - 2, ":*") == 0) {
        snprintf(s->bound, sizeof s->bound, "%.*s:%d", (int) n - 2, endpoint, ++room.ports);
        return 0;
    }
    if (bound_at(endpoint) != NULL) {
        errno = EADDRINUSE;
        return -1;
    }
    snprintf(s->bound, sizeof s->bound, "%s", endpoint);
    return 0;
}

int zmq_connect(void *socket, const char *endpoint)
{
    struct socket *s = socket;
    snprintf(s->target, sizeof s->target, "%s", endpoint);
    sim_at(sim_now(), try_connect, s);
    return 0;
}

int zmq_setsockopt(void *socket, int option, const void *value, size_t n)
{
    struct socket *s = socket;
    if (option == ZMQ_SNDHWM && n == sizeof s->hwm) memcpy(&s->hwm, value, n);
    return 0;
}

int zmq_getsockopt(void *socket, int option, void *value, size_t *n)
{
    struct socket *s = socket;
    int number = 0;
    if (option == ZMQ_LAST_ENDPOINT) {
        snprintf(value, *n, "%s", s->bound);
        return 0;
    }
    if (option == ZMQ_RCVMORE) number = s->reading != NULL;
    if (option == ZMQ_EVENTS) {
        number = (line_of(s, NULL, 0) != NULL ? ZMQ_POLLOUT : 0) |
                 (s->first != NULL ? ZMQ_POLLIN : 0);
    }
    memcpy(value, &number, sizeof number);
    return 0;
}

// Handshakes are not told of.
int zmq_socket_monitor(void *socket, const char *endpoint, int events)
{
    (void) socket, (void) endpoint, (void) events;
    return -1;
}

const char *zmq_strerror(int number) { return strerror(number); }

bool sim_zmq_readable(void *socket)
{
    const struct socket *s = socket;
    return s->first != NULL;
}

int zmq_poll(zmq_pollitem_t *items, int n, long timeout)
{
    int64_t until = timeout < 0 ? INT64_MAX : sim_now() + timeout * SIM_MS;
    for (;;) {
        int ready = 0;
        for (int i = 0; i < n; i++) {
            bool in = items[i].socket != NULL ? sim_zmq_readable(items[i].socket)
                                              : sim_fd_readable(items[i].fd);
            items[i].revents = in ? ZMQ_POLLIN : 0;
            ready += in;
        }
        if (ready > 0 || sim_now() >= until) return ready;
        sim_sleep(until);
    }
}
