#include "tools/conformance_checks.h"

#include "broker/redis.h"
#include "common/clock.h"

#include <hiredis/hiredis.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPLY_MS = 60000, TURN_MS = 2, BULK_N = 120, BULK_WINDOW = 16, BIG_BYTES = 1 << 20 };

static enum status wrong(struct error *e, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static enum status wrong(struct error *e, const char *format, ...)
{
    char text[ERROR_TEXT_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return error_set(e, ERR_STATE, "not_conforming", "%s", text);
}

// --- wishes and replies

static enum status turn(void *arg, struct error *e)
{
    struct conformance *c = arg;
    return conformance_broker_step(&c->broker, e);
}

static enum status say(struct conformance *c, json_t *wish, struct error *e)
{
    return conformance_program_ask(&c->program, wish, turn, c, e);
}

static enum status checked(json_t **reply, struct error *e)
{
    const char *failure = json_string_value(json_object_get(*reply, "failure"));
    if (failure != NULL) wrong(e, "the program says: %.300s", failure);
    bool unsupported = json_is_true(json_object_get(*reply, "unsupported"));
    if (failure == NULL && !unsupported) return OK;
    if (unsupported) error_set(e, ERR_UNSUPPORTED, "unsupported", "the program does not do this");
    json_decref(*reply);
    *reply = NULL;
    return e->status;
}

// The broker goes on until the reply is there.
static enum status listen_for(struct conformance *c, json_t **reply, struct error *e)
{
    int64_t until = clock_ms() + REPLY_MS;
    for (;;) {
        try(conformance_program_reply(&c->program, TURN_MS, reply, e));
        if (*reply != NULL) return checked(reply, e);
        if (clock_ms() > until) return wrong(e, "no reply within %d s", REPLY_MS / 1000);
        try(turn(c, e));
    }
}

static enum status ask(struct conformance *c, json_t *wish, json_t **reply, struct error *e)
{
    *reply = NULL;
    try(say(c, wish, e));
    return listen_for(c, reply, e);
}

static json_t *chat_wish(const char *id, const char *prompt, json_t *fields)
{
    json_t *wish = json_pack("{s:s, s:s, s:{s:[{s:s, s:s}], s:i}}", "do", "enqueue", "op", "chat",
                             "body", "messages", "role", "user", "content", prompt, "max_tokens",
                             16);
    if (id != NULL) json_object_set_new(wish, "id", json_string(id));
    if (fields != NULL) json_object_set_new(wish, "fields", fields);
    return wish;
}

// Enqueues a chat; its id as the program tells it.
static enum status enqueue(struct conformance *c, const char *id, const char *prompt,
                           json_t *fields, char told[JOB_ID_MAX + 1], struct error *e)
{
    json_t *reply;
    try(ask(c, chat_wish(id, prompt, fields), &reply, e));
    const char *text = json_string_value(json_object_get(reply, "id"));
    bool good = text != NULL && job_id_ok(text, strlen(text)) &&
                (id == NULL || strcmp(id, text) == 0);
    snprintf(told, JOB_ID_MAX + 1, "%s", good ? text : "");
    json_decref(reply);
    return good ? OK : wrong(e, "the reply to enqueue does not hold the id");
}

static json_t *wish_of(const char *what, const char *id, int timeout_s)
{
    return json_pack("{s:s, s:s, s:i}", "do", what, "id", id, "timeout", timeout_s);
}

// Is the field of the reply this text (NULL: any or none)?
static enum status expect(const json_t *reply, const char *field, const char *text, struct error *e)
{
    const char *got = json_string_value(json_object_get(reply, field));
    if (text == NULL || (got != NULL && strcmp(got, text) == 0)) return OK;
    return wrong(e, "%s is \"%.80s\", not \"%.80s\"", field, got != NULL ? got : "null", text);
}

static enum status result_is(struct conformance *c, const char *wish, const char *id,
                             const char *status, const char *text, const char *code,
                             struct error *e)
{
    json_t *reply;
    try(ask(c, wish_of(wish, id, 30), &reply, e));
    enum status s = expect(reply, "status", status, e);
    if (s == OK) s = expect(reply, "text", text, e);
    if (s == OK) s = expect(reply, "error", code, e);
    json_decref(reply);
    return s;
}

static enum status job_came(struct conformance *c, const char *id, const char *prompt,
                            struct error *e)
{
    const struct seen *s = conformance_last(&c->broker, id);
    if (s == NULL) return wrong(e, "no message with the id %s came", id);
    if (s->refused[0] != 0) return wrong(e, "the message is refused: %s", s->refused);
    if (strcmp(s->prompt, prompt) != 0) return wrong(e, "the prompt came as \"%.80s\"", s->prompt);
    return OK;
}

static enum status step(struct conformance *c, struct error *e) { return turn(c, e); }

// --- the checks

static enum status message(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    json_t *fields = json_pack("{s:i, s:s, s:b}", "class", 1, "custom_id", "mine: \xc3\xbc",
                               "stream", 1);
    try(enqueue(c, "c-message", "hello", fields, id, e));
    try(step(c, e));
    try(job_came(c, id, "hello", e));
    const struct seen *s = conformance_last(&c->broker, id);
    if (s->op != JOB_CHAT) return wrong(e, "the op came as %s", job_op_name(s->op));
    if (s->class != 1 || !s->stream) return wrong(e, "class or stream did not come as given");
    if (strcmp(s->custom_id, "mine: \xc3\xbc") != 0) {
        return wrong(e, "custom_id came as \"%.80s\"", s->custom_id);
    }
    return OK;
}

static enum status text_of_all_kinds(struct conformance *c, struct error *e)
{
    static const char TEXT[] = "Gr\xc3\xb6\xc3\x9f" "e \xe6\xbc\xa2\xe5\xad\x97 "
                               "\xf0\x9f\x99\x82 \"q\" back\\slash, tab\t, line\nend %s $(x) `y`";
    char id[JOB_ID_MAX + 1], answer[sizeof TEXT + 8];
    snprintf(answer, sizeof answer, "re: %s", TEXT);
    try(enqueue(c, "c-text", TEXT, NULL, id, e));
    try(step(c, e));
    try(job_came(c, id, TEXT, e));
    return result_is(c, "wait", id, "ok", answer, NULL, e);
}

static enum status ids_made(struct conformance *c, struct error *e)
{
    char a[JOB_ID_MAX + 1], b[JOB_ID_MAX + 1];
    try(enqueue(c, NULL, "one", NULL, a, e));
    try(enqueue(c, NULL, "two", NULL, b, e));
    try(step(c, e));
    if (strcmp(a, b) == 0) return wrong(e, "two jobs got the same id");
    try(job_came(c, a, "one", e));
    return job_came(c, b, "two", e);
}

// All is over before the program is asked to wait: only the event from before the push helps.
static enum status end_before_wait(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    try(enqueue(c, "c-early", "early", NULL, id, e));
    try(step(c, e));
    return result_is(c, "wait", id, "ok", "re: early", NULL, e);
}

static enum status end_after_wait(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    json_t *reply = NULL;
    c->broker.hold_runs = true;
    try(enqueue(c, "c-late", "late", NULL, id, e));
    try(say(c, wish_of("wait", id, 30), e));
    for (int64_t until = clock_ms() + 300; reply == NULL && clock_ms() < until;) {
        try(step(c, e));
        try(conformance_program_reply(&c->program, TURN_MS, &reply, e));
    }
    c->broker.hold_runs = false;
    if (reply != NULL) {
        json_decref(reply);
        return wrong(e, "wait ended before the job did");
    }
    try(listen_for(c, &reply, e));
    enum status status = expect(reply, "text", "re: late", e);
    json_decref(reply);
    return status;
}

static enum status wait_in_vain(struct conformance *c, struct error *e)
{
    json_t *reply;
    try(ask(c, wish_of("wait", "c-nobody", 1), &reply, e));
    bool timeout = json_is_true(json_object_get(reply, "timeout"));
    json_decref(reply);
    return timeout ? OK : wrong(e, "waiting for a job that never was did not time out");
}

// Every answer holds fields of a later version.
static enum status unknown_fields(struct conformance *c, struct error *e)
{
    return result_is(c, "result", "c-early", "ok", "re: early", NULL, e);
}

static enum status no_result(struct conformance *c, struct error *e)
{
    json_t *reply;
    try(ask(c, wish_of("result", "c-nobody", 1), &reply, e));
    bool none = json_is_null(json_object_get(reply, "status"));
    json_decref(reply);
    return none ? OK : wrong(e, "a job that never was has a status");
}

static enum status duplicate(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    for (int i = 0; i < 2; i++) {
        try(enqueue(c, "c-twice", "twice", NULL, id, e));
        try(result_is(c, "wait", id, "ok", "re: twice", NULL, e));
    }
    int runs = conformance_first(&c->broker, id)->runs;
    return runs == 1 ? OK : wrong(e, "the job ran %d times", runs);
}

static enum status conflict(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    try(enqueue(c, "c-twice", "something else", NULL, id, e));
    try(result_is(c, "wait", id, NULL, NULL, "id_conflict", e));
    return result_is(c, "result", id, "ok", "re: twice", NULL, e);
}

static enum status failure(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    try(enqueue(c, "c-fail", "fail", NULL, id, e));
    return result_is(c, "wait", id, "error", NULL, "told_to_fail", e);
}

static enum status cancel(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    json_t *reply;
    c->broker.hold_runs = true;
    try(enqueue(c, "c-cancel", "never mind", NULL, id, e));
    try(ask(c, wish_of("cancel", id, 1), &reply, e));
    json_decref(reply);
    enum status status = result_is(c, "wait", id, "cancelled", NULL, NULL, e);
    c->broker.hold_runs = false;
    return status;
}

static enum status stream(struct conformance *c, struct error *e)
{
    static const char TEXT[] = "\xc3\xa4\xc3\xb6\xc3\xbc \xe6\xbc\xa2\xe5\xad\x97 streams "
                               "\xf0\x9f\x99\x82!";
    char id[JOB_ID_MAX + 1], answer[sizeof TEXT + 8];
    json_t *reply;
    snprintf(answer, sizeof answer, "re: %s", TEXT);
    try(enqueue(c, "c-stream", TEXT, json_pack("{s:b}", "stream", 1), id, e));
    try(ask(c, wish_of("stream", id, 30), &reply, e));
    enum status status = expect(reply, "text", answer, e);
    json_decref(reply);
    return status;
}

static enum status big(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1], *text = malloc(BIG_BYTES + 8);
    if (text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a big body");
    memcpy(text, "re: ", 4);
    memset(text + 4, 'x', BIG_BYTES);
    text[BIG_BYTES + 4] = 0;
    enum status status = enqueue(c, "c-big", text + 4, NULL, id, e);
    if (status == OK) status = step(c, e);
    if (status == OK) status = job_came(c, id, text + 4, e);
    if (status == OK) status = result_is(c, "wait", id, "ok", text, NULL, e);
    free(text);
    return status;
}

// --- lost connections

static enum status command(struct conformance *c, const char *text, redisReply **reply,
                           struct error *e)
{
    redisReply *r = redisCommand(c->broker.c, text);
    enum status status = redis_reply_check(r, e);
    if (status == OK && reply != NULL) *reply = r;
    else if (r != NULL) freeReplyObject(r);
    return status;
}

static enum status cut(struct conformance *c, struct error *e)
{
    return command(c, "CLIENT KILL TYPE normal SKIPME yes", NULL, e);
}

// Waits until a push has reached Redis, which holds it back.
static enum status push_is_held(struct conformance *c, struct error *e)
{
    for (int64_t until = clock_ms() + REPLY_MS;;) {
        redisReply *r;
        json_t *reply;
        try(command(c, "CLIENT LIST TYPE normal", &r, e));
        bool held = strstr(r->str, "cmd=rpush") != NULL;
        freeReplyObject(r);
        if (held) return OK;
        if (clock_ms() > until) return wrong(e, "no RPUSH came");
        try(conformance_program_reply(&c->program, TURN_MS, &reply, e));
        if (reply != NULL) {
            json_decref(reply);
            return wrong(e, "enqueue was over before its RPUSH was answered");
        }
    }
}

static enum status push_cut_off(struct conformance *c, struct error *e)
{
    json_t *reply;
    try(cut(c, e));
    try(command(c, "CLIENT PAUSE 60000 WRITE", NULL, e));
    enum status status = say(c, chat_wish(NULL, "cut off", NULL), e);
    if (status == OK) status = push_is_held(c, e);
    if (status == OK) status = cut(c, e);
    try(command(c, "CLIENT UNPAUSE", NULL, e));
    if (status != OK) return status;
    try(listen_for(c, &reply, e));
    const char *id = json_string_value(json_object_get(reply, "id"));
    status = step(c, e);
    if (status == OK) status = job_came(c, id != NULL ? id : "", "cut off", e);
    for (int i = 0; status == OK && i < c->broker.n_seen; i++) {
        const struct seen *s = &c->broker.seen[i];
        if (strcmp(s->prompt, "cut off") == 0 && strcmp(s->id, id) != 0) {
            status = wrong(e, "the job was pushed again under another id");
        }
    }
    if (status == OK) status = result_is(c, "wait", id, "ok", "re: cut off", NULL, e);
    json_decref(reply);
    return status;
}

static enum status wait_cut_off(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    json_t *reply = NULL;
    c->broker.hold_runs = true;
    try(enqueue(c, "c-cut", "cut", NULL, id, e));
    try(say(c, wish_of("wait", id, 30), e));
    for (int64_t until = clock_ms() + 300; reply == NULL && clock_ms() < until;) {
        try(step(c, e));
        try(conformance_program_reply(&c->program, TURN_MS, &reply, e));
    }
    c->broker.hold_runs = false;
    if (reply != NULL) {
        json_decref(reply);
        return wrong(e, "wait ended before the job did");
    }
    try(cut(c, e));
    try(listen_for(c, &reply, e));
    enum status status = expect(reply, "text", "re: cut", e);
    json_decref(reply);
    return status;
}

// --- many

static enum status bulk_results(const json_t *reply, const char *prefix, struct error *e)
{
    const json_t *results = json_object_get(reply, "results");
    if (json_object_size(results) != BULK_N) {
        return wrong(e, "%zu results of %d jobs", json_object_size(results), BULK_N);
    }
    for (int i = 0; i < BULK_N; i++) {
        char id[64], text[72];
        snprintf(id, sizeof id, "%s-%d", prefix, i);
        snprintf(text, sizeof text, "re: %s", id);
        try(expect(results, id, text, e));
    }
    return OK;
}

// Until as many jobs are in the queue as may be.
static enum status fill_window(struct conformance *c, json_t **reply, struct error *e)
{
    for (int64_t until = clock_ms() + REPLY_MS;
         c->broker.most_open < BULK_WINDOW && *reply == NULL;) {
        try(conformance_program_reply(&c->program, TURN_MS, reply, e));
        try(step(c, e));
        if (clock_ms() > until) {
            return wrong(e, "%d jobs of a window of %d came, and no more", c->broker.most_open,
                         BULK_WINDOW);
        }
    }
    return *reply == NULL ? OK : checked(reply, e);
}

static enum status run_bulk(struct conformance *c, const char *prefix, bool cut_it, struct error *e)
{
    json_t *reply = NULL;
    c->broker.hold_runs = true;
    c->broker.open = c->broker.most_open = 0;
    enum status status = say(c, json_pack("{s:s, s:i, s:i, s:s}", "do", "bulk", "n", BULK_N,
                                          "window", BULK_WINDOW, "prefix", prefix), e);
    if (status == OK) status = fill_window(c, &reply, e);
    for (int i = 0; i < 50 && status == OK; i++) { // room for one too many
        status = conformance_program_reply(&c->program, TURN_MS, &reply, e);
        if (status == OK) status = step(c, e);
    }
    c->broker.hold_runs = false;
    c->broker.most_runs = 1;
    if (status == OK && cut_it) status = cut(c, e);
    if (status == OK) status = listen_for(c, &reply, e);
    c->broker.most_runs = 0;
    if (status == OK && c->broker.most_open > BULK_WINDOW) {
        status = wrong(e, "%d jobs were in the queue at once, the window is %d",
                       c->broker.most_open, BULK_WINDOW);
    }
    if (status == OK) status = bulk_results(reply, prefix, e);
    json_decref(reply);
    return status;
}

static enum status bulk(struct conformance *c, struct error *e)
{
    return run_bulk(c, "c-bulk", false, e);
}

static enum status bulk_cut_off(struct conformance *c, struct error *e)
{
    return run_bulk(c, "c-bulk-cut", true, e);
}

const struct conformance_check CONFORMANCE_CHECKS[] = {
    {"message", "a message decodes by the schema, its fields as given", message},
    {"text", "text of all kinds arrives and comes back unchanged", text_of_all_kinds},
    {"ids", "ids that are made up are valid and differ", ids_made},
    {"end-before-wait", "an end before wait is called is not missed", end_before_wait},
    {"end-after-wait", "wait lasts until the job has ended", end_after_wait},
    {"timeout", "wait ends in time where nothing comes", wait_in_vain},
    {"unknown-fields", "unknown fields of a result are ignored", unknown_fields},
    {"no-result", "where there is no result, that is said", no_result},
    {"duplicate", "the same id and body again is the same job", duplicate},
    {"conflict", "the same id with another body is an id_conflict", conflict},
    {"failure", "the error code of a failed job is told", failure},
    {"cancel", "a cancelled job ends as cancelled", cancel},
    {"stream", "chunks are placed by offset, characters are whole", stream},
    {"big", "a body of 1 MiB arrives, and its answer", big},
    {"push-cut-off", "a push that was cut off is made again with the same id", push_cut_off},
    {"wait-cut-off", "wait goes on after the connection was lost", wait_cut_off},
    {"bulk", "bulk keeps to its window, and fills it", bulk},
    {"bulk-cut-off", "bulk goes on after the connection was lost", bulk_cut_off},
};
const int CONFORMANCE_N_CHECKS = sizeof CONFORMANCE_CHECKS / sizeof *CONFORMANCE_CHECKS;
