// The text of a job as it comes, from a real redis-server: chunks are written by hand, before and
// while they are waited for.
#include "broker/queue_follow.h"

#include "common/clock.h"
#include "tests/support/redis.h"

#include <setjmp.h>
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
static redisContext *redis;
static struct queue_sync *q;
static char name[32]; // of the queue of the running test
static struct error e;

static char text[4096];
static int n_pieces, n_wanted; // pieces after which no more are wanted; 0: all are

static int group_start(void **state)
{
    (void) state;
    test_redis_start(&server, NULL);
    redis = test_redis_connect(&server);
    return 0;
}

static int group_stop(void **state)
{
    (void) state;
    redisFree(redis);
    test_redis_stop(&server);
    return 0;
}

static int start(void **state)
{
    (void) state;
    static int n;
    snprintf(name, sizeof name, "f%d", n++);
    if (queue_sync_open(&q, server.url, name, &e) != OK) fail_msg("%s", e.text);
    text[0] = '\0';
    n_pieces = n_wanted = 0;
    return 0;
}

static int stop(void **state)
{
    (void) state;
    queue_sync_close(&q);
    return 0;
}

static void run(redisContext *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    redisReply *r = redisvCommand(c, format, args);
    va_end(args);
    check(r != NULL && r->type != REDIS_REPLY_ERROR, "%s", r != NULL ? r->str : c->errstr);
    freeReplyObject(r);
}

static void chunk(redisContext *c, int attempt, int offset, const char *bytes)
{
    run(c, "XADD ps:{%s}:t:default:a * attempt %d offset %d bytes %s", name, attempt, offset,
        bytes);
}

static void end(redisContext *c, const char *event)
{
    run(c, "SET ps:{%s}:r:default:a result", name);
    run(c, "XADD ps:{%s}:ev:default * id a event %s attempt 1", name, event);
}

static bool keep(void *arg, const char *bytes, size_t n)
{
    (void) arg;
    strncat(text, bytes, n);
    return ++n_pieces != n_wanted;
}

static struct queue_follow follow_of(const char *from, uint64_t offset)
{
    return (struct queue_follow){"default", "a", from, offset, NULL, keep};
}

static void expect(struct queue_follow f, const char *wanted, uint64_t offset)
{
    uint8_t *bytes;
    size_t n;
    if (queue_follow(q, &f, 30000, &bytes, &n, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(n, 6);
    assert_memory_equal(bytes, "result", 6);
    assert_string_equal(text, wanted);
    assert_int_equal(f.offset, offset);
    free(bytes);
}

// --- chunks that are there

static void of_a_job_that_has_ended(void **state)
{
    (void) state;
    chunk(redis, 1, 0, "ab");
    chunk(redis, 1, 2, "cd");
    end(redis, "done");
    expect(follow_of(NULL, 0), "abcd", 4);
}

static void placed_by_their_offsets(void **state)
{
    (void) state;
    static const struct {
        uint64_t from;
        const char *wanted;
        uint64_t end;
    } cases[] = {{0, "abcdef", 6}, {3, "def", 6}, {6, "", 6},
                 {9, "ehind a gap", 20}, {30, "", 30}};
    chunk(redis, 1, 0, "abc");
    chunk(redis, 2, 1, "bcd"); // a later attempt repeats some
    chunk(redis, 2, 0, "ab");
    chunk(redis, 2, 4, "ef");
    chunk(redis, 2, 8, "behind a gap");
    end(redis, "done");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        text[0] = '\0';
        expect(follow_of(NULL, cases[i].from), cases[i].wanted, cases[i].end);
    }
}

static void entries_of_another_form_are_skipped(void **state)
{
    (void) state;
    run(redis, "XADD ps:{%s}:t:default:a * something else", name);
    chunk(redis, 1, 0, "ab");
    run(redis, "XADD ps:{%s}:ev:default * id b event done attempt 1", name);
    run(redis, "XADD ps:{%s}:ev:default * nothing known", name);
    end(redis, "cancelled");
    expect(follow_of("0-0", 0), "ab", 2);
}

static void many_more_than_one_read_brings(void **state)
{
    (void) state;
    enum { N = 700 };
    char wanted[N + 1] = "";
    for (int i = 0; i < N; i++) {
        wanted[i] = (char) ('a' + i % 26);
        chunk(redis, 1, i, (char[]){wanted[i], '\0'});
    }
    end(redis, "done");
    expect(follow_of("0-0", 0), wanted, N);
    assert_int_equal(n_pieces, N);
}

// --- chunks that come

// A child process that says it bit by bit: each waits until the parent reads (it blocks in XREAD).
static pid_t say_later(void (*say)(redisContext *c))
{
    pid_t pid = fork();
    check(pid >= 0);
    if (pid > 0) return pid;
    redisContext *c = test_redis_connect(&server);
    say(c);
    _exit(0);
}

// Until somebody waits in a blocking command.
static void until_read(redisContext *c)
{
    int64_t until = clock_ms() + 20000;
    for (bool blocked = false; !blocked;) {
        check(clock_ms() < until, "nobody reads");
        redisReply *r = redisCommand(c, "INFO clients");
        check(r != NULL && r->type != REDIS_REPLY_ERROR);
        blocked = strstr(r->str, "blocked_clients:0") == NULL;
        freeReplyObject(r);
    }
}

static void say_pieces(redisContext *c)
{
    static const char *const pieces[] = {"eins ", "zwei ", "drei"};
    int offset = 0;
    for (int i = 0; i < 3; i++) {
        until_read(c);
        chunk(c, 1, offset, pieces[i]);
        offset += (int) strlen(pieces[i]);
    }
    until_read(c);
    end(c, "done");
}

static void as_they_come(void **state)
{
    (void) state;
    pid_t pid = say_later(say_pieces);
    expect(follow_of("0-0", 0), "eins zwei drei", 14);
    assert_int_equal(n_pieces, 3);
    waitpid(pid, NULL, 0);
}

static void cut_and_say_on(redisContext *c)
{
    until_read(c);
    chunk(c, 1, 0, "before ");
    until_read(c);
    run(c, "CLIENT KILL TYPE normal SKIPME yes");
    chunk(c, 1, 7, "after");
    end(c, "done");
}

static void after_a_lost_connection_nothing_comes_twice(void **state)
{
    (void) state;
    redisFree(redis); // it would be cut, too
    pid_t pid = say_later(cut_and_say_on);
    expect(follow_of("0-0", 0), "before after", 12);
    waitpid(pid, NULL, 0);
    redis = test_redis_connect(&server);
}

// --- other ends

static void ends_without_a_text(void **state)
{
    (void) state;
    uint8_t *bytes;
    size_t n;
    struct queue_follow f = follow_of(NULL, 0);
    assert_int_equal(queue_follow(q, &f, 30, &bytes, &n, &e), ERR_TIMEOUT);
    run(redis, "XADD ps:{%s}:ev:default * id a event id_conflict attempt 0", name);
    f = follow_of("0-0", 0);
    assert_int_equal(queue_follow(q, &f, 30000, &bytes, &n, &e), ERR_STATE);
    assert_string_equal(e.code, "id_conflict");
    run(redis, "XADD ps:{%s}:ev:default * id a event done attempt 1", name);
    f = follow_of("0-1", 0);
    f.from = "0-1";
    run(redis, "XTRIM ps:{%s}:ev:default MAXLEN 1", name);
    assert_int_equal(queue_follow(q, &f, 30000, &bytes, &n, &e), ERR_STATE);
    assert_string_equal(e.code, "result_gone");
    assert_null(bytes);
}

static void no_more_is_wanted(void **state)
{
    (void) state;
    uint8_t *bytes;
    size_t n;
    struct queue_follow f = follow_of(NULL, 0);
    for (int i = 0; i < 5; i++) chunk(redis, 1, i, "x");
    n_wanted = 2;
    assert_int_equal(queue_follow(q, &f, 30000, &bytes, &n, &e), ERR_ABORTED);
    assert_int_equal(n_pieces, 2);
    f.id = "no such/id";
    assert_int_equal(queue_follow(q, &f, 30000, &bytes, &n, &e), ERR_INPUT);
}

int main(void)
{
#define test(f) cmocka_unit_test_setup_teardown(f, start, stop)
    const struct CMUnitTest tests[] = {
        test(of_a_job_that_has_ended),
        test(placed_by_their_offsets),
        test(entries_of_another_form_are_skipped),
        test(many_more_than_one_read_brings),
        test(as_they_come),
        test(after_a_lost_connection_nothing_comes_twice),
        test(ends_without_a_text),
        test(no_more_is_wanted),
    };
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
