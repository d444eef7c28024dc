// Jobs that wait for a pipeline, and those that start in the room that they wait for.
#include "tests/unit/dispatch_world.h"

static void a_job_holds_the_pipeline_that_it_waits_for(void **state)
{
    (void) state;
    static const struct dispatch_running running[] = {{4, 100}, {3, 50}, {2, 10}};
    static const struct {
        uint64_t need, steps; // of the second job
        int class;            // of both
        int other;            // class of the second one
        bool starts;
    } cases[] = {
        // The first needs 5 of 10 blocks, 1 is free: it fits when two have ended, in 50 steps, and
        // leaves 1.
        {1, 50, 1, 1, true}, {1, 51, 1, 1, true}, {2, 10, 1, 1, false},
        {1, 1000, 1, 2, true}, {1, 1000, 0, 0, true},
        {1, 1000, 1, 0, true}, // a better class minds nobody
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct dispatch_pick p;
        world();
        credit_grant(&w.credits[0], PLENTY, PLENTY);
        w.credits[0].taken_slots = w.credits[0].granted_slots - 5;
        w.credits[0].taken_blocks = w.credits[0].granted_blocks - 1;
        w.all_slots[0] = 8;
        w.all_blocks[0] = 10;
        w.running[0] = running;
        w.n_running[0] = w.n_listed[0] = 3;
        put(0, cases[i].class, 5, 500);
        put(1, cases[i].other, cases[i].need, cases[i].steps);
        int n = choose(&p, 1);
        if (n != cases[i].starts) fail_msg("case %zu: %d", i, n);
        if (n == 1 && p.tenant != 1) fail_msg("case %zu: tenant %d", i, p.tenant);
    }
}

static const struct dispatch_hold *hold_of(uint64_t pipeline)
{
    for (int k = 0; k < PIPELINES_MAX; k++) {
        if (w.d.holds[k].pipeline == pipeline) return &w.d.holds[k];
    }
    return NULL;
}

static void full(int pipeline)
{
    static const struct dispatch_running running[] = {{9, 10}};
    w.credits[pipeline] = (struct credit){8, 10, 1, 9};
    w.all_slots[pipeline] = 8;
    w.all_blocks[pipeline] = 10;
    w.running[pipeline] = running;
    w.n_running[pipeline] = w.n_listed[pipeline] = 1;
}

// What it paid comes back when it leaves, or cannot run, or its pipeline goes.
static void a_hold_ends_with_job_tenant_and_pipeline(void **state)
{
    (void) state;
    struct dispatch_pick p;
    for (int i = 0; i < 5; i++) {
        world();
        full(0);
        put(0, 1, 5, 500);
        assert_int_equal(choose(&p, 1), 0);
        assert_non_null(hold_of(1));
        uint64_t left = w.d.deficit[2][0];
        if (i == 0) w.queues[0][1].n = 0;
        if (i == 1) w.tenants[0].weight = 0;
        if (i == 2) w.n_pipelines = 0;
        if (i == 3) w.tenants[0].blocks = 4;
        if (i == 4) dispatch_forget(&w.d, 0);
        if (i < 4) assert_int_equal(choose(&p, 1), 0);
        assert_null(hold_of(1));
        assert_int_equal(w.d.deficit[2][0], i < 4 ? left + 500 : 0);
    }
}

static void a_better_class_takes_a_hold_over(void **state)
{
    (void) state;
    struct dispatch_pick picks[2];
    world();
    full(0);
    put(0, 3, 5, 500);
    assert_int_equal(choose(picks, 2), 0);
    assert_int_equal(hold_of(1)->class, 3);
    put(1, 0, 6, 600);
    assert_int_equal(choose(picks, 2), 0);
    assert_int_equal(hold_of(1)->class, 0);
    assert_int_equal(w.d.deficit[4][0] >= 500, true); // it has its tokens again
    w.credits[0] = (struct credit){8, 10, 0, 0};
    w.n_running[0] = w.n_listed[0] = 0;
    assert_int_equal(choose(picks, 2), 1);
    assert_int_equal(picks[0].class, 0);
    assert_null(hold_of(1));
    pull(&picks[0]);
    credit_take(&w.credits[0], 6);
    assert_int_equal(choose(picks, 2), 0);
    assert_int_equal(hold_of(1)->class, 3);
}

// A choice beside another one takes jobs of class 0 only, and leaves the holds of others alone.
static void an_urgent_choice_is_of_class_0(void **state)
{
    (void) state;
    struct dispatch_pick picks[4];
    world();
    w.n_pipelines = 2;
    w.d.age_ms = 1000;
    full(0);
    put(0, 3, 5, 500);
    full(1);
    assert_int_equal(choose(picks, 4), 0);
    int held = hold_of(1) != NULL ? 0 : 1;
    w.credits[held] = (struct credit){8, 10, 0, 0};
    w.n_running[held] = w.n_listed[held] = 0;
    put(0, 2, 1, 100);
    w.urgent = true;
    assert_int_equal(choose(picks, 4), 0); // whoever holds, or would fit
    assert_non_null(hold_of((uint64_t) held + 1));
    put(1, 0, 1, 100);
    assert_int_equal(choose(picks, 4), 1);
    assert_int_equal(picks[0].class, 0);
    w.now_ms += 3000; // both have come up to class 0, and are due
    w.d.strict = 1000000;
    assert_int_equal(choose(picks, 4), 0);
    w.urgent = false;
    assert_int_equal(choose(picks, 4), 3);
    assert_int_equal(picks[0].class, 3);
}

// One that no pipeline could hold, whatever ends, is in nobody's way.
static void a_job_that_is_too_large_for_all_is_passed_over(void **state)
{
    (void) state;
    struct dispatch_pick picks[4];
    world();
    full(0);
    put(0, 1, 11, 500);
    put(0, 1, 1, 100);
    assert_int_equal(choose(picks, 4), 1);
    assert_int_equal(picks[0].nth, 1);
    assert_null(hold_of(1));
}

// Each pipeline may be held by one: the order of the two that wait longest is kept.
static void each_pipeline_is_held_by_one(void **state)
{
    (void) state;
    struct dispatch_pick picks[4];
    world();
    w.n_pipelines = 2;
    full(0);
    full(1);
    for (int i = 0; i < 3; i++) put(0, 1, 5, 500);
    assert_int_equal(choose(picks, 4), 0);
    assert_int_equal(hold_of(1)->seq + hold_of(2)->seq, w.jobs[0][1][0].seq + w.jobs[0][1][1].seq);
    w.credits[1] = (struct credit){8, 10, 0, 0};
    w.n_running[1] = w.n_listed[1] = 0;
    assert_int_equal(choose(picks, 4), 2); // those two, whichever of them held the other one
    assert_int_equal(picks[0].nth + picks[1].nth, 1);
    assert_int_equal(picks[0].pipeline + picks[1].pipeline, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_holds_the_pipeline_that_it_waits_for),
        cmocka_unit_test(a_hold_ends_with_job_tenant_and_pipeline),
        cmocka_unit_test(a_better_class_takes_a_hold_over),
        cmocka_unit_test(an_urgent_choice_is_of_class_0),
        cmocka_unit_test(a_job_that_is_too_large_for_all_is_passed_over),
        cmocka_unit_test(each_pipeline_is_held_by_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
