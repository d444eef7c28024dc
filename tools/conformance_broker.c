#include "tools/conformance_broker.h"

#include "broker/queue_lua.h"
#include "broker/redis.h"
#include "common/result.h"

#include <hiredis/hiredis.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 24, RESULT_BYTES_MAX = 1 << 25 };
#define MODEL "conformance"
#define BYTES_TEXT "67108864" // most of one reply

// FCALL with words up to NULL.
static enum status call(struct conformance_broker *b, const char *name, const char **words,
                        const size_t *sizes, redisReply **reply, struct error *e)
{
    const char *all[WORDS_MAX] = {"FCALL", name, "1", b->key};
    size_t lengths[WORDS_MAX] = {5, strlen(name), 1, strlen(b->key)};
    int n = 4;
    for (int i = 0; words[i] != NULL; i++, n++) {
        check(n < WORDS_MAX);
        all[n] = words[i];
        lengths[n] = sizes != NULL && sizes[i] > 0 ? sizes[i] : strlen(words[i]);
    }
    redisReply *r = redisCommandArgv(b->c, n, all, lengths);
    enum status status = redis_reply_check(r, e);
    if (status == OK && reply != NULL) *reply = r;
    else if (r != NULL) freeReplyObject(r);
    return status;
}

enum status conformance_broker_init(struct conformance_broker *b, struct redisContext *c,
                                    const char *queue, struct error *e)
{
    const char *leads[] = {"conformance", "3600000", "0", NULL};
    redisReply *r;
    *b = (struct conformance_broker){.c = c, .tenant = "default"};
    snprintf(b->queue, sizeof b->queue, "%s", queue);
    snprintf(b->key, sizeof b->key, "ps:{%s}:term", queue);
    r = redisCommand(c, "FUNCTION LOAD REPLACE %b", queue_lua, queue_lua_size);
    enum status status = redis_reply_check(r, e);
    if (r != NULL) freeReplyObject(r);
    if (status != OK) return status;
    try(call(b, "lead", leads, NULL, &r, e));
    snprintf(b->term, sizeof b->term, "%s", r->element[1]->str);
    freeReplyObject(r);
    // A log that is not new: its first entry is older than the program.
    r = redisCommand(c, "XADD ps:{%s}:ev:%s * id c-before event done attempt 1", queue, b->tenant);
    status = redis_reply_check(r, e);
    if (r != NULL) freeReplyObject(r);
    return status;
}

static void remove_keys(struct conformance_broker *b)
{
    struct error e;
    char pattern[96], cursor[24] = "0";
    snprintf(pattern, sizeof pattern, "ps:{%s}:*", b->queue);
    do {
        redisReply *r = redisCommand(b->c, "SCAN %s MATCH %s COUNT 1000", cursor, pattern);
        if (redis_reply_check(r, &e) != OK) {
            if (r != NULL) freeReplyObject(r);
            return;
        }
        snprintf(cursor, sizeof cursor, "%s", r->element[0]->str);
        for (size_t i = 0; i < r->element[1]->elements; i++) {
            redisReply *gone = redisCommand(b->c, "DEL %s", r->element[1]->element[i]->str);
            if (gone != NULL) freeReplyObject(gone);
        }
        freeReplyObject(r);
    } while (strcmp(cursor, "0") != 0);
}

void conformance_broker_deinit(struct conformance_broker *b)
{
    for (int i = 0; i < b->n_seen; i++) free(b->seen[i].prompt);
    free(b->seen);
    if (b->c != NULL) {
        remove_keys(b);
        redisFree(b->c);
    }
    *b = (struct conformance_broker){0};
}

struct seen *conformance_first(struct conformance_broker *b, const char *id)
{
    for (int i = 0; i < b->n_seen; i++) {
        if (strcmp(b->seen[i].id, id) == 0) return &b->seen[i];
    }
    return NULL;
}

struct seen *conformance_last(struct conformance_broker *b, const char *id)
{
    for (int i = b->n_seen; i-- > 0;) {
        if (strcmp(b->seen[i].id, id) == 0) return &b->seen[i];
    }
    return NULL;
}

// --- ingest

static const char *prompt_of(const struct job_body *body)
{
    const char *text = body->prompt;
    if (body->messages != NULL) {
        const json_t *last = json_array_get(body->messages, json_array_size(body->messages) - 1);
        text = json_string_value(json_object_get(last, "content"));
    }
    return text != NULL ? text : "";
}

static enum status remember(struct conformance_broker *b, const struct job *job,
                            const struct job_body *body, const char *id, const char *refused,
                            struct error *e)
{
    struct seen *more = realloc(b->seen, (size_t) (b->n_seen + 1) * sizeof *more);
    if (more == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for messages");
    b->seen = more;
    struct seen *s = &more[b->n_seen++];
    *s = (struct seen){.op = job->op, .class = job->class, .stream = job->stream};
    snprintf(s->id, sizeof s->id, "%s", id);
    snprintf(s->custom_id, sizeof s->custom_id, "%s", job->custom_id);
    snprintf(s->refused, sizeof s->refused, "%s", refused);
    s->prompt = strdup(prompt_of(body));
    return OK;
}

static enum status admit(struct conformance_broker *b, const char *seq, const struct job *job,
                         const char *hash, struct error *e)
{
    char class[8], at[24], deadline[24], ttl[24];
    redisReply *r;
    snprintf(class, sizeof class, "%d", job->class);
    snprintf(at, sizeof at, "%lld", (long long) job->at_ms);
    snprintf(deadline, sizeof deadline, "%lld", (long long) job->deadline_ms);
    snprintf(ttl, sizeof ttl, "%lld", (long long) job->ttl_ms);
    const char *words[] = {b->term, b->tenant, seq,      job->id, class, hash, "1",            "3",
                           "5",     at,        deadline, ttl,     "5",   "0",  job->custom_id,
                           job->batch, MODEL, NULL};
    try(call(b, "admit", words, NULL, &r, e));
    const redisReply *word = r->type == REDIS_REPLY_ARRAY ? r->element[0] : r;
    if (word->str != NULL && strcmp(word->str, "ok") == 0) b->open++;
    freeReplyObject(r);
    if (b->open > b->most_open) b->most_open = b->open;
    return OK;
}

static enum status ingest(struct conformance_broker *b, const char *seq, const redisReply *bytes,
                          struct error *e)
{
    struct job job = job_default();
    struct job_body body = {0};
    struct error why = {0};
    char hash[JOB_HASH_SIZE], id[JOB_ID_MAX + 1] = "";
    enum status status = job_decode(&job, bytes->str, (size_t) bytes->len, &why);
    if (status == OK && job.op != JOB_CANCEL) {
        status = job_body_parse(&body, &job, b->tenant, &why);
        if (status == OK) status = job_body_hash(&job, &body, hash, &why);
    }
    if (status == OK) snprintf(id, sizeof id, "%s", job.id);
    else job_id_peek(bytes->str, (size_t) bytes->len, id, NULL);
    enum status kept = remember(b, &job, &body, id, status == OK ? "" : why.text, e);
    job_body_deinit(&body);
    if (kept != OK) return kept;
    if (status == OK && job.op == JOB_CANCEL) {
        const char *words[] = {b->term, b->tenant, seq, job.id, NULL};
        return call(b, "cancel", words, NULL, NULL, e);
    }
    if (status == OK) return admit(b, seq, &job, hash, e);
    const char *words[] = {b->term, b->tenant, seq, id, "", why.code, why.text, "", NULL};
    return call(b, "reject", words, NULL, NULL, e);
}

static enum status take(struct conformance_broker *b, struct error *e)
{
    const char *words[] = {b->term, b->tenant, "64", BYTES_TEXT, BYTES_TEXT, NULL};
    redisReply *r;
    try(call(b, "take", words, NULL, &r, e));
    enum status status = OK;
    for (size_t i = 1; i < r->elements && status == OK; i++) {
        status = ingest(b, r->element[i]->element[1]->str, r->element[i]->element[3], e);
    }
    freeReplyObject(r);
    return status;
}

// --- answers

// One more field in a small map: what a later version may add.
static void add_unknown(struct buffer *map)
{
    static const char FIELD[] = "\xabx_of_future\x82\xa1\x61\xc3\xa1\x62\x93\x01\xc4\x01\xff\xc0";
    if (map->n == 0 || map->data[0] < 0x80 || map->data[0] >= 0x8f) return;
    map->data[0]++;
    buffer_append(map, FIELD, sizeof FIELD - 1);
}

enum status conformance_broker_publish(struct conformance_broker *b, const char *id, int attempt,
                                       size_t offset, const char *bytes, size_t n,
                                       char entry[CONFORMANCE_ENTRY_SIZE], struct error *e)
{
    redisReply *r = redisCommand(b->c, "XADD ps:{%s}:t:%s:%s * attempt %d offset %llu bytes %b",
                                 b->queue, b->tenant, id, attempt, (unsigned long long) offset,
                                 bytes, n);
    enum status status = redis_reply_check(r, e);
    if (status == OK) snprintf(entry, CONFORMANCE_ENTRY_SIZE, "%s", r->str);
    if (r != NULL) freeReplyObject(r);
    return status;
}

enum status conformance_broker_cancel(struct conformance_broker *b, const char *id,
                                      struct error *e)
{
    char message[JOB_ID_MAX + 32];
    size_t n = (size_t) snprintf(message, sizeof message, "\x83\xa1v\x01\xa2op\xa6"
                                 "cancel\xa2id\xd9%c%s", (int) strlen(id), id);
    redisReply *r = redisCommand(b->c, "RPUSH ps:{%s}:in:%s %b", b->queue, b->tenant, message, n);
    enum status status = redis_reply_check(r, e);
    if (r != NULL) freeReplyObject(r);
    return status;
}

static enum status answer(struct conformance_broker *b, const struct job *job, const char *attempt,
                          const char *prompt, struct error *e)
{
    int32_t tokens[5] = {1, 2, 3, 4, 5};
    struct result result = {.status = RESULT_OK, .finish_reason = RESULT_STOP, .tokens = tokens,
                            .n_tokens = 5, .attempts = 1, .max_tokens = 5};
    size_t n = strlen(prompt) + 5;
    char *text = malloc(n);
    struct buffer to;
    if (text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for an answer");
    snprintf(text, n, "re: %s", prompt);
    result.text = text;
    result.text_bytes = n - 1;
    memcpy(result.id, job->id, sizeof result.id);
    memcpy(result.custom_id, job->custom_id, sizeof result.custom_id);
    buffer_init(&to, RESULT_BYTES_MAX);
    enum status status = result_encode(&result, &to, e);
    if (status == OK) add_unknown(&to);
    if (status == OK) {
        const char *words[] = {b->term, b->tenant, job->id, attempt, "done",
                               (const char *) to.data, NULL};
        const size_t sizes[] = {0, 0, 0, 0, 0, to.n};
        b->open--; // before the event, upon which the next one may come
        status = call(b, "done", words, sizes, NULL, e);
    }
    buffer_deinit(&to);
    free(text);
    return status;
}

static enum status end_job(struct conformance_broker *b, const redisReply *claimed, struct error *e)
{
    const char *id = claimed->element[2]->str, *attempt = claimed->element[3]->str;
    struct seen *seen = conformance_first(b, id);
    struct job job;
    struct job_body body = {0};
    if (seen != NULL) seen->runs++;
    try(job_decode(&job, claimed->element[5]->str, (size_t) claimed->element[5]->len, e));
    enum status status = job_body_parse(&body, &job, b->tenant, e);
    if (status == OK && strcmp(prompt_of(&body), "fail") == 0) {
        const char *words[] = {b->term, b->tenant, id,  attempt, "told_to_fail", "as it was told",
                               "0",     "1",       "1", "0",     "",             NULL};
        b->open--;
        status = call(b, "fail", words, NULL, NULL, e);
    } else if (status == OK) {
        status = answer(b, &job, attempt, prompt_of(&body), e);
    }
    job_body_deinit(&body);
    return status;
}

static enum status claim(struct conformance_broker *b, const char *id, struct error *e)
{
    char number[24];
    redisReply *r;
    snprintf(number, sizeof number, "%d", ++b->n_claims);
    const char *words[] = {b->term, "600000", BYTES_TEXT, number, "conformance", b->tenant, id,
                           NULL};
    try(call(b, "claim", words, NULL, &r, e));
    enum status status = OK;
    if (strcmp(r->element[0]->element[0]->str, "ok") == 0) status = end_job(b, r->element[0], e);
    freeReplyObject(r);
    return status;
}

static enum status run_ready(struct conformance_broker *b, const char *class, int *left,
                             struct error *e)
{
    const char *words[] = {b->term, class, b->tenant, MODEL, "0", "64", NULL};
    redisReply *r;
    try(call(b, "window", words, NULL, &r, e));
    enum status status = OK;
    for (size_t i = 0; i < r->elements && status == OK && *left > 0; i++, --*left) {
        status = claim(b, r->element[i]->element[0]->str, e);
    }
    freeReplyObject(r);
    return status;
}

enum status conformance_broker_step(struct conformance_broker *b, struct error *e)
{
    static const char *const CLASSES[] = {"0", "1", "2", "3"};
    int left = b->most_runs > 0 ? b->most_runs : 64;
    if (!b->hold_takes) try(take(b, e));
    for (int i = 0; i < JOB_CLASSES && !b->hold_runs; i++) try(run_ready(b, CLASSES[i], &left, e));
    return OK;
}
