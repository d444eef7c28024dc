// The whole broker as a process, with a real redis-server and groups that only speak the wire
// protocol: the life of a job, and what becomes of it when group, broker or Redis dies at any point
// of it.
#include "common/checkpoint.h"
#include "common/clock.h"
#include "common/result.h"
#include "tests/support/bytes.h"
#include "tests/support/fake_group.h"
#include "tests/support/program.h"
#include "tests/support/redis.h"
#include "tests/support/wire_examples.h"

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

enum { PATIENCE_MS = 30000, GROUPS_MAX = 3, ARGS_MAX = 32 };

static struct test_redis server;
static redisContext *redis;
static char model_hash[33];
static void *context; // of ZeroMQ

// A broker and its groups, on a queue of their own.
static struct world {
    char queue[32];
    struct program broker;
    char endpoint[ENDPOINT_MAX];
    struct fake_group groups[GROUPS_MAX];
    int n_groups;
    void *stranger;       // closed with the groups, also after a test that failed
    const char *extra[8]; // options of the broker
} w;

// --- driving

static void turn(void)
{
    for (int i = 0; i < w.n_groups; i++) {
        if (w.groups[i].socket != NULL) fake_group_turn(&w.groups[i], 1);
    }
    if (w.broker.pid != 0) program_read(&w.broker);
}

// Turns until the condition holds.
#define until(condition)                                                                           \
    do {                                                                                           \
        int64_t end_ = clock_ms() + PATIENCE_MS;                                                   \
        while (!(condition)) {                                                                     \
            if (clock_ms() > end_) {                                                               \
                fputs(w.broker.log, stderr); /* longer than cmocka's messages */                   \
                fail_msg("never: %s", #condition);                                                 \
            }                                                                                      \
            turn();                                                                                \
        }                                                                                          \
    } while (0)

static void start_broker(void)
{
    const char *args[ARGS_MAX] = {BUILD_DIR "/bin/penstock-broker", "--redis", server.url,
                                  "--queue", w.queue, "--model", "tiny=" FIXTURES "/tiny-bf16",
                                  "--listen", w.endpoint, "--log-level", "debug"};
    int n = 0;
    while (args[n] != NULL) n++;
    for (int i = 0; w.extra[i] != NULL; i++) args[n++] = w.extra[i];
    program_start(&w.broker, args);
    const char *at = program_wait(&w.broker, "event=listening endpoint=");
    snprintf(w.endpoint, sizeof w.endpoint, "%.*s", (int) strcspn(at, "\n"), at);
}

static struct fake_group *start_group(const char *name)
{
    struct fake_group *g = &w.groups[w.n_groups++];
    fake_group_start(g, context, w.endpoint, name, model_hash);
    return g;
}

// A broker with one serving group; `extra` options end with NULL.
static struct fake_group *start_world(const char *const *extra)
{
    for (int i = 0; extra != NULL && extra[i] != NULL; i++) w.extra[i] = extra[i];
    start_broker();
    struct fake_group *g = start_group("g-0");
    until(g->linked);
    return g;
}

static int setup(void **state)
{
    (void) state;
    static int n;
    w = (struct world){0};
    snprintf(w.queue, sizeof w.queue, "q%d", n++);
    snprintf(w.endpoint, sizeof w.endpoint, "tcp://127.0.0.1:0");
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    for (int i = 0; i < w.n_groups; i++) fake_group_kill(&w.groups[i]);
    if (w.stranger != NULL) zmq_close(w.stranger);
    program_kill(&w.broker);
    return 0;
}

// --- Redis, as a producer sees it

static void push_bytes(const void *bytes, size_t n)
{
    redisReply *r = redisCommand(redis, "RPUSH ps:{%s}:in:default %b", w.queue, bytes, n);
    assert_non_null(r);
    assert_int_equal(r->type, REDIS_REPLY_INTEGER);
    freeReplyObject(r);
}

// A message written as JSON with single quotes.
static void push(const char *format, ...)
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

static void push_job(const char *id, int n_prompt, int max_tokens)
{
    char ids[2048] = "5";
    for (int i = 1; i < n_prompt; i++) strcat(ids, ",6");
    push("{'v': 1, 'id': '%s', 'op': 'tokens', 'body': {'tokens': [%s], 'max_tokens': %d, "
         "'temperature': 0}}", id, ids, max_tokens);
}

static redisReply *ask(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    redisReply *r = redisvCommand(redis, format, args);
    va_end(args);
    assert_non_null(r);
    return r;
}

static bool has_result(const char *id)
{
    redisReply *r = ask("EXISTS ps:{%s}:r:default:%s", w.queue, id);
    bool yes = r->integer == 1;
    freeReplyObject(r);
    return yes;
}

// Waits for the result; the caller frees *bytes and deinits.
static struct result result_of(const char *id, redisReply **bytes)
{
    struct result result;
    struct error e = {0};
    until(has_result(id));
    *bytes = ask("GET ps:{%s}:r:default:%s", w.queue, id);
    if (result_decode(&result, (*bytes)->str, (*bytes)->len, &e) != OK) fail_msg("%s", e.text);
    assert_string_equal(result.id, id);
    return result;
}

static void expect_result(const char *id, enum result_status status, const char *code, int n_tokens)
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

static int saved_bytes(const char *id)
{
    redisReply *r = ask("STRLEN ps:{%s}:c:default:%s", w.queue, id);
    int n = (int) r->integer;
    freeReplyObject(r);
    return n;
}

static bool field_is(const char *id, const char *field, const char *value)
{
    redisReply *r = ask("HGET ps:{%s}:j:default:%s %s", w.queue, id, field);
    bool yes = r->type == REDIS_REPLY_STRING && strcmp(r->str, value) == 0;
    freeReplyObject(r);
    return yes;
}

static void expect_events(const char *id, const char *wanted)
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

static struct fake_job *wait_job(struct fake_group *g, const char *id)
{
    until(fake_group_job(g, id) != NULL);
    return fake_group_job(g, id);
}

// --- life

static void the_life_of_a_job(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push("{'v': 1, 'id': 'a', 'op': 'tokens', 'custom_id': 'mine', 'body': {'tokens': [7, 8, 9], "
         "'max_tokens': 5, 'temperature': 0, 'seed': 3, 'stop_token_ids': [4]}}");
    struct fake_job *job = wait_job(g, "a");
    assert_int_equal(job->n_prompt, 3);
    assert_int_equal(job->ids[2], 9);
    assert_int_equal(job->max_tokens, 5);
    assert_int_equal(job->attempts, 1);
    assert_int_equal((int) job->sampling.seed, 3);
    fake_group_finish(g, job);
    until(job->committed);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK);
    expect_result("a", RESULT_OK, "", 5);
    expect_events("a", "done 1;");
    assert_int_equal(saved_bytes("a"), 0);
    assert_int_equal(program_stop(&w.broker), 0);
}

static void many_jobs_within_the_credit(void **state)
{
    (void) state;
    enum { N = 40 };
    struct fake_group *g = start_world((const char *[]){"--slots", "4", NULL});
    char id[16];
    for (int i = 0; i < N; i++) {
        snprintf(id, sizeof id, "job-%d", i);
        push_job(id, 1 + i, 1 + i % 7);
    }
    for (int i = 0; i < N; i++) {
        snprintf(id, sizeof id, "job-%d", i);
        struct fake_job *job = wait_job(g, id); // in order of arrival
        int running = 0;
        for (int k = 0; k < g->n_jobs; k++) running += g->jobs[k].running;
        assert_in_range(running, 1, 4);
        fake_group_finish(g, job);
    }
    for (int i = 0; i < N; i++) {
        snprintf(id, sizeof id, "job-%d", i);
        expect_result(id, RESULT_OK, "", 1 + i % 7);
    }
}

static void two_stages_are_assigned_and_linked(void **state)
{
    (void) state;
    w.extra[0] = "--pp";
    w.extra[1] = "2";
    start_broker();
    struct fake_group *a = start_group("g-a"), *b = start_group("g-b");
    until(a->linked && b->linked);
    struct fake_group *head = a->assign.stage == 0 ? a : b, *tail = head == a ? b : a;
    assert_int_equal(tail->assign.stage, 1);
    assert_int_equal(head->assign.first, 0);
    assert_int_equal(head->assign.last, tail->assign.first);
    assert_string_equal(head->next, "in-1");
    assert_string_equal(tail->next, "tokens");
    assert_memory_equal(head->assign.token, tail->assign.token, WIRE_ID_BYTES);
    push_job("a", 3, 2);
    fake_group_finish(head, wait_job(head, "a"));
    expect_result("a", RESULT_OK, "", 2);
}

static void groups_that_do_not_fit_are_told_so(void **state)
{
    (void) state;
    start_broker();
    struct fake_group *g = start_group("stranger");
    snprintf(g->model, sizeof g->model, "another");
    until(strcmp(g->error, "bad_model") == 0);
    struct fake_group *first = start_group("first");
    until(first->linked);
    struct fake_group *second = start_group("second");
    second->tp = 2;
    until(strcmp(second->error, "bad_tp") == 0);
    assert_false(g->assigned || second->assigned);
}

static void a_plan_is_made_anew_for_less_memory(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    int blocks = g->assign.kv_blocks;
    fake_group_kill(g);
    struct fake_group *less = start_group("g-0");
    less->memory = 100 * (uint64_t) MIB;
    until(less->linked);
    assert_in_range(less->assign.kv_blocks, 1, blocks - 1);
    assert_true(less->assign.epoch > g->assign.epoch);
    push_job("a", 3, 2);
    fake_group_finish(less, wait_job(less, "a"));
    expect_result("a", RESULT_OK, "", 2);
}

// --- bad input

static void bad_messages_become_dead_letters_that_say_why(void **state)
{
    (void) state;
    static const struct {
        const char *id, *code, *json;
    } cases[] = {
        {"type", "bad_job", "{'v': 1, 'id': 'type', 'op': 'tokens', 'class': 'x', 'body': {}}"},
        {"class", "bad_job", "{'v': 1, 'id': 'class', 'op': 'tokens', 'class': 9, 'body': {}}"},
        {"body", "bad_job", "{'v': 1, 'id': 'body', 'op': 'tokens', 'body': 7}"},
        {"no-body", "bad_job", "{'v': 1, 'id': 'no-body', 'op': 'tokens'}"},
        {"op", "bad_job", "{'v': 1, 'id': 'op', 'op': 'dance', 'body': {}}"},
        {"empty", "bad_body", "{'v': 1, 'id': 'empty', 'op': 'tokens', 'body': {'tokens': []}}"},
        {"json", "bad_body", "{'v': 1, 'id': 'json', 'op': 'tokens', 'body': '{\\'tokens\\': [1'}"},
        {"model", "unknown_model",
         "{'v': 1, 'id': 'model', 'op': 'tokens', 'model': 'gpt', 'body': {'tokens': [1]}}"},
        {"hot", "bad_sampling",
         "{'v': 1, 'id': 'hot', 'op': 'tokens', 'body': {'tokens': [1], 'temperature': -1}}"},
        {"n", "unsupported",
         "{'v': 1, 'id': 'n', 'op': 'tokens', 'body': {'tokens': [1], 'n': 2}}"},
        {"vocab", "bad_token",
         "{'v': 1, 'id': 'vocab', 'op': 'tokens', 'body': {'tokens': [1, 1000000]}}"},
        {"long", "prompt_too_long",
         "{'v': 1, 'id': 'long', 'op': 'tokens', 'body': {'tokens': "
         "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}}"},
        {"much", "context_exceeded",
         "{'v': 1, 'id': 'much', 'op': 'tokens', 'body': {'tokens': [1, 2], 'max_tokens': 31}}"},
        {"chat", "no_tokenizer",
         "{'v': 1, 'id': 'chat', 'op': 'chat', 'body': {'messages': [{'role': 'user', 'content': "
         "'hi'}]}}"},
        {"text", "no_tokenizer",
         "{'v': 1, 'id': 'text', 'op': 'completion', 'body': {'prompt': 'hi'}}"},
        {"raw-16", "bad_job", "{'v': 1, 'id': 'a b', 'op': 'tokens', 'body': {'tokens': [1]}}"},
        {"raw-17", "bad_job", "[1, 2]"},
        {"raw-18", "bad_job", "{'v': 1, 'id': 'victim', 'op': 'cancel', 'class': 9}"},
    };
    enum { N = sizeof cases / sizeof *cases };
    w.extra[0] = "--max-context";
    w.extra[1] = "32";
    start_broker(); // no group is needed for this
    for (int i = 0; i < N; i++) push("%s", cases[i].json);
    // What JSON cannot say: id, then a NaN, bad UTF-8, a truncated map, nothing at all, too much.
    static const struct {
        const char *id, *code, *hex;
    } bytes[] = {
        {"nan", "bad_sampling", "84 a176 01 a26964 a36e616e a26f70 a6746f6b656e73 a4626f6479 82 "
                                "a6746f6b656e73 91 01 ab74656d7065726174757265 cb7ff8000000000000"},
        {"utf", "bad_msgpack", "83 a176 01 a26964 a3757466 a56d6f64656c a2c328"},
        {"cut", "bad_msgpack", "84 a176 01 a26964 a3637574 a26f70"},
        {"raw-22", "bad_msgpack", ""},
    };
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        struct buffer b;
        buffer_init(&b, 1024);
        bytes_hex(&b, bytes[i].hex);
        push_bytes(b.data != NULL ? (const void *) b.data : "", b.n);
        buffer_deinit(&b);
    }
    void *large = calloc(1, (size_t) JOB_MESSAGE_MAX + 1);
    push_bytes(large, (size_t) JOB_MESSAGE_MAX + 1);
    free(large);
    for (int i = 0; i < N; i++) expect_result(cases[i].id, RESULT_ERROR, cases[i].code, 0);
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        expect_result(bytes[i].id, RESULT_ERROR, bytes[i].code, 0);
    }
    expect_result("raw-23", RESULT_ERROR, "too_large", 0);
    expect_events("nan", "failed 0;");
}

static void the_same_id_again(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 2);
    push_job("a", 3, 2); // a duplicate
    push_job("a", 4, 2); // another job
    struct fake_job *job = wait_job(g, "a");
    expect_result("raw-3", RESULT_ERROR, "id_conflict", 0);
    fake_group_finish(g, job);
    expect_result("a", RESULT_OK, "", 2);
    push_job("a", 3, 2); // it is told of again
    until(program_said(&w.broker, "word=duplicate_done") != NULL);
    expect_events("a", "id_conflict 0;done 1;done 1;");
    assert_int_equal(g->n_jobs, 1);
}

// A job that was taken in for a larger pipeline than there is now.
static void a_job_that_cannot_fit_any_more_is_refused_with_the_numbers(void **state)
{
    (void) state;
    w.extra[0] = "--max-context";
    w.extra[1] = "100";
    start_broker();
    push_job("large", 10, 80);
    push_job("small", 10, 4);
    until(program_said(&w.broker, "id=small") != NULL);
    program_stop(&w.broker);
    w.extra[1] = "32";
    start_broker();
    struct fake_group *g = start_group("g-0");
    fake_group_finish(g, wait_job(g, "small"));
    expect_result("large", RESULT_ERROR, "context_exceeded", 0);
    expect_result("small", RESULT_OK, "", 4);
}

// --- cancels and deadlines

static void cancels_come_after_the_jobs_before_them(void **state)
{
    (void) state;
    start_broker();
    push_job("queued", 3, 2);
    push("{'v': 1, 'id': 'queued', 'op': 'cancel'}");
    expect_result("queued", RESULT_CANCELLED, "cancelled", 0);
    struct fake_group *g = start_group("g-0");
    push_job("running", 3, 9);
    struct fake_job *job = wait_job(g, "running");
    fake_group_tokens(g, job, 2);
    push("{'v': 1, 'id': 'running', 'op': 'cancel'}");
    expect_result("running", RESULT_CANCELLED, "cancelled", 2); // with what it has
    until(job->committed);
    assert_int_equal(job->reason, WIRE_REASON_CANCELLED);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK);
    expect_events("running", "cancelled 1;");
    push_job("next", 3, 2); // the slot is free again
    fake_group_finish(g, wait_job(g, "next"));
    expect_result("next", RESULT_OK, "", 2);
}

static void a_running_job_ends_at_its_deadline(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push("{'v': 1, 'id': 'late', 'op': 'tokens', 'deadline': %lld, 'body': {'tokens': [1, 2]}}",
         (long long) clock_wall_ms() + 700);
    struct fake_job *job = wait_job(g, "late");
    fake_group_tokens(g, job, 3);
    until(job->cancelled);
    assert_int_equal(job->reason, WIRE_REASON_EXPIRED);
    expect_result("late", RESULT_EXPIRED, "expired", 3);
    expect_events("late", "expired 1;");
}

static void a_head_that_does_not_answer_a_cancel_is_not_waited_for(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    g->deaf = true;
    push_job("a", 3, 9);
    fake_group_tokens(g, wait_job(g, "a"), 2);
    until(saved_bytes("a") == 8);
    push("{'v': 1, 'id': 'a', 'op': 'cancel'}");
    expect_result("a", RESULT_CANCELLED, "cancelled", 2); // from the checkpoint
    expect_events("a", "cancelled 1;");
}

static void a_head_that_is_lost_leaves_what_was_saved(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    g->deaf = true;
    push_job("a", 3, 9);
    fake_group_tokens(g, wait_job(g, "a"), 2);
    until(saved_bytes("a") == 8);
    push("{'v': 1, 'id': 'a', 'op': 'cancel'}");
    until(field_is("a", "cancel", "1"));
    fake_group_kill(g);
    expect_result("a", RESULT_CANCELLED, "cancelled", 2);
}

// --- what the head refuses

static void refused_by_the_head(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    g->reject = "bad_token";
    push_job("bad", 3, 2);
    expect_result("bad", RESULT_ERROR, "bad_token", 0);
    g->reject = "no_credit";
    push_job("later", 3, 2);
    struct fake_job *job = wait_job(g, "later"); // it is tried again
    assert_int_equal(job->attempts, 2);
    fake_group_finish(g, job);
    expect_result("later", RESULT_OK, "", 2);
}

static void results_that_nobody_waits_for(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 2);
    struct fake_job *job = wait_job(g, "a");
    fake_group_finish(g, job);
    until(job->committed);
    // A twin of an earlier attempt, and a job that never was.
    g->jobs[1] = *job;
    g->jobs[1].key.attempt = 1000;
    g->jobs[2] = *job;
    g->jobs[2].key.attempt = 1001;
    strcpy(g->jobs[2].key.id, "nobody");
    g->jobs[1].committed = g->jobs[2].committed = false;
    g->n_jobs = 3;
    fake_group_finish(g, &g->jobs[1]);
    fake_group_finish(g, &g->jobs[2]);
    until(g->jobs[1].committed && g->jobs[2].committed);
    assert_int_equal(g->jobs[1].outcome, WIRE_OUTCOME_STALE);
    assert_int_equal(g->jobs[2].outcome, WIRE_OUTCOME_UNKNOWN);
}

static void a_result_that_cannot_be_read_is_a_failure(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    struct wire_message m = {.command = WIRE_RESULT};
    struct error e;
    push_job("a", 3, 2);
    struct fake_job *job = wait_job(g, "a");
    m.result.key = job->key;
    m.result.result = (struct wire_bytes){"\xc1garbage", 8};
    assert_int_equal(wire_socket_send(&g->wire, NULL, 0, &m, &e), OK);
    until(job->committed);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK); // the failure is
    assert_true(field_is("a", "code", "bad_msgpack"));
    fake_group_finish(g, job); // its slot is free
    until(fake_group_job(g, "a") != job);
    fake_group_finish(g, fake_group_job(g, "a"));
    expect_result("a", RESULT_OK, "", 2);
}

// Frames of any kind from a stranger, whole and damaged.
static void send_damaged(void *socket, const struct wire_message *m, bool whole, uint64_t *seed)
{
    struct buffer space;
    struct wire_frame frames[WIRE_FRAMES];
    struct error e;
    buffer_init(&space, 1 << 20);
    assert_int_equal(wire_encode(m, &space, frames, &e), OK);
    int last = whole ? WIRE_FRAMES - 1 : (int) (bytes_random(seed) % WIRE_FRAMES);
    for (int i = 0; i <= last; i++) {
        uint8_t bytes[8192];
        size_t n = frames[i].n < 4096 ? frames[i].n : 4096;
        if (n > 0) memcpy(bytes, frames[i].data, n);
        bool damage = !whole && n > 0 && bytes_random(seed) % 2 == 0;
        if (damage) n = bytes_damage(bytes, n, sizeof bytes, seed);
        zmq_send(socket, bytes, n, i < last ? ZMQ_SNDMORE : 0);
    }
    buffer_deinit(&space);
}

static void strangers_do_no_harm(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    uint64_t seed = 11;
    int zero = 0;
    void *socket = w.stranger = zmq_socket(context, ZMQ_DEALER);
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_connect(socket, w.endpoint), 0);
    push_job("a", 3, 2);
    struct fake_job *job = wait_job(g, "a");
    for (int i = 0; i < 50 * WIRE_N_COMMANDS; i++) {
        struct wire_message m = wire_example((enum wire_command) (i % WIRE_N_COMMANDS), i % 2 == 0);
        send_damaged(socket, &m, i % 5 == 0, &seed);
        if (i % 100 == 0) turn();
    }
    // And from the head itself: of jobs that are not its own, of other epochs, out of bounds.
    for (int i = 0; i < 2 * WIRE_N_COMMANDS; i++) {
        struct error e;
        struct wire_message m = wire_example((enum wire_command) (i / 2), i % 2 == 0);
        bool leaves = m.command == WIRE_BYE || m.command == WIRE_DRAIN || m.command == WIRE_HELLO ||
                      m.command == WIRE_FAILED;
        if (!leaves) wire_socket_send(&g->wire, NULL, 0, &m, &e);
    }
    turn();
    fake_group_finish(g, job);
    expect_result("a", RESULT_OK, "", 2);
    assert_int_equal(g->n_assigns, 1);
    assert_int_equal(program_stop(&w.broker), 0);
}

// --- a group dies

static void a_job_resumes_after_its_group_died(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 12);
    fake_group_tokens(g, wait_job(g, "a"), 5);
    until(saved_bytes("a") == 20);
    fake_group_kill(g);
    struct fake_group *again = start_group("g-0"); // started again by its supervisor
    struct fake_job *job = wait_job(again, "a");
    assert_int_equal(job->attempts, 2);
    assert_int_equal(job->n_resume, 5);
    for (int i = 0; i < 5; i++) assert_int_equal(job->resume[i], i);
    fake_group_tokens(again, job, 3);
    until(saved_bytes("a") == 32);
    fake_group_finish(again, job);
    expect_result("a", RESULT_OK, "", 12);
    expect_events("a", "done 2;");
}

static void a_silent_group_is_given_up_and_a_spare_takes_over(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    struct fake_group *spare = start_group("g-1");
    push_job("a", 3, 4);
    wait_job(g, "a");
    until(spare->n_hellos > 0 && spare->heard_ms > 0);
    fake_group_kill(g);
    struct fake_job *job = wait_job(spare, "a");
    fake_group_finish(spare, job);
    expect_result("a", RESULT_OK, "", 4);
}

static void a_group_drains_and_leaves(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    struct fake_group *spare = start_group("g-1");
    push_job("a", 3, 4);
    struct fake_job *job = wait_job(g, "a");
    g->drain = true;
    until(program_said(&w.broker, "event=draining") != NULL && spare->heard_ms > 0);
    push_job("b", 3, 4);
    until(program_said(&w.broker, "id=b") != NULL);
    assert_true(g->n_unassigns == 0 && job->running);
    fake_group_finish(g, job);
    until(g->n_unassigns >= 1); // told again while it says DRAIN
    assert_true(job->committed);
    fake_group_finish(spare, wait_job(spare, "b"));
    expect_result("b", RESULT_OK, "", 4);
    expect_events("a", "done 1;");
}

// --- the broker dies

static void a_new_broker_adopts_what_runs(void **state)
{
    (void) state;
    static const char *const options[] = {"--slots", "2", "--kv-blocks", "100", NULL};
    struct fake_group *g = start_world(options);
    push_job("a", 3, 12);
    struct fake_job *job = wait_job(g, "a");
    fake_group_tokens(g, job, 5);
    until(saved_bytes("a") == 20);
    program_kill(&w.broker);
    fake_group_tokens(g, job, 2); // the group goes on generating
    push_job("b", 3, 12);
    push_job("c", 3, 12);
    start_broker();
    struct fake_job *b = wait_job(g, "b"); // the other slot
    until(field_is("c", "state", "queued"));
    assert_int_equal(g->n_assigns, 1);
    assert_null(fake_group_job(g, "c"));
    fake_group_finish(g, job);
    until(job->committed);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK);
    expect_result("a", RESULT_OK, "", 12);
    expect_events("a", "done 1;"); // the first attempt
    struct fake_job *c = wait_job(g, "c");
    fake_group_finish(g, b);
    fake_group_finish(g, c);
    expect_result("b", RESULT_OK, "", 12);
    expect_result("c", RESULT_OK, "", 12);
}

static void a_result_of_the_time_without_a_broker_is_kept(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 4);
    struct fake_job *job = wait_job(g, "a");
    program_kill(&w.broker);
    fake_group_finish(g, job);
    start_broker();
    until(job->committed);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK);
    expect_result("a", RESULT_OK, "", 4);
    assert_int_equal(g->n_assigns, 1);
}

static void messages_that_were_taken_and_not_admitted_are_found(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    program_kill(&w.broker);
    push_job("a", 3, 4);
    // As a broker leaves it that dies between take and admit.
    redisReply *r = ask("FCALL take 1 ps:{%s}:term 1 default 10 100000 100000", w.queue);
    assert_int_equal(r->type, REDIS_REPLY_ARRAY);
    freeReplyObject(r);
    start_broker();
    fake_group_finish(g, wait_job(g, "a"));
    expect_result("a", RESULT_OK, "", 4);
}

static void a_clean_stop_leaves_the_jobs_to_the_next_broker(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 4);
    struct fake_job *job = wait_job(g, "a");
    assert_int_equal(program_stop(&w.broker), 0);
    assert_true(field_is("a", "state", "running"));
    start_broker();
    until(program_said(&w.broker, "event=adopted jobs=1") != NULL);
    fake_group_finish(g, job);
    until(job->committed);
    expect_events("a", "done 1;");
}

static void two_stages_are_adopted_together(void **state)
{
    (void) state;
    w.extra[0] = "--layers";
    w.extra[1] = "2,2";
    start_broker();
    struct fake_group *a = start_group("g-a"), *b = start_group("g-b");
    until(a->linked && b->linked);
    program_kill(&w.broker);
    start_broker();
    until(program_said(&w.broker, "event=adopted jobs=0") != NULL);
    assert_int_equal(a->n_assigns + b->n_assigns, 2);
    assert_int_equal(a->n_unassigns + b->n_unassigns, 0);
}

// --- Redis dies

static void reconnect(void)
{
    redisFree(redis);
    redis = test_redis_connect(&server);
}

static void a_result_waits_for_redis(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 8);
    struct fake_job *job = wait_job(g, "a");
    test_redis_kill(&server);
    fake_group_tokens(g, job, 3); // it goes on
    until(program_said(&w.broker, "event=redis_down") != NULL);
    fake_group_finish(g, job);
    for (int64_t end = clock_ms() + 500; clock_ms() < end;) { // RESULT is said again and again
        turn();
        assert_false(job->committed);
    }
    test_redis_restart(&server);
    reconnect();
    until(job->committed);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK);
    expect_result("a", RESULT_OK, "", 8);
    expect_events("a", "done 1;");
    push_job("b", 3, 2);
    fake_group_finish(g, wait_job(g, "b"));
    expect_result("b", RESULT_OK, "", 2);
}

static void redis_dies_again_and_again_and_every_job_ends_once(void **state)
{
    (void) state;
    enum { N = 30 };
    struct fake_group *g = start_world((const char *[]){"--slots", "3", NULL});
    char id[16];
    int n_pushed = 0, kills = 0, n_done = 0;
    int64_t end = clock_ms() + 2 * PATIENCE_MS;
    while (n_done < N) {
        assert_true(clock_ms() < end);
        if (n_pushed < N) {
            snprintf(id, sizeof id, "job-%d", n_pushed++);
            push_job(id, 3, 4);
        }
        turn();
        n_done = 0;
        for (int i = 0; i < g->n_jobs; i++) {
            struct fake_job *job = &g->jobs[i];
            if (job->running && i % 3 != 0) fake_group_finish(g, job);
            else if (job->running && job->n_tokens < 3) fake_group_tokens(g, job, 1);
            else if (job->running) fake_group_finish(g, job);
            n_done += job->committed && job->outcome == WIRE_OUTCOME_OK;
        }
        if (kills < 4 && n_done > 5 * kills) {
            kills++;
            test_redis_kill(&server);
            test_redis_restart(&server);
            reconnect();
        }
    }
    for (int i = 0; i < N; i++) {
        snprintf(id, sizeof id, "job-%d", i);
        redisReply *bytes;
        struct result r = result_of(id, &bytes);
        assert_int_equal(r.status, RESULT_OK);
        result_deinit(&r);
        freeReplyObject(bytes);
    }
    redisReply *r = ask("HGET ps:{%s}:n done", w.queue);
    assert_int_equal(atoi(r->str), N);
    freeReplyObject(r);
}

// --- starts that fail

static void expect_failure(const char *const *args, int status, const char *text)
{
    struct program p;
    const char *all[ARGS_MAX] = {BUILD_DIR "/bin/penstock-broker"};
    for (int i = 0; args[i] != NULL; i++) all[i + 1] = args[i];
    program_start(&p, all);
    int got = program_ended(&p);
    if (got != status || strstr(p.log, text) == NULL) {
        fail_msg("status %d, wanted %d and \"%s\":\n%s", got, status, text, p.log);
    }
}

static void starts_that_fail_say_why(void **state)
{
    (void) state;
    const char *model = FIXTURES "/tiny-bf16", *any = "tcp://127.0.0.1:0";
    start_broker();
    program_wait(&w.broker, "event=ready");
    redisReply *r = ask("CONFIG SET appendfsync everysec");
    freeReplyObject(r);
#define fails(status, text, ...) expect_failure((const char *[]){__VA_ARGS__, NULL}, status, text)
    fails(1, "code=redis_unsafe", "--model", model, "--redis", server.url, "--listen", any);
    r = ask("CONFIG SET appendfsync always");
    freeReplyObject(r);
    fails(1, "code=port_taken", "--model", model, "--redis", server.url, "--listen", w.endpoint);
    fails(2, "penstock keygen", "--model", model, "--listen", "tcp://0.0.0.0:7300");
    fails(2, "penstock keygen", "--model", model, "--listen", "tcp://*:7300");
    fails(2, "belong together", "--model", model, "--allow", "x");
    fails(2, "--model is missing", "--redis", server.url);
    fails(2, "--pp wants", "--model", model, "--pp", "0");
    fails(2, "bad_plan", "--model", model, "--listen", any, "--pp", "60");
    fails(2, "bad_plan", "--model", model, "--listen", any, "--layers", "1,2,3,4,5,6");
    fails(2, "--precision wants", "--model", model, "--precision", "f64");
    fails(2, "there is no option", "--model", model, "--no-such");
    fails(1, "config.json", "--model", FIXTURES, "--listen", any);
    fails(1, "code=bad_redis_url", "--model", model, "--redis", "http://x", "--listen", any);
}

// --- all

static int start(void **state)
{
    (void) state;
    struct checkpoint *checkpoint;
    struct error e;
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(checkpoint_open(&checkpoint, FIXTURES "/tiny-bf16", &e), OK);
    checkpoint_manifest_hash(checkpoint, model_hash);
    checkpoint_close(&checkpoint);
    test_redis_start(&server, NULL);
    redis = test_redis_connect(&server);
    context = zmq_ctx_new();
    return 0;
}

static int stop(void **state)
{
    (void) state;
    redisFree(redis);
    test_redis_stop(&server);
    zmq_ctx_term(context);
    return 0;
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        test(the_life_of_a_job),
        test(many_jobs_within_the_credit),
        test(two_stages_are_assigned_and_linked),
        test(groups_that_do_not_fit_are_told_so),
        test(a_plan_is_made_anew_for_less_memory),
        test(bad_messages_become_dead_letters_that_say_why),
        test(the_same_id_again),
        test(a_job_that_cannot_fit_any_more_is_refused_with_the_numbers),
        test(cancels_come_after_the_jobs_before_them),
        test(a_running_job_ends_at_its_deadline),
        test(a_head_that_does_not_answer_a_cancel_is_not_waited_for),
        test(a_head_that_is_lost_leaves_what_was_saved),
        test(refused_by_the_head),
        test(results_that_nobody_waits_for),
        test(a_result_that_cannot_be_read_is_a_failure),
        test(strangers_do_no_harm),
        test(a_job_resumes_after_its_group_died),
        test(a_silent_group_is_given_up_and_a_spare_takes_over),
        test(a_group_drains_and_leaves),
        test(a_new_broker_adopts_what_runs),
        test(a_result_of_the_time_without_a_broker_is_kept),
        test(messages_that_were_taken_and_not_admitted_are_found),
        test(a_clean_stop_leaves_the_jobs_to_the_next_broker),
        test(two_stages_are_adopted_together),
        test(a_result_waits_for_redis),
        test(redis_dies_again_and_again_and_every_job_ends_once),
        test(starts_that_fail_say_why),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, start, stop);
}
