// Plans of the fixtures' configs, for tests of plan and ledger.
#ifndef PENSTOCK_TESTS_UNIT_PLAN_CASE_H
#define PENSTOCK_TESTS_UNIT_PLAN_CASE_H

#include "common/plan.h"

#include <stdio.h>

static inline struct model_config load(const char *name)
{
    struct model_config c;
    char path[256];
    snprintf(path, sizeof path, FIXTURES "/%s", name);
    assert_int_equal(model_config_load(&c, path, NULL), OK);
    return c;
}

static inline struct plan_request request(const struct model_config *c, int pp, int tp,
                                          uint64_t bytes)
{
    struct plan_request r = {.config = c, .pp = pp, .tp = tp};
    for (int i = 0; i < pp; i++) r.device_bytes[i] = bytes;
    return r;
}

static inline struct plan make(const struct plan_request *r)
{
    struct plan p;
    struct error e = {0};
    if (plan_make(&p, r, &e) != OK) fail_msg("%s", e.text);
    return p;
}

static inline void expect_layers(const struct plan *p, int n, const int *layers)
{
    assert_int_equal(p->pp, n);
    for (int i = 0; i < n; i++) assert_int_equal(p->layers[i], layers[i]);
}

#endif
