// The producer's side against a real redis-server, with the function library and a played broker.
#include "broker/queue_sync.h"

#include "common/clock.h"
#include "common/job.h"
#include "common/result.h"
#include "tests/support/fake_broker.h"
#include "tests/support/redis.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>

static struct test_redis server;
static struct queue_sync *q;
static struct fake_broker broker;
static char name[32]; // of the queue of the running test
static struct error e;

static int group_start(void **state)
{
    (void) state;
    test_redis_start(&server, "--appendfsync no"); // a kill of Redis alone loses nothing
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
    if (queue_sync_open(&q, server.url, name, &e) != OK) fail_msg("%s", e.text);
    return 0;
}

static int stop(void **state)
{
    (void) state;
    queue_sync_close(&q);
    fake_broker_stop(&broker);
    return 0;
}

#define expect_ok(call)                                                                            \
    do {                                                                                           \
        if ((call) != OK) fail_msg("%s: %s", e.code, e.text);                                      \
    } while (0)

#define expect_error(call, wanted, its_code)                                                       \
    do {                                                                                           \
        enum status got = (call);                                                                  \
        assert_string_equal(e.code, its_code);                                                     \
        assert_int_equal(got, wanted);                                                             \
    } while (0)

// Encodes a completion job; the caller frees the bytes.
static struct queue_bytes job_of(const char *id, const char *prompt)
{
    char body[256];
    struct buffer to;
    struct job job = job_default();
    snprintf(job.id, sizeof job.id, "%s", id);
    job.op = JOB_COMPLETION;
    job.body_form = JOB_BODY_JSON;
    job.body = (struct job_text){
        body, (size_t) snprintf(body, sizeof body, "{\"prompt\":\"%s\"}", prompt)};
    buffer_init(&to, 4096);
    expect_ok(job_encode(&job, &to, &e));
    return (struct queue_bytes){to.data, to.n};
}

static void push(const char *id, const char *prompt)
{
    struct queue_bytes job = job_of(id, prompt);
    expect_ok(queue_sync_push(q, "default", job.bytes, job.n, &e));
    free((void *) (uintptr_t) job.bytes);
}

static void run_broker(void)
{
    while (fake_broker_step(&broker, 100) > 0) continue;
}

static void expect_text(uint8_t *bytes, size_t n, const char *text)
{
    struct result r;
    assert_non_null(bytes);
    expect_ok(result_decode(&r, bytes, n, &e));
    assert_int_equal(r.status, RESULT_OK);
    assert_int_equal(r.text_bytes, strlen(text));
    assert_memory_equal(r.text, text, r.text_bytes);
    result_deinit(&r);
    free(bytes);
}

static void expect_failure(uint8_t *bytes, size_t n, enum result_status status, const char *code)
{
    struct result r;
    assert_non_null(bytes);
    expect_ok(result_decode(&r, bytes, n, &e));
    assert_int_equal(r.status, status);
    assert_string_equal(r.error.code, code);
    result_deinit(&r);
    free(bytes);
}

// --- use

static void test_push_and_wait(void **state)
{
    (void) state;
    char before[QUEUE_EVENT_ID_MAX];
    uint8_t *bytes;
    size_t n;
    expect_ok(queue_sync_last_event(q, "default", before, &e));
    assert_string_equal(before, "0-0");
    push("one", "hello");
    pid_t pid = fake_broker_fork(&server, name, 10);
    expect_ok(queue_sync_wait(q, "default", "one", before, 60000, &bytes, &n, &e));
    fake_broker_kill(pid);
    expect_text(bytes, n, "re: hello");
    // Later, by id alone.
    expect_ok(queue_sync_get(q, "default", "one", &bytes, &n, &e));
    expect_text(bytes, n, "re: hello");
    expect_ok(queue_sync_wait(q, "default", "one", NULL, 0, &bytes, &n, &e));
    expect_text(bytes, n, "re: hello");
}

static void test_many(void **state)
{
    (void) state;
    enum { MANY = 700 };
    static struct queue_bytes jobs[MANY];
    static char ids[MANY][16];
    static const char *names[MANY];
    static uint8_t *bytes[MANY];
    static size_t sizes[MANY], n_pushed;
    for (int i = 0; i < MANY; i++) {
        snprintf(ids[i], sizeof ids[i], "job-%d", i);
        names[i] = ids[i];
        jobs[i] = job_of(ids[i], ids[i]);
    }
    expect_ok(queue_sync_push_many(q, "default", jobs, MANY, &n_pushed, &e));
    assert_int_equal(n_pushed, MANY);
    expect_ok(queue_sync_get_many(q, "default", names, MANY, bytes, sizes, &e));
    for (int i = 0; i < MANY; i++) assert_null(bytes[i]);
    run_broker();
    names[3] = "nobody";
    expect_ok(queue_sync_get_many(q, "default", names, MANY, bytes, sizes, &e));
    for (int i = 0; i < MANY; i++) {
        char text[32];
        snprintf(text, sizeof text, "re: job-%d", i);
        if (i == 3) assert_null(bytes[i]);
        else expect_text(bytes[i], sizes[i], text);
        free((void *) (uintptr_t) jobs[i].bytes);
    }
}

// --- events

struct seen {
    char text[512];
    int n, most;
};

static bool see(void *arg, const struct queue_event *event)
{
    struct seen *s = arg;
    size_t at = strlen(s->text);
    snprintf(s->text + at, sizeof s->text - at, "%s %s %llu;", event->id, event->event,
             (unsigned long long) event->attempt);
    return ++s->n < s->most;
}

static void test_events_go_on_where_they_stopped(void **state)
{
    (void) state;
    char last[QUEUE_EVENT_ID_MAX], end[QUEUE_EVENT_ID_MAX];
    struct seen seen = {.most = 2};
    expect_ok(queue_sync_last_event(q, "default", last, &e));
    expect_error(queue_sync_events(q, "default", last, 10, 0, see, &seen, &e), ERR_TIMEOUT,
                 "timeout");
    push("a", "x");
    push("b", "fail");
    push("c", "y");
    run_broker();
    expect_ok(queue_sync_events(q, "default", last, 10, -1, see, &seen, &e));
    assert_string_equal(seen.text, "a done 1;b failed 2;");
    seen = (struct seen){.most = 10};
    expect_ok(queue_sync_events(q, "default", last, 10, 1000, see, &seen, &e));
    assert_string_equal(seen.text, "c done 3;");
    expect_ok(queue_sync_last_event(q, "default", end, &e));
    assert_string_equal(last, end);
    // At most `limit` at once.
    strcpy(last, "0-0");
    seen = (struct seen){.most = 10};
    expect_ok(queue_sync_events(q, "default", last, 1, 1000, see, &seen, &e));
    assert_string_equal(seen.text, "a done 1;");
    expect_error(queue_sync_events(q, "default", end, 10, 1, see, &seen, &e), ERR_TIMEOUT,
                 "timeout");
}

// --- ends of a job

static void test_wait_tells_how_it_ended(void **state)
{
    (void) state;
    char before[QUEUE_EVENT_ID_MAX];
    uint8_t *bytes;
    size_t n;
    expect_ok(queue_sync_last_event(q, "default", before, &e));
    push("bad", "fail");
    run_broker();
    expect_ok(queue_sync_wait(q, "default", "bad", before, 1000, &bytes, &n, &e));
    expect_failure(bytes, n, RESULT_ERROR, "told_to_fail");
    // A message that is no job, under its id.
    static const char broken[] = "\x82\xa2id\xa6" "broken\xa2op\xa4none";
    expect_ok(queue_sync_push(q, "default", broken, sizeof broken - 1, &e));
    run_broker();
    expect_ok(queue_sync_wait(q, "default", "broken", before, 1000, &bytes, &n, &e));
    expect_failure(bytes, n, RESULT_ERROR, "bad_job");
    // A conflict is told to who pushed, and not to others.
    push("one", "keep this");
    push("one", "something else");
    run_broker();
    expect_error(queue_sync_wait(q, "default", "one", before, 1000, &bytes, &n, &e), ERR_STATE,
                 "id_conflict");
    expect_error(queue_sync_wait(q, "default", "one", NULL, 0, &bytes, &n, &e), ERR_TIMEOUT,
                 "timeout");
    assert_null(bytes);
    // Its event is there, its result is not.
    push("gone", "x");
    run_broker();
    redisReply *r = redisCommand(broker.c, "DEL ps:{%s}:r:default:gone", name);
    assert_int_equal(r->integer, 1);
    freeReplyObject(r);
    expect_error(queue_sync_wait(q, "default", "gone", before, 1000, &bytes, &n, &e), ERR_STATE,
                 "result_gone");
    // An id that nobody knows.
    expect_error(queue_sync_wait(q, "default", "nobody", before, 1, &bytes, &n, &e),
                 ERR_TIMEOUT, "timeout");
}

static void test_cancel(void **state)
{
    (void) state;
    uint8_t *bytes;
    size_t n;
    push("one", "hello");
    expect_ok(queue_sync_cancel(q, "default", "one", &e));
    run_broker();
    expect_ok(queue_sync_wait(q, "default", "one", NULL, 1000, &bytes, &n, &e));
    expect_failure(bytes, n, RESULT_CANCELLED, "cancelled");
}

static void test_a_job_that_ended_before_answers_at_once(void **state)
{
    (void) state;
    char before[QUEUE_EVENT_ID_MAX];
    uint8_t *bytes;
    size_t n;
    push("one", "hello");
    run_broker();
    expect_ok(queue_sync_last_event(q, "default", before, &e));
    push("one", "hello"); // again: its event is sent again
    run_broker();
    expect_ok(queue_sync_wait(q, "default", "one", before, 1000, &bytes, &n, &e));
    expect_text(bytes, n, "re: hello");
}

// --- counts

static void test_stats(void **state)
{
    (void) state;
    struct queue_stats s;
    push("a", "x");
    push("b", "fail");
    push("c", "keep");
    run_broker();
    push("d", "y");
    expect_ok(queue_sync_stats(q, &s, &e));
    assert_int_equal(s.term, 1);
    assert_int_equal(s.inbox, 1);
    assert_int_equal(s.running, 1);
    assert_int_equal(s.dead, 1);
    assert_int_equal(s.admitted, 3);
    assert_int_equal(s.done, 1);
    assert_int_equal(s.failed, 1);
    redisReply *r = redisCommand(broker.c, "FUNCTION FLUSH");
    freeReplyObject(r);
    expect_error(queue_sync_stats(q, &s, &e), ERR_UNAVAILABLE, "no_library");
}

// --- Redis comes, goes, refuses

static void test_a_restart_of_redis_is_outlived(void **state)
{
    (void) state;
    char before[QUEUE_EVENT_ID_MAX];
    uint8_t *bytes;
    size_t n, n_pushed;
    struct queue_bytes job = job_of("one", "hello");
    expect_ok(queue_sync_last_event(q, "default", before, &e));
    fake_broker_stop(&broker);
    test_redis_kill(&server);
    // Unknown, then refused, then good again without being opened anew.
    expect_error(queue_sync_push_many(q, "default", &job, 1, &n_pushed, &e), ERR_UNAVAILABLE,
                 "redis_unavailable");
    assert_int_equal(n_pushed, 0);
    expect_error(queue_sync_get(q, "default", "one", &bytes, &n, &e), ERR_UNAVAILABLE,
                 "redis_unavailable");
    expect_error(queue_sync_wait(q, "default", "one", before, 0, &bytes, &n, &e),
                 ERR_UNAVAILABLE, "redis_unavailable");
    test_redis_restart(&server);
    expect_ok(queue_sync_push_many(q, "default", &job, 1, &n_pushed, &e));
    assert_int_equal(n_pushed, 1);
    free((void *) (uintptr_t) job.bytes);
    // A wait that begins before Redis is there.
    test_redis_kill(&server);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct queue_sync *mine = NULL;
        char copy[QUEUE_EVENT_ID_MAX];
        memcpy(copy, before, sizeof copy);
        bool good = queue_sync_open(&mine, server.url, name, NULL) == ERR_UNAVAILABLE;
        // The parent's connection is broken here as it is there.
        good = good && queue_sync_wait(q, "default", "one", copy, 60000, &bytes, &n, NULL) == OK;
        _exit(good && n > 0 ? 0 : 1);
    }
    test_redis_restart(&server);
    pid_t runs = fake_broker_fork(&server, name, 10);
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    fake_broker_kill(runs);
    assert_int_equal(status, 0);
}

static void test_who_may_not(void **state)
{
    (void) state;
    struct queue_sync *none = NULL;
    char url[256];
    expect_error(queue_sync_open(&none, "http://localhost", name, &e), ERR_INPUT,
                 "bad_redis_url");
    expect_error(queue_sync_open(&none, server.url, "no such:name", &e), ERR_INPUT, "bad_name");
    expect_error(queue_sync_open(&none, "unix:///nowhere", name, &e), ERR_UNAVAILABLE,
                 "redis_unavailable");
    snprintf(url, sizeof url, "redis://nobody:wrong@127.0.0.1:%d", server.port);
    expect_error(queue_sync_open(&none, url, name, &e), ERR_UNSUPPORTED, "redis_login");
    assert_null(none);
    expect_error(queue_sync_push(q, "a:b", "x", 1, &e), ERR_INPUT, "bad_name");
    expect_error(queue_sync_cancel(q, "default", "a b", &e), ERR_INPUT, "bad_name");
    // The rights of a producer, and no others, will do.
    redisReply *r = redisCommand(broker.c,
                                 "ACL SETUSER maker on >secret resetkeys %%W~ps:{%s}:in:default "
                                 "%%R~ps:{%s}:r:default:* %%R~ps:{%s}:ev:default -@all +rpush +get "
                                 "+xread +xrevrange",
                                 name, name, name);
    assert_non_null(r);
    assert_string_equal(r->str, "OK");
    freeReplyObject(r);
    snprintf(url, sizeof url, "redis://maker:secret@127.0.0.1:%d", server.port);
    struct queue_sync *owner = q;
    expect_ok(queue_sync_open(&q, url, name, &e));
    push("one", "hello");
    run_broker();
    uint8_t *bytes;
    size_t n;
    expect_ok(queue_sync_wait(q, "default", "one", NULL, 1000, &bytes, &n, &e));
    expect_text(bytes, n, "re: hello");
    expect_error(queue_sync_push(q, "other", "x", 1, &e), ERR_UNSUPPORTED, "redis_forbidden");
    struct queue_stats stats;
    expect_error(queue_sync_stats(q, &stats, &e), ERR_UNSUPPORTED, "redis_forbidden");
    queue_sync_close(&q);
    q = owner;
}

static void test_a_full_redis(void **state)
{
    (void) state;
    struct queue_bytes jobs[2] = {job_of("a", "x"), job_of("b", "y")};
    size_t n_pushed;
    freeReplyObject(redisCommand(broker.c, "CONFIG SET maxmemory 1"));
    expect_error(queue_sync_push_many(q, "default", jobs, 2, &n_pushed, &e), ERR_LIMIT,
                 "redis_full");
    assert_int_equal(n_pushed, 0);
    freeReplyObject(redisCommand(broker.c, "CONFIG SET maxmemory 0"));
    expect_ok(queue_sync_push_many(q, "default", jobs, 2, &n_pushed, &e)); // still in step
    assert_int_equal(n_pushed, 2);
    for (int i = 0; i < 2; i++) free((void *) (uintptr_t) jobs[i].bytes);
}

#define test(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_push_and_wait),
        test(test_many),
        test(test_events_go_on_where_they_stopped),
        test(test_wait_tells_how_it_ended),
        test(test_cancel),
        test(test_a_job_that_ended_before_answers_at_once),
        test(test_stats),
        test(test_a_restart_of_redis_is_outlived),
        test(test_who_may_not),
        test(test_a_full_redis),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
