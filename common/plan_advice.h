// What to change so that a model fits, and what a pinned limit costs: both found by planning again.
// Pure; no heap; any thread.
#ifndef PENSTOCK_COMMON_PLAN_ADVICE_H
#define PENSTOCK_COMMON_PLAN_ADVICE_H

#include "common/plan.h"
#include "common/plan_machines.h"

enum { ADVICE_MAX = 16, ADVICE_SIZE = 2048 };

// Sentences that begin with the flags of `penstock plan` that they are about, up to the ": ".
struct advice {
    int n;
    char at[ADVICE_MAX][ADVICE_SIZE];
};

// For a request that does not fit, and the machines that it was cut for: single changes after which
// it does, each by planning again: the least change of a limit that was pinned, other layers, more
// stages, more ranks, larger devices, bf16. At least one. Each has all flags that it takes, with
// whole values ("--nodes 5 --pp 5 without --layers: 5 stages"): given instead of those that were
// there, and without what is named so, the command says that it fits. plan_make took the request.
void plan_remedies(const struct plan_request *r, const struct plan_machines *m, struct advice *to);

// For each limit that the request pins and that was not chosen alike: what would be otherwise.
// `p` is the plan of the request.
void plan_pins(const struct plan_request *r, const struct plan *p, struct advice *to);

#endif
