// The cores that the threads of one machine share: ranks, which compute for milliseconds, and
// leaders, which wake for microseconds and are let in at once, as by a scheduler that favours who
// slept. What is left of the cores is dealt out evenly among the ranks' threads. Only where a play
// says how many cores there are; otherwise nobody asks.
#ifndef PENSTOCK_TESTS_SIM_SIM_CORES_H
#define PENSTOCK_TESTS_SIM_SIM_CORES_H

#include "tests/sim/sim.h"

void sim_cores_begin(int n_cores);

// Storage of the caller's, until fn is called.
struct sim_work {
    double left_ns;
    int width;
    sim_fn *fn;
    void *arg;
    struct sim_work *next;
};

// So many threads compute, which takes `ns` with a core for each; then fn is called. 0 threads: a
// device of its own does.
void sim_cores_compute(struct sim_work *w, int64_t ns, int width, sim_fn *fn, void *arg);

// A leader has a core for `ns` from the time `from_ns` on.
void sim_cores_take(int64_t from_ns, int64_t ns);

#endif
