// Several pipelines and several models under one broker: where jobs go, and what one pipeline's
// end means for the others.
#include "common/checkpoint.h"
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

static int n_running(const struct fake_group *g)
{
    int n = 0;
    for (int i = 0; i < g->n_jobs; i++) n += g->jobs[i].running;
    return n;
}

static struct fake_job *running(struct fake_group *g)
{
    for (int i = 0; i < g->n_jobs; i++) {
        if (g->jobs[i].running) return &g->jobs[i];
    }
    fail_msg("%s runs nothing", g->name);
    return NULL;
}

// Two groups of a stage each, as two pipelines of two slots each; both have told their credit.
static void start_two(struct fake_group *g[2])
{
    g[0] = start_world((const char *[]){"--slots", "2", NULL});
    g[1] = start_group("g-1");
    until(g[1]->linked);
    push_job("w0", 1, 1);
    push_job("w1", 1, 1);
    push_job("w2", 1, 1);
    until(n_running(g[0]) + n_running(g[1]) == 3);
    for (int i = 0; i < 2; i++) {
        while (n_running(g[i]) > 0) fake_group_finish(g[i], running(g[i]));
    }
    for (int i = 0; i < 3; i++) {
        char id[8];
        snprintf(id, sizeof id, "w%d", i);
        until(has_result(id));
    }
}

static void jobs_go_where_there_is_most_room(void **state)
{
    (void) state;
    struct fake_group *g[2];
    start_two(g);
    for (int i = 0; i < 5; i++) {
        char id[8];
        snprintf(id, sizeof id, "j%d", i);
        push_job(id, 3, 4);
    }
    until(n_running(g[0]) == 2 && n_running(g[1]) == 2);
    assert_null(fake_group_job(g[0], "j4"));
    assert_null(fake_group_job(g[1], "j4"));
    assert_true(g[0]->assign.epoch != g[1]->assign.epoch);
    assert_true(g[0]->assign.pipeline != g[1]->assign.pipeline);
    fake_group_finish(g[1], running(g[1]));
    wait_job(g[1], "j4");
    assert_true(field_is("j4", "owner", "g-1"));
    for (int i = 0; i < 2; i++) {
        while (n_running(g[i]) > 0) fake_group_finish(g[i], running(g[i]));
    }
    for (int i = 0; i < 5; i++) {
        char id[8];
        snprintf(id, sizeof id, "j%d", i);
        expect_result(id, RESULT_OK, "", 4);
    }
}

static void one_pipeline_drains_and_the_other_goes_on(void **state)
{
    (void) state;
    struct fake_group *g[2];
    start_two(g);
    push_job("a", 3, 4);
    push_job("b", 3, 4);
    until(n_running(g[0]) == 1 && n_running(g[1]) == 1);
    struct fake_job *last = running(g[0]);
    g[0]->drain = true;
    until(program_said(&w.broker, "event=draining") != NULL);
    push_job("c", 3, 4);
    wait_job(g[1], "c"); // though the other one has as much room
    push_job("d", 3, 4);
    fake_group_finish(g[0], last);
    until(g[0]->n_unassigns > 0);
    assert_true(last->committed);
    while (n_running(g[1]) > 0) fake_group_finish(g[1], running(g[1]));
    fake_group_finish(g[1], wait_job(g[1], "d"));
    for (const char *id = "a\0b\0c\0d\0"; *id != '\0'; id += 2) {
        expect_result(id, RESULT_OK, "", 4);
    }
    assert_int_equal(g[1]->n_unassigns, 0);
    assert_int_equal(g[1]->n_assigns, 1);
}

static void what_a_lost_pipeline_ran_goes_on_in_another(void **state)
{
    (void) state;
    struct fake_group *g[2];
    start_two(g);
    push_job("a", 3, 12);
    push_job("b", 3, 12);
    until(n_running(g[0]) == 1 && n_running(g[1]) == 1);
    char lost[JOB_ID_MAX + 1], kept[JOB_ID_MAX + 1];
    snprintf(lost, sizeof lost, "%s", running(g[0])->key.id);
    snprintf(kept, sizeof kept, "%s", running(g[1])->key.id);
    fake_group_tokens(g[0], running(g[0]), 5);
    until(saved_bytes(lost) == 20);
    fake_group_kill(g[0]);
    struct fake_job *job = wait_job(g[1], lost); // after a silence
    assert_int_equal(job->attempts, 2);
    assert_int_equal(job->n_resume, 5);
    while (n_running(g[1]) > 0) fake_group_finish(g[1], running(g[1]));
    expect_result(lost, RESULT_OK, "", 12);
    expect_events(lost, "done 6;"); // the sixth attempt of this queue
    expect_result(kept, RESULT_OK, "", 12);
    assert_int_equal(g[1]->n_assigns, 1);
}

static void a_new_broker_adopts_all_pipelines(void **state)
{
    (void) state;
    struct fake_group *g[2];
    start_two(g);
    push_job("a", 3, 12);
    push_job("b", 3, 12);
    until(n_running(g[0]) == 1 && n_running(g[1]) == 1);
    program_kill(&w.broker);
    start_broker();
    until(program_said(&w.broker, "event=adopted jobs=1") != NULL);
    push_job("c", 3, 4);
    push_job("d", 3, 4);
    until(n_running(g[0]) == 2 && n_running(g[1]) == 2); // each account is what it was
    for (int i = 0; i < 2; i++) {
        while (n_running(g[i]) > 0) fake_group_finish(g[i], running(g[i]));
        assert_int_equal(g[i]->n_assigns, 1);
        assert_int_equal(g[i]->n_unassigns, 0);
    }
    expect_result("a", RESULT_OK, "", 12);
    expect_result("b", RESULT_OK, "", 12);
    expect_result("c", RESULT_OK, "", 4);
    expect_result("d", RESULT_OK, "", 4);
    assert_true(field_is("a", "starts", "1") && field_is("b", "starts", "1"));
}

// --- models

static struct fake_group *start_group_of(const char *name, const char *dir)
{
    struct checkpoint *checkpoint;
    struct error e = {0};
    char hash[33];
    if (checkpoint_open(&checkpoint, dir, &e) != OK) fail_msg("%s", e.text);
    checkpoint_manifest_hash(checkpoint, hash);
    checkpoint_close(&checkpoint);
    struct fake_group *g = start_group(name);
    snprintf(g->model, sizeof g->model, "%s", hash);
    return g;
}

static void push_for(const char *id, const char *model)
{
    push("{'v': 1, 'id': '%s', 'op': 'tokens', 'model': '%s', 'body': {'tokens': [7, 8, 9], "
         "'max_tokens': 4, 'temperature': 0}}", id, model);
}

#define OTHER "other=" FIXTURES "/tiny-fp8"

static void models_do_not_wait_for_each_other(void **state)
{
    (void) state;
    struct fake_group *tiny = start_world((const char *[]){"--model", OTHER, "--slots", "1", NULL});
    push_for("o1", "other"); // nobody serves it yet
    push_for("t1", "tiny");
    push_job("t2", 3, 4); // and one that names none
    fake_group_finish(tiny, wait_job(tiny, "t1"));
    struct fake_job *t2 = wait_job(tiny, "t2");
    assert_true(field_is("t2", "model", "tiny") && field_is("o1", "state", "queued"));
    struct fake_group *other = start_group_of("g-other", FIXTURES "/tiny-fp8");
    fake_group_finish(other, wait_job(other, "o1"));
    push_for("o2", "other"); // the other model is full meanwhile
    fake_group_finish(other, wait_job(other, "o2"));
    fake_group_finish(tiny, t2);
    for (const char *id = "o1\0t1\0t2\0o2\0"; *id != '\0'; id += 3) {
        expect_result(id, RESULT_OK, "", 4);
    }
    assert_int_equal(tiny->n_jobs, 2);
    assert_int_equal(other->n_jobs, 2);
    push_for("none", "third");
    expect_result("none", RESULT_ERROR, "unknown_model", 0);
    struct fake_group *stranger = start_group("stranger");
    snprintf(stranger->model, sizeof stranger->model, "another");
    until(strcmp(stranger->error, "bad_model") == 0);
    assert_non_null(program_said(&w.broker, "other ")); // the error names what is served
}

// Never two.
static bool one_runs(const struct fake_group *a, const struct fake_group *b)
{
    int n = n_running(a) + n_running(b);
    assert_in_range(n, 0, 1);
    return n == 1;
}

// A tenant's budget is over all models.
static void budgets_count_over_all_models(void **state)
{
    (void) state;
    struct fake_group *tiny = start_world((const char *[]){"--model", OTHER, NULL});
    struct fake_group *other = start_group_of("g-other", FIXTURES "/tiny-fp8");
    until(other->linked);
    freeReplyObject(ask("HSET ps:{%s}:tenants default jobs=1", w.queue));
    program_wait(&w.broker, "event=tenants"); // the one tenant, and again with a budget
    until(strstr(program_said(&w.broker, "event=tenants") + 1, "event=tenants") != NULL);
    push_for("t1", "tiny");
    struct fake_job *t1 = wait_job(tiny, "t1");
    push_for("o1", "other");
    until(field_is("o1", "state", "queued"));
    push_for("o2", "other");
    until(field_is("o2", "state", "queued"));
    assert_int_equal(other->n_jobs, 0);
    fake_group_finish(tiny, t1);
    struct fake_job *o1 = wait_job(other, "o1");
    expect_result("t1", RESULT_OK, "", 4);
    push_for("t2", "tiny");
    until(one_runs(tiny, other) && field_is("t2", "state", "queued"));
    fake_group_finish(other, o1);
    for (int i = 0; i < 2; i++) {
        until(one_runs(tiny, other));
        struct fake_group *g = n_running(tiny) > 0 ? tiny : other;
        fake_group_finish(g, running(g));
    }
    expect_result("o2", RESULT_OK, "", 4);
    expect_result("t2", RESULT_OK, "", 4);
}

// Another first model does not change what was admitted before; what nobody serves any more waits.
static void a_job_keeps_its_model(void **state)
{
    (void) state;
    w.extra[0] = "--model";
    w.extra[1] = OTHER;
    start_broker();
    push_for("o1", "other");
    push_job("t1", 3, 4);
    until(field_is("o1", "state", "queued") && field_is("t1", "state", "queued"));
    program_kill(&w.broker);
    w.extra[0] = NULL; // only tiny
    start_broker();
    struct fake_group *tiny = start_group("g-0");
    fake_group_finish(tiny, wait_job(tiny, "t1"));
    expect_result("t1", RESULT_OK, "", 4);
    assert_true(field_is("o1", "state", "queued"));
    push_for("o2", "other");
    expect_result("o2", RESULT_ERROR, "unknown_model", 0);
    program_kill(&w.broker);
    w.extra[0] = "--model";
    start_broker();
    struct fake_group *other = start_group_of("g-other", FIXTURES "/tiny-fp8");
    fake_group_finish(other, wait_job(other, "o1"));
    expect_result("o1", RESULT_OK, "", 4);
}

#define test(f) cmocka_unit_test_setup_teardown(f, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(jobs_go_where_there_is_most_room),
        test(one_pipeline_drains_and_the_other_goes_on),
        test(what_a_lost_pipeline_ran_goes_on_in_another),
        test(a_new_broker_adopts_all_pipelines),
        test(models_do_not_wait_for_each_other),
        test(budgets_count_over_all_models),
        test(a_job_keeps_its_model),
    };
    return cmocka_run_group_tests(tests, world_start, world_stop);
}
