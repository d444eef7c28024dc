// What groups tell of their work, added up over their lives.
#include "broker/figures.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

static struct group_figures group;
static struct model_figures model;
static struct wire_rank ranks[2];

static int setup(void **state)
{
    (void) state;
    memset(&group, 0, sizeof group);
    memset(&model, 0, sizeof model);
    memset(ranks, 0, sizeof ranks);
    return 0;
}

// A head that has done n steps of 4 ms, each with 3 prefill rows and 2 tokens, on 2 ranks.
static struct wire_figures after(uint64_t n)
{
    struct wire_figures f = {.rows = 5 * n, .prefill_tokens = 3 * n, .decode_tokens = 2 * n,
                             .slots = 8, .running = 2, .ranks = ranks, .n_ranks = 2};
    for (uint64_t i = 0; i < n; i++) histogram_add(&f.prefill_steps, 4000);
    ranks[0].busy_us = ranks[1].busy_us = 4000 * n;
    return f;
}

static void counters_and_rates(void **state)
{
    (void) state;
    const uint8_t boot[WIRE_ID_BYTES] = {1};
    figures_hello(&group, boot);
    for (int s = 0; s <= 20; s++) { // 100 steps a second
        struct wire_figures f = after(100 * (uint64_t) s);
        figures_hear(&group, &model, 0, &f, 1000 * s);
    }
    struct wire_figures total = figures_total(&group);
    assert_true(total.rows == 10000 && total.running == 2);
    struct figures_rates r = figures_rates(&group, 20000);
    assert_true(r.steps > 99 && r.steps < 101);
    assert_true(r.prefill > 299 && r.prefill < 301 && r.decode > 199 && r.decode < 201);
    assert_true(r.busy > 0.39 && r.busy < 0.41);
    assert_true(figures_rates(&group, 60000).steps < 1e-9); // it has fallen silent
    assert_true(model.prefill_tokens == 6000 && model.decode_tokens == 4000);
    assert_int_equal(model.busy_us, 2 * 4000 * 2000);
    assert_int_equal(histogram_count(&model.steps[0][FIGURES_PREFILL], 31), 2000);
}

// Killed and started again, many times: what it did before stays counted, once.
static void counters_outlive_processes(void **state)
{
    (void) state;
    uint64_t rows = 0, tokens = 0;
    for (int life = 1; life <= 20; life++) {
        const uint8_t boot[WIRE_ID_BYTES] = {(uint8_t) life};
        figures_hello(&group, boot);
        for (uint64_t n = 0; n <= (uint64_t) (life * 7) % 13; n++) {
            struct wire_figures f = after(n);
            figures_hear(&group, &model, life % 3, &f, life * 100000);
            figures_hello(&group, boot); // another connection of the same process
            struct wire_figures total = figures_total(&group);
            assert_true(total.rows >= rows && model.decode_tokens >= tokens);
            rows = total.rows;
            tokens = model.decode_tokens;
            assert_int_equal(rows / 5 * 2, tokens);
        }
    }
    uint64_t n_steps = 0;
    for (int i = 0; i < 3; i++) n_steps += histogram_count(&model.steps[i][FIGURES_PREFILL], 31);
    assert_int_equal(n_steps, rows / 5);
}

// A group that lost its stage tells what it had done for it.
static void steps_count_for_the_stage_that_did_them(void **state)
{
    (void) state;
    struct wire_figures f = after(0);
    figures_hear(&group, &model, -1, &f, 0);
    f = after(4);
    figures_hear(&group, &model, 1, &f, 1000);
    f = after(6);
    figures_hear(&group, &model, -1, &f, 2000);
    assert_int_equal(histogram_count(&model.steps[1][FIGURES_PREFILL], 31), 6);
}

// A new leader's books begin when it first hears of a group's work; the group's own go on.
static void what_was_done_before_is_not_counted(void **state)
{
    (void) state;
    const uint8_t boot[WIRE_ID_BYTES] = {1};
    figures_hello(&group, boot);
    struct wire_figures f = after(100);
    assert_true(figures_hear(&group, &model, 0, &f, 0));
    assert_true(model.prefill_tokens == 0 && model.decode_tokens == 0 && model.busy_us == 0);
    assert_int_equal(histogram_count(&model.steps[0][FIGURES_PREFILL], 31), 0);
    assert_int_equal(figures_total(&group).rows, 500);
    figures_hello(&group, boot); // another connection: what follows is counted
    f = after(103);
    figures_hear(&group, &model, 0, &f, 1000);
    assert_true(model.prefill_tokens == 9 && model.decode_tokens == 6);
    assert_int_equal(histogram_count(&model.steps[0][FIGURES_PREFILL], 31), 3);
}

static void what_is_computed_again_is_wasted(void **state)
{
    (void) state;
    struct wire_figures f = after(100);
    figures_hear(&group, &model, 0, &f, 0);
    assert_true(model.wasted_s < 1e-12);
    f = after(200);
    f.again_tokens = 50;
    figures_hear(&group, &model, 0, &f, 1000);
    // 2 ranks of 4 ms for 5 tokens: 1.6 ms a token
    assert_true(model.wasted_s > 0.0799 && model.wasted_s < 0.0801);
}

static void whether_something_changed(void **state)
{
    (void) state;
    struct wire_figures f = after(0);
    assert_true(figures_hear(&group, &model, 0, &f, 0));
    f = after(3);
    assert_true(figures_hear(&group, &model, 0, &f, 500));
    assert_false(figures_hear(&group, &model, 0, &f, 1000));
    f.kv_used = 1;
    assert_true(figures_hear(&group, &model, 0, &f, 2000));
    ranks[1].memory.bytes[LEDGER_KV] = 64;
    assert_true(figures_hear(&group, &model, 0, &f, 3000));
    f = (struct wire_figures){0}; // no process goes back: nothing is taken away
    figures_hear(&group, &model, 0, &f, 4000);
    assert_int_equal(model.prefill_tokens, 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(counters_and_rates, setup),
        cmocka_unit_test_setup(counters_outlive_processes, setup),
        cmocka_unit_test_setup(steps_count_for_the_stage_that_did_them, setup),
        cmocka_unit_test_setup(what_was_done_before_is_not_counted, setup),
        cmocka_unit_test_setup(what_is_computed_again_is_wasted, setup),
        cmocka_unit_test_setup(whether_something_changed, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
