#include "broker/queue_follow.h"

#include "common/clock.h"

#include <hiredis/hiredis.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK_MS = 1000, // of one XREAD: how often a long wait looks around
    RETRY_MS = 200,  // between tries while Redis is away
    LOOK_MS = 5000,  // the result itself is looked for this often: the event may be long gone
};
#define ENTRIES "256" // of one XREAD

struct state {
    struct queue_sync *queue;
    struct queue_follow *follow;
    char chunks[QUEUE_KEY_MAX], events[QUEUE_KEY_MAX];
    char chunk[QUEUE_EVENT_ID_MAX], event[QUEUE_EVENT_ID_MAX]; // seen last
    int64_t looked_ms;
    bool ended, conflict, unwanted;
    bool any; // the last XREAD had chunks
};

static const redisReply *field(const redisReply *fields, const char *name)
{
    for (size_t i = 0; i + 1 < fields->elements; i += 2) {
        const redisReply *n = fields->element[i], *v = fields->element[i + 1];
        if (n->type != REDIS_REPLY_STRING || v->type != REDIS_REPLY_STRING) continue;
        if (strcmp(n->str, name) == 0) return v;
    }
    return NULL;
}

// What lies behind a gap is left to the result.
static void take_chunk(struct state *s, const redisReply *fields)
{
    struct queue_follow *f = s->follow;
    const redisReply *at = field(fields, "offset"), *bytes = field(fields, "bytes");
    s->any = true;
    if (at == NULL || bytes == NULL) return;
    uint64_t offset = strtoull(at->str, NULL, 10), end = offset + (uint64_t) bytes->len;
    if (offset > f->offset || end <= f->offset) return;
    size_t known = (size_t) (f->offset - offset);
    f->offset = end;
    s->unwanted = !f->text(f->arg, bytes->str + known, (size_t) bytes->len - known);
}

static void take_event(struct state *s, const redisReply *fields)
{
    const redisReply *id = field(fields, "id"), *event = field(fields, "event");
    if (id == NULL || event == NULL || strcmp(id->str, s->follow->id) != 0) return;
    bool conflict = strcmp(event->str, "id_conflict") == 0;
    if (conflict && s->follow->from != NULL) s->conflict = true;
    if (!conflict) s->ended = true;
}

static enum status unknown_form(struct error *e)
{
    return error_set(e, ERR_IO, "redis_reply", "Redis answered XREAD in an unknown form");
}

// One stream of XREAD's reply: [key, [[id, fields]...]].
static enum status take_stream(struct state *s, const redisReply *r, struct error *e)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements != 2) return unknown_form(e);
    const redisReply *key = r->element[0], *entries = r->element[1];
    if (key->type != REDIS_REPLY_STRING || entries->type != REDIS_REPLY_ARRAY) {
        return unknown_form(e);
    }
    bool chunks = strcmp(key->str, s->chunks) == 0;
    for (size_t i = 0; i < entries->elements && !s->unwanted; i++) {
        const redisReply *entry = entries->element[i];
        bool good = entry->type == REDIS_REPLY_ARRAY && entry->elements == 2 &&
                    entry->element[0]->type == REDIS_REPLY_STRING &&
                    entry->element[0]->len < QUEUE_EVENT_ID_MAX &&
                    entry->element[1]->type == REDIS_REPLY_ARRAY;
        if (!good) return unknown_form(e);
        snprintf(chunks ? s->chunk : s->event, QUEUE_EVENT_ID_MAX, "%s", entry->element[0]->str);
        if (chunks) take_chunk(s, entry->element[1]);
        else take_event(s, entry->element[1]);
    }
    return OK;
}

// What comes within block_ms; 0: what is there.
static enum status read_more(struct state *s, int64_t block_ms, struct error *e)
{
    char block[24];
    const char *words[] = {"XREAD", "COUNT", ENTRIES, "STREAMS", s->chunks, s->events, s->chunk,
                           s->event};
    const char *waits[] = {"XREAD", "COUNT", ENTRIES, "BLOCK", block, "STREAMS", s->chunks,
                           s->events, s->chunk, s->event};
    redisReply *r;
    s->any = false;
    snprintf(block, sizeof block, "%lld", (long long) block_ms);
    enum status status = block_ms > 0 ? queue_sync_ask(s->queue, 10, waits, &r, e)
                                      : queue_sync_ask(s->queue, 8, words, &r, e);
    bool none = r == NULL || r->type == REDIS_REPLY_NIL;
    if (status == OK && !none && r->type != REDIS_REPLY_ARRAY) status = unknown_form(e);
    for (size_t i = 0; status == OK && !none && i < r->elements; i++) {
        status = take_stream(s, r->element[i], e);
    }
    if (r != NULL) freeReplyObject(r);
    return status;
}

// The job has ended: all chunks are there, and its result.
static enum status finish(struct state *s, uint8_t **bytes, size_t *n, struct error *e)
{
    do {
        try(read_more(s, 0, e));
    } while (s->any && !s->unwanted);
    if (s->unwanted) return OK;
    try(queue_sync_get(s->queue, s->follow->tenant, s->follow->id, bytes, n, e));
    if (*bytes != NULL) return OK;
    return error_set(e, ERR_STATE, "result_gone", "job %s has ended and its result has expired",
                     s->follow->id);
}

// Whether the result is there, of a job that may have ended before anybody looked.
static enum status look(struct state *s, struct error *e)
{
    uint8_t *bytes = NULL;
    size_t n;
    if (s->follow->from != NULL || clock_ms() < s->looked_ms) return OK;
    try(queue_sync_get(s->queue, s->follow->tenant, s->follow->id, &bytes, &n, e));
    s->looked_ms = clock_ms() + LOOK_MS;
    s->ended = bytes != NULL;
    free(bytes);
    return OK;
}

static enum status step(struct state *s, int64_t block_ms, uint8_t **bytes, size_t *n,
                        struct error *e)
{
    const struct queue_follow *f = s->follow;
    if (s->event[0] == '\0') try(queue_sync_last_event(s->queue, f->tenant, s->event, e));
    if (!s->ended) try(look(s, e));
    if (!s->ended) try(read_more(s, block_ms, e));
    if (s->conflict) {
        return error_set(e, ERR_STATE, "id_conflict",
                         "another job with the id %s and another body is in the queue", f->id);
    }
    return s->ended && !s->unwanted ? finish(s, bytes, n, e) : OK;
}

enum status queue_follow(struct queue_sync *queue, struct queue_follow *f, int64_t timeout_ms,
                         uint8_t **bytes, size_t *n, struct error *e)
{
    struct state s = {.queue = queue, .follow = f, .chunk = "0-0"};
    int64_t until = timeout_ms < 0 ? INT64_MAX : clock_ms() + timeout_ms;
    *bytes = NULL;
    *n = 0;
    try(queue_sync_key(queue, s.chunks, "t", f->tenant, f->id, e));
    try(queue_sync_key(queue, s.events, "ev", f->tenant, NULL, e));
    if (f->from != NULL) snprintf(s.event, sizeof s.event, "%s", f->from);
    for (;;) {
        int64_t left = until - clock_ms();
        bool over = left <= 0;
        int64_t block_ms = left < BLOCK_MS ? left : BLOCK_MS;
        enum status status = step(&s, over ? 0 : block_ms, bytes, n, e);
        if (s.unwanted) return error_set(e, ERR_ABORTED, NULL, "no more of the text was wanted");
        if (*bytes != NULL || (status != OK && status != ERR_UNAVAILABLE)) return status;
        if (over && status != OK) return status;
        if (over) {
            return error_set(e, ERR_TIMEOUT, NULL,
                             "job %s has not ended within %lld ms (penstock show tells more)",
                             f->id, (long long) timeout_ms);
        }
        if (status != OK) poll(NULL, 0, (int) (left < RETRY_MS ? left : RETRY_MS));
    }
}
