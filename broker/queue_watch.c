#include "broker/queue_watch.h"

#include <czmq.h>
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <string.h>

void queue_watch_init(struct queue_watch *w, const struct redis_url *url, const char *queue,
                      void (*pushed)(void *arg, const char *tenant), void *arg)
{
    *w = (struct queue_watch){.url = url, .pushed = pushed, .arg = arg};
    int n = snprintf(w->pattern, sizeof w->pattern, "__keyspace@%d__:ps:{%s}:in:*", url->db, queue);
    check(n > 0 && (size_t) n < sizeof w->pattern);
    w->n_prefix = (size_t) n - 1;
}

static const char *text_of(const redisReply *r, size_t i)
{
    return r->element[i]->type == REDIS_REPLY_STRING ? r->element[i]->str : "";
}

// [pmessage, pattern, channel, event]
static void on_message(redisAsyncContext *ac, void *reply, void *arg)
{
    struct queue_watch *w = arg;
    const redisReply *r = reply;
    struct error e;
    (void) ac;
    if (r == NULL || w->closed || r->type != REDIS_REPLY_ARRAY || r->elements != 4) return;
    if (strcmp(text_of(r, 0), "pmessage") != 0) return;
    const char *channel = text_of(r, 2), *event = text_of(r, 3);
    // Our own takes make events, too: only pushes count.
    if (strcmp(event, "rpush") != 0 && strcmp(event, "lpush") != 0) return;
    if (strncmp(channel, w->pattern, w->n_prefix) != 0) return;
    const char *tenant = channel + w->n_prefix;
    if (redis_name_check("tenant", tenant, TENANT_MAX, &e) == OK) w->pushed(w->arg, tenant);
}

static void on_connect(const redisAsyncContext *ac, int status) { (void) ac, (void) status; }

void queue_watch_start(struct queue_watch *w, zloop_t *loop)
{
    struct error e;
    if (w->closed || w->link.ac != NULL) return;
    if (redis_link_connect(&w->link, loop, w->url, &e) != OK) return;
    redisAsyncContext *ac = w->link.ac;
    redisAsyncSetConnectCallback(ac, on_connect);
    if (w->url->password[0] != '\0' && w->url->user[0] != '\0') {
        redisAsyncCommand(ac, NULL, NULL, "AUTH %s %s", w->url->user, w->url->password);
    } else if (w->url->password[0] != '\0') {
        redisAsyncCommand(ac, NULL, NULL, "AUTH %s", w->url->password);
    }
    redisAsyncCommand(ac, on_message, w, "PSUBSCRIBE %s", w->pattern);
}

void queue_watch_stop(struct queue_watch *w)
{
    w->closed = true;
    redis_link_cut(&w->link);
}
