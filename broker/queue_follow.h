// The text of one job with `stream`, as it comes. Blocking, over a producer's connection
// (queue_sync.h). One thread at a time. Places chunks by their offset; knows no results.
#ifndef PENSTOCK_BROKER_QUEUE_FOLLOW_H
#define PENSTOCK_BROKER_QUEUE_FOLLOW_H

#include "broker/queue_sync.h"

struct queue_follow {
    const char *tenant, *id;
    const char *from; // event id taken before the push; NULL: the job may have ended already
    uint64_t offset;  // bytes of the whole text that are not wanted, or were given
    void *arg;
    // The next bytes of the text, whole characters. False: no more are wanted.
    bool (*text)(void *arg, const char *bytes, size_t n);
};

// Gives the text up to the job's end, and returns its result as queue_sync_wait does, with the same
// errors; f->offset is then where the rest of the result's text begins. Outlives restarts of Redis.
// ERR_ABORTED: no more was wanted.
enum status queue_follow(struct queue_sync *s, struct queue_follow *f, int64_t timeout_ms,
                         uint8_t **bytes, size_t *n, struct error *e);

#endif
