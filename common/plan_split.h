// Which stage takes which layers: a search over contiguous splits. Pure; no heap; any thread. Knows
// bytes only through plan_cost, and times only through cost_model.
#ifndef PENSTOCK_COMMON_PLAN_SPLIT_H
#define PENSTOCK_COMMON_PLAN_SPLIT_H

#include "common/cost_model.h"
#include "common/plan_cost.h"

#include <stdint.h>

// What times are of: a step on devices with these rates.
struct plan_times {
    struct cost_model model;
    struct cost_step step;
    const struct device_rates *const *rates; // (pp)
};

struct plan_split {
    const struct plan_cost *cost;
    int pp, n_layers;               // pp <= n_layers
    const uint64_t *device_bytes;   // (pp)
    const struct plan_times *times; // NULL: they do not matter
};

// Stage i of these layers.
struct plan_stage plan_split_stage(const struct plan_split *s, int i, int first, int n);

// Picoseconds that stage i takes for a step with these layers; times are not NULL.
uint64_t plan_split_time(const struct plan_split *s, int i, int first, int n);

// Whether there is a split in which so many KV blocks fit.
bool plan_split_fits(const struct plan_split *s, int64_t kv_blocks);

// The layers (pp) with the most KV blocks up to `most`, returned; ties: the smallest largest rank,
// then earlier stages take more layers. 0: not one block fits; then the layers are those that lack
// least. With times, the slowest stage of those where `need` blocks fit is made as fast as can be,
// before any of this; where they fit nowhere, times do not matter. need <= most.
int64_t plan_split_choose(const struct plan_split *s, int64_t need, int64_t most, int *layers);

// KV blocks that fit in stage i with these layers.
int64_t plan_split_room(const struct plan_split *s, int i, int first, int n);

// KV blocks up to `most` that fit with these layers.
int64_t plan_split_blocks(const struct plan_split *s, const int *layers, int64_t most);

#endif
