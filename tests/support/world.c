#include "tests/support/world.h"

#include "common/checkpoint.h"
#include "tests/support/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <zmq.h>

enum { ARGS_MAX = 32 };

struct test_redis world_server;
redisContext *world_redis;
static char model_hash[33];
void *world_zmq;

struct world w;

// --- driving

void turn(void)
{
    for (int i = 0; i < w.n_groups; i++) {
        if (w.groups[i].socket != NULL) fake_group_turn(&w.groups[i], 1);
    }
    if (w.broker.pid != 0) program_read(&w.broker);
}

void start_broker(void)
{
    const char *args[ARGS_MAX] = {BUILD_DIR "/bin/penstock-broker", "--redis", world_server.url,
                                  "--queue", w.queue, "--model", "tiny=" FIXTURES "/tiny-bf16",
                                  "--listen", w.endpoint, "--log-level", "debug"};
    int n = 0;
    while (args[n] != NULL) n++;
    for (int i = 0; w.extra[i] != NULL; i++) args[n++] = w.extra[i];
    program_start(&w.broker, args);
    const char *at = program_wait(&w.broker, "event=listening endpoint=");
    snprintf(w.endpoint, sizeof w.endpoint, "%.*s", (int) strcspn(at, "\n"), at);
}

struct fake_group *start_group(const char *name)
{
    struct fake_group *g = &w.groups[w.n_groups++];
    fake_group_start(g, world_zmq, w.endpoint, name, model_hash);
    return g;
}

struct fake_group *start_world(const char *const *extra)
{
    for (int i = 0; extra != NULL && extra[i] != NULL; i++) w.extra[i] = extra[i];
    start_broker();
    struct fake_group *g = start_group("g-0");
    until(g->linked);
    return g;
}

int world_open(void **state)
{
    (void) state;
    static int n;
    w = (struct world){0};
    snprintf(w.queue, sizeof w.queue, "q%d", n++);
    snprintf(w.endpoint, sizeof w.endpoint, "tcp://127.0.0.1:0");
    return 0;
}

int world_close(void **state)
{
    (void) state;
    for (int i = 0; i < w.n_groups; i++) fake_group_kill(&w.groups[i]);
    if (w.stranger != NULL) zmq_close(w.stranger);
    program_kill(&w.broker);
    return 0;
}

// --- Redis, as a producer sees it

void push_bytes(const void *bytes, size_t n)
{
    redisReply *r = redisCommand(world_redis, "RPUSH ps:{%s}:in:default %b", w.queue, bytes, n);
    assert_non_null(r);
    assert_int_equal(r->type, REDIS_REPLY_INTEGER);
    freeReplyObject(r);
}

void push(const char *format, ...)
{
    char json[4096];
    struct buffer bytes;
    va_list args;
    va_start(args, format);
    vsnprintf(json, sizeof json, format, args);
    va_end(args);
    buffer_init(&bytes, 1 << 20);
    bytes_json(&bytes, json);
    push_bytes(bytes.data, bytes.n);
    buffer_deinit(&bytes);
}

void push_job(const char *id, int n_prompt, int max_tokens)
{
    char ids[2048] = "5";
    for (int i = 1; i < n_prompt; i++) strcat(ids, ",6");
    push("{'v': 1, 'id': '%s', 'op': 'tokens', 'body': {'tokens': [%s], 'max_tokens': %d, "
         "'temperature': 0}}", id, ids, max_tokens);
}

redisReply *ask(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    redisReply *r = redisvCommand(world_redis, format, args);
    va_end(args);
    assert_non_null(r);
    return r;
}

bool has_result(const char *id)
{
    redisReply *r = ask("EXISTS ps:{%s}:r:default:%s", w.queue, id);
    bool yes = r->integer == 1;
    freeReplyObject(r);
    return yes;
}

struct result result_of(const char *id, redisReply **bytes)
{
    struct result result;
    struct error e = {0};
    until(has_result(id));
    *bytes = ask("GET ps:{%s}:r:default:%s", w.queue, id);
    if (result_decode(&result, (*bytes)->str, (*bytes)->len, &e) != OK) fail_msg("%s", e.text);
    assert_string_equal(result.id, id);
    return result;
}

void expect_result(const char *id, enum result_status status, const char *code, int n_tokens)
{
    redisReply *bytes;
    struct result r = result_of(id, &bytes);
    assert_string_equal(r.error.code, code);
    assert_int_equal(r.status, status);
    assert_int_equal(r.n_tokens, n_tokens);
    if (code[0] != '\0') assert_true(strlen(r.error.message) > 10);
    result_deinit(&r);
    freeReplyObject(bytes);
}

int saved_bytes(const char *id)
{
    redisReply *r = ask("STRLEN ps:{%s}:c:default:%s", w.queue, id);
    int n = (int) r->integer;
    freeReplyObject(r);
    return n;
}

bool field_is(const char *id, const char *field, const char *value)
{
    redisReply *r = ask("HGET ps:{%s}:j:default:%s %s", w.queue, id, field);
    bool yes = r->type == REDIS_REPLY_STRING && strcmp(r->str, value) == 0;
    freeReplyObject(r);
    return yes;
}

void expect_events(const char *id, const char *wanted)
{
    char got[512] = "";
    redisReply *r = ask("XRANGE ps:{%s}:ev:default - +", w.queue);
    for (size_t i = 0; i < r->elements; i++) {
        redisReply *const *f = r->element[i]->element[1]->element;
        if (strcmp(f[1]->str, id) != 0) continue;
        size_t n = strlen(got);
        snprintf(got + n, sizeof got - n, "%s %s;", f[3]->str, f[5]->str);
    }
    freeReplyObject(r);
    assert_string_equal(got, wanted);
}

struct fake_job *wait_job(struct fake_group *g, const char *id)
{
    until(fake_group_job(g, id) != NULL);
    return fake_group_job(g, id);
}

void reconnect(void)
{
    redisFree(world_redis);
    world_redis = test_redis_connect(&world_server);
}

int world_start(void **state)
{
    (void) state;
    struct checkpoint *checkpoint;
    struct error e;
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(checkpoint_open(&checkpoint, FIXTURES "/tiny-bf16", &e), OK);
    checkpoint_manifest_hash(checkpoint, model_hash);
    checkpoint_close(&checkpoint);
    test_redis_start(&world_server, NULL);
    world_redis = test_redis_connect(&world_server);
    world_zmq = zmq_ctx_new();
    return 0;
}

int world_stop(void **state)
{
    (void) state;
    redisFree(world_redis);
    test_redis_stop(&world_server);
    zmq_ctx_term(world_zmq);
    return 0;
}
