// Which stage takes which layers: a search over contiguous splits. Pure; no heap; any thread. Knows
// bytes only through plan_cost.
#ifndef PENSTOCK_COMMON_PLAN_SPLIT_H
#define PENSTOCK_COMMON_PLAN_SPLIT_H

#include "common/plan_cost.h"

#include <stdint.h>

struct plan_split {
    const struct plan_cost *cost;
    int pp, n_layers;             // pp <= n_layers
    const uint64_t *device_bytes; // (pp)
};

// Stage i of these layers.
struct plan_stage plan_split_stage(const struct plan_split *s, int i, int first, int n);

// The layers (pp) with the most KV blocks up to `most`, returned; ties: the smallest largest rank,
// then earlier stages take more layers. 0: not one block fits; then the layers are those that lack
// least.
int64_t plan_split_choose(const struct plan_split *s, int64_t most, int *layers);

// KV blocks that fit in stage i with these layers.
int64_t plan_split_room(const struct plan_split *s, int i, int first, int n);

// KV blocks up to `most` that fit with these layers.
int64_t plan_split_blocks(const struct plan_split *s, const int *layers, int64_t most);

#endif
