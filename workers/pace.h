// How long a step will take at the slowest stage: the cost model's terms, weighted by what earlier
// steps took. Pure: no clock, heap or socket; the same observations give the same numbers. Leader's
// thread of stage 0. It decides nothing: round.h does.
#ifndef PENSTOCK_WORKERS_PACE_H
#define PENSTOCK_WORKERS_PACE_H

#include "common/cost_model.h"

#include <stdint.h>

// What the seconds of a step are made of.
enum pace_term {
    PACE_FIXED,     // whatever the step holds
    PACE_READ,      // weights
    PACE_GEMM,      // and all-reduces
    PACE_ATTENTION,
    PACE_MIXED,     // more, if it has both prefill and decode rows
    PACE_TERMS,
};

// A step's content as the pace tells steps apart.
struct pace_step {
    struct cost_step content;
    bool mixed;
};

struct pace {
    struct cost_model model;
    struct plan_stage stage;
    struct device_rates rates;
    double weight[PACE_TERMS];           // of each term; the presets say 1, and 0 of PACE_MIXED
    // Least squares of relative errors; older observations count less and less.
    double gram[PACE_TERMS][PACE_TERMS], moment[PACE_TERMS];
    double sum[PACE_TERMS], sum_seconds; // steps too short to be told apart by a clock
    uint64_t n_observed;
};

// `stage` stands for all of them.
void pace_init(struct pace *p, const struct model_config *config, const struct cost_form *form,
               const struct plan_stage *stage, const struct device_rates *rates);

double pace_seconds(const struct pace *p, const struct pace_step *s);

// What a step spends between two stages, in which nothing is computed.
double pace_away(const struct pace *p, const struct pace_step *s);

// The step kept the slowest stage busy for so long.
void pace_observe(struct pace *p, const struct pace_step *s, double seconds);

#endif
