// A round: how the steps in flight share what there is to do, so that they take equally long and no
// stage waits. Pure arithmetic over a pace; the scheduler chooses one and fills its steps.
//
// The steps in flight go round: a stage is busy for the sum of their times, and each of them takes
// a stage's time once a stage. So a round lasts
//   max(sum of the steps' seconds, stages x the longest step + its links)
// and of all ways to spread the rows, in as many steps as there may be, that one is chosen that
// gets most work done in a second; rows of prefill count as much as they cost in a full step. Of
// ways that are about as good the one with more, smaller steps is taken, since first tokens wait
// for the steps before them.
#ifndef PENSTOCK_WORKERS_ROUND_H
#define PENSTOCK_WORKERS_ROUND_H

#include "workers/pace.h"

#include <stdbool.h>
#include <stdint.h>

// What there is to do.
struct round_load {
    int decodes;           // sequences that decode, whether their row is due now or in flight
    int64_t context;       // of all of them
    int64_t prefill;       // rows that wait
    int prefill_pos;       // where the first of them stands in its sequence
};

struct round_limits {
    int stages;
    int steps;     // most in flight
    int max_rows;  // of a step
    double step_s; // a step should take no longer; 0: as long as it takes
};

struct round {
    int steps;         // in flight
    int decodes;       // of each step with decodes
    int prefill;       // rows of each step with prefill
    int n_prefill;     // so many steps of a round have prefill
    bool apart;        // these have no decodes
    double seconds;    // of the round
};

// NULL pace: any step takes as long as another.
struct round round_choose(const struct round_load *load, const struct round_limits *limits,
                          const struct pace *pace);

// Of a step with so many rows of each kind.
double round_step_seconds(const struct round_load *load, const struct pace *pace, int decodes,
                          int64_t prefill);

// Most rows of prefill beside so many decodes: what the token budget and step_s leave.
int round_room(const struct round_load *load, const struct round_limits *limits,
               const struct pace *pace, int decodes);

#endif
