// Plays a deployment of one pipeline without faults, with step times of the cost model, and tells
// what it would reach beside the model's own limit. Predicted, all of it.
#ifndef PENSTOCK_TESTS_SIM_DEPLOYMENT_H
#define PENSTOCK_TESTS_SIM_DEPLOYMENT_H

#include "common/device_rates.h"
#include "common/model_config.h"

struct deployment {
    const struct model_config *config;
    int nodes, gpus;              // stages, ranks of each
    struct device_rates rates;
    uint64_t device_bytes;
    int context;                  // tokens of a sequence, prompt and output
    int kv_ranks;                 // over which a sequence's KV is shared out; 1: as it is today
    bool fp8_kv;                  // likewise: not yet
    bool trace;
};

// "4x8x4090": nodes, GPUs of each, card. ERR_INPUT bad_usage.
enum status deployment_parse(const char *text, struct deployment *d, struct error *e);

// Decode with `batch` sequences at once, in steady state.
struct deployment_figures {
    bool fits;
    int batch, n_stages, layers[PP_MAX], steps_in_flight;
    double tokens_s;
    double limit_s;  // tokens/s that the cost model allows for this batch and these steps in flight
    double bubble;   // share of the time in which the busiest stage waits
    double stage_ms; // of its steps, on average
    double context;  // positions seen by a sequence, on average
};

void deployment_play(const struct deployment *d, int batch, struct deployment_figures *f);

// The most sequences of d->context tokens that the plan holds.
int deployment_capacity(const struct deployment *d);

// The table of `sim --deployment`. Returns whether the busiest stage waits at most 5% of the time
// and 95% of the limit are reached wherever all steps in flight have rows.
bool deployment_show(struct deployment *d);

#endif
