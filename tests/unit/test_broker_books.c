// Credit, leases and windows of a whole broker hold whatever groups say, and whatever is in Redis.
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
#include <zmq.h>

static const char *const two_slots[] = {"--slots", "2", NULL};

static int n_running(const struct fake_group *g)
{
    int n = 0;
    for (int i = 0; i < g->n_jobs; i++) n += g->jobs[i].running;
    return n;
}

// No CREDIT comes before the next job ends.
static void hold_credit(struct fake_group *g) { g->credit_ms = clock_ms() + WORLD_PATIENCE_MS; }

// The broker is started again, and has the HELLO that tells what its adopted head runs.
static void replace_broker(struct fake_group *g)
{
    program_kill(&w.broker);
    int before = g->n_hellos;
    start_broker();
    until(program_said(&w.broker, "adopted=1") != NULL && g->n_hellos >= before + 2);
}

static void both_slots_are_used(struct fake_group *g)
{
    push_job("x", 3, 4);
    push_job("y", 3, 4);
    until(n_running(g) == 2);
    fake_group_finish(g, wait_job(g, "x"));
    fake_group_finish(g, wait_job(g, "y"));
    expect_result("x", RESULT_OK, "", 4);
    expect_result("y", RESULT_OK, "", 4);
}

// --- an adopted head

static void a_job_that_ends_while_it_is_adopted_gives_its_slot_back(void **state)
{
    (void) state;
    struct fake_group *g = start_world(two_slots);
    push_job("a", 3, 4);
    struct fake_job *job = wait_job(g, "a");
    hold_credit(g);
    replace_broker(g);
    until(program_said(&w.broker, "event=found_running") != NULL);
    // The CREDIT behind the RESULT is there before Redis has the result.
    freeReplyObject(ask("CLIENT PAUSE 500 ALL"));
    fake_group_finish(g, job);
    until(job->committed);
    both_slots_are_used(g);
}

static void what_an_adopted_head_runs_for_nobody_is_in_its_books(void **state)
{
    (void) state;
    struct fake_group *g = start_world(two_slots);
    push_job("a", 3, 4);
    struct fake_job *job = wait_job(g, "a");
    g->deaf = true;
    program_kill(&w.broker);
    hold_credit(g);
    // As after a leader's long sleep: another attempt has the job.
    freeReplyObject(ask("HSET ps:{%s}:j:default:a attempt 77", w.queue));
    freeReplyObject(ask("ZADD ps:{%s}:ls 9999999999999 default:a", w.queue));
    start_broker();
    until(program_said(&w.broker, "event=attempt_lost") != NULL);
    g->credit_ms = 0; // as if it had left before CANCEL came
    until(program_said(&w.broker, "event=adopted") != NULL);
    push_job("x", 3, 4);
    push_job("y", 3, 4);
    wait_job(g, "x");
    until(field_is("y", "state", "queued"));
    for (int64_t end = clock_ms() + 300; clock_ms() < end;) {
        turn();
        assert_in_range(n_running(g), 1, 2); // it has two slots
    }
    fake_group_finish(g, job);
    wait_job(g, "y");
    assert_int_equal(job->outcome, WIRE_OUTCOME_STALE);
}

static void a_head_that_grants_less_than_it_has_does_no_harm(void **state)
{
    (void) state;
    struct fake_group *g = start_world(two_slots);
    push_job("a", 3, 4);
    struct fake_job *job = wait_job(g, "a");
    hold_credit(g);
    replace_broker(g);
    g->granted_slots = 1; // of two, one of which is in use
    g->granted_blocks = 0;
    g->credit_ms = 0;
    until(program_said(&w.broker, "event=adopted jobs=1") != NULL);
    // On a new connection it knows nothing of the job.
    job->running = false;
    assert_int_equal(zmq_disconnect(g->socket, w.endpoint), 0);
    assert_int_equal(zmq_connect(g->socket, w.endpoint), 0);
    until(fake_group_job(g, "a")->attempts == 2);
    fake_group_finish(g, fake_group_job(g, "a"));
    expect_result("a", RESULT_OK, "", 4);
}

static void what_a_head_said_before_it_had_a_leader_is_asked_again(void **state)
{
    (void) state;
    struct fake_group *g = start_world(two_slots);
    push_job("a", 3, 4);
    struct fake_job *job = wait_job(g, "a");
    hold_credit(g);
    program_kill(&w.broker);
    test_redis_kill(&world_server);
    start_broker(); // it listens, and cannot lead
    int before = g->n_hellos;
    until(g->n_hellos >= before + 5);
    // It ends, and nothing of it is left, as where another broker led for a while and took its
    // result. All these HELLOs say that it runs, the CREDIT behind them that its slot is free.
    job->running = false;
    g->granted_slots++;
    g->granted_blocks += (uint64_t) job->n_blocks;
    g->credit_ms = 0;
    until(g->credit_ms != 0);
    test_redis_restart(&world_server);
    reconnect();
    until(program_said(&w.broker, "event=adopted") != NULL);
    assert_non_null(program_said(&w.broker, "event=adopted jobs=0"));
    both_slots_are_used(g);
}

static void an_epoch_that_nobody_gave_is_none(void **state)
{
    (void) state;
    struct fake_group *g = start_world((const char *[]){"--pipelines", "1", NULL});
    program_kill(&w.broker);
    struct fake_group *odd = start_group("odd");
    odd->assigned = odd->linked = true;
    odd->assign = g->assign;
    odd->assign.stage = 1;
    odd->assign.pipeline = 9;
    odd->assign.epoch = UINT64_MAX; // the next one would be 0, which stands for none
    start_broker();
    void *other = g->socket; // it is heard after the odd one, which ends the adoption
    g->socket = NULL;
    // With the plan comes the wish for another HELLO, which may be answered before the log is read.
    int before = 0;
    until(program_said(&w.broker, "event=plan ") != NULL || (before = odd->n_hellos, false));
    until(odd->n_hellos > before);
    g->socket = other;
    until(program_said(&w.broker, "adopted=1") != NULL);
    until(odd->n_unassigns == 1);
    fake_group_kill(g);
    until(odd->n_assigns == 1 && odd->linked);
    push_job("a", 3, 4);
    fake_group_finish(odd, wait_job(odd, "a"));
    expect_result("a", RESULT_OK, "", 4);
}

// --- names

static void names_that_redis_refuses_end_no_lease(void **state)
{
    (void) state;
    struct fake_group *g = start_world(two_slots);
    push_job("a", 3, 4);
    struct fake_job *job = wait_job(g, "a");
    for (int i = 0; i < 2; i++) {
        struct fake_job *bad = &g->jobs[g->n_jobs++];
        *bad = (struct fake_job){.running = true, .key = {"no name", "b", 1000}};
        if (i == 1) bad->key = (struct job_key){"default", "c", UINT64_MAX};
    }
    replace_broker(g);
    until(program_said(&w.broker, "event=adopted jobs=1") != NULL);
    fake_group_finish(g, job);
    expect_result("a", RESULT_OK, "", 4);
}

// --- what others left in Redis

static bool exists(const char *key)
{
    char command[128];
    snprintf(command, sizeof command, "EXISTS %s", key);
    redisReply *r = ask(command, w.queue);
    bool yes = r->integer != 0;
    freeReplyObject(r);
    return yes;
}

static void ready_jobs_without_a_record_are_dropped(void **state)
{
    (void) state;
    struct fake_group *g = start_world(two_slots);
    push_job("a", 3, 4);
    fake_group_finish(g, wait_job(g, "a"));
    expect_result("a", RESULT_OK, "", 4);
    freeReplyObject(ask("ZADD ps:{%s}:rdy:0:default:tiny 1 g 2 h 3 i 4 j 5 k", w.queue));
    push_job("b", 3, 4);
    fake_group_finish(g, wait_job(g, "b"));
    expect_result("b", RESULT_OK, "", 4);
    until(!exists("ps:{%s}:rdy:0:default:tiny"));
}

#define test(f) cmocka_unit_test_setup_teardown(f, world_open, world_close)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        test(a_job_that_ends_while_it_is_adopted_gives_its_slot_back),
        test(what_an_adopted_head_runs_for_nobody_is_in_its_books),
        test(a_head_that_grants_less_than_it_has_does_no_harm),
        test(what_a_head_said_before_it_had_a_leader_is_asked_again),
        test(an_epoch_that_nobody_gave_is_none),
        test(names_that_redis_refuses_end_no_lease),
        test(ready_jobs_without_a_record_are_dropped),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, world_start, world_stop);
}
