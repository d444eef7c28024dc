// What steps take by the cost model, of the fixtures' configs on preset devices, for tests of the
// scheduler.
#ifndef PENSTOCK_TESTS_UNIT_PACE_CASE_H
#define PENSTOCK_TESTS_UNIT_PACE_CASE_H

#include "workers/pace.h"

#include <stdio.h>

// The last of `stages` stages, at TP 8 where the model has so many heads.
static inline struct pace pace_of(const char *model, const char *device, int stages)
{
    struct model_config c;
    struct device_rates rates;
    char path[256];
    snprintf(path, sizeof path, FIXTURES "/%s", model);
    assert_int_equal(model_config_load(&c, path, NULL), OK);
    assert_int_equal(device_rates_named(&rates, device, NULL), OK);
    struct cost_form form = {.tp = c.n_heads >= 8 ? 8 : 1, .kv_ranks = 1, .fp8_gemm = true};
    struct plan_stage stage = {c.n_layers - c.n_layers / stages, c.n_layers, false, true};
    struct pace p;
    pace_init(&p, &c, &form, &stage, &rates);
    return p;
}

#endif
