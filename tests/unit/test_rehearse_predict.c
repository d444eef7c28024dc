#include "workers/rehearse_predict.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

struct deployment {
    struct model_config config;
    struct plan_request request;
    struct plan plan;
};

static void make(struct deployment *d, int pp, int tp, uint64_t bytes)
{
    static const int LAYERS[] = {17, 15, 15, 14};
    assert_int_equal(model_config_load(&d->config, FIXTURES "/deepseek-v3", NULL), OK);
    d->request = (struct plan_request){.config = &d->config, .device = DEVICE_CUDA, .pp = pp,
                                       .tp = tp, .slots = 32, .max_context = 4096};
    for (int i = 0; i < pp; i++) {
        d->request.layers[i] = pp == 1 ? d->config.n_layers : LAYERS[i];
        d->request.device_bytes[i] = bytes;
    }
    assert_int_equal(plan_make(&d->plan, &d->request, NULL), OK);
    assert_true(d->plan.fits);
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-9 * fabs(b); }

// What the model says of a stage's own ops.
static double own_ops(const struct deployment *d, const struct device_rates *rates, int stage,
                      int rows)
{
    const struct plan *p = &d->plan;
    struct cost_form form = {.tp = p->tp, .kv_ranks = 1, .fp8_gemm = true};
    struct cost_model m;
    struct cost_step step = {0};
    struct plan_stage s = {p->first[stage], p->first[stage] + p->layers[stage], stage == 0,
                           stage == p->pp - 1};
    cost_model_init(&m, &d->config, &form);
    for (int i = 0; i < rows; i++) cost_step_add(&step, 4095, 1, 1);
    struct stage_cost c = cost_stage(&m, &s, rates, &step);
    return c.seconds - c.reduce_seconds;
}

// If a rank measures just what the model says, the deployment does what the model says, whichever
// stage was measured, and on whichever device.
static void test_a_rank_as_the_model_has_it(void **state)
{
    (void) state;
    struct deployment d;
    make(&d, 4, 8, 24564ull << 20);
    const struct device_rates *there = device_rates_find("rtx4090");
    const struct device_rates *here = device_rates_find("h100");
    for (int stage = 0; stage < 4; stage++) {
        for (int rows = 1; rows <= 64; rows *= 4) {
            double measured = own_ops(&d, here, stage, rows);
            struct rehearse_own own = {measured, measured};
            struct rehearse_prediction p =
                rehearse_predict(&d.plan, &d.request, &(struct rehearse_rates){there, here}, stage,
                                 rows, 4096, &own);
            assert_true(p.measured.step == measured && p.measured.pace == measured);
            assert_true(near(p.scaled.step, own_ops(&d, there, stage, rows)));
            assert_true(near(p.scaled.pace, p.scaled.step));
            assert_true(near(p.alone, p.model_alone) && near(p.filled, p.model_filled));
            assert_true(near(p.alone, rows / p.latency_s) && near(p.filled, rows / p.slowest_s));
            assert_true(p.link_s > 0 && p.reduces_s > 0 && p.slowest_s < p.latency_s);
        }
    }
}

static void test_one_stage_of_one_rank_has_no_peers(void **state)
{
    (void) state;
    struct deployment d;
    make(&d, 1, 1, 1ull << 40);
    struct rehearse_rates rates = {device_rates_find("h100"), NULL};
    struct rehearse_prediction p = rehearse_predict(&d.plan, &d.request, &rates, 0, 8, 4096,
                                                    &(struct rehearse_own){0.25, 0.125});
    assert_true(p.scaled.step == 0.25 && p.scaled.pace == 0.125);
    assert_true(near(p.latency_s, 0.25) && near(p.slowest_s, 0.125));
    assert_true(p.link_s == 0 && p.reduces_s == 0);
    assert_true(near(p.alone, 32) && near(p.filled, 64));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_rank_as_the_model_has_it),
        cmocka_unit_test(test_one_stage_of_one_rank_has_no_peers),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
