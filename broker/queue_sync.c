#include "broker/queue_sync.h"

#include "broker/redis_tls.h"
#include "common/clock.h"
#include "common/job.h"

#include <hiredis/hiredis.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CONNECT_MS = 5000,
    REPLY_MS = 15000,     // longer than the longest XREAD blocks
    BLOCK_MS = 1000,      // of one XREAD: how often a long wait looks around
    RETRY_MS = 200,       // between tries while Redis is away
    LOOK_MS = 5000,       // a wait reads the result itself this often: the event may be long gone
    PIPELINE = 256,       // commands sent before their replies are read
    PIPELINE_BYTES = 4 << 20,
    COMMAND_MAX = 12,
};

struct queue_sync {
    struct redis_url url;
    char name[QUEUE_NAME_MAX + 1];
    redisContext *c; // NULL: not connected
};

// --- connection

static void drop(struct queue_sync *s)
{
    if (s->c != NULL) redisFree(s->c);
    s->c = NULL;
}

// The connection is gone: says why and forgets it.
static enum status lost(struct queue_sync *s, struct error *e)
{
    enum status status = redis_connection_error(s->c, &s->url, e);
    drop(s);
    return status;
}

// One command and its reply. ERR_UNAVAILABLE: the outcome is unknown. Else the caller frees *reply,
// also when it is an error reply, which is returned as a status.
static enum status ask(struct queue_sync *s, int n, const char **words, const size_t *sizes,
                       redisReply **reply, struct error *e)
{
    *reply = redisCommandArgv(s->c, n, words, sizes);
    if (*reply == NULL) return lost(s, e);
    return redis_reply_check(*reply, e);
}

static enum status ask_and_forget(struct queue_sync *s, int n, const char **words, struct error *e)
{
    redisReply *reply;
    enum status status = ask(s, n, words, NULL, &reply, e);
    if (reply != NULL) freeReplyObject(reply);
    return status;
}

static enum status log_in(struct queue_sync *s, struct error *e)
{
    const struct redis_url *url = &s->url;
    char db[16];
    if (url->password[0] != '\0') {
        const char *words[3] = {"AUTH", url->user, url->password};
        if (url->user[0] == '\0') words[1] = url->password;
        try(ask_and_forget(s, url->user[0] != '\0' ? 3 : 2, words, e));
    }
    if (url->db != 0) {
        snprintf(db, sizeof db, "%d", url->db);
        try(ask_and_forget(s, 2, (const char *[]){"SELECT", db}, e));
    }
    // A producer may lack the right to PING, which is an answer too.
    struct error why = {0};
    enum status status = ask_and_forget(s, 1, (const char *[]){"PING"}, &why);
    if (status == OK || strcmp(why.code, "redis_forbidden") == 0) return OK;
    if (e != NULL) *e = why;
    return status;
}

static enum status connect_now(struct queue_sync *s, struct error *e)
{
    if (s->c != NULL) return OK;
    try(redis_connect(&s->c, &s->url, CONNECT_MS, REPLY_MS, e));
    enum status status = log_in(s, e);
    if (status != OK) drop(s);
    return status;
}

enum status queue_sync_open(struct queue_sync **self, const char *url, const char *queue,
                            struct error *e)
{
    struct redis_url parsed;
    *self = NULL;
    try(redis_url_parse(url, &parsed, e));
    try(redis_name_check("name of the queue", queue, QUEUE_NAME_MAX, e));
    struct queue_sync *s = calloc(1, sizeof *s);
    if (s == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a connection to Redis");
    s->url = parsed;
    memcpy(s->name, queue, strlen(queue) + 1);
    enum status status = connect_now(s, e);
    if (status == OK) *self = s;
    else queue_sync_close(&s);
    return status;
}

void queue_sync_close(struct queue_sync **self)
{
    if (*self == NULL) return;
    drop(*self);
    free(*self);
    *self = NULL;
}

enum status queue_sync_ask(struct queue_sync *s, int n, const char **words,
                           struct redisReply **reply, struct error *e)
{
    *reply = NULL;
    try(connect_now(s, e));
    return ask(s, n, words, NULL, reply, e);
}

// --- keys

enum status queue_sync_key(const struct queue_sync *s, char key[QUEUE_KEY_MAX], const char *kind,
                           const char *tenant, const char *id, struct error *e)
{
    try(redis_name_check("tenant", tenant, TENANT_MAX, e));
    if (id != NULL) try(redis_name_check("id", id, JOB_ID_MAX, e));
    snprintf(key, QUEUE_KEY_MAX, "ps:{%s}:%s:%s%s%s", s->name, kind, tenant, id != NULL ? ":" : "",
             id != NULL ? id : "");
    return OK;
}

static enum status unknown_form(const char *what, struct error *e)
{
    return error_set(e, ERR_IO, "redis_reply", "Redis answered %s in an unknown form", what);
}

// --- many commands at once

// Reads n replies. The first error is the result, but all replies are read, so that the connection
// stays in step. each: called for the replies before the first error.
static enum status read_replies(struct queue_sync *s, size_t n,
                                enum status (*each)(void *arg, const redisReply *r,
                                                    struct error *e),
                                void *arg, struct error *e)
{
    enum status status = OK;
    for (size_t i = 0; i < n; i++) {
        void *reply = NULL;
        if (redisGetReply(s->c, &reply) != REDIS_OK || reply == NULL) {
            enum status gone = lost(s, status == OK ? e : NULL);
            return status == OK ? gone : status;
        }
        if (status == OK) status = redis_reply_check(reply, e);
        if (status == OK) status = each(arg, reply, e);
        freeReplyObject(reply);
    }
    return status;
}

static enum status append(struct queue_sync *s, int n, const char **words, const size_t *sizes,
                          struct error *e)
{
    if (redisAppendCommandArgv(s->c, n, words, sizes) == REDIS_OK) return OK;
    return lost(s, e);
}

// --- to the queue

static enum status count_push(void *arg, const redisReply *r, struct error *e)
{
    if (r->type != REDIS_REPLY_INTEGER) return unknown_form("RPUSH", e);
    ++*(size_t *) arg;
    return OK;
}

enum status queue_sync_push_many(struct queue_sync *s, const char *tenant,
                                 const struct queue_bytes *messages, size_t n, size_t *n_pushed,
                                 struct error *e)
{
    char key[QUEUE_KEY_MAX];
    *n_pushed = 0;
    try(queue_sync_key(s, key, "in", tenant, NULL, e));
    try(connect_now(s, e));
    for (size_t i = 0; i < n;) {
        size_t sent = 0, bytes = 0;
        for (; i < n && sent < PIPELINE && bytes < PIPELINE_BYTES; i++, sent++) {
            const char *words[] = {"RPUSH", key, messages[i].bytes};
            const size_t sizes[] = {5, strlen(key), messages[i].n};
            try(append(s, 3, words, sizes, e));
            bytes += messages[i].n;
        }
        try(read_replies(s, sent, count_push, n_pushed, e));
    }
    return OK;
}

enum status queue_sync_push(struct queue_sync *s, const char *tenant, const void *bytes, size_t n,
                            struct error *e)
{
    size_t n_pushed;
    struct queue_bytes message = {bytes, n};
    return queue_sync_push_many(s, tenant, &message, 1, &n_pushed, e);
}

enum status queue_sync_cancel(struct queue_sync *s, const char *tenant, const char *id,
                              struct error *e)
{
    struct job job = job_default();
    struct buffer message;
    try(redis_name_check("id", id, JOB_ID_MAX, e));
    memcpy(job.id, id, strlen(id) + 1);
    job.op = JOB_CANCEL;
    buffer_init(&message, 4 * KIB);
    enum status status = job_encode(&job, &message, e);
    if (status == OK) status = queue_sync_push(s, tenant, message.data, message.n, e);
    buffer_deinit(&message);
    return status;
}

// --- results

struct results {
    uint8_t **bytes;
    size_t *sizes;
    size_t at;
};

static enum status keep_result(void *arg, const redisReply *r, struct error *e)
{
    struct results *to = arg;
    size_t i = to->at++;
    if (r->type == REDIS_REPLY_NIL) return OK;
    if (r->type != REDIS_REPLY_STRING) return unknown_form("GET", e);
    to->sizes[i] = (size_t) r->len;
    to->bytes[i] = malloc(to->sizes[i] > 0 ? to->sizes[i] : 1);
    if (to->bytes[i] == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a result");
    memcpy(to->bytes[i], r->str, to->sizes[i]);
    return OK;
}

static enum status get_many(struct queue_sync *s, const char *tenant, const char *const *ids,
                            size_t count, struct results *to, struct error *e)
{
    try(connect_now(s, e));
    for (size_t i = 0; i < count;) {
        size_t sent = 0;
        for (; i < count && sent < PIPELINE; i++, sent++) {
            char key[QUEUE_KEY_MAX];
            try(queue_sync_key(s, key, "r", tenant, ids[i], e));
            try(append(s, 2, (const char *[]){"GET", key}, NULL, e));
        }
        try(read_replies(s, sent, keep_result, to, e));
    }
    return OK;
}

enum status queue_sync_get_many(struct queue_sync *s, const char *tenant, const char *const *ids,
                                size_t count, uint8_t **bytes, size_t *sizes, struct error *e)
{
    struct results to = {bytes, sizes, 0};
    memset(bytes, 0, count * sizeof *bytes);
    memset(sizes, 0, count * sizeof *sizes);
    // A name is checked before its command is appended: nothing may be left in the pipeline.
    for (size_t i = 0; i < count; i++) try(redis_name_check("id", ids[i], JOB_ID_MAX, e));
    try(redis_name_check("tenant", tenant, TENANT_MAX, e));
    enum status status = get_many(s, tenant, ids, count, &to, e);
    for (size_t i = 0; status != OK && i < count; i++) {
        free(bytes[i]);
        bytes[i] = NULL;
    }
    return status;
}

enum status queue_sync_get(struct queue_sync *s, const char *tenant, const char *id,
                           uint8_t **bytes, size_t *n, struct error *e)
{
    return queue_sync_get_many(s, tenant, &id, 1, bytes, n, e);
}

// --- events

// An entry of a stream, [id, [name, value, ...]], or NULL.
static const redisReply *entry_fields(const redisReply *entry)
{
    if (entry->type != REDIS_REPLY_ARRAY || entry->elements != 2) return NULL;
    const redisReply *id = entry->element[0], *fields = entry->element[1];
    if (id->type != REDIS_REPLY_STRING || (size_t) id->len >= QUEUE_EVENT_ID_MAX) return NULL;
    return fields->type == REDIS_REPLY_ARRAY ? fields : NULL;
}

static void copy_id(char last[QUEUE_EVENT_ID_MAX], const redisReply *entry)
{
    memcpy(last, entry->element[0]->str, (size_t) entry->element[0]->len + 1);
}

enum status queue_sync_last_event(struct queue_sync *s, const char *tenant,
                                  char last[QUEUE_EVENT_ID_MAX], struct error *e)
{
    char key[QUEUE_KEY_MAX];
    redisReply *r;
    strcpy(last, "0-0");
    try(queue_sync_key(s, key, "ev", tenant, NULL, e));
    try(connect_now(s, e));
    const char *words[] = {"XREVRANGE", key, "+", "-", "COUNT", "1"};
    enum status status = ask(s, 6, words, NULL, &r, e);
    if (status == OK && r->type != REDIS_REPLY_ARRAY) status = unknown_form("XREVRANGE", e);
    if (status == OK && r->elements > 0) {
        if (entry_fields(r->element[0]) != NULL) copy_id(last, r->element[0]);
        else status = unknown_form("XREVRANGE", e);
    }
    if (r != NULL) freeReplyObject(r);
    return status;
}

static struct queue_event read_event(const redisReply *fields)
{
    struct queue_event event = {"", "", 0};
    for (size_t i = 0; i + 1 < fields->elements; i += 2) {
        const redisReply *name = fields->element[i], *value = fields->element[i + 1];
        if (name->type != REDIS_REPLY_STRING || value->type != REDIS_REPLY_STRING) continue;
        if (strcmp(name->str, "id") == 0) event.id = value->str;
        if (strcmp(name->str, "event") == 0) event.event = value->str;
        if (strcmp(name->str, "attempt") == 0) event.attempt = strtoull(value->str, NULL, 10);
    }
    return event;
}

typedef bool event_fn(void *arg, const struct queue_event *event);

// Hands the entries of XREAD's reply, [[key, entries]], to fn; *n counts them.
static enum status pass_events(const redisReply *r, char last[QUEUE_EVENT_ID_MAX], event_fn *fn,
                               void *arg, size_t *n, struct error *e)
{
    *n = 0;
    if (r->type == REDIS_REPLY_NIL) return OK;
    if (r->type != REDIS_REPLY_ARRAY || r->elements != 1 ||
        r->element[0]->type != REDIS_REPLY_ARRAY || r->element[0]->elements != 2) {
        return unknown_form("XREAD", e);
    }
    const redisReply *entries = r->element[0]->element[1];
    if (entries->type != REDIS_REPLY_ARRAY) return unknown_form("XREAD", e);
    for (size_t i = 0; i < entries->elements; i++) {
        const redisReply *fields = entry_fields(entries->element[i]);
        if (fields == NULL) return unknown_form("XREAD", e);
        struct queue_event event = read_event(fields);
        copy_id(last, entries->element[i]);
        ++*n;
        if (!fn(arg, &event)) break;
    }
    return OK;
}

// Events that come within block_ms (0: those that are there).
static enum status read_events(struct queue_sync *s, const char *key,
                               char last[QUEUE_EVENT_ID_MAX], size_t limit, int64_t block_ms,
                               event_fn *fn, void *arg, size_t *n, struct error *e)
{
    char count[24], block[24];
    redisReply *r;
    *n = 0;
    try(connect_now(s, e));
    snprintf(count, sizeof count, "%zu", limit);
    snprintf(block, sizeof block, "%lld", (long long) block_ms);
    const char *waits[] = {"XREAD", "COUNT", count, "BLOCK", block, "STREAMS", key, last};
    const char *looks[] = {"XREAD", "COUNT", count, "STREAMS", key, last};
    enum status status =
        block_ms > 0 ? ask(s, 8, waits, NULL, &r, e) : ask(s, 6, looks, NULL, &r, e);
    if (status == OK) status = pass_events(r, last, fn, arg, n, e);
    if (r != NULL) freeReplyObject(r);
    return status;
}

// Milliseconds until `until` (< 0: never), at most `most`, not below 0.
static int64_t left_ms(int64_t until, int64_t most)
{
    if (until < 0) return most;
    int64_t left = until - clock_ms();
    return left < 0 ? 0 : left < most ? left : most;
}

static int64_t until_ms(int64_t timeout_ms)
{
    return timeout_ms < 0 ? -1 : clock_ms() + timeout_ms;
}

enum status queue_sync_events(struct queue_sync *s, const char *tenant,
                              char last[QUEUE_EVENT_ID_MAX], size_t limit, int64_t timeout_ms,
                              bool (*fn)(void *arg, const struct queue_event *event), void *arg,
                              struct error *e)
{
    char key[QUEUE_KEY_MAX];
    int64_t until = until_ms(timeout_ms);
    try(queue_sync_key(s, key, "ev", tenant, NULL, e));
    for (;;) {
        size_t n;
        int64_t block = left_ms(until, BLOCK_MS);
        try(read_events(s, key, last, limit, block, fn, arg, &n, e));
        if (n > 0) return OK;
        if (block == 0) return error_set(e, ERR_TIMEOUT, NULL, "no event came in time");
    }
}

// --- waiting for one job

struct wait {
    const char *id;
    bool mine; // told of conflicts, too
    bool ended, conflict;
};

static bool watch(void *arg, const struct queue_event *event)
{
    struct wait *w = arg;
    if (strcmp(event->id, w->id) != 0) return true;
    bool conflict = strcmp(event->event, "id_conflict") == 0;
    w->conflict = conflict && w->mine;
    w->ended = !conflict;
    return !w->conflict && !w->ended;
}

static void pause_ms(int64_t ms)
{
    if (ms > 0) poll(NULL, 0, (int) ms);
}

// One look: the result if the job has ended. Without `from` the result itself is looked for, too.
static enum status look(struct queue_sync *s, const char *tenant, struct wait *w,
                        char last[QUEUE_EVENT_ID_MAX], int64_t *looked_ms, int64_t until,
                        uint8_t **bytes, size_t *n, struct error *e)
{
    char key[QUEUE_KEY_MAX];
    size_t n_events;
    try(queue_sync_key(s, key, "ev", tenant, NULL, e));
    if (last[0] == '\0') try(queue_sync_last_event(s, tenant, last, e));
    if (!w->mine && !w->ended && clock_ms() >= *looked_ms) {
        try(queue_sync_get(s, tenant, w->id, bytes, n, e));
        if (*bytes != NULL) return OK;
        *looked_ms = clock_ms() + LOOK_MS;
    }
    if (!w->ended && !w->conflict) {
        try(read_events(s, key, last, PIPELINE, left_ms(until, BLOCK_MS), watch, w, &n_events, e));
    }
    if (w->conflict) {
        return error_set(e, ERR_STATE, "id_conflict",
                         "another job with the id %s and another body is in the queue", w->id);
    }
    if (!w->ended) return OK;
    try(queue_sync_get(s, tenant, w->id, bytes, n, e));
    if (*bytes != NULL) return OK;
    return error_set(e, ERR_STATE, "result_gone", "job %s has ended and its result has expired",
                     w->id);
}

enum status queue_sync_wait(struct queue_sync *s, const char *tenant, const char *id,
                            const char *from, int64_t timeout_ms, uint8_t **bytes, size_t *n,
                            struct error *e)
{
    struct wait w = {.id = id, .mine = from != NULL};
    char last[QUEUE_EVENT_ID_MAX] = "";
    int64_t until = until_ms(timeout_ms), looked_ms = 0;
    *bytes = NULL;
    *n = 0;
    try(redis_name_check("id", id, JOB_ID_MAX, e));
    if (from != NULL) snprintf(last, sizeof last, "%s", from);
    for (;;) {
        bool over = left_ms(until, 1) == 0;
        enum status status = look(s, tenant, &w, last, &looked_ms, until, bytes, n, e);
        if (*bytes != NULL || (status != OK && status != ERR_UNAVAILABLE)) return status;
        if (over && status != OK) return status;
        if (over) {
            return error_set(e, ERR_TIMEOUT, NULL,
                             "job %s has not ended within %lld ms (penstock show tells more)",
                             id, (long long) timeout_ms);
        }
        if (status != OK) pause_ms(left_ms(until, RETRY_MS));
    }
}

// --- counts

enum status queue_sync_fcall(struct queue_sync *s, bool reads, const char *function, int n,
                             const char *const *args, struct redisReply **reply, struct error *e)
{
    char key[QUEUE_KEY_MAX];
    const char *words[COMMAND_MAX] = {reads ? "FCALL_RO" : "FCALL", function, "1", key};
    *reply = NULL;
    check(n + 4 <= COMMAND_MAX);
    try(connect_now(s, e));
    snprintf(key, sizeof key, "ps:{%s}:term", s->name);
    for (int i = 0; i < n; i++) words[4 + i] = args[i];
    enum status status = ask(s, 4 + n, words, NULL, reply, e);
    if (status == ERR_UNAVAILABLE && e != NULL && strcmp(e->code, "no_library") == 0) {
        error_set(e, status, "no_library", "no broker has served a queue in this Redis yet");
    }
    return status;
}

enum status queue_sync_stats(struct queue_sync *s, struct queue_stats *stats, struct error *e)
{
    redisReply *r;
    *stats = (struct queue_stats){0};
    enum status status = queue_sync_fcall(s, true, "stats", 0, NULL, &r, e);
    if (status == OK) status = queue_stats_decode(r, stats, e);
    if (r != NULL) freeReplyObject(r);
    return status;
}
