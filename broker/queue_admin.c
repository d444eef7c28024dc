#include "broker/queue_admin.h"

#include "broker/queue_reply.h"

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 200, NUMBER_SIZE = 24, DEAD_FIELDS = 6 };

static enum status unknown_form(const char *function, struct error *e)
{
    return error_set(e, ERR_IO, "redis_reply", "Redis answered %s in an unknown form", function);
}

// A function that answers one word.
static enum status ask_word(struct queue_sync *s, const char *function, int n,
                            const char *const *args, char word[32], struct error *e)
{
    redisReply *r;
    enum status status = queue_sync_fcall(s, false, function, n, args, &r, e);
    if (status == OK && r->type != REDIS_REPLY_STRING && r->type != REDIS_REPLY_STATUS) {
        status = unknown_form(function, e);
    }
    if (status == OK) snprintf(word, 32, "%s", r->str);
    if (r != NULL) freeReplyObject(r);
    return status;
}

// --- tenants

enum status queue_admin_tenants(struct queue_sync *s, bool *paused,
                                void (*fn)(void *arg, const struct queue_tenant *t), void *arg,
                                struct error *e)
{
    redisReply *r;
    struct queue_reply reply;
    void *storage = NULL;
    enum status status = queue_sync_fcall(s, true, "tenants", 0, NULL, &r, e);
    if (status == OK) {
        status = queue_reply_decode(QUEUE_FORM_TENANTS, 0, r, &reply, &storage);
        if (status != OK && e != NULL) *e = reply.error;
    }
    for (size_t i = 0; status == OK && i < reply.n; i++) fn(arg, &reply.tenants[i]);
    if (status == OK) *paused = reply.number == 1;
    free(storage);
    if (r != NULL) freeReplyObject(r);
    return status;
}

static enum status no_tenant(const char *tenant, struct error *e)
{
    return error_set(e, ERR_STATE, "unknown_tenant",
                     "there is no tenant %s; penstock tenant add %s makes it", tenant, tenant);
}

static const char *number(int64_t n, char text[NUMBER_SIZE])
{
    snprintf(text, NUMBER_SIZE, "%lld", (long long) n);
    return n < 0 ? "" : text;
}

enum status queue_admin_tenant(struct queue_sync *s, bool add, const char *tenant,
                               const struct queue_budget *b, struct error *e)
{
    char digits[4][NUMBER_SIZE], word[32];
    const char *args[] = {add ? "add" : "set",
                          tenant,
                          number(b->weight, digits[0]),
                          number(b->max_bytes, digits[1]),
                          number(b->max_jobs, digits[2]),
                          number(b->max_tokens, digits[3])};
    try(redis_name_check("tenant", tenant, TENANT_MAX, e));
    try(ask_word(s, "tenant_set", 6, args, word, e));
    if (strcmp(word, "exists") == 0) {
        return error_set(e, ERR_STATE, "tenant_exists",
                         "the tenant %s exists; penstock tenant set %s changes it", tenant, tenant);
    }
    return strcmp(word, "ok") == 0 ? OK : no_tenant(tenant, e);
}

enum status queue_admin_pause(struct queue_sync *s, const char *tenant, bool pause,
                              struct error *e)
{
    char word[32];
    const char *args[] = {tenant != NULL ? tenant : "*", pause ? "1" : "0"};
    if (tenant != NULL) try(redis_name_check("tenant", tenant, TENANT_MAX, e));
    try(ask_word(s, "pause", 2, args, word, e));
    return strcmp(word, "ok") == 0 ? OK : no_tenant(tenant, e);
}

enum status queue_admin_pause_pipeline(struct queue_sync *s, const char *model, uint64_t pipeline,
                                       bool pause, struct error *e)
{
    char id[NUMBER_SIZE], word[32];
    snprintf(id, sizeof id, "%llu", (unsigned long long) pipeline);
    try(ask_word(s, "pause_pipeline", 3, (const char *[]){model, id, pause ? "1" : "0"}, word, e));
    if (strcmp(word, "ok") == 0) return OK;
    return error_set(e, ERR_LIMIT, "too_many", "%d pipelines are remembered as paused: resume some",
                     PAUSED_PIPELINES_MAX);
}

enum status queue_admin_busy(struct queue_sync *s, const char *tenant, uint64_t *running,
                             struct error *e)
{
    redisReply *r;
    const char *who = tenant != NULL ? tenant : "*";
    enum status status = queue_sync_fcall(s, true, "busy", 1, &who, &r, e);
    if (status == OK && r->type != REDIS_REPLY_INTEGER) status = unknown_form("busy", e);
    if (status == OK) *running = (uint64_t) r->integer;
    if (r != NULL) freeReplyObject(r);
    return status;
}

// --- the fleet

static bool is_text(const redisReply *r) { return r->type == REDIS_REPLY_STRING; }

static bool take_leader(const redisReply *r, struct queue_leader *to)
{
    char *end;
    *to = (struct queue_leader){0};
    if (r->type != REDIS_REPLY_ARRAY || r->elements != 3 || !is_text(r->element[0]) ||
        r->element[1]->type != REDIS_REPLY_INTEGER || !is_text(r->element[2])) {
        return false;
    }
    if (r->element[0]->len == 0) return true;
    to->term = strtoull(r->element[0]->str, &end, 10);
    to->lease_ms = r->element[1]->integer > 0 ? r->element[1]->integer : 0;
    if (*end == ' ') snprintf(to->name, sizeof to->name, "%.*s", BROKER_NAME_MAX, end + 1);
    return to->term > 0 && to->name[0] != '\0';
}

enum status queue_admin_fleet(struct queue_sync *s, struct queue_leader *leader, char **record,
                              struct error *e)
{
    redisReply *r;
    *record = NULL;
    enum status status = queue_sync_fcall(s, true, "fleet_read", 0, NULL, &r, e);
    if (status == OK && !take_leader(r, leader)) status = unknown_form("fleet_read", e);
    if (status == OK && r->element[2]->len > 0) {
        *record = strdup(r->element[2]->str);
        if (*record == NULL) status = error_set(e, ERR_NOMEM, NULL, "no memory for the fleet");
    }
    if (r != NULL) freeReplyObject(r);
    return status;
}

enum status queue_admin_models(struct queue_sync *s,
                               void (*fn)(void *arg, const char *model, uint64_t ready,
                                          uint64_t waited_ms), void *arg, struct error *e)
{
    redisReply *r;
    enum status status = queue_sync_fcall(s, true, "models", 0, NULL, &r, e);
    bool good = status == OK && r->type == REDIS_REPLY_ARRAY;
    for (size_t i = 0; good && i < r->elements; i++) {
        const redisReply *m = r->element[i];
        good = m->type == REDIS_REPLY_ARRAY && m->elements == 3 && is_text(m->element[0]) &&
               m->element[1]->type == REDIS_REPLY_INTEGER &&
               m->element[2]->type == REDIS_REPLY_INTEGER;
        if (good) {
            fn(arg, m->element[0]->str, (uint64_t) m->element[1]->integer,
               (uint64_t) m->element[2]->integer);
        }
    }
    if (status == OK && !good) status = unknown_form("models", e);
    if (r != NULL) freeReplyObject(r);
    return status;
}

// --- depths

static bool is_number(const redisReply *r)
{
    return r->type == REDIS_REPLY_INTEGER && r->integer >= 0;
}

static bool take_depth(const redisReply *r, struct queue_depth *d)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements != 5 + JOB_CLASSES) return false;
    bool good = is_text(r->element[0]);
    for (size_t i = 1; i < r->elements; i++) good = good && is_number(r->element[i]);
    if (!good) return false;
    *d = (struct queue_depth){.tenant = r->element[0]->str,
                              .paused = r->element[1]->integer == 1,
                              .inbox = (uint64_t) r->element[2]->integer,
                              .running = (uint64_t) r->element[3]->integer,
                              .waited_ms = (uint64_t) r->element[4]->integer};
    for (int i = 0; i < JOB_CLASSES; i++) d->ready[i] = (uint64_t) r->element[5 + i]->integer;
    return true;
}

static bool take_oldest(const redisReply *r, struct queue_oldest *o)
{
    *o = (struct queue_oldest){0};
    if (r->type != REDIS_REPLY_ARRAY) return false;
    if (r->elements == 0) return true;
    if (r->elements != 4 || !is_text(r->element[0]) || !is_text(r->element[1]) ||
        !is_number(r->element[2]) || !is_number(r->element[3]) ||
        r->element[2]->integer >= JOB_CLASSES) {
        return false;
    }
    snprintf(o->tenant, sizeof o->tenant, "%s", r->element[0]->str);
    snprintf(o->id, sizeof o->id, "%s", r->element[1]->str);
    o->class = (int) r->element[2]->integer;
    o->waited_ms = (uint64_t) r->element[3]->integer;
    return true;
}

enum status queue_admin_depths(struct queue_sync *s, struct queue_oldest *oldest,
                               void (*fn)(void *arg, const struct queue_depth *d), void *arg,
                               struct error *e)
{
    redisReply *r;
    enum status status = queue_sync_fcall(s, true, "depths", 0, NULL, &r, e);
    bool good = status == OK && r->type == REDIS_REPLY_ARRAY && r->elements >= 1 &&
                take_oldest(r->element[0], oldest);
    for (size_t i = 1; good && i < r->elements; i++) {
        struct queue_depth d;
        good = take_depth(r->element[i], &d);
        if (good) fn(arg, &d);
    }
    if (status == OK && !good) status = unknown_form("depths", e);
    if (r != NULL) freeReplyObject(r);
    return status;
}

// --- dead letters

static bool take_dead(const redisReply *r, struct queue_dead *d)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements != DEAD_FIELDS) return false;
    for (int i = 0; i < DEAD_FIELDS; i++) {
        if (r->element[i]->type != REDIS_REPLY_STRING) return false;
    }
    *d = (struct queue_dead){.id = r->element[0]->str,
                             .died_ms = strtoll(r->element[1]->str, NULL, 10),
                             .code = r->element[2]->str,
                             .text = r->element[3]->str,
                             .starts = (uint32_t) strtoul(r->element[4]->str, NULL, 10),
                             .lost = (uint32_t) strtoul(r->element[5]->str, NULL, 10)};
    return true;
}

enum status queue_admin_dead(struct queue_sync *s, const char *tenant, uint64_t *offset,
                             void (*fn)(void *arg, const struct queue_dead *d), void *arg,
                             struct error *e)
{
    char from[NUMBER_SIZE], limit[NUMBER_SIZE];
    redisReply *r;
    snprintf(from, sizeof from, "%llu", (unsigned long long) *offset);
    snprintf(limit, sizeof limit, "%d", PAGE);
    enum status status =
        queue_sync_fcall(s, true, "dead", 3, (const char *[]){tenant, from, limit}, &r, e);
    bool good = status == OK && r->type == REDIS_REPLY_ARRAY && r->elements >= 1 &&
                r->element[0]->type == REDIS_REPLY_INTEGER;
    for (size_t i = 1; good && i < r->elements; i++) {
        struct queue_dead d;
        good = take_dead(r->element[i], &d);
        if (good) fn(arg, &d);
    }
    if (status == OK && !good) status = unknown_form("dead", e);
    if (status == OK) *offset = (uint64_t) r->element[0]->integer;
    if (r != NULL) freeReplyObject(r);
    return status;
}

static enum status end_dead(struct queue_sync *s, const char *function, const char *tenant,
                            const char *id, struct error *e)
{
    char word[32];
    try(redis_name_check("id", id, JOB_ID_MAX, e));
    try(ask_word(s, function, 2, (const char *[]){tenant, id}, word, e));
    if (strcmp(word, "ok") == 0) return OK;
    if (strcmp(word, "bytes_lost") == 0) {
        return error_set(e, ERR_STATE, "bytes_lost", "the message of %s is gone", id);
    }
    return error_set(e, ERR_STATE, "not_dead", "%s is no dead letter of the tenant %s", id, tenant);
}

enum status queue_admin_retry(struct queue_sync *s, const char *tenant, const char *id,
                              struct error *e)
{
    return end_dead(s, "retry", tenant, id, e);
}

enum status queue_admin_purge(struct queue_sync *s, const char *tenant, const char *id,
                              struct error *e)
{
    return end_dead(s, "purge", tenant, id, e);
}

// --- one job

static const char *text_of(const redisReply *r, char digits[NUMBER_SIZE])
{
    if (r->type == REDIS_REPLY_STRING) return r->str;
    snprintf(digits, NUMBER_SIZE, "%lld", r->integer);
    return digits;
}

// A function that replies names and values.
static enum status ask_pairs(struct queue_sync *s, const char *function, const char *tenant,
                             const char *id,
                             void (*fn)(void *arg, const char *name, const char *value), void *arg,
                             size_t *n, struct error *e)
{
    redisReply *r;
    char digits[NUMBER_SIZE];
    try(redis_name_check("id", id, JOB_ID_MAX, e));
    enum status status = queue_sync_fcall(s, true, function, 2, (const char *[]){tenant, id}, &r,
                                          e);
    bool good = status == OK && r->type == REDIS_REPLY_ARRAY && r->elements % 2 == 0;
    if (status == OK && !good) status = unknown_form(function, e);
    *n = good ? r->elements / 2 : 0;
    for (size_t i = 0; status == OK && i < r->elements; i += 2) {
        if (r->element[i]->type != REDIS_REPLY_STRING) continue;
        fn(arg, r->element[i]->str, text_of(r->element[i + 1], digits));
    }
    if (r != NULL) freeReplyObject(r);
    return status;
}

enum status queue_admin_show(struct queue_sync *s, const char *tenant, const char *id,
                             void (*fn)(void *arg, const char *name, const char *value), void *arg,
                             struct error *e)
{
    size_t n;
    try(ask_pairs(s, "show", tenant, id, fn, arg, &n, e));
    if (n > 0) return OK;
    return error_set(e, ERR_STATE, "no_job",
                     "nothing is known of the job %s of %s: it is still in the inbox, or its "
                     "record has expired, or it never was", id, tenant);
}

enum status queue_admin_why(struct queue_sync *s, const char *tenant, const char *id,
                            void (*fn)(void *arg, const char *name, const char *value), void *arg,
                            struct error *e)
{
    size_t n;
    return ask_pairs(s, "why", tenant, id, fn, arg, &n, e);
}
