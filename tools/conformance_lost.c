// Checks of what is lost, refused or many.
#include "tools/conformance_checks.h"

#include "broker/redis.h"
#include "common/clock.h"
#include "tools/conformance_relay.h"

#include <hiredis/hiredis.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { BULK_N = 60, BULK_WINDOW = 16 };

// Waits until a push has reached Redis, which holds it back.
static enum status push_is_held(struct conformance *c, struct error *e)
{
    for (int64_t until = clock_ms() + 2000 * c->timeout_s;;) {
        redisReply *r;
        json_t *reply;
        try(conformance_command(c, "CLIENT LIST TYPE normal", &r, e));
        bool held = strstr(r->str, "cmd=rpush") != NULL;
        freeReplyObject(r);
        if (held) return OK;
        if (clock_ms() > until) return conformance_wrong(e, "no RPUSH came");
        try(conformance_program_reply(&c->program, CONFORMANCE_TURN_MS, &reply, e));
        if (reply != NULL) {
            json_decref(reply);
            return conformance_wrong(e, "enqueue was over before its RPUSH was answered");
        }
    }
}

// However often it was pushed: under the id that the reply tells, and none else.
static enum status one_id(struct conformance *c, const json_t *reply, const char *prompt,
                          struct error *e)
{
    char text[64];
    const char *id = json_string_value(json_object_get(reply, "id"));
    if (id == NULL) return conformance_wrong(e, "the reply to enqueue does not hold the id");
    try(conformance_step(c, e));
    try(conformance_came(c, id, prompt, e));
    for (int i = 0; i < c->broker.n_seen; i++) {
        const struct seen *s = &c->broker.seen[i];
        if (strcmp(s->prompt, prompt) == 0 && strcmp(s->id, id) != 0) {
            return conformance_wrong(e, "the job was pushed again under another id");
        }
    }
    snprintf(text, sizeof text, "re: %s", prompt);
    return conformance_result_is(c, "wait", id, "ok", text, NULL, e);
}

enum status conformance_push_cut_off(struct conformance *c, struct error *e)
{
    json_t *reply;
    try(conformance_cut(c, e));
    try(conformance_command(c, "CLIENT PAUSE 60000 WRITE", NULL, e));
    enum status status = conformance_say(c, conformance_chat(NULL, "cut off", NULL), e);
    if (status == OK) status = push_is_held(c, e);
    if (status == OK) status = conformance_cut(c, e);
    struct error ignored;
    try(conformance_command(c, "CLIENT UNPAUSE", NULL, status == OK ? e : &ignored));
    if (status != OK) return status;
    try(conformance_listen(c, false, &reply, e));
    status = one_id(c, reply, "cut off", e);
    json_decref(reply);
    return status;
}

static enum status through_relay(struct conformance *c, struct conformance_relay *relay,
                                 struct error *e)
{
    json_t *reply;
    try(conformance_restart(c, e));
    conformance_relay_lose(relay);
    try(conformance_ask(c, conformance_chat(NULL, "answer lost", NULL), &reply, e));
    enum status status = OK;
    if (!conformance_relay_lost(relay)) {
        status = conformance_wrong(e, "enqueue was over before its RPUSH was answered");
    }
    if (status == OK) status = one_id(c, reply, "answer lost", e);
    json_decref(reply);
    return status;
}

enum status conformance_push_arrived(struct conformance *c, struct error *e)
{
    struct conformance_relay relay;
    const char *url = c->url;
    if (!c->own_server) {
        return error_set(e, ERR_UNSUPPORTED, "unsupported", "only with a server of this run alone");
    }
    try(conformance_relay_start(&relay, url, e));
    c->url = relay.url;
    enum status status = through_relay(c, &relay, e);
    c->url = url;
    conformance_program_stop(&c->program); // the next one goes to the server itself
    conformance_relay_stop(&relay);
    return status;
}

// Redis is full while the push comes, then it is not.
static enum status until_refused(struct conformance *c, struct error *e)
{
    for (int64_t until = clock_ms() + 1000 * c->timeout_s; clock_ms() < until;) {
        redisReply *r;
        json_t *reply;
        try(conformance_command(c, "INFO errorstats", &r, e));
        bool refused = strstr(r->str, "errorstat_OOM") != NULL;
        freeReplyObject(r);
        if (refused) return OK;
        try(conformance_program_reply(&c->program, CONFORMANCE_TURN_MS, &reply, e));
        if (reply != NULL) {
            json_decref(reply);
            return conformance_wrong(e, "enqueue was over before its RPUSH was answered");
        }
    }
    return conformance_wrong(e, "no RPUSH came");
}

enum status conformance_push_full(struct conformance *c, struct error *e)
{
    json_t *reply;
    if (!c->own_server) {
        return error_set(e, ERR_UNSUPPORTED, "unsupported", "only with a server of this run alone");
    }
    try(conformance_command(c, "CONFIG RESETSTAT", NULL, e));
    try(conformance_command(c, "CONFIG SET maxmemory 1", NULL, e));
    enum status status = conformance_say(c, conformance_chat("c-full", "full", NULL), e);
    if (status == OK) status = until_refused(c, e);
    struct error ignored;
    try(conformance_command(c, "CONFIG SET maxmemory 0", NULL, status == OK ? e : &ignored));
    if (status != OK) return status;
    try(conformance_listen(c, false, &reply, e));
    json_decref(reply);
    try(conformance_step(c, e));
    try(conformance_came(c, "c-full", "full", e));
    return conformance_result_is(c, "wait", "c-full", "ok", "re: full", NULL, e);
}

enum status conformance_wait_cut_off(struct conformance *c, struct error *e)
{
    try(conformance_wait_early(c, "c-cut", "cut", e));
    try(conformance_cut(c, e));
    return conformance_wait_ends(c, "re: cut", e);
}

// --- many

static enum status bulk_results(const json_t *reply, const char *prefix, struct error *e)
{
    const json_t *results = json_object_get(reply, "results");
    if (json_object_size(results) != BULK_N) {
        return conformance_wrong(e, "%zu results of %d jobs", json_object_size(results), BULK_N);
    }
    for (int i = 0; i < BULK_N; i++) {
        char id[64], text[72];
        snprintf(id, sizeof id, "%s-%d", prefix, i);
        snprintf(text, sizeof text, "re: %s", id);
        try(conformance_expect(results, id, text, e));
    }
    return OK;
}

// Until as many jobs are in the queue as may be.
static enum status fill_window(struct conformance *c, json_t **reply, struct error *e)
{
    for (int64_t until = clock_ms() + 2000 * c->timeout_s;
         c->broker.most_open < BULK_WINDOW && *reply == NULL;) {
        try(conformance_program_reply(&c->program, CONFORMANCE_TURN_MS, reply, e));
        try(conformance_step(c, e));
        if (clock_ms() > until) {
            return conformance_wrong(e, "%d jobs of a window of %d came, and no more",
                                     c->broker.most_open, BULK_WINDOW);
        }
    }
    if (*reply == NULL) return OK;
    try(conformance_checked(reply, false, e));
    return conformance_wrong(e, "bulk was over before a job had ended");
}

static enum status run_bulk(struct conformance *c, const char *prefix, bool cut_it, struct error *e)
{
    json_t *reply = NULL;
    c->broker.hold_runs = true;
    c->broker.open = c->broker.most_open = 0;
    enum status status = conformance_say(c,
                                         json_pack("{s:s, s:i, s:i, s:s}", "do", "bulk", "n",
                                                   BULK_N, "window", BULK_WINDOW, "prefix", prefix),
                                         e);
    if (status == OK) status = fill_window(c, &reply, e);
    for (int i = 0; i < 50 && status == OK; i++) { // room for one too many
        status = conformance_program_reply(&c->program, CONFORMANCE_TURN_MS, &reply, e);
        if (status == OK) status = conformance_step(c, e);
    }
    c->broker.hold_runs = false;
    c->broker.most_runs = 1;
    if (status == OK && cut_it) status = conformance_cut(c, e);
    if (status == OK) status = conformance_listen(c, false, &reply, e);
    c->broker.most_runs = 0;
    if (status == OK && c->broker.most_open > BULK_WINDOW) {
        status = conformance_wrong(e, "%d jobs were in the queue at once, the window is %d",
                                   c->broker.most_open, BULK_WINDOW);
    }
    if (status == OK) status = bulk_results(reply, prefix, e);
    json_decref(reply);
    return status;
}

enum status conformance_bulk(struct conformance *c, struct error *e)
{
    return run_bulk(c, "c-bulk", false, e);
}

enum status conformance_bulk_cut_off(struct conformance *c, struct error *e)
{
    return run_bulk(c, "c-bulk-cut", true, e);
}
