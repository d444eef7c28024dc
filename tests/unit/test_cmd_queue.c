// enqueue, result, cancel and stats against a real redis-server and a played broker.
#include "common/clock.h"
#include "common/map_reduce_body.h"
#include "tests/support/command.h"
#include "tests/support/fake_broker.h"
#include "tests/support/redis.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>
#include <jansson.h>

static struct test_redis server;
static struct fake_broker broker;
static struct command c;
static char name[32]; // of the queue of the running test

#define WHERE "--redis", server.url, "--queue", name

static int group_start(void **state)
{
    (void) state;
    test_redis_start(&server, "--appendfsync no");
    return 0;
}

static int group_stop(void **state)
{
    (void) state;
    test_redis_stop(&server);
    return 0;
}

static int start(void **state)
{
    (void) state;
    static int n;
    snprintf(name, sizeof name, "q%d", n++);
    fake_broker_start(&broker, &server, name);
    return 0;
}

static int stop(void **state)
{
    (void) state;
    fake_broker_stop(&broker);
    return 0;
}

static void expect(int status, int wanted)
{
    if (status != wanted) fail_msg("exit status %d: %s", status, c.err_text);
}

// Stdout is one JSON object on one line, and no more.
static json_t *object(void)
{
    json_error_t bad;
    json_t *o = json_loads(c.out_text, 0, &bad);
    if (!json_is_object(o)) fail_msg("%s: %s", bad.text, c.out_text);
    assert_ptr_equal(strchr(c.out_text, '\n'), c.out_text + strlen(c.out_text) - 1);
    return o;
}

static void expect_text(const json_t *o, const char *key, const char *text)
{
    assert_string_equal(json_string_value(json_object_get(o, key)), text);
}

static void run_broker(void)
{
    while (fake_broker_step(&broker, 100) > 0) continue;
}

static void test_enqueue_and_result(void **state)
{
    (void) state;
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "hello", "--id", "one", WHERE),
           0);
    assert_string_equal(c.out_text, "one\n");
    expect(command_run(&c, cmd_result, NULL, "result", "one", WHERE), 1);
    assert_non_null(strstr(c.err_text, "has no result"));
    run_broker();
    expect(command_run(&c, cmd_result, NULL, "result", "one", WHERE), 0);
    assert_string_equal(c.out_text, "re: hello\n");
    expect(command_run(&c, cmd_result, NULL, "result", "one", "--json", WHERE), 0);
    json_t *o = object();
    expect_text(o, "id", "one");
    expect_text(o, "text", "re: hello");
    expect_text(o, "status", "ok");
    json_decref(o);
}

static void test_wait_prints_the_result(void **state)
{
    (void) state;
    pid_t pid = fake_broker_fork(&server, name, 10);
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--message", "hi", "--wait", WHERE), 0);
    assert_string_equal(c.out_text, "re: hi\n");
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "fail", "--wait", "--id",
                       "bad", WHERE), 1);
    assert_string_equal(c.out_text, "");
    assert_non_null(strstr(c.err_text, "job bad: error: as it was told"));
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "fail", "--wait", "--json",
                       WHERE), 1);
    json_t *o = object();
    expect_text(json_object_get(o, "error"), "code", "told_to_fail");
    json_decref(o);
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "keep", "--wait", "--timeout",
                       "0.05", "--id", "kept", WHERE), 1);
    assert_non_null(strstr(c.err_text, "has not ended"));
    expect(command_run(&c, cmd_result, NULL, "result", "bad", "--wait", "--json", WHERE), 1);
    json_decref(object());
    fake_broker_kill(pid);
}

// The body of the last message in the inbox, and its other fields as text.
static json_t *pushed(void)
{
    redisReply *r = redisCommand(broker.c, "LINDEX ps:{%s}:in:default -1", name);
    assert_non_null(r);
    assert_int_equal(r->type, REDIS_REPLY_STRING);
    const char *body = memchr(r->str, '{', (size_t) r->len); // JSON, at the end
    json_error_t bad;
    json_t *o = json_loadb(body, (size_t) (r->str + r->len - body), 0, &bad);
    if (o == NULL) fail_msg("%s", bad.text);
    freeReplyObject(r);
    return o;
}

static void expect_body(const char *wanted)
{
    json_t *body = pushed(), *want = json_loads(wanted, 0, NULL);
    assert_non_null(want);
    if (!json_equal(body, want)) fail_msg("%s", json_dumps(body, JSON_COMPACT));
    json_decref(body);
    json_decref(want);
}

static void test_what_the_flags_make(void **state)
{
    (void) state;
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "a", "--max-tokens", "5",
                       "--temperature", "0", "--top-p", "0.5", "--top-k", "40", "--min-p", "0.25",
                       "--repetition-penalty", "1.5", "--presence-penalty", "-1",
                       "--frequency-penalty", "0.5", "--seed", "7", "--stop", "x", "--ignore-eos",
                       "--logprobs", "3", WHERE), 0);
    assert_int_equal(strlen(c.out_text), 33);
    expect_body("{\"prompt\":\"a\",\"max_tokens\":5,\"temperature\":0.0,\"top_p\":0.5,\"top_k\":40,"
                "\"min_p\":0.25,\"repetition_penalty\":1.5,\"presence_penalty\":-1.0,"
                "\"frequency_penalty\":0.5,\"seed\":7,\"stop\":\"x\",\"ignore_eos\":true,"
                "\"logprobs\":3}");
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "a", "--chat", "--system", "s",
                       "--logprobs", "2", WHERE), 0);
    expect_body("{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"
                "{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":true,\"top_logprobs\":2}");
    expect(command_run(&c, cmd_enqueue, " 1 22\n333\t4", "enqueue", "--tokens", "-", WHERE), 0);
    expect_body("{\"tokens\":[1,22,333,4]}");
}

// The message that lies in the inbox.
static void take_message(struct buffer *to)
{
    redisContext *redis = test_redis_connect(&server);
    redisReply *r = redisCommand(redis, "LPOP ps:{%s}:in:default", name);
    assert_non_null(r);
    assert_int_equal(r->type, REDIS_REPLY_STRING);
    buffer_append(to, r->str, (size_t) r->len);
    freeReplyObject(r);
    redisFree(redis);
}

static void test_times_are_seconds_from_now(void **state)
{
    (void) state;
    struct buffer message;
    struct job job;
    struct error e;
    buffer_init(&message, JOB_MESSAGE_MAX);
    int64_t from_ms = clock_wall_ms();
    expect(command_run(&c, cmd_enqueue, "{\"body\":{\"prompt\":\"x\"},\"ttl\":1}", "enqueue",
                       "--delay", "60", "--deadline", "120.5", "--ttl", "5", WHERE), 0);
    int64_t to_ms = clock_wall_ms();
    take_message(&message);
    assert_int_equal(job_decode(&job, message.data, message.n, &e), OK);
    assert_in_range(job.at_ms, from_ms + 60000, to_ms + 60000);
    assert_in_range(job.deadline_ms, from_ms + 120500, to_ms + 120500);
    assert_int_equal(job.ttl_ms, 5000); // flags win
    buffer_clear(&message);
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "x", WHERE), 0);
    take_message(&message);
    assert_int_equal(job_decode(&job, message.data, message.n, &e), OK);
    assert_true(job.at_ms == 0 && job.deadline_ms == 0);
    assert_int_equal(job.ttl_ms, RESULT_TTL_MS);
    buffer_deinit(&message);
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "x", "--ttl", "0", WHERE), 2);
}

static void test_json_on_stdin(void **state)
{
    (void) state;
    expect(command_run(&c, cmd_enqueue,
                       "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":3}",
                       "enqueue", "--max-tokens", "4", "--json", WHERE), 0);
    json_t *o = object();
    assert_int_equal(strlen(json_string_value(json_object_get(o, "id"))), 32);
    expect_text(o, "queue", name);
    json_decref(o);
    expect_body("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":4}");
    expect(command_run(&c, cmd_enqueue,
                       "{\"id\":\"two\",\"op\":\"completion\",\"body\":{\"prompt\":\"y\"},"
                       "\"class\":2,\"attempts\":1,\"custom_id\":\"c\",\"batch\":\"b\","
                       "\"ttl\":60000,\"meta\":{\"k\":\"v\"}}",
                       "enqueue", WHERE), 0);
    assert_string_equal(c.out_text, "two\n");
    run_broker();
    expect(command_run(&c, cmd_result, NULL, "result", "two", "--json", WHERE), 0);
    o = object();
    expect_text(o, "custom_id", "c");
    expect_text(o, "text", "re: y");
    json_decref(o);
}

static void test_cancel_and_stats(void **state)
{
    (void) state;
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "x", "--id", "one", WHERE), 0);
    expect(command_run(&c, cmd_cancel, NULL, "cancel", "one", "--json", WHERE), 0);
    json_decref(object());
    run_broker();
    expect(command_run(&c, cmd_result, NULL, "result", "one", WHERE), 1);
    assert_non_null(strstr(c.err_text, "cancelled"));
    expect(command_run(&c, cmd_stats, NULL, "stats", WHERE), 0);
    assert_non_null(strstr(c.out_text, "           1  cancelled\n"));
    expect(command_run(&c, cmd_stats, NULL, "stats", "--json", WHERE), 0);
    json_t *o = object();
    assert_int_equal(json_integer_value(json_object_get(o, "cancelled")), 1);
    assert_int_equal(json_integer_value(json_object_get(o, "running")), 0);
    json_decref(o);
}

static void test_jobs_that_are_refused_here(void **state)
{
    (void) state;
    static const struct {
        const char *input, *says;
    } CASES[] = {
        {"", "nothing is there"},
        {"x", "not JSON"},
        {"[1]", "not a JSON object"},
        {"{\"prompt\":\"x\",\"prompt\":\"y\"}", "duplicate"},
        {"{\"max_tokens\":1}", "no messages, prompt, tokens or document"},
        {"{\"op\":\"cancel\",\"body\":{}}", "op must be"},
        {"{\"op\":\"chat\"}", "body must be"},
        {"{\"id\":\"a b\",\"body\":{\"prompt\":\"x\"}}", "id must be"},
        {"{\"class\":4,\"body\":{\"prompt\":\"x\"}}", "class must be"},
        {"{\"meta\":{\"a\":1},\"body\":{\"prompt\":\"x\"}}", "meta must be"},
        {"{\"stream\":1,\"body\":{\"prompt\":\"x\"}}", "stream must be"},
        {"{\"prompt\":\"x\",\"temperature\":-1}", "temperature"},
        {"{\"prompt\":\"x\",\"n\":2}", "n = 2 is not supported"},
        {"{\"tokens\":[-1]}", "tokens[0]"},
        {"{\"document\":\"x\"}", "map is missing"},
        {"{\"document\":\"x\",\"map\":{\"prompt\":\"y\"}}", "no text of it holds {chunk}"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        expect(command_run(&c, cmd_enqueue, CASES[i].input, "enqueue", "--json", WHERE), 1);
        if (strstr(c.err_text, CASES[i].says) == NULL) fail_msg("%zu: %s", i, c.err_text);
        json_t *o = object();
        assert_non_null(json_object_get(json_object_get(o, "error"), "code"));
        json_decref(o);
    }
}

static void test_a_document_from_flags(void **state)
{
    (void) state;
    struct buffer message;
    struct job job;
    struct map_reduce_body body;
    struct error e;
    size_t n;
    buffer_init(&message, JOB_MESSAGE_MAX);
    expect(command_run(&c, cmd_enqueue, "one\r\n\ntwo\n", "enqueue", "--document", "-", "--map",
                       "Sum up: {chunk}", "--reduce", "Join: {results}", "--each-line",
                       "--chunk-tokens", "100", "--overlap-tokens", "5", "--max-tokens", "7",
                       WHERE), 0);
    take_message(&message);
    assert_int_equal(job_decode(&job, message.data, message.n, &e), OK);
    assert_int_equal(job.op, JOB_MAP_REDUCE);
    assert_int_equal(map_reduce_body_parse(&body, &job, &e), OK);
    assert_int_equal(body.n_texts, 2);
    assert_string_equal(map_reduce_text(&body, 0, &n), "one");
    assert_string_equal(map_reduce_text(&body, 1, &n), "two");
    assert_string_equal(body.separator, "\n");
    assert_int_equal(body.chunk_tokens, 100);
    assert_int_equal(body.overlap_tokens, 5);
    assert_int_equal(body.map.max_tokens, 7); // for both
    assert_int_equal(body.reduce.max_tokens, 7);
    assert_int_equal(body.map.op, JOB_CHAT);
    map_reduce_body_deinit(&body);
    buffer_clear(&message);

    expect(command_run(&c, cmd_enqueue, "one\ntwo\n", "enqueue", "--document", "-", "--map",
                       "{chunk}", "--separator", "|", WHERE), 0);
    take_message(&message);
    assert_int_equal(job_decode(&job, message.data, message.n, &e), OK);
    assert_int_equal(map_reduce_body_parse(&body, &job, &e), OK);
    assert_string_equal(map_reduce_text(&body, 0, &n), "one\ntwo\n");
    assert_string_equal(body.separator, "|");
    assert_null(body.reduce.fields);
    map_reduce_body_deinit(&body);
    buffer_deinit(&message);

    static const struct {
        int status;
        const char *input, *flag, *value, *says;
    } CASES[] = {
        {1, "", "--map", "{chunk}", "- is empty"},
        {1, "\xff", "--map", "{chunk}", "is not UTF-8"},
        {1, "x", "--map", "no place", "map: no text of it holds {chunk}"},
        {2, "x", "--reduce", "{results}", "--document wants --map"},
        {2, "x", "--message", "y", "give one of"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        expect(command_run(&c, cmd_enqueue, CASES[i].input, "enqueue", "--document", "-",
                           CASES[i].flag, CASES[i].value, WHERE), CASES[i].status);
        if (strstr(c.err_text, CASES[i].says) == NULL) fail_msg("%zu: %s", i, c.err_text);
    }
    expect(command_run(&c, cmd_enqueue, "{}", "enqueue", "--each-line", WHERE), 2);
    assert_non_null(strstr(c.err_text, "want --document FILE"));
}

static void test_an_id_that_belongs_to_another_job(void **state)
{
    (void) state;
    pid_t pid = fake_broker_fork(&server, name, 10);
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "x", "--id", "one", "--wait",
                       WHERE), 0);
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "x", "--id", "one", "--wait",
                       WHERE), 0);
    assert_string_equal(c.out_text, "re: x\n");
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "y", "--id", "one", "--wait",
                       WHERE), 1);
    assert_non_null(strstr(c.err_text, "another job with the id one"));
    fake_broker_kill(pid);
}

// --- the contract of every command here

static void test_help_usage_and_no_redis(void **state)
{
    (void) state;
    static const struct {
        command_main *run;
        const char *name, *argument; // NULL: none needed
    } COMMANDS[] = {
        {cmd_enqueue, "enqueue", "--prompt=x"}, {cmd_result, "result", "id"},
        {cmd_cancel, "cancel", "id"},           {cmd_stats, "stats", NULL},
    };
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++) {
        command_main *run = COMMANDS[i].run;
        const char *word = COMMANDS[i].name;
        const char *argument = COMMANDS[i].argument != NULL ? COMMANDS[i].argument : "--json";
        expect(command_run(&c, run, NULL, word, "--help"), 0);
        assert_memory_equal(c.out_text, "usage: penstock ", 16);
        assert_string_equal(c.err_text, "");
        expect(command_run(&c, run, NULL, word, "--no-such-flag"), 2);
        assert_string_equal(c.out_text, "");
        assert_non_null(strstr(c.err_text, "--no-such-flag"));
        expect(command_run(&c, run, NULL, word, argument, "--redis", "http://x"), 2);
        expect(command_run(&c, run, NULL, word, argument, "--queue", "a b"), 2);
        expect(command_run(&c, run, NULL, word, argument, "--tenant", ""), 2);
        if (COMMANDS[i].argument != NULL && run != cmd_enqueue) {
            expect(command_run(&c, run, NULL, word), 2);
        }
        expect(command_run(&c, run, NULL, word, argument, "--redis", "unix:///nowhere", "--json"),
               1);
        assert_non_null(strstr(c.err_text, "no Redis at unix:///nowhere"));
        json_t *o = object();
        expect_text(json_object_get(o, "error"), "code", "redis_unavailable");
        json_decref(o);
    }
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--prompt", "x", "--tokens", "-"), 2);
    expect(command_run(&c, cmd_enqueue, NULL, "enqueue", "--chat"), 2);
    expect(command_run(&c, cmd_result, NULL, "result", "a b"), 2);
}

#define test(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_enqueue_and_result),
        test(test_wait_prints_the_result),
        test(test_what_the_flags_make),
        test(test_times_are_seconds_from_now),
        test(test_json_on_stdin),
        test(test_cancel_and_stats),
        test(test_jobs_that_are_refused_here),
        test(test_a_document_from_flags),
        test(test_an_id_that_belongs_to_another_job),
        test(test_help_usage_and_no_redis),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
