// The text of jobs that stream, in a whole broker: from the head's TOKENS to chunks in Redis,
// whatever dies meanwhile.
#include "tests/support/world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>

static void push_stream(const char *id, int max_tokens)
{
    push("{'v': 1, 'id': '%s', 'op': 'tokens', 'stream': true, 'body': {'tokens': [5, 6], "
         "'max_tokens': %d, 'temperature': 0}}", id, max_tokens);
}

// The chunks, one behind the other: none may be missing or come twice. Returns how many there are.
static int read_stream(const char *id, char text[FAKE_TEXT_MAX])
{
    size_t n = 0;
    redisReply *r = ask("XRANGE ps:{%s}:t:default:%s - +", w.queue, id);
    for (size_t i = 0; i < r->elements; i++) {
        redisReply *const *f = r->element[i]->element[1]->element;
        assert_int_equal(strtoul(f[3]->str, NULL, 10), n);
        assert_true(f[5]->len > 0 && n + f[5]->len < FAKE_TEXT_MAX);
        memcpy(text + n, f[5]->str, f[5]->len);
        n += f[5]->len;
    }
    text[n] = '\0';
    int chunks = (int) r->elements;
    freeReplyObject(r);
    return chunks;
}

static bool has_streamed(const char *id, int n_tokens)
{
    char text[FAKE_TEXT_MAX];
    read_stream(id, text);
    return strlen(text) == fake_group_text(NULL, n_tokens);
}

// The result has the text of n tokens, and so has the stream.
static void expect_stream(const char *id, enum result_status status, int n)
{
    char text[FAKE_TEXT_MAX], wanted[FAKE_TEXT_MAX];
    redisReply *bytes;
    struct result r = result_of(id, &bytes);
    size_t length = fake_group_text(wanted, n);
    assert_int_equal(r.status, status);
    assert_int_equal(r.n_tokens, n);
    assert_int_equal(r.text_bytes, length);
    assert_memory_equal(r.text, wanted, length);
    result_deinit(&r);
    freeReplyObject(bytes);
    read_stream(id, text);
    assert_string_equal(text, wanted);
}

static void chunks_come_while_it_runs(void **state)
{
    (void) state;
    char text[FAKE_TEXT_MAX];
    struct fake_group *g = start_world(NULL);
    push_stream("a", 9);
    struct fake_job *job = wait_job(g, "a");
    assert_true(job->stream);
    for (int n = 2; n <= 6; n += 2) {
        fake_group_tokens(g, job, 2);
        until(has_streamed("a", n));
        assert_int_equal(saved_bytes("a"), 4 * n); // with the tokens that they are of
    }
    fake_group_finish(g, job);
    expect_stream("a", RESULT_OK, 9);
    assert_in_range(read_stream("a", text), 4, 5);
    push_job("plain", 3, 4);
    assert_false(wait_job(g, "plain")->stream);
}

static void the_last_chunk_is_there_before_the_event(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_stream("a", 9);
    struct fake_job *job = wait_job(g, "a");
    job->n_tokens = 9; // what TOKENS never told
    fake_group_finish(g, job);
    until(has_result("a"));
    expect_stream("a", RESULT_OK, 9);
}

static void a_job_that_is_given_up_has_what_it_said(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_stream("a", 9);
    fake_group_tokens(g, wait_job(g, "a"), 3);
    push("{'v': 1, 'id': 'a', 'op': 'cancel'}");
    expect_stream("a", RESULT_CANCELLED, 3);
    g->deaf = true; // and of a head that does not answer what was published
    push_stream("b", 9);
    fake_group_tokens(g, wait_job(g, "b"), 3);
    until(has_streamed("b", 3));
    push("{'v': 1, 'id': 'b', 'op': 'cancel'}");
    expect_stream("b", RESULT_CANCELLED, 3);
}

static void another_group_goes_on(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_stream("a", 9);
    fake_group_tokens(g, wait_job(g, "a"), 4);
    until(has_streamed("a", 4));
    fake_group_kill(g);
    struct fake_group *next = start_group("g-1");
    struct fake_job *job = wait_job(next, "a");
    assert_int_equal(job->n_resume, 4);
    fake_group_tokens(next, job, 2); // the text from its beginning, as every attempt says it
    until(has_streamed("a", 6));
    fake_group_finish(next, job);
    expect_stream("a", RESULT_OK, 9);
}

static void another_broker_goes_on(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_stream("a", 12);
    struct fake_job *job = wait_job(g, "a");
    fake_group_tokens(g, job, 4);
    until(has_streamed("a", 4));
    program_kill(&w.broker);
    fake_group_tokens(g, job, 2); // nobody hears it
    start_broker();
    until(program_said(&w.broker, "event=adopted jobs=1") != NULL);
    job->n_tokens = 4; // as a head says all of it again
    fake_group_tokens(g, job, 4);
    until(has_streamed("a", 8));
    fake_group_finish(g, job);
    expect_stream("a", RESULT_OK, 12);
}

static void a_result_of_the_time_without_a_broker_has_its_chunks(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_stream("a", 9);
    struct fake_job *job = wait_job(g, "a");
    fake_group_tokens(g, job, 4);
    until(has_streamed("a", 4));
    program_kill(&w.broker);
    fake_group_finish(g, job);
    start_broker();
    until(job->committed);
    expect_stream("a", RESULT_OK, 9);
}

static void redis_comes_back(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_stream("a", 12);
    struct fake_job *job = wait_job(g, "a");
    fake_group_tokens(g, job, 4);
    until(has_streamed("a", 4));
    test_redis_kill(&world_server);
    until(program_said(&w.broker, "event=redis_down") != NULL);
    for (int i = 0; i < 3; i++) fake_group_tokens(g, job, 2); // kept meanwhile
    test_redis_restart(&world_server);
    reconnect();
    until(has_streamed("a", 10));
    fake_group_finish(g, job);
    expect_stream("a", RESULT_OK, 12);
}

// As after a restart of a Redis that may lose what it has acknowledged.
static void a_stream_that_redis_lost_is_whole_in_the_end(void **state)
{
    (void) state;
    char text[FAKE_TEXT_MAX];
    struct fake_group *g = start_world(NULL);
    push_stream("a", 9);
    struct fake_job *job = wait_job(g, "a");
    fake_group_tokens(g, job, 4);
    until(has_streamed("a", 4));
    freeReplyObject(ask("DEL ps:{%s}:t:default:a", w.queue));
    freeReplyObject(ask("HDEL ps:{%s}:j:default:a shown", w.queue));
    fake_group_tokens(g, job, 2);
    until(saved_bytes("a") == 24);
    assert_int_equal(read_stream("a", text), 0); // it would leave a gap
    fake_group_finish(g, job);
    expect_stream("a", RESULT_OK, 9);
}

#define test(f) cmocka_unit_test_setup_teardown(f, world_open, world_close)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        test(chunks_come_while_it_runs),
        test(the_last_chunk_is_there_before_the_event),
        test(a_job_that_is_given_up_has_what_it_said),
        test(another_group_goes_on),
        test(another_broker_goes_on),
        test(a_result_of_the_time_without_a_broker_has_its_chunks),
        test(redis_comes_back),
        test(a_stream_that_redis_lost_is_whole_in_the_end),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, world_start, world_stop);
}
