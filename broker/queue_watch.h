// A second connection that hears of pushes to the inboxes (keyspace notifications, `Kl`), so that
// new work need not wait for the next poll. A convenience: whatever goes wrong here is left to the
// poll. Owned by the loop's thread.
#ifndef PENSTOCK_BROKER_QUEUE_WATCH_H
#define PENSTOCK_BROKER_QUEUE_WATCH_H

#include "broker/redis_loop.h"

struct queue_watch {
    struct redis_link link;
    const struct redis_url *url; // borrowed
    char pattern[QUEUE_NAME_MAX + 64];
    size_t n_prefix; // bytes of a channel's name before the tenant's
    bool closed;
    void (*pushed)(void *arg, const char *tenant);
    void *arg;
};

void queue_watch_init(struct queue_watch *w, const struct redis_url *url, const char *queue,
                      void (*pushed)(void *arg, const char *tenant), void *arg);

// Begins to listen unless it does already.
void queue_watch_start(struct queue_watch *w, zloop_t *loop);
void queue_watch_stop(struct queue_watch *w);

#endif
