// What one rank's measured step says of a whole deployment: the other stages take as much longer or
// shorter as the cost model has it, and what passes between devices, which a rehearsal cannot
// measure, is the cost model's. Pure; any thread.
#ifndef PENSTOCK_WORKERS_REHEARSE_PREDICT_H
#define PENSTOCK_WORKERS_REHEARSE_PREDICT_H

#include "common/cost_model.h"
#include "common/plan.h"

// Of a rank, measured, without the stand-in of its collectives.
struct rehearse_own {
    double step; // seconds of a step by itself
    double pace; // between the ends of steps that follow each other
};

// All seconds are of one step of `rows` sequences that decode a token at the end of `context`.
struct rehearse_prediction {
    int rows;
    struct rehearse_own measured, scaled; // scaled: predicted of a device of the deployment
    double reduces_s;   // predicted: collectives of the slowest stage
    double link_s;      // predicted: of one hop
    double slowest_s;   // the slowest stage at its pace, with its collectives
    double latency_s;   // of one step through all stages, and of its tokens back to the head
    double alone;       // tokens a second of one step in flight
    double filled;      // tokens a second of as many steps in flight as there are stages
    double model_alone, model_filled; // the same if the cost model alone is asked
};

struct rehearse_rates {
    const struct device_rates *there; // of the deployment's devices
    const struct device_rates *here;  // of the device at hand; NULL: it is one of them
};

struct rehearse_prediction rehearse_predict(const struct plan *p, const struct plan_request *r,
                                            const struct rehearse_rates *rates, int stage,
                                            int rows, int context,
                                            const struct rehearse_own *own);

#endif
