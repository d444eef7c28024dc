// The simulated network under libzmq's interface (DEALER, ROUTER, PUSH, PULL over tcp): messages of
// a connection arrive in their order, later, or not at all once it breaks; connections are made
// anew, and what came over the old one may still be read after the first word over the new one. The
// two ends of a broken connection learn of it at times of their own. A message is never doubled:
// TCP does not do that; what is said twice is said twice by the programs.
#ifndef PENSTOCK_TESTS_SIM_SIM_NET_H
#define PENSTOCK_TESTS_SIM_SIM_NET_H

#include "tests/sim/sim.h"

struct sim_net {
    int64_t least_ns, most_ns; // of a message's way
    double bytes_per_s;        // of a connection; 0: any size takes the same time
    double payload_scale;      // a link's second frame stands for so many times its bytes; 0: 1
    int64_t blind_ns;          // most time until an end learns that the connection broke
};

void sim_net_set(const struct sim_net *net);

// Breaks connections of the process, each with this chance; NULL: of all.
void sim_net_break(const struct sim_proc *p, int percent);

// Nothing between the process and others gets through for so long, then all of it.
void sim_net_hold(struct sim_proc *p, int64_t for_ns);

#endif
