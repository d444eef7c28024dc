#include "tests/sim/sim_redis.h"

#include "broker/loop.h"
#include "broker/redis_loop.h"
#include "tests/sim/sim_lua.h"

#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { WAY_LEAST_NS = 30000, WAY_MOST_NS = 400000, NOTICE_PERCENT = 90 };

struct call {
    struct call *next; // of the client, in order
    int refs;          // of the client, and of the agenda
    struct client *client;
    redisCallbackFn *fn;
    void *arg;
    int argc;
    struct bytes *argv;
    redisReply *reply;
    bool answered; // the reply is there
};

// A connection as the program has it. ac comes first: hiredis' callbacks get a pointer to it.
struct client {
    redisAsyncContext ac;
    struct client *next; // of all that live
    struct redis_link *link;
    struct sim_proc *owner;
    int fd;
    bool connected, told; // with the server; the program knows how that went
    bool lost;            // the program will see that it is gone
    bool freed, busy;     // redis_link_cut; inside a callback
    redisConnectCallback *on_connect;
    redisDisconnectCallback *on_disconnect;
    struct call *first, **last;
    int64_t there_ns, back_ns; // of the latest command, and reply
    int64_t lost_ns;           // commands that come later are lost
    redisCallbackFn *subscriber;
    void *subscriber_arg;
    struct notice *notices, **last_notice;
};

struct notice {
    struct notice *next;
    struct client *client;
    redisReply *reply;
};

static struct {
    struct keys *keys;
    int64_t down_ns, hung_ns; // until then
    struct client *clients;
    void (*called)(const char *function, const struct bytes *args, int n, bool failed);
} server;

void sim_redis_begin(void)
{
    server.keys = keys_create();
    server.down_ns = server.hung_ns = 0;
    server.clients = NULL;
}

void sim_redis_end(void) { keys_destroy(&server.keys); }

bool sim_redis_up(void) { return sim_now() >= server.down_ns; }

void sim_redis_watch(void (*called)(const char *function, const struct bytes *args, int n,
                                    bool failed))
{
    server.called = called;
}

struct answer sim_redis_run(const struct bytes *argv, int argc)
{
    return keys_run(server.keys, sim_wall_ms(sim_now()), argv, argc);
}

static int64_t way_ns(void) { return sim_between(WAY_LEAST_NS, WAY_MOST_NS); }

// --- the server

static bool is_word(struct bytes b, const char *word)
{
    return b.n == strlen(word) && memcmp(b.at, word, b.n) == 0;
}

static redisReply *execute(const struct call *c)
{
    static const char *const hello[] = {"version", "7.0.15", "role", "master"};
    static const char *const settings[] = {"appendonly", "yes", "appendfsync", "always",
                                           "maxmemory-policy", "noeviction"};
    char function[64];
    if (is_word(c->argv[0], "HELLO")) return sim_reply_words(hello, 4);
    if (is_word(c->argv[0], "CONFIG")) return sim_reply_words(settings, 6);
    if (is_word(c->argv[0], "FUNCTION")) return sim_reply_status("penstock_v1");
    if (!is_word(c->argv[0], "FCALL")) sim_fail("Redis was asked %s", c->argv[0].at);
    snprintf(function, sizeof function, "%.*s", (int) c->argv[1].n, c->argv[1].at);
    redisReply *r = sim_lua_call(server.keys, sim_wall_ms(sim_now()), function, c->argv + 3,
                                 c->argc - 3);
    bool failed = r->type == REDIS_REPLY_ERROR;
    if (failed) sim_say("redis: %s: %s", function, r->str);
    if (server.called != NULL) server.called(function, c->argv + 4, c->argc - 4, failed);
    return r;
}

static void lose(struct client *c)
{
    if (c->lost) return;
    c->lost = true;
    c->connected = false;
    c->lost_ns = sim_now() + sim_between(0, 2 * WAY_MOST_NS);
    sim_fd_write(c->fd, 1);
}

static void release(struct call *call)
{
    if (--call->refs > 0) return;
    if (call->reply != NULL) sim_reply_free(call->reply);
    free(call);
}

static void on_reply_there(void *arg)
{
    struct call *call = arg;
    if (!call->client->lost) {
        call->answered = true;
        sim_fd_write(call->client->fd, 1);
    }
    release(call);
}

static void on_command(void *arg)
{
    struct call *call = arg;
    struct client *c = call->client;
    if (sim_now() < server.down_ns || sim_now() > c->lost_ns) {
        release(call);
        return;
    }
    if (sim_now() < server.hung_ns) {
        sim_at(server.hung_ns, on_command, call);
        return;
    }
    call->reply = execute(call);
    int64_t there = sim_now() + way_ns();
    if (there < c->back_ns) there = c->back_ns;
    c->back_ns = there;
    sim_at(there, on_reply_there, call);
}

void sim_redis_crash(int64_t for_ns)
{
    server.down_ns = sim_now() + for_ns;
    for (struct client *c = server.clients; c != NULL; c = c->next) {
        lose(c);
        c->lost_ns = sim_now();
    }
}

void sim_redis_hang(int64_t for_ns) { server.hung_ns = sim_now() + for_ns; }

void sim_redis_break(const struct sim_proc *p)
{
    for (struct client *c = server.clients; c != NULL; c = c->next) {
        if (c->owner == p) lose(c);
    }
}

// --- producers

static void on_notice(void *arg)
{
    struct notice *n = arg;
    struct client *c = n->client;
    if (c->lost) {
        sim_reply_free(n->reply);
        return;
    }
    n->next = NULL;
    *c->last_notice = n;
    c->last_notice = &n->next;
    sim_fd_write(c->fd, 1);
}

void sim_redis_push(const char *queue, const char *tenant, const void *message, size_t n)
{
    char key[256], channel[300];
    snprintf(key, sizeof key, "ps:{%s}:in:%s", queue, tenant);
    snprintf(channel, sizeof channel, "__keyspace@0__:%s", key);
    const struct bytes argv[] = {{"RPUSH", 5}, {key, strlen(key)}, {message, n}};
    sim_redis_run(argv, 3);
    const char *const words[] = {"pmessage", "*", channel, "rpush"};
    for (struct client *c = server.clients; c != NULL; c = c->next) {
        if (c->subscriber == NULL || c->lost || !sim_chance(NOTICE_PERCENT)) continue;
        struct notice *notice = sim_alloc(sizeof *notice);
        *notice = (struct notice){.client = c, .reply = sim_reply_words(words, 4)};
        sim_at(sim_now() + way_ns(), on_notice, notice);
    }
}

// --- hiredis, as the broker's loop drives it

static void forget(struct client *c)
{
    struct client **at = &server.clients;
    while (*at != NULL && *at != c) at = &(*at)->next;
    if (*at != NULL) *at = c->next;
}

static void end_call(struct client *c, redisReply *reply)
{
    struct call *call = c->first;
    c->first = call->next;
    if (c->first == NULL) c->last = &c->first;
    c->busy = true;
    if (call->fn != NULL) call->fn(&c->ac, reply, call->arg);
    c->busy = false;
    release(call);
}

// All open commands get NULL, then the program is told, if it knew of the connection.
static void end_client(struct client *c, int status)
{
    zmq_pollitem_t item = {.fd = c->fd};
    struct redis_link *link = c->link;
    bool told = c->told;
    c->lost = true;
    c->connected = false;
    if (c->lost_ns == INT64_MAX) c->lost_ns = sim_now() + WAY_MOST_NS;
    c->freed = true;
    forget(c);
    while (c->first != NULL) end_call(c, NULL);
    if (c->subscriber != NULL) {
        c->busy = true;
        c->subscriber(&c->ac, NULL, c->subscriber_arg);
        c->busy = false;
    }
    if (told && c->on_disconnect != NULL) c->on_disconnect(&c->ac, status);
    zloop_poller_end(link->loop, &item);
    *link = (struct redis_link){.loop = link->loop, .fd = -1};
}

static void report_connection(struct client *c)
{
    int status = c->connected ? REDIS_OK : REDIS_ERR;
    c->ac.c.err = c->connected ? 0 : REDIS_ERR_IO;
    snprintf(c->ac.c.errstr, sizeof c->ac.c.errstr, "Connection refused");
    c->told = c->connected;
    c->busy = true;
    if (c->on_connect != NULL) c->on_connect(&c->ac, status);
    c->busy = false;
    if (status != REDIS_OK) end_client(c, REDIS_ERR);
}

static void take_notices(struct client *c)
{
    while (c->notices != NULL && !c->freed) {
        struct notice *n = c->notices;
        c->notices = n->next;
        if (c->notices == NULL) c->last_notice = &c->notices;
        c->subscriber(&c->ac, n->reply, c->subscriber_arg);
        sim_reply_free(n->reply);
    }
}

static int on_ready(zloop_t *loop, zmq_pollitem_t *item, void *arg)
{
    struct client *c = arg;
    uint64_t times;
    (void) loop, (void) times;
    ssize_t ignored = read(item->fd, &times, sizeof times);
    (void) ignored;
    if (!c->told && (c->connected || c->lost)) {
        report_connection(c);
        if (c->freed && c->link->ac == &c->ac) end_client(c, REDIS_OK);
        if (c->freed) return 0;
    }
    while (!c->freed && c->first != NULL && c->first->answered) end_call(c, c->first->reply);
    take_notices(c);
    if (c->link->ac != &c->ac) return 0; // it has ended
    if (c->freed) {
        end_client(c, REDIS_OK);
    } else if (c->lost) {
        c->ac.c.err = REDIS_ERR_EOF;
        snprintf(c->ac.c.errstr, sizeof c->ac.c.errstr, "Server closed the connection");
        end_client(c, REDIS_ERR);
    }
    return 0;
}

static void on_connected(void *arg)
{
    struct client *c = arg;
    if (c->freed) return;
    c->connected = sim_redis_up();
    c->lost = !c->connected;
    sim_fd_write(c->fd, 1);
}

enum status redis_link_connect(struct redis_link *link, zloop_t *loop, const struct redis_url *url,
                               struct error *e)
{
    struct client *c = sim_alloc(sizeof *c);
    (void) url, (void) e;
    *c = (struct client){.next = server.clients, .link = link, .owner = sim_self(),
                         .lost_ns = INT64_MAX};
    c->ac.c.fd = -1;
    c->last = &c->first;
    c->last_notice = &c->notices;
    c->fd = sim_fd(sim_self());
    server.clients = c;
    *link = (struct redis_link){.ac = &c->ac, .loop = loop, .fd = c->fd};
    zmq_pollitem_t item = {.fd = c->fd, .events = ZMQ_POLLIN};
    zloop_poller(loop, &item, on_ready, c);
    sim_at(sim_now() + 2 * way_ns(), on_connected, c);
    return OK;
}

void redis_link_cut(struct redis_link *link)
{
    struct client *c = (struct client *) link->ac;
    if (c == NULL || c->freed) return;
    if (c->busy) c->freed = true; // when the callback returns
    else end_client(c, REDIS_OK);
}

size_t redis_link_unsent(const struct redis_link *link)
{
    (void) link;
    return 0;
}

int redisAsyncSetConnectCallback(redisAsyncContext *ac, redisConnectCallback *fn)
{
    ((struct client *) ac)->on_connect = fn;
    return REDIS_OK;
}

int redisAsyncSetDisconnectCallback(redisAsyncContext *ac, redisDisconnectCallback *fn)
{
    ((struct client *) ac)->on_disconnect = fn;
    return REDIS_OK;
}

int redisAsyncCommandArgv(redisAsyncContext *ac, redisCallbackFn *fn, void *arg, int argc,
                          const char **argv, const size_t *sizes)
{
    struct client *c = (struct client *) ac;
    size_t n = 0;
    if (c->freed) return REDIS_ERR;
    for (int i = 0; i < argc; i++) n += sizes[i] + 1;
    struct call *call = malloc(sizeof *call + (size_t) argc * sizeof *call->argv + n);
    struct bytes *at = (struct bytes *) (call + 1);
    char *copy = (char *) (at + argc);
    *call = (struct call){.refs = 1, .client = c, .fn = fn, .arg = arg, .argc = argc, .argv = at};
    for (int i = 0; i < argc; i++) {
        memcpy(copy, argv[i], sizes[i]);
        at[i] = (struct bytes){copy, sizes[i]};
        copy[sizes[i]] = '\0';
        copy += sizes[i] + 1;
    }
    *c->last = call;
    c->last = &call->next;
    int64_t there = sim_now() + way_ns();
    if (there < c->there_ns) there = c->there_ns;
    c->there_ns = there;
    if (!c->lost) {
        call->refs++;
        sim_at(there, on_command, call);
    }
    return REDIS_OK;
}

// Only what the watch says: PSUBSCRIBE.
int redisAsyncCommand(redisAsyncContext *ac, redisCallbackFn *fn, void *arg, const char *format,
                      ...)
{
    struct client *c = (struct client *) ac;
    (void) format;
    c->subscriber = fn;
    c->subscriber_arg = arg;
    return REDIS_OK;
}
