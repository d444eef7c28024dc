#include "tools/conformance.h"

#include "broker/redis.h"
#include "common/clock.h"

#include <hiredis/hiredis.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { QUIET_MS = 300 }; // a reply that comes too early comes within

enum status conformance_wrong(struct error *e, const char *format, ...)
{
    char text[ERROR_TEXT_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return error_set(e, ERR_STATE, "not_conforming", "%s", text);
}

enum status conformance_step(struct conformance *c, struct error *e)
{
    return conformance_broker_step(&c->broker, e);
}

enum status conformance_restart(struct conformance *c, struct error *e)
{
    if (c->program.pid > 0) conformance_program_stop(&c->program);
    return conformance_program_start(&c->program, c->command, c->url, c->broker.queue, e);
}

// --- wishes and replies

json_t *conformance_chat(const char *id, const char *prompt, json_t *fields)
{
    json_t *wish = json_pack("{s:s, s:s, s:{s:[{s:s, s:s}], s:i}}", "do", "enqueue", "op", "chat",
                             "body", "messages", "role", "user", "content", prompt, "max_tokens",
                             16);
    if (id != NULL) json_object_set_new(wish, "id", json_string(id));
    if (fields != NULL) json_object_set_new(wish, "fields", fields);
    return wish;
}

json_t *conformance_wish(const char *what, const char *id, int timeout_s)
{
    return json_pack("{s:s, s:s, s:i}", "do", what, "id", id, "timeout", timeout_s);
}

static enum status turn(void *arg, struct error *e) { return conformance_step(arg, e); }

enum status conformance_say(struct conformance *c, json_t *wish, struct error *e)
{
    return conformance_program_ask(&c->program, wish, turn, c, e);
}

enum status conformance_checked(json_t **reply, bool any, struct error *e)
{
    const char *failure = json_string_value(json_object_get(*reply, "failure"));
    bool unsupported = json_is_true(json_object_get(*reply, "unsupported"));
    enum status status = OK;
    if (unsupported) {
        status = error_set(e, ERR_UNSUPPORTED, "unsupported", "the program does not do this");
    } else if (failure != NULL && !any) {
        status = conformance_wrong(e, "the program says: %.300s", failure);
    }
    if (status == OK) return OK;
    json_decref(*reply);
    *reply = NULL;
    return status;
}

enum status conformance_listen(struct conformance *c, bool any, json_t **reply, struct error *e)
{
    int seconds = 2 * c->timeout_s;
    int64_t until = clock_ms() + seconds * 1000;
    for (;;) {
        try(conformance_program_reply(&c->program, CONFORMANCE_TURN_MS, reply, e));
        if (*reply != NULL) return conformance_checked(reply, any, e);
        if (clock_ms() > until) return conformance_wrong(e, "no reply within %d s", seconds);
        try(conformance_step(c, e));
    }
}

enum status conformance_ask(struct conformance *c, json_t *wish, json_t **reply, struct error *e)
{
    *reply = NULL;
    try(conformance_say(c, wish, e));
    return conformance_listen(c, false, reply, e);
}

enum status conformance_enqueue(struct conformance *c, const char *id, const char *prompt,
                                json_t *fields, char told[JOB_ID_MAX + 1], struct error *e)
{
    json_t *reply;
    try(conformance_ask(c, conformance_chat(id, prompt, fields), &reply, e));
    const char *text = json_string_value(json_object_get(reply, "id"));
    bool good = text != NULL && job_id_ok(text, strlen(text)) &&
                (id == NULL || strcmp(id, text) == 0);
    snprintf(told, JOB_ID_MAX + 1, "%s", good ? text : "");
    json_decref(reply);
    return good ? OK : conformance_wrong(e, "the reply to enqueue does not hold the id");
}

// --- what has to be

enum status conformance_wait_early(struct conformance *c, const char *id, const char *prompt,
                                   struct error *e)
{
    char told[JOB_ID_MAX + 1];
    json_t *reply = NULL;
    c->broker.hold_runs = true;
    try(conformance_enqueue(c, id, prompt, NULL, told, e));
    try(conformance_say(c, conformance_wish("wait", told, c->timeout_s), e));
    for (int64_t until = clock_ms() + QUIET_MS; reply == NULL && clock_ms() < until;) {
        try(conformance_step(c, e));
        try(conformance_program_reply(&c->program, CONFORMANCE_TURN_MS, &reply, e));
    }
    c->broker.hold_runs = false;
    if (reply == NULL) return OK;
    json_decref(reply);
    return conformance_wrong(e, "wait ended before the job did");
}

enum status conformance_wait_ends(struct conformance *c, const char *text, struct error *e)
{
    json_t *reply;
    try(conformance_listen(c, false, &reply, e));
    enum status status = conformance_expect(reply, "text", text, e);
    json_decref(reply);
    return status;
}

enum status conformance_expect(const json_t *reply, const char *field, const char *text,
                               struct error *e)
{
    const char *got = json_string_value(json_object_get(reply, field));
    if (text == NULL || (got != NULL && strcmp(got, text) == 0)) return OK;
    if (json_is_true(json_object_get(reply, "timeout"))) {
        return conformance_wrong(e, "the program was not told of the job's end in time");
    }
    return conformance_wrong(e, "%s is \"%.80s\", not \"%.80s\"", field,
                             got != NULL ? got : "null", text);
}

enum status conformance_result_is(struct conformance *c, const char *wish, const char *id,
                                  const char *status, const char *text, const char *code,
                                  struct error *e)
{
    json_t *reply;
    try(conformance_ask(c, conformance_wish(wish, id, c->timeout_s), &reply, e));
    enum status s = conformance_expect(reply, "status", status, e);
    if (s == OK) s = conformance_expect(reply, "text", text, e);
    if (s == OK) s = conformance_expect(reply, "error", code, e);
    json_decref(reply);
    return s;
}

enum status conformance_came(struct conformance *c, const char *id, const char *prompt,
                             struct error *e)
{
    const struct seen *s = conformance_last(&c->broker, id);
    if (s == NULL) return conformance_wrong(e, "no message with the id %s came", id);
    if (s->refused[0] != 0) return conformance_wrong(e, "the message is refused: %s", s->refused);
    if (strcmp(s->prompt, prompt) == 0) return OK;
    return conformance_wrong(e, "the prompt came as \"%.80s\"", s->prompt);
}

// --- connections

enum status conformance_command(struct conformance *c, const char *text, redisReply **reply,
                                struct error *e)
{
    redisReply *r = redisCommand(c->broker.c, text);
    enum status status = redis_reply_check(r, e);
    if (status == OK && reply != NULL) *reply = r;
    else if (r != NULL) freeReplyObject(r);
    return status;
}

enum status conformance_cut(struct conformance *c, struct error *e)
{
    return conformance_command(c, "CLIENT KILL TYPE normal SKIPME yes", NULL, e);
}

enum status conformance_trim(struct conformance *c, int n, struct error *e)
{
    char text[160];
    snprintf(text, sizeof text, "XTRIM ps:{%s}:ev:%s MAXLEN %d", c->broker.queue, c->broker.tenant,
             n);
    return conformance_command(c, text, NULL, e);
}
