// The broker's queue client: every transition of a job is one call of the Redis function library
// (queue_*.lua; its keys and functions are listed in broker/README.md), asynchronous in a zloop.
// Owned by the loop's thread. It connects, reconnects with backoff, loads the library, checks the
// server's settings, and knows nothing of groups, credits or msgpack.
//
// Calls are pipelined: they run in the order they were made. A call that returns OK completes just
// once; one that returns anything else never completes. Completion with ERR_UNAVAILABLE means that
// the outcome is unknown: the call may have been executed. Every call here may be repeated after
// that, with the same arguments, without harm.
#ifndef PENSTOCK_BROKER_QUEUE_H
#define PENSTOCK_BROKER_QUEUE_H

#include "broker/redis.h"
#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct _zloop_t zloop_t;

#define QUEUE_LIBRARY "penstock_v1"

struct queue;

// What happens to the connection. All are called from the loop and none may be NULL; queue_destroy
// is allowed in none of them nor in a completion, queue calls are allowed in ready and inbox.
struct queue_events {
    void *arg;
    // This broker leads: calls may be made from here on, and after each reconnect. Renew the
    // leases of what runs before the first reap, so that a pause of Redis ends no lease.
    void (*ready)(void *arg, uint64_t term);
    // Another one leads, or yet another: the queue stands by and takes over when its lease ends, or
    // was given back. Calls are refused until `ready`.
    void (*standby)(void *arg, const char *leader, uint64_t term);
    // The connection is gone, or could not be made at the start; the open calls have completed. It
    // is tried again until it succeeds. Called once an outage.
    void (*down)(void *arg, const struct error *why);
    // Nothing but a person helps: redis_too_old, redis_unsafe, redis_settings (they cannot be
    // read), redis_forbidden, redis_login; or another broker took over: stale_term. No reconnect;
    // calls are refused.
    void (*refused)(void *arg, const struct error *why);
    // Something was pushed to a tenant's inbox. May be missed: poll as well.
    void (*inbox)(void *arg, const char *tenant);
};

struct queue_options {
    const char *url;   // redis_url_parse
    const char *name;  // of the queue
    const char *owner; // this broker's name: its next life has the lease of this one
    int64_t lead_ms;   // lease of the leader; 0: LEAD_MS
    bool accept_loss;  // go on with settings of Redis that can lose acknowledged jobs
    int64_t timeout_ms; // no reply for this long: the connection is given up; 0: 10 s
};

// Copies the options. ERR_INPUT for a bad URL, queue or owner. The first connection is made from
// the loop.
enum status queue_create(struct queue **self, zloop_t *loop, const struct queue_options *options,
                         const struct queue_events *events, struct error *e);

// Open calls complete with ERR_ABORTED.
void queue_destroy(struct queue **self);

bool queue_ready(const struct queue *q);
bool queue_stands_by(const struct queue *q); // Redis is there, and another broker leads
uint64_t queue_term(const struct queue *q); // 0: it does not lead
size_t queue_open_calls(const struct queue *q); // sent and not completed

// The outcome of a call, where there is more than one.
enum queue_word {
    QUEUE_OK,
    QUEUE_DUPLICATE,      // admit: the job is here already and not finished
    QUEUE_DUPLICATE_DONE, // admit: it is finished; its event was sent again
    QUEUE_ID_CONFLICT,    // admit, reject: the id belongs to another job, which was left alone
    QUEUE_STALE,          // another attempt owns the job, or it is finished
    QUEUE_UNKNOWN,        // no such job, or its record has expired
    QUEUE_GONE,           // claim: not ready any more
    QUEUE_LATER,          // claim: over the byte budget, ask again; split: joins names it again
    QUEUE_GAP,            // checkpoint, stream: `number` bytes are there, fewer than the offset
    QUEUE_READY,          // nack, reap: back in the queue. promote: a scheduled job became ready
    QUEUE_RETRY,          // fail: in the queue again after a backoff of `number` ms
    QUEUE_DEAD,           // reject, fail, nack, reap: a dead letter; its result says why
    QUEUE_CANCELLED,      // cancel, fail, nack, reap: ended as cancelled
    QUEUE_EXPIRED,        // promote, fail, nack, reap: ended, its deadline had passed; renew:
                          // lease renewed, and the group should be told so
    QUEUE_CANCEL,         // renew: lease renewed, and the job is to be cancelled; promote: tell the
                          // group that the deadline has passed
    QUEUE_RUNNING,        // cancel: tell `owner` to drop `number` (the attempt); promote: the same
                          // of a child whose parent has ended
    QUEUE_DONE,           // cancel: too late
};

// One inbox entry that was taken and waits for admit, reject or cancel. Its bytes lie in `raw`.
struct queue_message {
    const char *tenant;
    uint64_t seq; // sequence number: the order of arrival
    const uint8_t *bytes; // NULL: larger than JOB_MESSAGE_MAX; reject it
    size_t n_bytes;
};

// A ready job as dispatch sees it.
struct queue_header {
    const char *id;
    uint64_t seq;
    uint64_t need_blocks, n_prompt, max_tokens;
    int64_t deadline_ms; // 0: none
    uint32_t starts;     // attempts so far
    bool poison;         // its group was lost three times: run it alone
    int64_t waited_ms;   // since it was ready first
};

// What claim says about one of the jobs that it was asked for.
struct queue_job {
    enum queue_word word; // QUEUE_OK, _GONE or _LATER: then only tenant and id are set
    const char *tenant, *id;
    uint64_t attempt; // the fencing token: never repeated in the queue's life
    uint64_t seq;
    const uint8_t *bytes; // the message
    size_t n_bytes;
    const uint8_t *checkpoint; // tokens so far, as given to queue_checkpoint
    size_t n_checkpoint;
    uint32_t starts, fails, lost; // attempts with this one; retryable failures; groups lost
    int class;
    uint64_t need_blocks, n_prompt, max_tokens;
    int64_t admitted_ms, deadline_ms, ttl_ms;
    bool poison, stream;
    const char *custom_id, *batch;
    const char *prior; // usage of what was done for it before, "prompt cached completion"; or ""
};

// A job that was split, or is to be, and can be taken on.
struct queue_join {
    const char *tenant, *id;
    int level;      // reached; 0: none
    int n_children; // there
};

// The result of a child.
struct queue_child_result {
    int index;            // from 1 on
    const uint8_t *bytes; // NULL: it is gone
    size_t n_bytes;
};

// What happened to one job: renew (in the order asked), reap and promote.
struct queue_verdict {
    enum queue_word word;
    const char *tenant, *id;
    const char *owner; // reap, promote
    uint64_t attempt;
    uint64_t need_blocks; // renew: of the job, whoever runs it; 0: its record is gone
};

// What Redis says of a tenant; budgets: 0 for none.
struct queue_tenant {
    const char *name;
    uint32_t weight;
    uint64_t max_bytes, max_jobs, max_tokens;
    bool paused;
    uint64_t bytes; // of its messages that wait or run
};

// A pipeline that is paused.
struct queue_pause {
    const char *model;
    uint64_t pipeline;
};

// Pointers are valid during the callback.
struct queue_reply {
    struct error error; // error.status OK: the call was executed
    enum queue_word word;
    uint64_t number;   // take: entries left in the inbox; tenants: 1 if the queue is paused
    uint64_t shown;    // stream: bytes of the text that are published
    const char *owner; // cancel
    size_t n;          // entries of the array that the call fills
    const struct queue_message *messages; // take, recover
    const struct queue_header *headers;   // window
    const struct queue_job *jobs;         // claim
    const struct queue_verdict *verdicts; // renew, reap, promote
    const struct queue_tenant *tenants;   // tenants
    const struct queue_pause *pauses;     // pauses
    const struct queue_join *joins;                 // joins
    const struct queue_child_result *results;       // gather
    const uint8_t *message;                         // gather: the parent's; NULL: not asked for
    size_t n_message;
    const char *prior;                              // gather: as queue_job's
    struct queue_stats stats;
};

typedef void queue_fn(void *arg, const struct queue_reply *reply);

// --- ingest

// Moves up to max_n entries of a tenant's inbox, at least one and at most max_bytes, to `raw`; none
// while the tenant is over its budget in bytes, or all are over max_total (0: no limit).
enum status queue_take(struct queue *q, const char *tenant, size_t max_n, size_t max_bytes,
                       uint64_t max_total, queue_fn *fn, void *arg);

// Entries that were taken and never admitted (an earlier broker died), seq > after, in their order.
enum status queue_recover(struct queue *q, uint64_t after, size_t max_n, size_t max_bytes,
                          queue_fn *fn, void *arg);

struct queue_admit {
    const char *tenant, *id;
    uint64_t seq;
    int class; // 0 first
    const char *body_hash; // hex; equal hashes mean the same job
    uint64_t need_blocks, n_prompt, max_tokens; // need 0: it is to be split first
    int64_t at_ms, deadline_ms; // since 1970, 0: none
    int64_t ttl_ms;             // life of the result; 0: RESULT_TTL_MS
    int attempts;               // 1..JOB_ATTEMPTS_MAX
    bool stream;
    const char *custom_id, *batch; // NULL: none
    const char *model;          // its name
};

// QUEUE_OK, _DUPLICATE, _DUPLICATE_DONE, _ID_CONFLICT, _UNKNOWN (no such entry).
enum status queue_admit(struct queue *q, const struct queue_admit *job, queue_fn *fn, void *arg);

struct queue_reject {
    const char *tenant;
    uint64_t seq;
    const char *id;            // NULL: it could not be read
    const char *custom_id;     // NULL: none
    const char *code, *text;   // of the error: snake_case, a sentence
    const uint8_t *result;     // msgpack; NULL: made from code and text
    size_t n_result;
};

// Makes a message a dead letter with a result that says why. QUEUE_DEAD, _ID_CONFLICT (the id
// belongs to a job: it is kept under raw-<seq>), _UNKNOWN.
enum status queue_reject(struct queue *q, const struct queue_reject *r, queue_fn *fn, void *arg);

// Cancels a job; seq: the cancel's own entry, which is dropped (0: none). Call it after the admits
// of entries that came before. QUEUE_CANCELLED, _RUNNING, _DONE, _UNKNOWN.
enum status queue_cancel(struct queue *q, const char *tenant, uint64_t seq, const char *id,
                         queue_fn *fn, void *arg);

// --- dispatch

// Ready jobs of a class, tenant and model in order of arrival, seq > after.
enum status queue_window(struct queue *q, int class, const char *tenant, const char *model,
                         uint64_t after, size_t limit, queue_fn *fn, void *arg);

struct queue_key {
    const char *owner; // who will have it, for the record
    const char *tenant, *id;
};

// Starts an attempt of each job that is still ready. At most max_bytes of messages and checkpoints,
// at least one job. `claim` (not 0) names this call within the term: repeated with the same number
// it reads the same attempts back.
enum status queue_claim(struct queue *q, uint64_t claim, int64_t lease_ms, size_t max_bytes,
                        const struct queue_key *keys, size_t n, queue_fn *fn, void *arg);

// --- attempts

struct queue_attempt {
    const char *tenant, *id;
    uint64_t attempt;
};

// Each lease ends lease_ms from now. QUEUE_OK, _CANCEL, _EXPIRED, _STALE for each.
enum status queue_renew(struct queue *q, int64_t lease_ms, const struct queue_attempt *attempts,
                        size_t n, queue_fn *fn, void *arg);

// Bytes at an offset of the job's checkpoint, which outlives the attempt; what is there already is
// not written again. QUEUE_OK (`number`: bytes there now), _GAP, _STALE.
enum status queue_checkpoint(struct queue *q, const struct queue_attempt *a, uint64_t offset,
                             const uint8_t *bytes, size_t n, queue_fn *fn, void *arg);

// Text of a job with `stream`, at its offset in the whole text.
struct queue_text {
    uint64_t offset;
    const char *bytes;
    size_t n;
};

// A checkpoint, and the text that its tokens released: what lies beyond the bytes that are
// published is published. QUEUE_OK (`number` and `shown`: bytes there now), _GAP, _STALE.
enum status queue_stream(struct queue *q, const struct queue_attempt *a, uint64_t offset,
                         const uint8_t *bytes, size_t n, const struct queue_text *text,
                         queue_fn *fn, void *arg);

enum queue_end { QUEUE_END_DONE, QUEUE_END_CANCELLED, QUEUE_END_EXPIRED };

struct queue_outcome {
    enum queue_end end;
    const uint8_t *result; // msgpack
    size_t n_result;
    struct queue_text text; // of the result; published before the event if the job streams
};

// Publishes the result and ends the job. QUEUE_OK (also if this attempt ended it before), _STALE,
// _UNKNOWN.
enum status queue_done(struct queue *q, const struct queue_attempt *a,
                       const struct queue_outcome *o, queue_fn *fn, void *arg);

struct queue_failure {
    const char *code, *text;
    bool retryable;
    const uint8_t *result; // msgpack, for the last attempt; NULL: made from code and text
    size_t n_result;
};

// QUEUE_RETRY, _DEAD, _CANCELLED, _EXPIRED, _STALE, _UNKNOWN.
enum status queue_fail(struct queue *q, const struct queue_attempt *a,
                       const struct queue_failure *f, queue_fn *fn, void *arg);

// Gives a job back at once, at its old place. lost: its group is gone, which three times makes it
// poison, and the fourth a dead letter. QUEUE_READY, _DEAD, _CANCELLED, _EXPIRED, _STALE, _UNKNOWN.
enum status queue_nack(struct queue *q, const struct queue_attempt *a, bool lost, queue_fn *fn,
                       void *arg);

// --- time

// Gives back up to `limit` jobs whose leases have ended.
enum status queue_reap(struct queue *q, size_t limit, queue_fn *fn, void *arg);

// Scheduled and backed-off jobs that are due become ready; jobs past their deadline expire; dead
// letters past their time are dropped.
enum status queue_promote(struct queue *q, size_t limit, queue_fn *fn, void *arg);

enum status queue_stats(struct queue *q, queue_fn *fn, void *arg);

// Gives the lease back, which is not renewed any more: a standby leads at once. The last call.
enum status queue_resign(struct queue *q, queue_fn *fn, void *arg);

// What the fleet looks like (JSON), for as long as it is not said again for ttl_ms.
enum status queue_fleet(struct queue *q, int64_t ttl_ms, const char *record, size_t n, queue_fn *fn,
                        void *arg);

// The tenants whose inboxes are served, and what is paused.
enum status queue_tenants(struct queue *q, queue_fn *fn, void *arg);

// The pipelines that are paused.
enum status queue_pauses(struct queue *q, queue_fn *fn, void *arg);

// The word's name, for logs.
const char *queue_word_name(enum queue_word word);

#endif
