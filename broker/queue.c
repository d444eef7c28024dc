#include "broker/queue.h"

#include "broker/queue_call.h"
#include "broker/queue_connection.h"
#include "broker/queue_watch.h"
#include "common/utf8.h"

#include <czmq.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    TIMEOUT_MS = 10000,
    WATCH_EVERY_MS = 200,  // how often a lost watch is begun again
    CALLS_MAX = 65536,     // open at once
    CALL_ARGS_MAX = 32768, // of one call; the functions take up to 10,000 jobs
    RANDOM_TOP = 1000000,  // fail's jitter is below
};
// Of all open calls: a largest result and some more. Hiredis moves what is left to send after each
// write, so that much more would take it seconds.
#define CALL_BYTES_MAX (WIRE_BODY_MAX + 16 * MIB)

struct call {
    struct queue *queue;
    enum queue_form form;
    size_t n_asked;
    size_t n_bytes;
    queue_fn *fn;
    void *arg;
};

struct queue {
    struct queue_connection connection;
    struct queue_watch watch;
    zloop_t *loop;
    int watch_timer;
    size_t n_calls, n_bytes; // open, and what their arguments hold in hiredis' buffer at most
    bool closing;
    uint64_t random; // state of the jitter's generator
};

// --- one call

static void on_reply(struct redisAsyncContext *ac, void *reply, void *arg)
{
    struct call *call = arg;
    struct queue *q = call->queue;
    struct queue_reply r;
    void *storage;
    (void) ac;
    queue_connection_replied(&q->connection, reply);
    queue_reply_decode(call->form, call->n_asked, reply, &r, &storage);
    if (q->closing) error_set(&r.error, ERR_ABORTED, NULL, "the queue was closed");
    q->n_calls--;
    q->n_bytes -= call->n_bytes;
    if (reply != NULL && r.error.status != OK) queue_connection_judge(&q->connection, &r.error);
    call->fn(call->arg, &r);
    free(storage);
    free(call);
}

void put_bytes(struct args *a, const void *bytes, size_t n)
{
    check(a->n < a->room);
    a->at[a->n] = bytes != NULL ? bytes : "";
    a->sizes[a->n++] = bytes != NULL ? n : 0;
}

void put(struct args *a, const char *text)
{
    put_bytes(a, text, text != NULL ? strlen(text) : 0);
}

// Redis makes a result of it, which must be UTF-8.
void put_sentence(struct args *a, const char *text)
{
    put_bytes(a, text, text != NULL ? utf8_valid_prefix(text, strlen(text)) : 0);
}

void put_number(struct args *a, uint64_t number)
{
    char *digits = a->digits[a->n];
    int n = snprintf(digits, CALL_NUMBER_SIZE, "%llu", (unsigned long long) number);
    put_bytes(a, digits, (size_t) n);
}

void put_ms(struct args *a, int64_t ms) { put_number(a, ms > 0 ? (uint64_t) ms : 0); }

// Room for n arguments behind the fixed ones. False without memory.
static bool args_room(struct args *a, size_t n)
{
    a->n = 0;
    a->room = CALL_FIXED_ARGS + n;
    a->memory = NULL;
    if (a->room <= CALL_SMALL_ARGS) {
        a->at = a->small_at;
        a->sizes = a->small_sizes;
        a->digits = a->small_digits;
        return true;
    }
    a->memory = malloc(a->room * (sizeof *a->at + sizeof *a->sizes + CALL_NUMBER_SIZE));
    if (a->memory == NULL) return false;
    a->at = a->memory;
    a->sizes = (size_t *) (a->at + a->room);
    a->digits = (char (*)[CALL_NUMBER_SIZE]) (a->sizes + a->room);
    return true;
}

enum status call_begin(struct queue *q, struct args *a, const char *function, size_t n)
{
    a->memory = NULL;
    if (!queue_ready(q)) return ERR_UNAVAILABLE;
    if (q->n_calls >= CALLS_MAX || n > CALL_ARGS_MAX) return ERR_LIMIT;
    if (!args_room(a, n)) return ERR_NOMEM;
    put(a, "FCALL");
    put(a, function);
    put(a, "1");
    put(a, q->connection.key);
    if (n > 0) put_number(a, q->connection.lead.term);
    return OK;
}

static enum status send_call(struct queue *q, const struct args *a, enum queue_form form,
                             size_t n_asked, queue_fn *fn, void *arg)
{
    size_t n_bytes = 0;
    check(a->n == a->room);
    for (size_t i = 0; i < a->n; i++) n_bytes += a->sizes[i] + 16; // and the protocol's own
    if (q->n_bytes + n_bytes > CALL_BYTES_MAX) return ERR_LIMIT;
    struct call *call = malloc(sizeof *call);
    if (call == NULL) return ERR_NOMEM;
    *call = (struct call){q, form, n_asked, n_bytes, fn, arg};
    struct error e;
    enum status status =
        queue_connection_send(&q->connection, (int) a->n, a->at, a->sizes, on_reply, call, &e);
    if (status != OK) {
        free(call);
        return status;
    }
    q->n_calls++;
    q->n_bytes += n_bytes;
    return OK;
}

enum status call_end(struct queue *q, struct args *a, enum queue_form form, size_t n_asked,
                     queue_fn *fn, void *arg)
{
    enum status status = send_call(q, a, form, n_asked, fn, arg);
    free(a->memory);
    return status;
}

// --- ingest

static enum status take_from(struct queue *q, const char *function, const char *tenant,
                             uint64_t after, size_t max_n, size_t max_bytes, uint64_t max_total,
                             queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, function, tenant != NULL ? 6 : 5));
    if (tenant != NULL) put(&a, tenant);
    else put_number(&a, after);
    put_number(&a, max_n);
    put_number(&a, max_bytes);
    put_number(&a, JOB_MESSAGE_MAX);
    if (tenant != NULL) put_number(&a, max_total);
    return call_end(q, &a, QUEUE_FORM_MESSAGES, 0, fn, arg);
}

enum status queue_take(struct queue *q, const char *tenant, size_t max_n, size_t max_bytes,
                       uint64_t max_total, queue_fn *fn, void *arg)
{
    return take_from(q, "take", tenant, 0, max_n, max_bytes, max_total, fn, arg);
}

enum status queue_recover(struct queue *q, uint64_t after, size_t max_n, size_t max_bytes,
                          queue_fn *fn, void *arg)
{
    return take_from(q, "recover", NULL, after, max_n, max_bytes, 0, fn, arg);
}

enum status queue_admit(struct queue *q, const struct queue_admit *job, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "admit", 17));
    put(&a, job->tenant);
    put_number(&a, job->seq);
    put(&a, job->id);
    put_number(&a, (uint64_t) job->class);
    put(&a, job->body_hash);
    put_number(&a, job->need_blocks);
    put_number(&a, job->n_prompt);
    put_number(&a, job->max_tokens);
    put_ms(&a, job->at_ms);
    put_ms(&a, job->deadline_ms);
    put_ms(&a, job->ttl_ms > 0 ? job->ttl_ms : RESULT_TTL_MS);
    put_number(&a, (uint64_t) job->attempts);
    put_number(&a, job->stream);
    put(&a, job->custom_id);
    put(&a, job->batch);
    put(&a, job->model);
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}

enum status queue_reject(struct queue *q, const struct queue_reject *r, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "reject", 8));
    put(&a, r->tenant);
    put_number(&a, r->seq);
    put(&a, r->id);
    put(&a, r->custom_id);
    put(&a, r->code);
    put_sentence(&a, r->text);
    put_bytes(&a, r->result, r->n_result);
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}

enum status queue_cancel(struct queue *q, const char *tenant, uint64_t seq, const char *id,
                         queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "cancel", 4));
    put(&a, tenant);
    put_number(&a, seq);
    put(&a, id);
    return call_end(q, &a, QUEUE_FORM_CANCEL, 0, fn, arg);
}

// --- dispatch

enum status queue_window(struct queue *q, int class, const char *tenant, const char *model,
                         uint64_t after, size_t limit, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "window", 6));
    put_number(&a, (uint64_t) class);
    put(&a, tenant);
    put(&a, model);
    put_number(&a, after);
    put_number(&a, limit);
    return call_end(q, &a, QUEUE_FORM_HEADERS, 0, fn, arg);
}

enum status queue_claim(struct queue *q, uint64_t claim, int64_t lease_ms, size_t max_bytes,
                        const struct queue_key *keys, size_t n, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "claim", 4 + 3 * n));
    put_ms(&a, lease_ms);
    put_number(&a, max_bytes);
    put_number(&a, claim);
    for (size_t i = 0; i < n; i++) {
        put(&a, keys[i].owner);
        put(&a, keys[i].tenant);
        put(&a, keys[i].id);
    }
    return call_end(q, &a, QUEUE_FORM_JOBS, n, fn, arg);
}

// --- attempts

static void put_attempt(struct args *a, const struct queue_attempt *attempt)
{
    put(a, attempt->tenant);
    put(a, attempt->id);
    put_number(a, attempt->attempt);
}

enum status queue_renew(struct queue *q, int64_t lease_ms, const struct queue_attempt *attempts,
                        size_t n, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "renew", 2 + 3 * n));
    put_ms(&a, lease_ms);
    for (size_t i = 0; i < n; i++) put_attempt(&a, &attempts[i]);
    return call_end(q, &a, QUEUE_FORM_RENEWED, n, fn, arg);
}

enum status queue_checkpoint(struct queue *q, const struct queue_attempt *attempt, uint64_t offset,
                             const uint8_t *bytes, size_t n, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "checkpoint", 6));
    put_attempt(&a, attempt);
    put_number(&a, offset);
    put_bytes(&a, bytes, n);
    return call_end(q, &a, QUEUE_FORM_NUMBER, 0, fn, arg);
}

static void put_text(struct args *a, const struct queue_text *text)
{
    put_number(a, text->offset);
    put_bytes(a, text->bytes, text->n);
}

enum status queue_stream(struct queue *q, const struct queue_attempt *attempt, uint64_t offset,
                         const uint8_t *bytes, size_t n, const struct queue_text *text,
                         queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "stream", 8));
    put_attempt(&a, attempt);
    put_number(&a, offset);
    put_bytes(&a, bytes, n);
    put_text(&a, text);
    return call_end(q, &a, QUEUE_FORM_SAVED, 0, fn, arg);
}

enum status queue_done(struct queue *q, const struct queue_attempt *attempt,
                       const struct queue_outcome *o, queue_fn *fn, void *arg)
{
    static const char *const ends[] = {"done", "cancelled", "expired"};
    struct args a;
    try(call_begin(q, &a, "done", 8));
    put_attempt(&a, attempt);
    put(&a, ends[o->end]);
    put_bytes(&a, o->result, o->n_result);
    put_text(&a, &o->text);
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}

// Xorshift: jitter needs no more.
static uint64_t next_random(struct queue *q)
{
    q->random ^= q->random << 13;
    q->random ^= q->random >> 7;
    q->random ^= q->random << 17;
    return q->random;
}

enum status queue_fail(struct queue *q, const struct queue_attempt *attempt,
                       const struct queue_failure *f, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "fail", 11));
    put_attempt(&a, attempt);
    put(&a, f->code);
    put_sentence(&a, f->text);
    put_number(&a, f->retryable);
    put_ms(&a, RETRY_BASE_MS);
    put_ms(&a, RETRY_MOST_MS);
    put_number(&a, next_random(q) % RANDOM_TOP);
    put_bytes(&a, f->result, f->n_result);
    return call_end(q, &a, QUEUE_FORM_NUMBER, 0, fn, arg);
}

enum status queue_nack(struct queue *q, const struct queue_attempt *attempt, bool lost,
                       queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "nack", 5));
    put_attempt(&a, attempt);
    put_number(&a, lost);
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}

// --- time

static enum status tick(struct queue *q, const char *function, size_t limit, queue_fn *fn,
                        void *arg)
{
    struct args a;
    try(call_begin(q, &a, function, 2));
    put_number(&a, limit);
    return call_end(q, &a, QUEUE_FORM_VERDICTS, 0, fn, arg);
}

enum status queue_reap(struct queue *q, size_t limit, queue_fn *fn, void *arg)
{
    return tick(q, "reap", limit, fn, arg);
}

enum status queue_promote(struct queue *q, size_t limit, queue_fn *fn, void *arg)
{
    return tick(q, "promote", limit, fn, arg);
}

enum status queue_stats(struct queue *q, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "stats", 0));
    return call_end(q, &a, QUEUE_FORM_STATS, 0, fn, arg);
}

enum status queue_tenants(struct queue *q, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "tenants", 0));
    return call_end(q, &a, QUEUE_FORM_TENANTS, 0, fn, arg);
}

enum status queue_pauses(struct queue *q, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "pauses", 0));
    return call_end(q, &a, QUEUE_FORM_PAUSES, 0, fn, arg);
}

enum status queue_resign(struct queue *q, queue_fn *fn, void *arg)
{
    struct args a;
    try(call_begin(q, &a, "resign", 1));
    q->connection.lead.resigned = true;
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}

enum status queue_fleet(struct queue *q, int64_t ttl_ms, const char *record, size_t n, queue_fn *fn,
                        void *arg)
{
    struct args a;
    try(call_begin(q, &a, "fleet", 3));
    put_ms(&a, ttl_ms);
    put_bytes(&a, record, n);
    return call_end(q, &a, QUEUE_FORM_WORD, 0, fn, arg);
}

// --- life

static void on_pushed(void *arg, const char *tenant)
{
    struct queue *q = arg;
    if (queue_ready(q)) q->connection.events.inbox(q->connection.events.arg, tenant);
}

static int on_watch(zloop_t *loop, int timer, void *arg)
{
    struct queue *q = arg;
    (void) timer;
    if (queue_ready(q)) queue_watch_start(&q->watch, loop);
    return 0;
}

enum status queue_create(struct queue **self, zloop_t *loop, const struct queue_options *o,
                         const struct queue_events *events, struct error *e)
{
    struct redis_url url;
    *self = NULL;
    try(redis_url_parse(o->url, &url, e));
    try(redis_name_check("queue's name", o->name, QUEUE_NAME_MAX, e));
    try(queue_lead_check_name(o->owner, e));
    struct queue *q = calloc(1, sizeof *q);
    if (q == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a queue");
    q->loop = loop;
    if (getrandom(&q->random, sizeof q->random, 0) < 0 || q->random == 0) q->random = 1;
    q->connection = (struct queue_connection){
        .url = url,
        .accept_loss = o->accept_loss,
        .timeout_ms = o->timeout_ms > 0 ? o->timeout_ms : TIMEOUT_MS,
        .events = *events,
        .lead = {.lease_ms = o->lead_ms > 0 ? o->lead_ms : LEAD_MS},
    };
    snprintf(q->connection.lead.owner, sizeof q->connection.lead.owner, "%s", o->owner);
    snprintf(q->connection.key, sizeof q->connection.key, "ps:{%s}:term", o->name);
    queue_watch_init(&q->watch, &q->connection.url, o->name, on_pushed, q);
    queue_connection_init(&q->connection, loop);
    q->watch_timer = zloop_timer(loop, WATCH_EVERY_MS, 0, on_watch, q);
    check(q->watch_timer > 0);
    *self = q;
    return OK;
}

void queue_destroy(struct queue **self)
{
    struct queue *q = *self;
    if (q == NULL) return;
    *self = NULL;
    q->closing = true;
    zloop_timer_end(q->loop, q->watch_timer);
    queue_watch_stop(&q->watch);
    queue_connection_close(&q->connection);
    free(q);
}

bool queue_ready(const struct queue *q) { return q->connection.state == CONNECTION_READY; }

bool queue_stands_by(const struct queue *q) { return q->connection.state == CONNECTION_STANDBY; }

uint64_t queue_term(const struct queue *q) { return q->connection.lead.term; }

size_t queue_open_calls(const struct queue *q) { return q->n_calls; }
