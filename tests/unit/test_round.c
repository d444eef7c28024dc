#include "workers/round.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "pace_case.h"

enum { ROWS = 2048 };

// Decode of DeepSeek-V3 is bound by the experts' bytes: fewer, fuller steps, as many as there are
// stages. A slow network wants one more, so that nobody waits for it.
static void test_decodes(void **state)
{
    (void) state;
    struct pace p = pace_of("deepseek-v3", "rtx4090", 4);
    struct round_limits l = {.stages = 4, .steps = 5, .max_rows = ROWS};
    struct round_load load = {.decodes = 200, .context = 200 * 4096};
    struct round r = round_choose(&load, &l, &p);
    assert_int_equal(r.steps, 4);
    assert_int_equal(r.decodes, 50);
    assert_int_equal(r.n_prefill, 0);
    p.rates.link_s = 20e-3;
    r = round_choose(&load, &l, &p);
    assert_int_equal(r.steps, 5);
    assert_int_equal(r.decodes, 40);
}

// A single stage wants one large step.
static void test_one_stage(void **state)
{
    (void) state;
    struct pace p = pace_of("deepseek-v3", "rtx4090", 4);
    struct round_limits l = {.stages = 1, .steps = 2, .max_rows = ROWS};
    struct round_load load = {.decodes = 200, .context = 200 * 4096};
    assert_int_equal(round_choose(&load, &l, &p).steps, 1);
}

// A long prompt alone goes through all stages at once, in equal chunks.
static void test_a_prompt_is_cut_for_all_stages(void **state)
{
    (void) state;
    struct pace p = pace_of("deepseek-v3", "rtx4090", 4);
    struct round_limits l = {.stages = 4, .steps = 5, .max_rows = ROWS};
    struct round_load load = {.prefill = 2000};
    struct round r = round_choose(&load, &l, &p);
    assert_true(r.n_prefill >= 4);
    assert_in_range((int64_t) r.n_prefill * r.prefill, 2000, 2000 + r.n_prefill);
    load.prefill = 1000000; // a backlog: full steps
    r = round_choose(&load, &l, &p);
    assert_int_equal(r.n_prefill, r.steps);
    assert_int_equal(r.prefill, ROWS);
}

// Decodes beside a little prefill: few rows for each step, so that steps stay alike.
static void test_prefill_beside_decodes(void **state)
{
    (void) state;
    struct pace p = pace_of("deepseek-v3", "rtx4090", 4);
    struct round_limits l = {.stages = 4, .steps = 5, .max_rows = ROWS};
    struct round_load load = {.decodes = 240, .context = 240 * 800, .prefill = 1500};
    struct round r = round_choose(&load, &l, &p);
    assert_false(r.apart);
    assert_int_equal(r.n_prefill, r.steps);
    assert_true(r.prefill < 1500 / r.steps); // over more than one round
    double with = round_step_seconds(&load, &p, r.decodes, r.prefill);
    double without = round_step_seconds(&load, &p, r.decodes, 0);
    assert_true(with < 1.5 * without);
}

// Where steps with both kinds of rows turned out to be dear, they are kept apart.
static void test_phases(void **state)
{
    (void) state;
    struct pace p = pace_of("deepseek-v3", "rtx4090", 4);
    struct round_limits l = {.stages = 1, .steps = 2, .max_rows = ROWS};
    struct round_load load = {.decodes = 64, .context = 64 * 800, .prefill = 4000};
    assert_false(round_choose(&load, &l, &p).apart);
    p.weight[PACE_MIXED] = 2000; // times 50 us
    struct round r = round_choose(&load, &l, &p);
    assert_true(r.apart);
    assert_int_equal(r.n_prefill, 1);
    assert_int_equal(r.decodes, 64);
}

static void test_bound_of_a_step(void **state)
{
    (void) state;
    struct pace p = pace_of("deepseek-v3", "rtx4090", 4);
    struct round_limits l = {.stages = 4, .steps = 5, .max_rows = ROWS, .step_s = 0.1};
    struct round_load load = {.decodes = 100, .context = 100 * 800, .prefill = 100000};
    struct round r = round_choose(&load, &l, &p);
    assert_true(r.prefill > 50);
    assert_true(round_step_seconds(&load, &p, r.decodes, r.prefill) <= 0.1);
    l.step_s = 1e-6; // cannot be: prefill goes on all the same
    r = round_choose(&load, &l, &p);
    assert_true(r.n_prefill > 0 && r.prefill > 0);
}

// Whatever there is and whatever is allowed: all decodes have their turn in a round, limits hold,
// prefill goes on, and no other number of steps does the decodes much faster.
static void test_any_load(void **state)
{
    (void) state;
    struct pace paces[] = {pace_of("deepseek-v3", "rtx4090", 4), pace_of("tiny-fp8", "cpu", 2),
                           pace_of("tiny-bf16", "h100", 1)};
    for (int seed = 1; seed <= 20000; seed++) {
        srand((unsigned) seed);
        const struct pace *p = seed % 7 == 0 ? NULL : &paces[seed % 3];
        struct round_limits l = {.stages = 1 + rand() % 6, .max_rows = 1 + rand() % 3000,
                                 .step_s = rand() % 2 ? 0 : 0.001 * (rand() % 100)};
        struct round_load load = {.decodes = rand() % 2 ? rand() % 9 : rand() % 3000,
                                  .prefill = rand() % 2 ? rand() % 40 : rand() % 100000,
                                  .prefill_pos = rand() % 5000};
        l.steps = 1 + rand() % STEPS_IN_FLIGHT_MAX;
        load.context = (int64_t) load.decodes * (1 + rand() % 5000);
        if (load.decodes + load.prefill == 0) continue;
        struct round r = round_choose(&load, &l, p);
        assert_true(r.steps >= 1 && r.steps <= l.steps && r.n_prefill <= r.steps);
        assert_true(r.steps >= (l.stages < l.steps ? l.stages : l.steps));
        assert_true(r.decodes + (r.apart ? 0 : r.prefill) <= l.max_rows);
        assert_true(r.prefill <= l.max_rows && r.seconds > 0);
        int others = r.apart ? r.steps - r.n_prefill : r.steps;
        assert_true(others * r.decodes >= load.decodes || r.decodes == l.max_rows);
        if (load.prefill > 0 && r.decodes < l.max_rows) assert_true(r.prefill > 0);
        for (int steps = l.stages; load.prefill == 0 && steps <= l.steps; steps++) {
            int decodes = (load.decodes + steps - 1) / steps, used = steps;
            if (decodes > l.max_rows) continue;
            if (used > load.decodes) used = load.decodes;
            double s = round_step_seconds(&load, p, decodes, 0);
            double at_best = s * (used > l.stages ? used : l.stages);
            if (p != NULL && l.stages > 1) at_best += l.stages * 1e-3; // links
            assert_true(r.seconds <= 1.03 * at_best + l.stages * 1e-3);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decodes),
        cmocka_unit_test(test_one_stage),
        cmocka_unit_test(test_a_prompt_is_cut_for_all_stages),
        cmocka_unit_test(test_prefill_beside_decodes),
        cmocka_unit_test(test_phases),
        cmocka_unit_test(test_bound_of_a_step),
        cmocka_unit_test(test_any_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
