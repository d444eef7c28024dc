// penstock batch against a real redis-server and a played broker: answers, failures, interruption.
#include "tests/support/command.h"
#include "tests/support/fake_broker.h"
#include "tests/support/redis.h"
#include "common/status.h"

#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>
#include <jansson.h>

enum { LINES_MAX = 2000 };

static struct test_redis server;
static struct fake_broker broker;
static struct command c;
static char name[32]; // of the queue of the running test
static char in[160], out[160], errors[160];

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

// Files of its own for each test, in the server's directory.
static int start(void **state)
{
    (void) state;
    static int n;
    snprintf(name, sizeof name, "q%d", n++);
    snprintf(in, sizeof in, "%s/%s.jsonl", server.dir, name);
    snprintf(out, sizeof out, "%s/%s-out.jsonl", server.dir, name);
    snprintf(errors, sizeof errors, "%s/%s-out.errors.jsonl", server.dir, name);
    fake_broker_start(&broker, &server, name);
    return 0;
}

static int stop(void **state)
{
    (void) state;
    fake_broker_stop(&broker);
    return 0;
}

// --- files

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

static off_t size_of(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 ? s.st_size : 0;
}

static int count_lines(const char *path)
{
    FILE *f = fopen(path, "rb");
    int n = 0;
    if (f == NULL) return 0;
    for (int ch; (ch = getc(f)) != EOF;) n += ch == '\n';
    fclose(f);
    return n;
}

// n completions; `every`: each so many fails.
static void write_requests(int n, int every)
{
    FILE *f = fopen(in, "wb");
    assert_non_null(f);
    for (int i = 1; i <= n; i++) {
        fprintf(f,
                "{\"custom_id\":\"c%d\",\"method\":\"POST\",\"url\":\"/v1/completions\","
                "\"body\":{\"prompt\":\"%s %d\",\"max_tokens\":5}}\n",
                i, every > 0 && i % every == 0 ? "fail" : "say", i);
    }
    assert_int_equal(fclose(f), 0);
}

// The line of a file with this custom id; every line must be JSON. new reference or NULL.
static json_t *find_line(const char *path, const char *custom_id)
{
    char *text = NULL;
    size_t size = 0;
    json_t *found = NULL;
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    for (ssize_t n; (n = getline(&text, &size, f)) > 0;) {
        json_t *line = json_loadb(text, (size_t) n, 0, NULL);
        if (line == NULL || text[n - 1] != '\n') fail_msg("%s: %s", path, text);
        const char *id = json_string_value(json_object_get(line, "custom_id"));
        if (id != NULL && strcmp(id, custom_id) == 0 && found == NULL) found = line;
        else json_decref(line);
    }
    free(text);
    fclose(f);
    return found;
}

static void expect_code(const char *custom_id, const char *code)
{
    json_t *line = find_line(errors, custom_id);
    assert_non_null(line);
    const char *got = json_string_value(json_object_get(json_object_get(line, "error"), "code"));
    assert_string_equal(got, code);
    assert_true(json_is_null(json_object_get(line, "response")));
    json_decref(line);
}

// Each of the lines c1 .. cn is answered once: in `errors` if `every` divides it, else in `out`.
static void expect_answers(int n, int every)
{
    static int seen[LINES_MAX + 1];
    const char *const paths[] = {out, errors};
    memset(seen, 0, sizeof seen);
    for (int k = 0; k < 2; k++) {
        char *text = NULL;
        size_t size = 0;
        FILE *f = fopen(paths[k], "rb");
        assert_non_null(f);
        for (ssize_t m; (m = getline(&text, &size, f)) > 0;) {
            json_t *line = json_loadb(text, (size_t) m, 0, NULL);
            assert_non_null(line);
            int i = atoi(json_string_value(json_object_get(line, "custom_id")) + 1);
            assert_in_range(i, 1, n);
            assert_int_equal(k, every > 0 && i % every == 0);
            seen[i]++;
            if (k == 0) {
                char wanted[64];
                json_t *body = json_object_get(json_object_get(line, "response"), "body");
                json_t *choice = json_array_get(json_object_get(body, "choices"), 0);
                snprintf(wanted, sizeof wanted, "re: say %d", i);
                assert_string_equal(json_string_value(json_object_get(choice, "text")), wanted);
            }
            json_decref(line);
        }
        free(text);
        fclose(f);
    }
    for (int i = 1; i <= n; i++) {
        if (seen[i] != 1) fail_msg("line %d was answered %d times", i, seen[i]);
    }
}

// --- running

static void expect(int status, int wanted)
{
    if (status != wanted) fail_msg("exit status %d: %s", status, c.err_text);
}

static void expect_count(const char *key, int wanted)
{
    json_t *o = json_loads(c.out_text, 0, NULL);
    assert_true(json_is_object(o));
    assert_true(json_is_integer(json_object_get(o, key)));
    assert_int_equal(json_integer_value(json_object_get(o, key)), wanted);
    json_decref(o);
}

static void begin(const char *window)
{
    command_start(&c, cmd_batch,
                  (const char *const[]){"batch", in, "-o", out, "--json", "--window", window, WHERE,
                                        NULL},
                  NULL);
}

static void wait_for_lines(int n)
{
    while (count_lines(out) < n) poll(NULL, 0, 1); // nothing tells when a file grows
}

static long long inbox(void)
{
    redisReply *r = redisCommand(broker.c, "LLEN ps:{%s}:in:default", name);
    assert_non_null(r);
    long long n = r->integer;
    freeReplyObject(r);
    return n;
}

// --- use

static void test_a_batch(void **state)
{
    (void) state;
    write_file(in, "{\"custom_id\":\"one\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\","
                   "\"body\":{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
                   "}}\n"
                   "\n"
                   "{\"custom_id\":\"two\",\"method\":\"POST\",\"url\":\"/v1/completions\","
                   "\"body\":{\"prompt\":\"go on\"}}");
    pid_t pid = fake_broker_fork(&server, name, 10);
    expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, WHERE), 0);
    assert_string_equal(c.out_text, "");
    const char *last = strstr(c.err_text, "penstock batch: 2 lines, 2 done, 0 failed, 0 left\n");
    assert_non_null(last);
    assert_string_equal(strchr(last, '\n'), "\n");
    assert_int_equal(count_lines(out), 2);
    assert_int_equal(access(errors, F_OK), 0);
    assert_int_equal(size_of(errors), 0);
    json_t *line = find_line(out, "one");
    json_t *body = json_object_get(json_object_get(line, "response"), "body");
    json_t *message = json_object_get(json_array_get(json_object_get(body, "choices"), 0),
                                      "message");
    assert_string_equal(json_string_value(json_object_get(message, "content")), "re: hi");
    assert_string_equal(json_string_value(json_object_get(body, "model")), "m");
    json_decref(line);
    // Again: all of it is there.
    off_t size = size_of(out);
    expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, "--json", WHERE), 0);
    expect_count("done", 2);
    expect_count("left", 0);
    expect_count("tokens", 0);
    assert_int_equal(size_of(out), size);
    fake_broker_kill(pid);
}

static void test_lines_that_fail_do_not_stop_it(void **state)
{
    (void) state;
#define COMPLETION(id, body)                                                                       \
    "{\"custom_id\":\"" id "\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":" body "}\n"
    write_file(in, COMPLETION("good", "{\"prompt\":\"x\"}")
                   "{ this is no JSON\n"
                   COMPLETION("good", "{\"prompt\":\"y\"}")
                   "{\"custom_id\":\"url\",\"method\":\"POST\",\"url\":\"/v1/x\",\"body\":{}}\n"
                   COMPLETION("told", "{\"prompt\":\"fail\"}")
                   COMPLETION("many", "{\"prompt\":\"x\",\"n\":3}")
                   COMPLETION("hot", "{\"prompt\":\"x\",\"temperature\":1000}")
                   COMPLETION("last", "{\"prompt\":\"z\"}"));
    pid_t pid = fake_broker_fork(&server, name, 10);
    for (int again = 0; again < 2; again++) {
        expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, "--json", WHERE), 1);
        expect_count("total", 8);
        expect_count("done", 2);
        expect_count("failed", 6);
        assert_int_equal(count_lines(out), 2);
        assert_int_equal(count_lines(errors), 6);
        expect_code("good", "duplicate_custom_id");
        expect_code("url", "bad_line");
        expect_code("told", "told_to_fail");
        expect_code("many", "unsupported");
        expect_code("hot", "bad_sampling");
    }
    fake_broker_kill(pid);
}

static void test_a_line_beyond_every_bound(void **state)
{
    (void) state;
    FILE *f = fopen(in, "wb");
    assert_non_null(f);
    for (int i = 0; i < 9 << 20; i++) putc('x', f);
    fputs("\n" COMPLETION("good", "{\"prompt\":\"x\"}"), f);
    fclose(f);
    pid_t pid = fake_broker_fork(&server, name, 10);
    expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, "--json", WHERE), 1);
    expect_count("done", 1);
    expect_count("failed", 1);
    fake_broker_kill(pid);
}

// --- interruption

static void test_the_window_bounds_what_is_in_the_queue(void **state)
{
    (void) state;
    write_requests(100, 0);
    begin("7");
    while (inbox() < 7) poll(NULL, 0, 1);
    for (int i = 0; i < 3; i++) assert_true(fake_broker_step(&broker, 1) > 0); // three end
    wait_for_lines(3);
    while (inbox() + 3 < 10) poll(NULL, 0, 1);
    kill(c.pid, SIGINT);
    expect(command_wait(&c), 1);
    assert_int_equal(inbox(), 7);
    expect_count("done", 3);
    expect_count("left", 97);
    assert_non_null(strstr(c.err_text, "interrupted; run it again to go on"));
    assert_non_null(strstr(c.out_text, "\"interrupted\":true"));
    // The rest, and none of the first ones again.
    pid_t pid = fake_broker_fork(&server, name, 10);
    begin("20");
    expect(command_wait(&c), 0);
    expect_answers(100, 0);
    fake_broker_kill(pid);
}

static void test_killed_at_any_point_it_goes_on(void **state)
{
    (void) state;
    enum { N = 300 };
    write_requests(N, 10);
    pid_t pid = fake_broker_fork(&server, name, 2);
    for (int at = 20; at < N - 60; at += 45) {
        begin("16");
        wait_for_lines(at);
        kill(c.pid, SIGKILL);
        expect(command_wait(&c), 128 + SIGKILL);
        // What a crash in the middle of a write leaves.
        off_t size = size_of(out);
        assert_int_equal(truncate(out, size - (at % 2 == 0 ? 1 : 40)), 0);
    }
    begin("16");
    expect(command_wait(&c), 1); // every tenth fails
    expect_count("failed", N / 10);
    expect_answers(N, 10);
    fake_broker_kill(pid);
}

static void test_redis_and_broker_may_die_meanwhile(void **state)
{
    (void) state;
    enum { N = 200 };
    write_requests(N, 0);
    fake_broker_stop(&broker);
    pid_t pid = fake_broker_fork(&server, name, 2);
    begin("16");
    for (int at = 30; at < N - 60; at += 50) {
        wait_for_lines(at);
        test_redis_kill(&server);
        test_redis_restart(&server);
    }
    expect(command_wait(&c), 0);
    assert_non_null(strstr(c.err_text, "waiting: "));
    expect_answers(N, 0);
    fake_broker_kill(pid);
}

// --- files that are not its own

static void test_other_files_are_left_alone(void **state)
{
    (void) state;
    static const char *const OTHERS[] = {
        "notes", "notes\n", "{\"id\":\"x\"}\n", "{\"id\":\"batch-1-1\"}\n", "{\"id\":\"x",
        "{\"id\":\"batch-0-1\",\"custom_id\":\"c1\"}\n{\"id\":",
    };
    write_requests(3, 0);
    for (size_t i = 0; i < sizeof OTHERS / sizeof *OTHERS; i++) {
        write_file(out, OTHERS[i]);
        expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, WHERE), 1);
        assert_non_null(strstr(c.err_text, "holds something else"));
        assert_int_equal(size_of(out), strlen(OTHERS[i]));
        assert_int_equal(inbox(), 0);
    }
    // A torn first line, and zeros, are a crash's.
    pid_t pid = fake_broker_fork(&server, name, 10);
    write_file(out, "{\"id\":\"batch-");
    write_file(errors, "");
    assert_int_equal(truncate(errors, 5), 0);
    expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, WHERE), 0);
    expect_answers(3, 0);
    fake_broker_kill(pid);
}

static void test_one_run_at_a_time(void **state)
{
    (void) state;
    struct command second;
    write_requests(3, 0);
    begin("10");
    while (inbox() < 3) poll(NULL, 0, 1);
    int status = command_run(&second, cmd_batch, NULL, "batch", in, "-o", out, WHERE);
    assert_int_equal(status, 1);
    assert_non_null(strstr(second.err_text, "is being written by another run"));
    kill(c.pid, SIGTERM);
    expect(command_wait(&c), 1);
}

static void test_the_same_batch_id_with_other_lines(void **state)
{
    (void) state;
    pid_t pid = fake_broker_fork(&server, name, 10);
    write_requests(2, 0);
    expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, "--batch-id", "mine", WHERE),
           0);
    write_file(in, COMPLETION("c1", "{\"prompt\":\"other\"}")
                   COMPLETION("c2", "{\"prompt\":\"say 2\",\"max_tokens\":5}"));
    unlink(out);
    expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, "--batch-id", "mine", WHERE),
           1);
    expect_code("c1", "id_conflict");
    json_t *line = find_line(out, "c2");
    assert_non_null(line);
    assert_string_equal(json_string_value(json_object_get(line, "id")), "mine-2");
    json_decref(line);
    fake_broker_kill(pid);
}

// --- the contract

static void test_help_usage_and_no_redis(void **state)
{
    (void) state;
    static const char *const BAD[][5] = {
        {NULL},
        {"in"},
        {"-o", "out"},
        {"in", "-o", "in"},
        {"in", "-o", "out", "--errors=out"},
        {"in", "-o", "out", "--window=0"},
        {"in", "-o", "out", "--batch-id=a b"},
        {"in", "more", "-o", "out"},
        {"in", "-o", "out", "--redis=http://x"},
        {"in", "-o", "out", "--queue=a b"},
    };
    expect(command_run(&c, cmd_batch, NULL, "batch", "--help"), 0);
    assert_memory_equal(c.out_text, "usage: penstock batch", 21);
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        int status = command_run(&c, cmd_batch, NULL, "batch", BAD[i][0], BAD[i][1], BAD[i][2],
                                 BAD[i][3]);
        if (status != 2) fail_msg("%zu: exit status %d: %s", i, status, c.err_text);
        assert_string_equal(c.out_text, "");
    }
    write_requests(1, 0);
    expect(command_run(&c, cmd_batch, NULL, "batch", in, "-o", out, "--json", "--redis",
                       "unix:///nowhere"), 1);
    assert_non_null(strstr(c.err_text, "no Redis at unix:///nowhere"));
    assert_non_null(strstr(c.out_text, "redis_unavailable"));
    assert_int_not_equal(access(out, F_OK), 0);
    expect(command_run(&c, cmd_batch, NULL, "batch", "/nowhere", "-o", out, "--json", WHERE), 1);
    assert_non_null(strstr(c.err_text, "cannot open /nowhere"));
    json_decref(json_loads(c.out_text, 0, NULL));
}

#define test(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_a_batch),
        test(test_lines_that_fail_do_not_stop_it),
        test(test_a_line_beyond_every_bound),
        test(test_the_window_bounds_what_is_in_the_queue),
        test(test_killed_at_any_point_it_goes_on),
        test(test_redis_and_broker_may_die_meanwhile),
        test(test_other_files_are_left_alone),
        test(test_one_run_at_a_time),
        test(test_the_same_batch_id_with_other_lines),
        test(test_help_usage_and_no_redis),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
