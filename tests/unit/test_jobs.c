// The table of attempts, without Redis or groups: what dispatch may use of the pipelines.
#include "broker/jobs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void on_freed(void *arg) { (void) arg; }

static bool on_send(void *arg, const struct peer *to, const struct wire_message *m)
{
    (void) arg, (void) to, (void) m;
    return true;
}

static void bring_up(struct jobs *jobs, uint64_t epoch)
{
    const struct jobs_pipeline p = {.id = epoch, .epoch = epoch, .head = {.n = 1}, .name = "head",
                                    .slots = SLOTS_MAX, .blocks = 2 * SLOTS_MAX};
    struct wire_message m = {.command = WIRE_CREDIT};
    m.credit = (struct wire_credit){epoch, epoch, SLOTS_MAX, 2 * SLOTS_MAX};
    jobs_up(jobs, &p);
    assert_true(jobs_message(jobs, &p.head, &m));
}

static uint64_t slots_in_view(struct jobs *jobs)
{
    struct dispatch_pipeline pipelines[PIPELINES_MAX];
    uint64_t n = 0;
    int n_pipelines = jobs_view(jobs, 0, pipelines);
    for (int i = 0; i < n_pipelines; i++) n += pipelines[i].slots;
    return n;
}

// More slots than places in the table: a job that has no place there would be claimed for nothing,
// and count as lost.
static void no_more_is_promised_than_the_table_holds(void **state)
{
    (void) state;
    const struct jobs_options o = {.freed = on_freed};
    struct jobs *jobs;
    struct error e;
    assert_int_equal(jobs_create(&jobs, &o, &e), OK);
    for (uint64_t epoch = 1; epoch <= 3; epoch++) bring_up(jobs, epoch);
    assert_int_equal(slots_in_view(jobs), JOBS_MAX);
    int n = 0;
    struct job_key key = {.tenant = "t", .id = "a"};
    for (uint64_t epoch = 1; jobs_room(jobs, 0); n++) {
        if (n == SLOTS_MAX * (int) epoch) epoch++;
        assert_string_equal(jobs_promise(jobs, epoch, 1, false), "head");
        assert_int_equal(slots_in_view(jobs), JOBS_MAX - n - 1);
        key.attempt = (uint64_t) n + 1;
        assert_int_equal(jobs_add(jobs, &key, 1, 1, false, epoch), OK);
        if (n % 512 != 0) continue; // a promise that is taken back
        assert_string_equal(jobs_promise(jobs, 3, 1, false), "head");
        jobs_withdraw(jobs, 3, 1, false);
    }
    assert_int_equal(n, JOBS_MAX);
    assert_int_equal(jobs_n_active(jobs), JOBS_MAX);
    assert_int_equal(slots_in_view(jobs), 0);
    jobs_destroy(&jobs);
}

static void a_key_that_no_job_has_is_refused(void **state)
{
    (void) state;
    const struct jobs_options o = {.freed = on_freed};
    const struct job_key bad[] = {
        {"no name", "a", 1}, {"", "a", 1}, {"t", "a:b", 1}, {"t", "a", 0}, {"t", "a", 1ull << 54}};
    const struct job_key good = {"t", "a", 1ull << 53};
    struct jobs *jobs;
    struct error e;
    assert_int_equal(jobs_create(&jobs, &o, &e), OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(jobs_add(jobs, &bad[i], 1, 1, false, 0), ERR_INPUT);
    }
    assert_int_equal(jobs_add(jobs, &good, 1, 1, false, 0), OK);
    jobs_destroy(&jobs);
}

// Each pipeline's own attempts, with what they need; those of others are not among them.
static void a_view_lists_what_runs(void **state)
{
    (void) state;
    const struct jobs_options o = {.freed = on_freed};
    struct dispatch_pipeline seen[PIPELINES_MAX];
    struct jobs *jobs;
    struct error e;
    assert_int_equal(jobs_create(&jobs, &o, &e), OK);
    for (uint64_t epoch = 1; epoch <= 3; epoch++) bring_up(jobs, epoch);
    for (uint64_t i = 1; i <= 5; i++) {
        struct job_key key = {.tenant = "t", .id = "a", .attempt = i};
        uint64_t epoch = 1 + i % 2;
        jobs_promise(jobs, epoch, i, false);
        assert_int_equal(jobs_add(jobs, &key, i, 100 * i, false, epoch), OK);
    }
    jobs_promise(jobs, 3, 1, false); // not claimed yet
    jobs_close(jobs, 1);
    assert_int_equal(jobs_view(jobs, 0, seen), 2);
    assert_int_equal(seen[0].id, 2);
    assert_int_equal(seen[0].n_listed, 3);
    uint64_t blocks = 0, steps = 0;
    for (int i = 0; i < 3; i++) {
        blocks += seen[0].running[i].blocks;
        steps += seen[0].running[i].steps;
    }
    assert_int_equal(blocks, 1 + 3 + 5);
    assert_int_equal(steps, 100 * blocks);
    assert_int_equal(seen[1].n_running, 1);
    assert_int_equal(seen[1].n_listed, 0);
    jobs_destroy(&jobs);
}

// What an earlier attempt had generated need not be decoded, but goes in again as a prompt does.
static void resumed_ids_take_steps(void **state)
{
    (void) state;
    enum { RESUMED = KV_BLOCK_ROWS + 1 };
    static const int32_t ids[RESUMED];
    const struct jobs_options o = {.send = on_send, .freed = on_freed};
    const struct job_key key = {"t", "a", 2};
    const struct wire_job job = {.key = key, .max_tokens = 200, .resume = {ids, sizeof ids}};
    struct dispatch_pipeline seen[PIPELINES_MAX];
    struct jobs *jobs;
    struct error e;
    assert_int_equal(jobs_create(&jobs, &o, &e), OK);
    bring_up(jobs, 1);
    jobs_promise(jobs, 1, 5, false);
    assert_int_equal(jobs_add(jobs, &key, 5, 201, false, 1), OK);
    jobs_start(jobs, &job, 5);
    assert_int_equal(jobs_view(jobs, 0, seen), 1);
    assert_int_equal(seen[0].n_listed, 1);
    assert_int_equal(seen[0].running[0].steps, 201 + 2 - RESUMED);
    jobs_destroy(&jobs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_more_is_promised_than_the_table_holds),
        cmocka_unit_test(a_view_lists_what_runs),
        cmocka_unit_test(resumed_ids_take_steps),
        cmocka_unit_test(a_key_that_no_job_has_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
