// The producer's side of a queue for tools: blocking calls to push messages, wait for results,
// cancel, and count. One thread at a time. It needs only a producer's rights (rpush; get, xread,
// xrevrange; fcall_ro for stats), loads no library, and packs nothing but the cancel message.
//
// A connection that is lost is made again by the next call. ERR_UNAVAILABLE from a push means that
// the outcome is unknown: push again with the same id, a duplicate is recognised.
#ifndef PENSTOCK_BROKER_QUEUE_SYNC_H
#define PENSTOCK_BROKER_QUEUE_SYNC_H

#include "broker/redis.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct queue_sync;

enum { QUEUE_EVENT_ID_MAX = 48, QUEUE_KEY_MAX = 32 + QUEUE_NAME_MAX + TENANT_MAX + JOB_ID_MAX };

// ERR_INPUT for a bad URL or name, ERR_UNAVAILABLE if nobody answers, redis_login for a bad
// password.
enum status queue_sync_open(struct queue_sync **self, const char *url, const char *queue,
                            struct error *e);
void queue_sync_close(struct queue_sync **self);

struct queue_bytes {
    const void *bytes;
    size_t n;
};

// Appends one message to the tenant's inbox. redis_full (ERR_LIMIT) if Redis has no room.
enum status queue_sync_push(struct queue_sync *s, const char *tenant, const void *bytes, size_t n,
                            struct error *e);

// Appends many, pipelined, in their order; *n_pushed of them (the first ones) are known to be in.
enum status queue_sync_push_many(struct queue_sync *s, const char *tenant,
                                 const struct queue_bytes *messages, size_t n, size_t *n_pushed,
                                 struct error *e);

// Asks for a job to be cancelled; its result then has the status cancelled.
enum status queue_sync_cancel(struct queue_sync *s, const char *tenant, const char *id,
                              struct error *e);

// The result's msgpack bytes, which the caller frees; *bytes NULL: there is none (yet, or no more).
enum status queue_sync_get(struct queue_sync *s, const char *tenant, const char *id,
                           uint8_t **bytes, size_t *n, struct error *e);

// Many at once, pipelined: bytes[i], sizes[i] as above.
enum status queue_sync_get_many(struct queue_sync *s, const char *tenant, const char *const *ids,
                                size_t count, uint8_t **bytes, size_t *sizes, struct error *e);

// Id of the tenant's last event ("0-0": none so far). Take it before a push to miss nothing of it.
enum status queue_sync_last_event(struct queue_sync *s, const char *tenant,
                                  char last[QUEUE_EVENT_ID_MAX], struct error *e);

// Waits up to timeout_ms (< 0: without end) for the job's end and returns its result as
// queue_sync_get does. `from`: event id taken before the push; NULL: now. Outlives restarts of
// Redis. ERR_TIMEOUT; ERR_STATE id_conflict (only with `from`: the id belongs to another job) or
// result_gone (it has ended and its result has expired).
enum status queue_sync_wait(struct queue_sync *s, const char *tenant, const char *id,
                            const char *from, int64_t timeout_ms, uint8_t **bytes, size_t *n,
                            struct error *e);

// done, failed, cancelled, expired: the job's result can be had. id_conflict: a later message with
// the same id was refused; the job lives on.
struct queue_event {
    const char *id, *event;
    uint64_t attempt;
};

// Events after `last`, which moves on: waits up to timeout_ms (< 0: without end) for the first,
// then calls fn for those that are there, at most `limit`. Stops early, having moved past that
// event, when fn returns false. ERR_TIMEOUT: there was none. ERR_UNAVAILABLE: call it again.
enum status queue_sync_events(struct queue_sync *s, const char *tenant,
                              char last[QUEUE_EVENT_ID_MAX], size_t limit, int64_t timeout_ms,
                              bool (*fn)(void *arg, const struct queue_event *event), void *arg,
                              struct error *e);

struct redisReply;

// ps:{queue}:<kind>:<tenant>, and :<id> unless it is NULL. ERR_INPUT bad_name.
enum status queue_sync_key(const struct queue_sync *s, char key[QUEUE_KEY_MAX], const char *kind,
                           const char *tenant, const char *id, struct error *e);

// One command, on a connection that is made if there is none; the caller frees *reply, also an
// error's, with hiredis. ERR_UNAVAILABLE: its outcome is unknown. For queue_follow.c.
enum status queue_sync_ask(struct queue_sync *s, int n, const char **words,
                           struct redisReply **reply, struct error *e);

// A function of the library with the queue's key (reads: it only does that); the caller frees
// *reply, also an error's, with hiredis. For queue_admin.c.
enum status queue_sync_fcall(struct queue_sync *s, bool reads, const char *function, int n,
                             const char *const *args, struct redisReply **reply, struct error *e);

// no_library (ERR_UNAVAILABLE): no broker has ever served a queue in this Redis.
enum status queue_sync_stats(struct queue_sync *s, struct queue_stats *stats, struct error *e);

#endif
