#include "broker/queue_reply.h"

#include <hiredis/hiredis.h>
#include <stdlib.h>
#include <string.h>

static const char *const words[] = {
    [QUEUE_OK] = "ok",
    [QUEUE_DUPLICATE] = "duplicate",
    [QUEUE_DUPLICATE_DONE] = "duplicate_done",
    [QUEUE_ID_CONFLICT] = "id_conflict",
    [QUEUE_STALE] = "stale",
    [QUEUE_UNKNOWN] = "unknown",
    [QUEUE_GONE] = "gone",
    [QUEUE_LATER] = "later",
    [QUEUE_GAP] = "gap",
    [QUEUE_READY] = "ready",
    [QUEUE_RETRY] = "retry",
    [QUEUE_DEAD] = "dead",
    [QUEUE_CANCELLED] = "cancelled",
    [QUEUE_EXPIRED] = "expired",
    [QUEUE_CANCEL] = "cancel",
    [QUEUE_RUNNING] = "running",
    [QUEUE_DONE] = "done",
};
enum { N_WORDS = sizeof words / sizeof *words };

enum { OWNER_BYTES_MAX = 256, HEADER_FIELDS = 9, JOB_FIELDS = 22, VERDICT_FIELDS = 5,
       TENANT_FIELDS = 7, PRIOR_BYTES_MAX = 64 };

const char *queue_word_name(enum queue_word word)
{
    return (size_t) word < N_WORDS ? words[word] : "?";
}

// --- scalars; false for a reply of another type or out of bounds

static bool take_word(const redisReply *r, enum queue_word *to)
{
    if (r->type != REDIS_REPLY_STRING && r->type != REDIS_REPLY_STATUS) return false;
    for (int i = 0; i < N_WORDS; i++) {
        if (strcmp(r->str, words[i]) != 0) continue;
        *to = (enum queue_word) i;
        return true;
    }
    return false;
}

static bool take_number(const redisReply *r, uint64_t *to)
{
    *to = 0;
    if (r->type == REDIS_REPLY_INTEGER) {
        *to = (uint64_t) r->integer;
        return r->integer >= 0;
    }
    if (r->type != REDIS_REPLY_STRING || r->len < 1 || r->len > 18) return false;
    for (const char *c = r->str; *c != '\0'; c++) {
        if (*c < '0' || *c > '9') return false;
        *to = *to * 10 + (uint64_t) (*c - '0');
    }
    return true;
}

static bool take_ms(const redisReply *r, int64_t *to)
{
    uint64_t n;
    bool good = take_number(r, &n);
    *to = (int64_t) n; // at most 18 digits, or an integer that was not negative
    return good;
}

static bool take_small(const redisReply *r, uint64_t most, uint32_t *to)
{
    uint64_t n;
    bool good = take_number(r, &n) && n <= most;
    *to = good ? (uint32_t) n : 0;
    return good;
}

static bool take_bool(const redisReply *r, bool *to)
{
    uint32_t n;
    bool good = take_small(r, 1, &n);
    *to = n == 1;
    return good;
}

// Terminated, of least..most bytes, none of them zero.
static bool take_text(const redisReply *r, size_t least, size_t most, const char **to)
{
    if (r->type != REDIS_REPLY_STRING) return false;
    size_t n = (size_t) r->len;
    *to = r->str;
    return n >= least && n <= most && memchr(r->str, '\0', n) == NULL;
}

static bool take_bytes(const redisReply *r, const uint8_t **to, size_t *n)
{
    if (r->type != REDIS_REPLY_STRING) return false;
    *to = (const uint8_t *) r->str;
    *n = (size_t) r->len;
    return true;
}

static bool is_tuple(const redisReply *r, size_t n)
{
    return r->type == REDIS_REPLY_ARRAY && r->elements == n;
}

static bool take_key(redisReply *const *e, const char **tenant, const char **id)
{
    return take_text(e[0], 1, TENANT_MAX, tenant) && take_text(e[1], 1, JOB_ID_MAX, id);
}

// --- entries of the arrays

static bool take_message(const redisReply *r, void *entry)
{
    struct queue_message *m = entry;
    uint64_t size;
    if (!is_tuple(r, 4)) return false;
    bool good = take_text(r->element[0], 1, TENANT_MAX, &m->tenant) &&
                take_number(r->element[1], &m->seq) && take_number(r->element[2], &size);
    if (!good) return false;
    m->n_bytes = size;
    if (r->element[3]->type == REDIS_REPLY_NIL) return true; // too large to be carried
    return take_bytes(r->element[3], &m->bytes, &m->n_bytes) && m->n_bytes == size;
}

static bool take_header(const redisReply *r, void *entry)
{
    struct queue_header *h = entry;
    if (!is_tuple(r, HEADER_FIELDS)) return false;
    redisReply *const *e = r->element;
    return take_text(e[0], 1, JOB_ID_MAX, &h->id) && take_number(e[1], &h->seq) &&
           take_number(e[2], &h->need_blocks) && take_number(e[3], &h->n_prompt) &&
           take_number(e[4], &h->max_tokens) && take_ms(e[5], &h->deadline_ms) &&
           take_small(e[6], UINT32_MAX, &h->starts) && take_bool(e[7], &h->poison) &&
           take_ms(e[8], &h->waited_ms);
}

static bool take_claimed(redisReply *const *e, struct queue_job *j)
{
    uint32_t class = 0;
    bool good = take_number(e[3], &j->attempt) && take_number(e[4], &j->seq) &&
                take_bytes(e[5], &j->bytes, &j->n_bytes) &&
                take_bytes(e[6], &j->checkpoint, &j->n_checkpoint) &&
                take_small(e[7], UINT32_MAX, &j->starts) &&
                take_small(e[8], UINT32_MAX, &j->fails) && take_small(e[9], UINT32_MAX, &j->lost) &&
                take_small(e[10], JOB_CLASSES - 1, &class) && take_number(e[11], &j->need_blocks) &&
                take_number(e[12], &j->n_prompt) && take_number(e[13], &j->max_tokens) &&
                take_ms(e[14], &j->admitted_ms) && take_ms(e[15], &j->deadline_ms) &&
                take_ms(e[16], &j->ttl_ms) && take_bool(e[17], &j->poison) &&
                take_bool(e[18], &j->stream) &&
                take_text(e[19], 0, JOB_CUSTOM_ID_MAX, &j->custom_id) &&
                take_text(e[20], 0, JOB_BATCH_MAX, &j->batch) &&
                take_text(e[21], 0, PRIOR_BYTES_MAX, &j->prior);
    j->class = (int) class;
    return good;
}

static bool take_job(const redisReply *r, void *entry)
{
    struct queue_job *j = entry;
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 3) return false;
    redisReply *const *e = r->element;
    if (!take_word(e[0], &j->word) || !take_key(e + 1, &j->tenant, &j->id)) return false;
    if (j->word == QUEUE_GONE || j->word == QUEUE_LATER) return true;
    return j->word == QUEUE_OK && r->elements == JOB_FIELDS && take_claimed(e, j);
}

static bool take_verdict(const redisReply *r, void *entry)
{
    struct queue_verdict *v = entry;
    if (!is_tuple(r, VERDICT_FIELDS)) return false;
    redisReply *const *e = r->element;
    return take_word(e[0], &v->word) && take_key(e + 1, &v->tenant, &v->id) &&
           take_number(e[3], &v->attempt) && take_text(e[4], 0, OWNER_BYTES_MAX, &v->owner);
}

static bool take_renewed(const redisReply *r, void *entry)
{
    struct queue_verdict *v = entry;
    if (!is_tuple(r, VERDICT_FIELDS)) return false;
    redisReply *const *e = r->element;
    return take_word(e[0], &v->word) && take_key(e + 1, &v->tenant, &v->id) &&
           take_number(e[3], &v->attempt) && take_number(e[4], &v->need_blocks);
}

static bool take_tenant(const redisReply *r, void *entry)
{
    struct queue_tenant *t = entry;
    if (!is_tuple(r, TENANT_FIELDS)) return false;
    redisReply *const *e = r->element;
    uint64_t bytes;
    t->bytes = take_number(e[6], &bytes) ? bytes : 0; // below 0 once somebody dropped keys
    return take_text(e[0], 1, TENANT_MAX, &t->name) &&
           take_small(e[1], TENANT_WEIGHT_MAX, &t->weight) && take_number(e[2], &t->max_bytes) &&
           take_number(e[3], &t->max_jobs) && take_number(e[4], &t->max_tokens) &&
           take_bool(e[5], &t->paused);
}

static bool take_pause(const redisReply *r, void *entry)
{
    struct queue_pause *p = entry;
    return is_tuple(r, 2) && take_text(r->element[0], 1, JOB_MODEL_MAX, &p->model) &&
           take_number(r->element[1], &p->pipeline);
}

static bool take_join(const redisReply *r, void *entry)
{
    struct queue_join *j = entry;
    uint32_t level = 0, n = 0;
    if (!is_tuple(r, 4)) return false;
    redisReply *const *e = r->element;
    bool good = take_key(e, &j->tenant, &j->id) && take_small(e[2], MAP_LEVELS_MAX, &level) &&
                take_small(e[3], MAP_CHUNKS_MAX, &n);
    j->level = (int) level;
    j->n_children = (int) n;
    return good;
}

static bool take_child_result(const redisReply *r, void *entry)
{
    struct queue_child_result *c = entry;
    uint32_t index = 0;
    if (!is_tuple(r, 2) || !take_small(r->element[0], MAP_CHUNKS_MAX, &index)) return false;
    c->index = (int) index;
    if (r->element[1]->type == REDIS_REPLY_NIL) return true;
    return take_bytes(r->element[1], &c->bytes, &c->n_bytes);
}

// --- whole replies

typedef bool take_entry(const redisReply *r, void *entry);

static bool take_array(const redisReply *r, size_t first, size_t size, take_entry *take, size_t *n,
                       void **storage)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements < first) return false;
    *n = r->elements - first;
    *storage = calloc(*n + 1, size);
    if (*storage == NULL) return false;
    for (size_t i = 0; i < *n; i++) {
        if (!take(r->element[first + i], (char *) *storage + i * size)) return false;
    }
    return true;
}

static bool take_cancel(const redisReply *r, struct queue_reply *to)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 1) return false;
    if (!take_word(r->element[0], &to->word)) return false;
    if (to->word != QUEUE_RUNNING) return r->elements == 1;
    return r->elements == 3 && take_number(r->element[1], &to->number) &&
           take_text(r->element[2], 0, OWNER_BYTES_MAX, &to->owner);
}

static bool take_gathered(const redisReply *r, struct queue_reply *to, void **storage)
{
    enum { HEAD = 3 };
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 1) return false;
    if (!take_word(r->element[0], &to->word)) return false;
    if (to->word != QUEUE_OK) return r->elements == 1;
    bool good = take_array(r, HEAD, sizeof *to->results, take_child_result, &to->n, storage);
    to->results = *storage;
    if (!good) return false;
    if (r->element[1]->type == REDIS_REPLY_NIL) return take_text(r->element[2], 0, PRIOR_BYTES_MAX,
                                                                 &to->prior);
    return take_bytes(r->element[1], &to->message, &to->n_message) &&
           take_text(r->element[2], 0, PRIOR_BYTES_MAX, &to->prior);
}

static bool decode(enum queue_form form, const redisReply *r, struct queue_reply *to,
                   void **storage)
{
    bool good = false;
    switch (form) {
    case QUEUE_FORM_WORD: return take_word(r, &to->word);
    case QUEUE_FORM_NUMBER:
        return is_tuple(r, 2) && take_word(r->element[0], &to->word) &&
               take_number(r->element[1], &to->number);
    case QUEUE_FORM_SAVED:
        return is_tuple(r, 3) && take_word(r->element[0], &to->word) &&
               take_number(r->element[1], &to->number) && take_number(r->element[2], &to->shown);
    case QUEUE_FORM_CANCEL: return take_cancel(r, to);
    case QUEUE_FORM_MESSAGES:
        good = take_array(r, 1, sizeof *to->messages, take_message, &to->n, storage) &&
               take_number(r->element[0], &to->number);
        to->messages = *storage;
        return good;
    case QUEUE_FORM_HEADERS:
        good = take_array(r, 0, sizeof *to->headers, take_header, &to->n, storage);
        to->headers = *storage;
        return good;
    case QUEUE_FORM_JOBS:
        good = take_array(r, 0, sizeof *to->jobs, take_job, &to->n, storage);
        to->jobs = *storage;
        return good;
    case QUEUE_FORM_RENEWED:
    case QUEUE_FORM_VERDICTS:
        good =
            take_array(r, 0, sizeof *to->verdicts,
                       form == QUEUE_FORM_RENEWED ? take_renewed : take_verdict, &to->n, storage);
        to->verdicts = *storage;
        return good;
    case QUEUE_FORM_STATS: return queue_stats_decode(r, &to->stats, &to->error) == OK;
    case QUEUE_FORM_TENANTS:
        good = take_array(r, 1, sizeof *to->tenants, take_tenant, &to->n, storage) &&
               take_number(r->element[0], &to->number);
        to->tenants = *storage;
        return good;
    case QUEUE_FORM_PAUSES:
        good = take_array(r, 0, sizeof *to->pauses, take_pause, &to->n, storage);
        to->pauses = *storage;
        return good;
    case QUEUE_FORM_JOINS:
        good = take_array(r, 0, sizeof *to->joins, take_join, &to->n, storage);
        to->joins = *storage;
        return good;
    case QUEUE_FORM_GATHER: return take_gathered(r, to, storage);
    }
    return good;
}

enum status queue_reply_decode(enum queue_form form, size_t n_asked, const struct redisReply *reply,
                               struct queue_reply *to, void **storage)
{
    *to = (struct queue_reply){0};
    *storage = NULL;
    enum status status = redis_reply_check(reply, &to->error);
    if (status != OK) return status;
    if (decode(form, reply, to, storage) && (n_asked == 0 || to->n == n_asked)) return OK;
    *to = (struct queue_reply){0};
    return error_set(&to->error, ERR_IO, "redis_reply",
                     "Redis answered in a form that this broker does not know");
}
