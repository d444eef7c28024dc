// What the parts of the simulation know of each other. Inside of tests/sim only.
#ifndef PENSTOCK_TESTS_SIM_SIM_PARTS_H
#define PENSTOCK_TESTS_SIM_SIM_PARTS_H

#include "tests/sim/sim.h"

void sim_system_begin(void);
void sim_zmq_begin(void);
void sim_pool_begin(bool at_once); // at_once: its work takes no time

// The sockets of a process that died: its peers see their connections end.
void sim_zmq_died(struct sim_proc *p);

bool sim_zmq_readable(void *socket);

#endif
