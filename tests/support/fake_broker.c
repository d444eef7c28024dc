#include "tests/support/fake_broker.h"

#include "broker/queue_lua.h"
#include "common/job.h"
#include "common/result.h"

#include <errno.h>
#include <hiredis/hiredis.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL "fake"
#define LEASE_MS_TEXT "500" // a job takes no time here

enum { WORDS_MAX = 24, RESULT_BYTES_MAX = 1 << 24 };

// FCALL with words up to NULL; NULL when the connection is gone.
static redisReply *call(struct fake_broker *b, const char *name, const char **words,
                        const size_t *sizes)
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
    check(r == NULL || r->type != REDIS_REPLY_ERROR, "%s: %s", name, r->str);
    return r;
}

static void forget(redisReply *r)
{
    if (r != NULL) freeReplyObject(r);
}

static bool connect_to(struct fake_broker *b, const struct test_redis *r)
{
    static const char *const leads[] = {"fake", "3600000", "0", NULL};
    b->c = redisConnectUnix(r->socket);
    redisReply *loaded = NULL, *term = NULL;
    if (b->c != NULL && b->c->err == 0) {
        loaded = redisCommand(b->c, "FUNCTION LOAD REPLACE %b", queue_lua, queue_lua_size);
    }
    bool good = loaded != NULL && loaded->type == REDIS_REPLY_STRING;
    if (good) term = call(b, "lead", (const char **) (void *) leads, NULL);
    if (term != NULL) snprintf(b->term, sizeof b->term, "%s", term->element[1]->str);
    good = term != NULL;
    forget(loaded);
    forget(term);
    if (!good) fake_broker_stop(b);
    return good;
}

static struct fake_broker broker_of(const char *queue)
{
    struct fake_broker b = {0};
    snprintf(b.queue, sizeof b.queue, "%s", queue);
    snprintf(b.key, sizeof b.key, "ps:{%s}:term", queue);
    return b;
}

void fake_broker_start(struct fake_broker *b, const struct test_redis *r, const char *queue)
{
    *b = broker_of(queue);
    check(connect_to(b, r));
}

void fake_broker_stop(struct fake_broker *b)
{
    if (b->c != NULL) redisFree(b->c);
    b->c = NULL;
}

// --- ingest

static void reject(struct fake_broker *b, const char *seq, const char *id, const struct job *job,
                   const struct error *e)
{
    const char *words[] = {b->term, "default", seq, id,   job->custom_id,
                           e->code, e->text,   "",  NULL};
    forget(call(b, "reject", words, NULL));
}

static void admit(struct fake_broker *b, const char *seq, const struct job *job, const char *hash)
{
    char class[8], at[24], deadline[24], ttl[24];
    snprintf(class, sizeof class, "%d", job->class);
    snprintf(at, sizeof at, "%lld", (long long) job->at_ms);
    snprintf(deadline, sizeof deadline, "%lld", (long long) job->deadline_ms);
    snprintf(ttl, sizeof ttl, "%lld", (long long) job->ttl_ms);
    const char *words[] = {b->term, "default", seq,      job->id, class, hash, "1",            "3",
                           "5",     at,        deadline, ttl,     "5",   "0",  job->custom_id,
                           job->batch, MODEL, NULL};
    forget(call(b, "admit", words, NULL));
}

static void ingest(struct fake_broker *b, const char *seq, const redisReply *bytes)
{
    struct job job;
    struct job_body body = {0};
    struct error e = {0};
    char hash[JOB_HASH_SIZE], id[JOB_ID_MAX + 1] = "";
    enum status status = job_decode(&job, bytes->str, (size_t) bytes->len, &e);
    if (status == OK && job.op == JOB_CANCEL) {
        const char *words[] = {b->term, "default", seq, job.id, NULL};
        forget(call(b, "cancel", words, NULL));
        return;
    }
    if (status == OK) status = job_body_parse(&body, &job, "default", &e);
    if (status == OK) status = job_body_hash(&job, &body, hash, &e);
    job_body_deinit(&body);
    if (status == OK) {
        admit(b, seq, &job, hash);
    } else {
        job_id_peek(bytes->str, (size_t) bytes->len, id, NULL);
        reject(b, seq, id, &job, &e);
    }
}

// `take`, or `recover` what an earlier one took before the connection was lost.
static int take(struct fake_broker *b, const char *function, const char *from, const char *n)
{
    const char *words[] = {b->term, from, n, "16777216", "16777216", NULL};
    redisReply *r = call(b, function, words, NULL);
    int moved = 0;
    for (size_t i = 1; r != NULL && i < r->elements; i++, moved++) {
        ingest(b, r->element[i]->element[1]->str, r->element[i]->element[3]);
    }
    forget(r);
    return moved;
}

// --- answers

static void prompt_of(const struct job_body *body, char *prompt, size_t n)
{
    const char *text = body->prompt;
    if (body->messages != NULL) {
        const json_t *last = json_array_get(body->messages, json_array_size(body->messages) - 1);
        text = json_string_value(json_object_get(last, "content"));
    }
    snprintf(prompt, n, "%s", text != NULL ? text : "");
}

static void end_job(struct fake_broker *b, const redisReply *claimed)
{
    const char *id = claimed->element[2]->str, *attempt = claimed->element[3]->str;
    struct job job;
    struct job_body body;
    struct error e = {0};
    char prompt[4096], text[4200];
    int32_t tokens[5] = {1, 2, 3, 4, 5};
    const redisReply *bytes = claimed->element[5];
    check(job_decode(&job, bytes->str, (size_t) bytes->len, &e) == OK);
    check(job_body_parse(&body, &job, "default", &e) == OK);
    prompt_of(&body, prompt, sizeof prompt);
    job_body_deinit(&body);
    if (strncmp(prompt, "keep", 4) == 0) {
        const char *words[] = {b->term, "3600000", "default", id, attempt, NULL};
        forget(call(b, "renew", words, NULL));
        return;
    }
    if (strncmp(prompt, "fail", 4) == 0) {
        const char *words[] = {b->term, "default", id,  attempt, "told_to_fail", "as it was told",
                               "0",     "1",       "1", "0",     "",             NULL};
        forget(call(b, "fail", words, NULL));
        return;
    }
    snprintf(text, sizeof text, "re: %s", prompt);
    struct result result = {.status = RESULT_OK, .finish_reason = RESULT_STOP, .text = text,
                            .text_bytes = strlen(text), .tokens = tokens, .n_tokens = 5,
                            .attempts = 1, .max_tokens = 5};
    result.usage.prompt = 3;
    result.usage.completion = 5;
    memcpy(result.id, job.id, sizeof result.id);
    memcpy(result.custom_id, job.custom_id, sizeof result.custom_id);
    struct buffer to;
    buffer_init(&to, RESULT_BYTES_MAX);
    check(result_encode(&result, &to, &e) == OK, "%s", e.text);
    const char *words[] = {b->term, "default", id, attempt, "done", (const char *) to.data, NULL};
    const size_t sizes[] = {0, 0, 0, 0, 0, to.n};
    forget(call(b, "done", words, sizes));
    buffer_deinit(&to);
}

static int run_ready(struct fake_broker *b, const char *class, const char *n)
{
    const char *words[] = {b->term, class, "default", MODEL, "0", n, NULL};
    redisReply *r = call(b, "window", words, NULL);
    int moved = 0;
    for (size_t i = 0; r != NULL && i < r->elements; i++, moved++) {
        char claim[24];
        snprintf(claim, sizeof claim, "%d", ++b->n_claims);
        const char *claims[] = {b->term, LEASE_MS_TEXT, "16777216", claim, "fake", "default",
                                r->element[i]->element[0]->str, NULL};
        redisReply *got = call(b, "claim", claims, NULL);
        if (got != NULL && strcmp(got->element[0]->element[0]->str, "ok") == 0) {
            end_job(b, got->element[0]);
        }
        forget(got);
    }
    forget(r);
    return moved;
}

// What was claimed before the connection was lost comes back.
static void reap(struct fake_broker *b)
{
    const char *words[] = {b->term, "100", NULL};
    forget(call(b, "reap", words, NULL));
}

int fake_broker_step(struct fake_broker *b, int n)
{
    static const char *const CLASSES[] = {"0", "1", "2", "3"};
    char count[16];
    snprintf(count, sizeof count, "%d", n);
    reap(b);
    int moved = take(b, "recover", "0", count) + take(b, "take", "default", count);
    for (int i = 0; i < JOB_CLASSES; i++) moved += run_ready(b, CLASSES[i], count);
    return moved;
}

// --- as a process

pid_t fake_broker_fork(const struct test_redis *r, const char *queue, int n)
{
    pid_t pid = fork();
    check(pid >= 0);
    if (pid > 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct fake_broker b = broker_of(queue);
    for (;;) {
        if (b.c == NULL && !connect_to(&b, r)) {
            poll(NULL, 0, 5); // Redis is away
            continue;
        }
        int moved = fake_broker_step(&b, n);
        if (b.c->err != 0) fake_broker_stop(&b);
        else if (moved == 0) poll(NULL, 0, 1); // as brokers do, should a notification be missed
    }
}

void fake_broker_kill(pid_t pid)
{
    check(kill(pid, SIGKILL) == 0);
    while (waitpid(pid, NULL, 0) < 0) check(errno == EINTR);
}
