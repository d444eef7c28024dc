// The host memory of a group that runs a stage of a plan: counted by the functions that the group
// itself takes it with, that of its ranks beside their devices included. Main thread.
#ifndef PENSTOCK_TOOLS_PLAN_HOST_H
#define PENSTOCK_TOOLS_PLAN_HOST_H

#include "common/plan.h"

struct plan_host {
    // Of the group's arena (comm, steps, sequences, links, staging), and of what its ranks pin
    // beside devices whose memory the host cannot read (logits, sampler, staging, ...).
    struct ledger ledger;
    uint64_t received_bytes; // most that frames on their way take of the heap beside it
};

struct plan_host plan_host_of(const struct plan *p, const struct plan_request *r, int stage);

#endif
