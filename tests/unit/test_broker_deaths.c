// What becomes of jobs when group, broker or Redis dies at any point of their life.
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

// The head that chose them had the logprobs of what was saved: they are made again.
static void a_job_with_logprobs_begins_anew_after_its_group_died(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push("{'v': 1, 'id': 'a', 'op': 'tokens', 'body': {'tokens': [5, 6], 'max_tokens': 8, "
         "'temperature': 0, 'logprobs': 1}}");
    fake_group_tokens(g, wait_job(g, "a"), 5);
    until(saved_bytes("a") == 20);
    fake_group_kill(g);
    struct fake_group *again = start_group("g-0");
    struct fake_job *job = wait_job(again, "a");
    assert_int_equal(job->attempts, 2);
    assert_int_equal(job->n_resume, 0);
    fake_group_tokens(again, job, 7);
    until(saved_bytes("a") == 28);
    fake_group_finish(again, job);
    expect_result("a", RESULT_OK, "", 8);
}

static void a_silent_group_is_given_up_and_a_spare_takes_over(void **state)
{
    (void) state;
    struct fake_group *g = start_world((const char *[]){"--pipelines", "1", NULL});
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
    struct fake_group *g = start_world((const char *[]){"--pipelines", "1", NULL});
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

static void a_result_waits_for_redis(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 8);
    struct fake_job *job = wait_job(g, "a");
    test_redis_kill(&world_server);
    fake_group_tokens(g, job, 3); // it goes on
    until(program_said(&w.broker, "event=redis_down") != NULL);
    fake_group_finish(g, job);
    for (int64_t end = clock_ms() + 500; clock_ms() < end;) { // RESULT is said again and again
        turn();
        assert_false(job->committed);
    }
    test_redis_restart(&world_server);
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
    int64_t end = clock_ms() + 2 * WORLD_PATIENCE_MS;
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
            test_redis_kill(&world_server);
            test_redis_restart(&world_server);
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

#define test(f) cmocka_unit_test_setup_teardown(f, world_open, world_close)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        test(a_job_resumes_after_its_group_died),
        test(a_job_with_logprobs_begins_anew_after_its_group_died),
        test(a_silent_group_is_given_up_and_a_spare_takes_over),
        test(a_group_drains_and_leaves),
        test(a_new_broker_adopts_what_runs),
        test(a_result_of_the_time_without_a_broker_is_kept),
        test(messages_that_were_taken_and_not_admitted_are_found),
        test(a_clean_stop_leaves_the_jobs_to_the_next_broker),
        test(two_stages_are_adopted_together),
        test(a_result_waits_for_redis),
        test(redis_dies_again_and_again_and_every_job_ends_once),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, world_start, world_stop);
}
