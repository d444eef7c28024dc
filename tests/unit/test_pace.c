#include "workers/pace.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct pace open_pace(void)
{
    struct model_config c;
    struct device_rates rates;
    struct cost_form form = {.tp = 1, .kv_ranks = 1};
    assert_int_equal(model_config_load(&c, SOURCE_DIR "/tools/model", NULL), OK);
    assert_int_equal(device_rates_named(&rates, "cpu", NULL), OK);
    struct plan_stage stage = {0, c.n_layers, false, true};
    struct pace p;
    pace_init(&p, &c, &form, &stage, &rates);
    return p;
}

static struct pace_step step_of(int decodes, int prefill)
{
    struct pace_step s = {.mixed = decodes > 0 && prefill > 0};
    for (int i = 0; i < decodes; i++) cost_step_add(&s.content, 100, 1, 1);
    if (prefill > 0) cost_step_add(&s.content, 0, prefill, 1);
    return s;
}

static struct pace_step any_step(void)
{
    int decodes = rand() % 40, prefill = rand() % 2 ? 0 : rand() % 400;
    return step_of(decodes + (prefill == 0), prefill);
}

// A machine whose times are the terms with weights of its own, within `noise`.
static double takes(const struct pace *p, const double weight[PACE_TERMS],
                    const struct pace_step *s, double noise)
{
    struct pace own = *p;
    for (int i = 0; i < PACE_TERMS; i++) own.weight[i] = weight[i];
    return pace_seconds(&own, s) * (1 + noise * ((double) rand() / RAND_MAX * 2 - 1));
}

// Of steps of all kinds.
static double mean_error(const struct pace *p, const double weight[PACE_TERMS])
{
    enum { STEPS = 200 };
    double sum = 0;
    for (int i = 0; i < STEPS; i++) {
        struct pace_step s = any_step();
        sum += fabs(pace_seconds(p, &s) / takes(p, weight, &s, 0) - 1);
    }
    return sum / STEPS;
}

static void test_begins_with_the_presets(void **state)
{
    (void) state;
    struct pace p = open_pace();
    struct pace_step small = step_of(4, 0), large = step_of(4, 300);
    struct stage_cost c = cost_stage(&p.model, &p.stage, &p.rates, &small.content);
    double sum = c.fixed_seconds + c.read_seconds + c.gemm_seconds + c.attention_seconds;
    assert_float_equal(pace_seconds(&p, &small), sum, 1e-12);
    assert_true(pace_seconds(&p, &large) > pace_seconds(&p, &small));
}

static void test_learns_what_a_machine_does(void **state)
{
    (void) state;
    static const double MACHINES[][PACE_TERMS] = {
        {1, 1, 1, 1, 0},     // as the presets say
        {9, 9, 9, 9, 0},     // slower in all
        {60, 1, 3, 2, 0},    // a step costs, whatever it holds
        {0.5, 0.1, 12, 1, 0}, // slow arithmetic
        {20, 1, 2, 1, 30},   // both kinds of rows together are dear
    };
    for (size_t k = 0; k < sizeof MACHINES / sizeof *MACHINES; k++) {
        struct pace p = open_pace();
        srand(1);
        for (int i = 0; i < 300; i++) {
            struct pace_step s = any_step();
            pace_observe(&p, &s, takes(&p, MACHINES[k], &s, 0.1));
        }
        double error = mean_error(&p, MACHINES[k]);
        if (error > 0.1) fail_msg("machine %zu: %.0f%% off", k, 100 * error);
        for (int i = 0; i < PACE_TERMS; i++) assert_true(p.weight[i] >= 0);
    }
}

// A machine that changes is followed; a step that hung is not taken for one.
static void test_follows_and_forgives(void **state)
{
    (void) state;
    static const double FAST[PACE_TERMS] = {2, 2, 2, 2, 0}, SLOW[PACE_TERMS] = {8, 8, 8, 8, 0};
    struct pace p = open_pace();
    srand(2);
    for (int i = 0; i < 200; i++) {
        struct pace_step s = any_step();
        pace_observe(&p, &s, takes(&p, FAST, &s, 0.05));
    }
    struct pace_step s = step_of(8, 0);
    pace_observe(&p, &s, 30);  // the machine slept
    pace_observe(&p, &s, 0);   // and what came back at once
    pace_observe(&p, &s, 0.002);
    assert_true(mean_error(&p, FAST) < 0.15);
    for (int i = 0; i < 400; i++) {
        s = any_step();
        pace_observe(&p, &s, takes(&p, SLOW, &s, 0.05));
    }
    assert_true(mean_error(&p, SLOW) < 0.05);
}

// Steps shorter than a clock can tell are taken together.
static void test_short_steps(void **state)
{
    (void) state;
    struct pace p = open_pace();
    struct pace_step s = step_of(1, 0);
    for (int i = 0; i < 999; i++) pace_observe(&p, &s, i % 2 ? 0 : 3e-6);
    assert_int_equal(p.n_observed, 0);
    for (int i = 0; i < 9000; i++) pace_observe(&p, &s, i % 2 ? 0 : 3e-6);
    assert_in_range(p.n_observed, 1, 20);
    double before = open_pace().weight[PACE_FIXED];
    assert_true(p.weight[PACE_FIXED] < before); // so fast a machine
    assert_true(pace_seconds(&p, &s) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_begins_with_the_presets),
        cmocka_unit_test(test_learns_what_a_machine_does),
        cmocka_unit_test(test_follows_and_forgives),
        cmocka_unit_test(test_short_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
