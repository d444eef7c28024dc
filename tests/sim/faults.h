// What goes wrong in a seed, and when: processes die, stop, leave; connections break or stall;
// Redis dies or hangs; devices hang or fail. Knows no jobs.
#ifndef PENSTOCK_TESTS_SIM_FAULTS_H
#define PENSTOCK_TESTS_SIM_FAULTS_H

#include "tests/sim/sim.h"

// Puts n faults on the agenda, between two times.
void faults_plan(int n, int64_t from_ns, int64_t to_ns);

// The latest time at which one of them still acts by itself.
int64_t faults_end(void);

#endif
