#include "broker/queue_connection.h"

#include "broker/queue_lua.h"
#include "broker/queue_server.h"
#include "common/clock.h"

#include <czmq.h>
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

enum { BACKOFF_FIRST_MS = 50, BACKOFF_MOST_MS = 5000, CHECK_ARGS_MAX = 8 };

// What is asked before the connection is ready, in this order.
enum step { STEP_AUTH, STEP_SELECT, STEP_HELLO, STEP_SETTINGS, STEP_LOAD, STEP_SELFTEST, STEP_LEAD,
            N_STEPS };

// --- the end of a connection

static void try_later(struct queue_connection *c);

// All commands have their replies.
static void ended(struct queue_connection *c)
{
    if (c->state == CONNECTION_CLOSED) return;
    if (c->refusing) {
        c->state = CONNECTION_REFUSED;
        c->events.refused(c->events.arg, &c->why);
        return;
    }
    c->state = CONNECTION_WAITING;
    try_later(c);
    if (c->told_down) return;
    c->told_down = true;
    c->events.down(c->events.arg, &c->why);
}

// Ends it, now or when the running callback returns.
static void cut(struct queue_connection *c)
{
    bool connected = c->state != CONNECTION_CONNECTING;
    if (c->link.ac == NULL || c->state == CONNECTION_ENDING) return;
    c->state = CONNECTION_ENDING;
    redis_link_cut(&c->link);
    if (!connected) ended(c); // hiredis tells the end only of what has begun
}

static bool is_final(const struct error *e)
{
    return e->status == ERR_UNSUPPORTED || strcmp(e->code, "stale_term") == 0;
}

static void give_up(struct queue_connection *c, const struct error *e)
{
    if (c->state == CONNECTION_ENDING) return;
    c->why = *e;
    c->refusing = is_final(e);
    cut(c);
}

void queue_connection_judge(struct queue_connection *c, const struct error *e)
{
    if (c->state != CONNECTION_READY && c->state != CONNECTION_STANDBY) return;
    bool changed = strcmp(e->code, "no_library") == 0 || strcmp(e->code, "redis_replica") == 0;
    if (changed || is_final(e)) give_up(c, e);
}

void queue_connection_replied(struct queue_connection *c, const redisReply *reply)
{
    c->n_open--;
    c->heard_ms = clock_ms();
    bool up = c->state == CONNECTION_READY || c->state == CONNECTION_STANDBY;
    if (reply == NULL && up) c->state = CONNECTION_ENDING;
}

static void on_disconnect(const redisAsyncContext *ac, int status)
{
    struct queue_connection *c = ac->data;
    if (status != REDIS_OK && c->why.status == OK) redis_connection_error(&ac->c, &c->url, &c->why);
    if (c->why.status == OK) {
        error_set(&c->why, ERR_UNAVAILABLE, "redis_unavailable", "Redis closed the connection");
    }
    ended(c);
}

// A Redis that hangs makes no event.
static int on_silence(zloop_t *loop, int timer, void *arg)
{
    struct queue_connection *c = arg;
    (void) loop, (void) timer;
    size_t n_unsent = redis_link_unsent(&c->link);
    if (n_unsent != c->n_unsent) c->heard_ms = clock_ms(); // a large command is on its way
    c->n_unsent = n_unsent;
    bool waits = c->state == CONNECTION_CONNECTING || c->n_open > 0;
    if (!waits || clock_ms() - c->heard_ms < c->timeout_ms) return 0;
    char where[REDIS_HOST_MAX + 32];
    struct error e;
    redis_url_show(&c->url, where, sizeof where);
    error_set(&e, ERR_UNAVAILABLE, "redis_timeout", "no answer from Redis at %s for %lld ms", where,
              (long long) c->timeout_ms);
    give_up(c, &e);
    return 0;
}

// --- sending

static enum status send_now(struct queue_connection *c, int n, const char **args,
                            const size_t *sizes, queue_connection_fn *fn, void *arg,
                            struct error *e)
{
    if (redisAsyncCommandArgv(c->link.ac, fn, arg, n, args, sizes) != REDIS_OK) {
        return error_set(e, ERR_UNAVAILABLE, "redis_unavailable", "Redis is not connected");
    }
    if (c->n_open++ == 0) c->heard_ms = clock_ms();
    return OK;
}

enum status queue_connection_send(struct queue_connection *c, int n, const char **args,
                                  const size_t *sizes, queue_connection_fn *fn, void *arg,
                                  struct error *e)
{
    if (c->state != CONNECTION_READY) {
        return error_set(e, ERR_UNAVAILABLE, "redis_unavailable", "Redis is not connected");
    }
    return send_now(c, n, args, sizes, fn, arg, e);
}

// --- the checks

struct check_args {
    int n;
    const char *at[CHECK_ARGS_MAX];
    size_t sizes[CHECK_ARGS_MAX];
    char numbers[2][24];
    int n_numbers;
};

static void add(struct check_args *a, const char *word)
{
    a->at[a->n] = word;
    a->sizes[a->n++] = strlen(word);
}

static void add_number(struct check_args *a, uint64_t n)
{
    char *number = a->numbers[a->n_numbers++];
    snprintf(number, sizeof a->numbers[0], "%llu", (unsigned long long) n);
    add(a, number);
}

static void add_function(const struct queue_connection *c, struct check_args *a, const char *name)
{
    add(a, "FCALL");
    add(a, name);
    add(a, "1");
    add(a, c->key);
}

static void add_lead(const struct queue_connection *c, struct check_args *a)
{
    add_function(c, a, "lead");
    add(a, c->lead.owner);
    add_number(a, (uint64_t) c->lead.lease_ms);
    add_number(a, c->lead.term);
}

// The command of a step; none if there is nothing to ask.
static void command_of(const struct queue_connection *c, enum step step, struct check_args *a)
{
    switch (step) {
    case STEP_AUTH:
        if (c->url.password[0] == '\0') return;
        add(a, "AUTH");
        if (c->url.user[0] != '\0') add(a, c->url.user);
        add(a, c->url.password);
        return;
    case STEP_SELECT:
        if (c->url.db == 0) return;
        add(a, "SELECT");
        add_number(a, (uint64_t) c->url.db);
        return;
    case STEP_HELLO: add(a, "HELLO"); return;
    case STEP_SETTINGS:
        if (c->accept_loss) return;
        add(a, "CONFIG");
        add(a, "GET");
        for (int i = 0; queue_server_settings_asked[i] != NULL; i++) {
            add(a, queue_server_settings_asked[i]);
        }
        return;
    case STEP_LOAD:
        add(a, "FUNCTION");
        add(a, "LOAD");
        if (c->lead.term == 0) add(a, "REPLACE"); // of the same version, as another build wrote it
        a->at[a->n] = (const char *) queue_lua;
        a->sizes[a->n++] = queue_lua_size;
        return;
    case STEP_SELFTEST:
        add_function(c, a, "selftest");
        add_number(a, c->lead.term);
        return;
    case STEP_LEAD:
        if (c->asks) add_lead(c, a);
        return;
    case N_STEPS: return;
    }
}

static enum status judge_step(struct queue_connection *c, enum step step, const redisReply *r,
                              struct error *e)
{
    bool changed;
    switch (step) {
    case STEP_HELLO: return queue_server_hello(r, e);
    case STEP_SETTINGS: return queue_server_settings(r, e);
    case STEP_LOAD: return queue_server_load(r, e);
    case STEP_SELFTEST: return queue_server_selftest(r, e);
    case STEP_LEAD: return queue_lead_answered(&c->lead, r, clock_ms(), &changed, e);
    case STEP_AUTH:
        if (r->type == REDIS_REPLY_ERROR && strncmp(r->str, "ERR ", 4) == 0) {
            return error_set(e, ERR_UNSUPPORTED, "redis_login", "Redis says: %s", r->str);
        }
        return redis_reply_check(r, e);
    case STEP_SELECT:
    case N_STEPS: break;
    }
    return redis_reply_check(r, e);
}

// Calls may be made by the leader alone.
static void tell_lead(struct queue_connection *c)
{
    const struct queue_lead *l = &c->lead;
    c->state = l->term != 0 ? CONNECTION_READY : CONNECTION_STANDBY;
    if (l->term != 0) c->events.ready(c->events.arg, l->term);
    else c->events.standby(c->events.arg, l->leader, l->rules);
}

static void next_step(struct queue_connection *c);

static void on_step(redisAsyncContext *ac, void *reply, void *arg)
{
    struct queue_connection *c = arg;
    struct error e = {0};
    (void) ac;
    queue_connection_replied(c, reply);
    if (reply == NULL || c->state != CONNECTION_CHECKING) return;
    if (judge_step(c, (enum step) c->step, reply, &e) != OK) {
        give_up(c, &e);
        return;
    }
    c->step++;
    next_step(c);
}

static void next_step(struct queue_connection *c)
{
    struct check_args a = {0};
    struct error e;
    for (; c->step < N_STEPS; c->step++) {
        command_of(c, (enum step) c->step, &a);
        if (a.n == 0) continue;
        if (send_now(c, a.n, a.at, a.sizes, on_step, c, &e) != OK) give_up(c, &e);
        return;
    }
    c->backoff_ms = BACKOFF_FIRST_MS;
    c->told_down = false;
    tell_lead(c);
}

static void on_lead(redisAsyncContext *ac, void *reply, void *arg)
{
    struct queue_connection *c = arg;
    struct error e = {0};
    bool changed;
    (void) ac;
    queue_connection_replied(c, reply);
    if (reply == NULL || c->state == CONNECTION_ENDING) return;
    if (queue_lead_answered(&c->lead, reply, clock_ms(), &changed, &e) != OK) {
        queue_connection_judge(c, &e);
    } else if (changed) {
        tell_lead(c);
    }
}

static int on_lead_timer(zloop_t *loop, int timer, void *arg)
{
    struct queue_connection *c = arg;
    struct check_args a = {0};
    struct error e;
    (void) loop, (void) timer;
    bool up = c->state == CONNECTION_READY || c->state == CONNECTION_STANDBY;
    if (!up || !queue_lead_due(&c->lead, clock_ms())) return 0;
    add_lead(c, &a);
    c->lead.asking = send_now(c, a.n, a.at, a.sizes, on_lead, c, &e) == OK;
    return 0;
}

// --- connecting

static void on_connect(const redisAsyncContext *ac, int status)
{
    struct queue_connection *c = ac->data;
    int one = 1;
    if (status != REDIS_OK) { // hiredis frees the connection when this returns
        redis_connection_error(&ac->c, &c->url, &c->why);
        ended(c);
        return;
    }
    setsockopt(ac->c.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); // fails on unix sockets
    c->state = CONNECTION_CHECKING;
    c->step = 0;
    c->asks = queue_lead_connected(&c->lead, clock_ms());
    next_step(c);
}

static int on_retry(zloop_t *loop, int timer, void *arg)
{
    struct queue_connection *c = arg;
    (void) timer;
    c->retry_timer = 0;
    c->why = (struct error){0};
    c->n_open = 0;
    c->heard_ms = clock_ms();
    c->state = CONNECTION_CONNECTING;
    if (redis_link_connect(&c->link, loop, &c->url, &c->why) != OK) {
        ended(c);
        return 0;
    }
    c->link.ac->data = c;
    redisAsyncSetConnectCallback(c->link.ac, on_connect);
    redisAsyncSetDisconnectCallback(c->link.ac, on_disconnect);
    return 0;
}

static void try_later(struct queue_connection *c)
{
    c->retry_timer = zloop_timer(c->loop, (size_t) c->backoff_ms, 1, on_retry, c);
    check(c->retry_timer > 0);
    c->backoff_ms *= 2;
    if (c->backoff_ms > BACKOFF_MOST_MS) c->backoff_ms = BACKOFF_MOST_MS;
}

void queue_connection_init(struct queue_connection *c, zloop_t *loop)
{
    c->loop = loop;
    c->backoff_ms = BACKOFF_FIRST_MS;
    c->retry_timer = zloop_timer(loop, 0, 1, on_retry, c);
    int64_t often = c->timeout_ms / 4;
    c->silence_timer = zloop_timer(loop, (size_t) (often > 0 ? often : 1), 0, on_silence, c);
    often = c->lead.lease_ms / 50;
    c->lead_timer = zloop_timer(loop, (size_t) (often > 0 ? often : 1), 0, on_lead_timer, c);
    check(c->retry_timer > 0 && c->silence_timer > 0 && c->lead_timer > 0);
}

void queue_connection_close(struct queue_connection *c)
{
    c->state = CONNECTION_CLOSED;
    redis_link_cut(&c->link);
    if (c->retry_timer != 0) zloop_timer_end(c->loop, c->retry_timer);
    if (c->silence_timer != 0) zloop_timer_end(c->loop, c->silence_timer);
    if (c->lead_timer != 0) zloop_timer_end(c->loop, c->lead_timer);
    c->retry_timer = c->silence_timer = c->lead_timer = 0;
}
