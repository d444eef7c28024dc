#include "tests/unit/dispatch_world.h"

static uint64_t some_cost(void) { return 1 + (uint64_t) rand() % 3000; }

static void others_leave_a_share_to_class_0(void **state)
{
    (void) state;
    static const struct {
        uint64_t slots, blocks, all_slots, all_blocks, need;
        int class;
        bool fits;
    } cases[] = {
        {2, 200, 40, 200, 1, 3, false}, {3, 200, 40, 200, 1, 3, true}, // 2 of 40 slots are kept
        {1, 200, 40, 200, 1, 0, true},
        {9, 12, 40, 200, 3, 1, false}, {9, 13, 40, 200, 3, 1, true}, // 10 of 200 blocks
        {9, 12, 40, 200, 12, 0, true},
        {9, 200, 40, 200, 191, 2, true}, // too large to leave so much
        {1, 200, 8, 200, 1, 1, false}, {2, 200, 8, 200, 1, 1, true}, // at least one
        {1, 200, 7, 200, 1, 1, true}, // of few none
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct dispatch d = {.urgent_percent = 5};
        struct ready_job job = {cases[i].need, 1, 0, false, 1, 1};
        struct ready_queue queues[JOB_CLASSES] = {0};
        struct dispatch_tenant tenant = {1, UINT64_MAX, UINT64_MAX, false};
        struct dispatch_pipeline pipeline = {.id = 1,
                                             .slots = cases[i].slots, .blocks = cases[i].blocks,
                                             .all_slots = cases[i].all_slots,
                                             .all_blocks = cases[i].all_blocks};
        struct dispatch_pick pick;
        queues[cases[i].class] = (struct ready_queue){&job, 1, false};
        struct dispatch_view v = {.n_pipelines = 1, .pipelines = &pipeline, .n_tenants = 1,
                                  .tenants = &tenant, .queues = (const void *) queues};
        int n = dispatch_choose(&d, &v, &pick, 1);
        if (n != cases[i].fits) fail_msg("case %zu: %d", i, n);
    }
}

static void takes_jobs_in_order_while_credit_lasts(void **state)
{
    (void) state;
    struct dispatch_pick picks[8];
    world();
    w.credits[0] = (struct credit){0};
    put(0, 0, 3, 150);
    put(0, 0, 4, 200);
    put(0, 0, 9, 500);
    put(0, 0, 1, 10);
    assert_int_equal(choose(picks, 8), 0);
    w.all_slots[0] = 8;
    w.all_blocks[0] = 10;
    credit_grant(&w.credits[0], 8, 10);
    assert_int_equal(choose(picks, 8), 2); // the third waits, and nobody knows for how long
    assert_int_equal(picks[0].nth, 0);
    assert_int_equal(picks[1].nth, 1);
    credit_take(&w.credits[0], 3);
    credit_take(&w.credits[0], 4);
    assert_int_equal(credit_slots(&w.credits[0]), 6);
    assert_int_equal(credit_blocks(&w.credits[0]), 3);
    credit_grant(&w.credits[0], 7, 6); // late: ignored
    assert_int_equal(credit_blocks(&w.credits[0]), 3);
    credit_grant(&w.credits[0], 9, 13); // one ended
    assert_int_equal(credit_blocks(&w.credits[0]), 6);
    credit_give_back(&w.credits[0], 4);
    assert_int_equal(credit_blocks(&w.credits[0]), 10);
}

static void poison_runs_alone(void **state)
{
    (void) state;
    struct dispatch_pick picks[8];
    world();
    put(0, 0, 1, 10);
    put(0, 0, 1, 10);
    w.jobs[0][0][0].poison = true;
    assert_int_equal(choose(picks, 8), 1);
    w.n_running[0] = 1;
    assert_int_equal(choose(picks, 8), 0);
    w.n_running[0] = 0;
    w.jobs[0][0][0].poison = false;
    w.jobs[0][0][1].poison = true;
    assert_int_equal(choose(picks, 8), 1);
    w.alone[0] = true;
    assert_int_equal(choose(picks, 8), 0);
}

// --- classes, age, shares

static void the_levels_of_classes_and_ages(void **state)
{
    (void) state;
    static const struct {
        int class, level;
        int64_t ready_ms;
    } cases[] = {{0, 0, 0},    {0, 0, 5000}, {1, 2, 0},    {1, 2, 999},  {1, 1, 1000}, {2, 3, 0},
                 {2, 2, 1500}, {2, 1, 2000}, {3, 4, 999},  {3, 3, 1000}, {3, 2, 2999}, {3, 1, 3000},
                 {3, 1, 9999}, {3, 4, -5}};
    struct dispatch d = {.age_ms = 1000};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(dispatch_level(&d, cases[i].class, cases[i].ready_ms), cases[i].level);
    }
    d.age_ms = 0;
    assert_int_equal(dispatch_level(&d, 3, 1 << 30), 4);
}

// Jobs of all classes come and go at random; whoever is taken, nobody of a better class waited.
static void class_0_never_waits_behind_class_3(void **state)
{
    (void) state;
    srand(2);
    world();
    w.d.age_ms = 1000000000;
    for (int i = 0; i < 20000; i++) {
        int t = rand() % TENANTS, c = rand() % JOB_CLASSES;
        if (w.queues[t][c].n < 20) put(t, c, 1, some_cost());
        if (rand() % 3 == 0) continue;
        struct dispatch_pick p = next();
        if (p.tenant < 0) continue;
        for (int k = 0; k < TENANTS; k++) {
            for (int c0 = 0; c0 < p.class; c0++) assert_int_equal(w.queues[k][c0].n, 0);
        }
    }
}

// Class 0 never ends and class 3 has grown old: it gets its part of the tokens, and no more.
static void age_bounds_how_long_a_job_waits(void **state)
{
    (void) state;
    uint64_t tokens[JOB_CLASSES] = {0};
    srand(3);
    world();
    w.d.age_ms = 1000;
    put(0, 3, 1, 3000);
    for (int i = 0; i < 100; i++) put(1, 0, 1, some_cost());
    w.now_ms += 2999; // counts as class 1 so far
    for (int i = 0; i < 100; i++) assert_int_equal(next().class, 0);
    for (int i = 0; i < 50; i++) put(0, 3, 1, some_cost());
    w.now_ms += 3000;
    for (int i = 0; i < 4000; i++) {
        for (int c = 0; c < 4; c += 3) {
            if (w.queues[1][c].n < 50) put(1, c, 1, some_cost());
        }
        w.now_ms += 3000;
        struct dispatch_pick p = next();
        tokens[p.class] += p.cost;
        // At no time more than its part.
        assert_true(tokens[3] * (DISPATCH_AGED_PART - 1) <= tokens[0]);
    }
    double part = (double) tokens[3] / (double) (tokens[0] + tokens[3]);
    assert_true(part > 0.95 / (double) DISPATCH_AGED_PART);
}

// Jobs of any size, with as many pipelines, each of which has only so much room and ends a job of
// its own now and then.
static void share(int n_pipelines)
{
    enum { SLOTS = 8, BLOCKS = 200 };
    uint64_t tokens[TENANTS] = {0}, all = 0, running[PIPELINES][SLOTS];
    static const uint64_t sizes[TENANTS] = {8000, 300, 3000}; // whatever the jobs' size
    srand(4);
    world();
    w.n_pipelines = n_pipelines;
    for (int i = 0; i < PIPELINES; i++) {
        w.credits[i] = (struct credit){0};
        credit_grant(&w.credits[i], SLOTS, BLOCKS);
    }
    for (int t = 0; t < TENANTS; t++) w.tenants[t].weight = 1u << t;
    for (int n = 0; n < 20000;) {
        for (int t = 0; t < TENANTS; t++) {
            uint64_t cost = 1 + (uint64_t) rand() % sizes[t];
            if (w.queues[t][2].n < 20) put(t, 2, (cost + 63) / 64, cost);
        }
        struct dispatch_pick p;
        if (choose(&p, 1) == 1) {
            uint64_t blocks = pull(&p).need_blocks;
            credit_take(&w.credits[p.pipeline], blocks); // checks that there is room
            running[p.pipeline][w.n_running[p.pipeline]++] = blocks;
            tokens[p.tenant] += p.cost;
            all += p.cost;
            n++;
            continue;
        }
        int i = rand() % n_pipelines;
        if (w.n_running[i] == 0) continue;
        int k = rand() % w.n_running[i];
        struct credit *c = &w.credits[i];
        credit_grant(c, c->granted_slots + 1, c->granted_blocks + running[i][k]);
        running[i][k] = running[i][--w.n_running[i]];
    }
    for (int t = 0; t < TENANTS; t++) {
        double share = (double) tokens[t] / (double) all, due = (1 << t) / 7.0;
        bool fair = share > 0.95 * due && share < 1.05 * due;
        if (!fair) fail_msg("%d pipelines, tenant %d: %f of %f", n_pipelines, t, share, due);
    }
}

static void tenants_share_by_weight(void **state)
{
    (void) state;
    for (int n = 1; n <= PIPELINES; n++) share(n);
}

// Whoever was idle has saved nothing up, and others have lost nothing by it.
static void credit_of(int pipeline, uint64_t slots, uint64_t blocks)
{
    w.credits[pipeline] = (struct credit){0};
    credit_grant(&w.credits[pipeline], slots, blocks);
    w.all_slots[pipeline] = slots;
    w.all_blocks[pipeline] = blocks;
}

// The broker knows the first jobs of each queue, and may have room for many more at once.
static void shares_hold_beyond_what_is_known(void **state)
{
    (void) state;
    enum { KNOWN = 64, ROOM = 250, JOBS = 20000 };
    struct dispatch_pick picks[ROOM];
    uint64_t tokens[TENANTS] = {0}, all = 0;
    world();
    for (int t = 0; t < TENANTS; t++) w.tenants[t].weight = 1u << t;
    for (int n = 0, left = ROOM; n < JOBS; left = left > 0 ? left : ROOM) {
        for (int t = 0; t < TENANTS; t++) {
            while (w.queues[t][2].n < KNOWN) put(t, 2, 1, 1 + (uint64_t) rand() % 100);
            w.queues[t][2].more = true;
        }
        int chosen = choose(picks, left);
        assert_in_range(chosen, 1, left);
        for (int i = 0; i < chosen; i++) tokens[picks[i].tenant] += picks[i].cost;
        for (int i = chosen - 1; i >= 0; i--) { // a queue's in order: from the last to the first
            pull(&picks[i]);
            all += picks[i].cost;
        }
        n += chosen;
        left -= chosen;
    }
    for (int t = 0; t < TENANTS; t++) {
        uint64_t due = all * w.tenants[t].weight / 7;
        assert_in_range(tokens[t], due - due / 50, due + due / 50);
    }
}

static void a_choice_ends_where_more_than_is_known_is_due(void **state)
{
    (void) state;
    struct dispatch_pick picks[8];
    for (int more = 0; more < 2; more++) { // class 0 goes before class 3, known or not
        world();
        put(0, 0, 1, 10);
        put(1, 3, 1, 10);
        put(1, 3, 1, 10);
        w.queues[0][0].more = more == 1;
        assert_int_equal(choose(picks, 8), more == 1 ? 1 : 3);
        assert_int_equal(picks[0].class, 0);
    }
    world(); // jobs that find no room are known, and end nothing: nor one that gets a hold
    credit_of(0, 8, 4);
    put(0, 1, 9, 10);
    w.queues[0][1].more = true;
    put(1, 2, 1, 1);
    assert_int_equal(choose(picks, 8), 1);
    assert_int_equal(picks[0].tenant, 1);
    world();
    credit_of(0, 8, 20);
    credit_take(&w.credits[0], 15); // 5 are free, more in 100 steps
    put(0, 1, 9, 10);
    w.queues[0][1].more = true;
    for (int i = 0; i < 3; i++) put(1, 2, 1, 1);
    static const struct dispatch_running runs = {15, 100};
    w.running[0] = &runs;
    w.n_running[0] = w.n_listed[0] = 1;
    assert_int_equal(choose(picks, 8), 3); // they end before
}

static void an_idle_tenant_saves_nothing_up(void **state)
{
    (void) state;
    uint64_t tokens[TENANTS] = {0};
    world();
    for (int i = 0; i < 500; i++) put(0, 1, 1, 1000);
    for (int i = 0; i < 300; i++) assert_int_equal(next().tenant, 0);
    for (int i = 0; i < 200; i++) put(1, 1, 1, 1000);
    for (int i = 0; i < 200; i++) tokens[next().tenant] += 1000;
    assert_in_range(tokens[1], 95000, 105000);
}

static void a_large_job_is_not_starved_by_small_ones(void **state)
{
    (void) state;
    uint64_t before = 0;
    world();
    put(0, 1, 1, 1000000);
    for (int i = 0; i < 100000; i++) {
        if (w.queues[1][1].n == 0) put(1, 1, 1, 100);
        struct dispatch_pick p = next();
        if (p.tenant == 0) break;
        before += p.cost;
    }
    assert_in_range(before, 900000, 1000000 + 2 * DISPATCH_QUANTUM);
    // One that does not fit yet keeps its turn: nothing slips past it.
    world();
    w.credits[0] = (struct credit){0};
    credit_grant(&w.credits[0], 10, 5);
    put(0, 1, 8, 500);
    put(1, 1, 1, 50);
    int first = next().tenant;
    assert_int_equal(first, 1);
    credit_take(&w.credits[0], 1);
    put(1, 1, 1, 1100);
    assert_int_equal(next().tenant, -1);
    put(1, 1, 1, 50);
    put(2, 2, 1, 50);
    assert_int_equal(next().tenant, -1);
    credit_grant(&w.credits[0], 11, 20);
    assert_int_equal(next().tenant, 0);
}

// --- several pipelines

static void the_least_loaded_pipeline_takes_a_job(void **state)
{
    (void) state;
    static const struct {
        uint64_t free[3][2], need;
        int pipeline; // -1: it waits
    } cases[] = {
        {{{4, 10}, {4, 10}, {4, 10}}, 1, 0}, // the first of equals
        {{{4, 10}, {5, 10}, {4, 10}}, 1, 1},
        {{{4, 10}, {4, 11}, {4, 12}}, 1, 2},
        {{{9, 3}, {2, 4}, {1, 9}}, 4, 1}, // it must fit
        {{{9, 3}, {0, 9}, {3, 3}}, 4, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct dispatch_pick p;
        world();
        w.n_pipelines = 3;
        for (int k = 0; k < 3; k++) credit_of(k, cases[i].free[k][0], cases[i].free[k][1]);
        put(0, 1, cases[i].need, 10);
        int n = choose(&p, 1);
        assert_int_equal(n == 1 ? p.pipeline : -1, cases[i].pipeline);
    }
}

static void a_round_spreads_over_pipelines(void **state)
{
    (void) state;
    struct dispatch_pick picks[16];
    int of[3] = {0};
    world();
    w.n_pipelines = 3;
    for (int k = 0; k < 3; k++) credit_of(k, 3 + (uint64_t) k, 100);
    for (int i = 0; i < 16; i++) put(0, 1, 1, 10);
    assert_int_equal(choose(picks, 9), 9);
    for (int i = 0; i < 9; i++) of[picks[i].pipeline]++;
    for (int k = 0; k < 3; k++) assert_int_equal(of[k], 2 + k); // one slot is left on each
    w.queues[0][1].n = 16;
    assert_int_equal(choose(picks, 16), 12);
}

// It waits for an empty pipeline; the others go on serving while it runs.
static void poison_has_a_pipeline_for_itself(void **state)
{
    (void) state;
    struct dispatch_pick picks[8];
    world();
    w.n_pipelines = 2;
    w.n_running[0] = w.n_running[1] = 1;
    for (int i = 0; i < 4; i++) put(0, 0, 1, 10);
    w.jobs[0][0][0].poison = true;
    assert_int_equal(choose(picks, 8), 3); // it holds the first one
    for (int i = 0; i < 3; i++) assert_true(picks[i].pipeline == 1 && picks[i].nth == i + 1);
    w.n_running[1] = 0;
    assert_int_equal(choose(picks, 8), 4);
    assert_true(picks[0].pipeline == 1 && picks[0].nth == 0);
    for (int i = 1; i < 4; i++) assert_int_equal(picks[i].pipeline, 0);
    w.alone[1] = true;
    w.jobs[0][0][0].poison = false;
    assert_int_equal(choose(picks, 8), 4);
    for (int i = 0; i < 4; i++) assert_int_equal(picks[i].pipeline, 0);
}

// --- budgets

static void budgets_of_tenants(void **state)
{
    (void) state;
    struct dispatch_pick picks[16];
    world();
    for (int t = 0; t < TENANTS; t++) {
        for (int i = 0; i < 4; i++) put(t, 1, 3, 100);
    }
    w.tenants[0].weight = 0; // paused
    w.tenants[1].jobs = 2;
    w.tenants[2].blocks = 10;
    int of[TENANTS] = {0}, n = choose(picks, 16);
    for (int i = 0; i < n; i++) of[picks[i].tenant]++;
    assert_int_equal(of[0], 0);
    assert_int_equal(of[1], 2);
    assert_int_equal(of[2], 3);
    // A job that is larger than the budget runs alone.
    world();
    put(0, 1, 30, 100);
    put(0, 1, 1, 100);
    w.tenants[0] = (struct dispatch_tenant){1, 5, 20, true};
    assert_int_equal(choose(picks, 16), 1);
    w.tenants[0].idle = false;
    assert_int_equal(choose(picks, 16), 0);
}

static void what_did_not_start_is_given_back(void **state)
{
    (void) state;
    world();
    for (int i = 0; i < 8; i++) put(i % 2, 1, 1, DISPATCH_QUANTUM);
    struct dispatch_pick p = next();
    uint64_t left = w.d.deficit[p.level][p.tenant];
    dispatch_give_back(&w.d, &p);
    assert_int_equal(w.d.deficit[p.level][p.tenant], left + DISPATCH_QUANTUM);
    assert_int_equal(next().tenant, p.tenant);
    dispatch_give_back(&w.d, &p);
    dispatch_forget(&w.d, p.tenant);
    assert_int_equal(next().tenant, 1 - p.tenant);
}

static void places_of_tenants_stay(void **state)
{
    (void) state;
    static struct tenants t, now;
    now = (struct tenants){2, false, {{"a", 1, 0, 0, 0, false}, {"b", 1, 0, 0, 0, false}}};
    assert_true(tenants_merge(&t, &now));
    now = (struct tenants){2, true, {{"b", 3, 9, 0, 0, true}, {"c", 1, 0, 0, 0, false}}};
    assert_true(tenants_merge(&t, &now));
    assert_int_equal(tenants_find(&t, "a"), -1);
    assert_int_equal(tenants_find(&t, "b"), 1);
    assert_int_equal(tenants_find(&t, "c"), 0);
    assert_int_equal(t.at[1].weight, 3);
    assert_true(t.paused && t.at[1].paused);
}

// --- credit

static void an_adopted_head_keeps_its_books(void **state)
{
    (void) state;
    struct credit c = {0};
    credit_grant(&c, 8 + 20, 100 + 60); // 20 jobs of 3 blocks have come and gone
    credit_adopt(&c, 8, 100, 2, 7);
    assert_int_equal(credit_slots(&c), 6);
    assert_int_equal(credit_blocks(&c), 93);
    credit_grant(&c, 8 + 21, 100 + 64);
    assert_int_equal(credit_slots(&c), 7);
    assert_int_equal(credit_blocks(&c), 97);
}

// Never more at the head than it has, whatever is lost, repeated or late.
static void never_over_the_limit(void **state)
{
    (void) state;
    enum { SLOTS = 5, BLOCKS = 40 };
    srand(1);
    struct credit c = {0};
    uint64_t head_slots = SLOTS, head_blocks = BLOCKS, granted_slots = SLOTS,
             granted_blocks = BLOCKS, running[SLOTS];
    int n_running = 0;
    for (int i = 0; i < 20000; i++) {
        if (rand() % 3 == 0) credit_grant(&c, granted_slots, granted_blocks); // else lost
        if (rand() % 9 == 0 && granted_slots > SLOTS)
            credit_grant(&c, granted_slots - 1, 0); // late
        world();
        w.credits[0] = c;
        put(0, rand() % JOB_CLASSES, 1 + (uint64_t) rand() % 20, 1);
        struct dispatch_pick pick;
        if (choose(&pick, 1) == 1) {
            struct ready_job job = pull(&pick);
            credit_take(&c, job.need_blocks);
            assert_true(head_slots >= 1 && head_blocks >= job.need_blocks);
            head_slots--;
            head_blocks -= job.need_blocks;
            running[n_running++] = job.need_blocks;
        } else if (n_running > 0) {
            int k = rand() % n_running;
            head_slots++, granted_slots++;
            head_blocks += running[k], granted_blocks += running[k];
            running[k] = running[--n_running];
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(others_leave_a_share_to_class_0),
        cmocka_unit_test(takes_jobs_in_order_while_credit_lasts),
        cmocka_unit_test(poison_runs_alone),
        cmocka_unit_test(the_levels_of_classes_and_ages),
        cmocka_unit_test(class_0_never_waits_behind_class_3),
        cmocka_unit_test(age_bounds_how_long_a_job_waits),
        cmocka_unit_test(tenants_share_by_weight),
        cmocka_unit_test(shares_hold_beyond_what_is_known),
        cmocka_unit_test(a_choice_ends_where_more_than_is_known_is_due),
        cmocka_unit_test(an_idle_tenant_saves_nothing_up),
        cmocka_unit_test(a_large_job_is_not_starved_by_small_ones),
        cmocka_unit_test(the_least_loaded_pipeline_takes_a_job),
        cmocka_unit_test(a_round_spreads_over_pipelines),
        cmocka_unit_test(poison_has_a_pipeline_for_itself),
        cmocka_unit_test(budgets_of_tenants),
        cmocka_unit_test(what_did_not_start_is_given_back),
        cmocka_unit_test(places_of_tenants_stay),
        cmocka_unit_test(an_adopted_head_keeps_its_books),
        cmocka_unit_test(never_over_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
