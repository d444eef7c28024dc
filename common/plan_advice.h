// What to change so that a model fits, and what a pinned limit costs: both found by planning again.
// Pure; no heap; any thread.
#ifndef PENSTOCK_COMMON_PLAN_ADVICE_H
#define PENSTOCK_COMMON_PLAN_ADVICE_H

#include "common/plan.h"

enum { ADVICE_MAX = 16, ADVICE_SIZE = 200 };

// Sentences that begin with the flag of `penstock plan` that they are about.
struct advice {
    int n;
    char at[ADVICE_MAX][ADVICE_SIZE];
};

// Where the request comes from: groups of `stages_per_node` stages on nodes of `gpus` devices.
struct advice_site {
    int gpus, stages_per_node;
};

// For a request that does not fit: single changes after which it does, each by planning again: the
// least change of a limit that was pinned, other layers, more stages, more ranks, larger devices,
// bf16. At least one. plan_make took the request.
void plan_remedies(const struct plan_request *r, const struct advice_site *site, struct advice *to);

// For each limit that the request pins and that was not chosen alike: what would be otherwise.
// `p` is the plan of the request.
void plan_pins(const struct plan_request *r, const struct plan *p, struct advice *to);

// KV blocks that there is room for in every stage.
int64_t plan_kv_room(const struct plan *p);

// "17,15,15,14".
void plan_print_layers(const struct plan *p, char *text, size_t n);

#endif
