// penstock doctor: one finding after the other, each with its remedy. A file a topic: Redis, the
// queue, the fleet, keys. One thread.
#ifndef PENSTOCK_TOOLS_DOCTOR_H
#define PENSTOCK_TOOLS_DOCTOR_H

#include "broker/queue_sync.h"

#include <jansson.h>
#include <stdbool.h>

struct redisContext;
struct redisReply;

struct doctor {
    struct redisContext *c;
    struct queue_sync *queue;
    const char *name; // of the queue
    int db;
    bool json, wrong;
    json_t *findings;
    json_t *fleet;    // the leader's record, once doctor_fleet has read it; NULL: none
};

// What was found of `check`; not ok: with what to do about it.
void doctor_find(struct doctor *d, bool ok, const char *check, const char *remedy,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));

// A command's reply, to be freed: errors come back as they are; NULL if Redis is gone.
struct redisReply *doctor_ask(struct doctor *d, const char *format, ...);
bool doctor_failed(const struct redisReply *r);
const char *doctor_words(const struct redisReply *r); // of an error

// Version, settings, library, what the user may do, clock, write time.
void doctor_redis(struct doctor *d);

// Who leads, which pipelines serve, groups, the plan against what groups reserved.
void doctor_fleet(struct doctor *d);

// Jobs that wait or died, inboxes that nobody serves, jobs for models that nobody serves.
void doctor_queue(struct doctor *d);

// The file of a secret key; the folder of the groups' public keys, against the groups that are
// there. Either may be NULL.
void doctor_keys(struct doctor *d, const char *key, const char *allow);

#endif
