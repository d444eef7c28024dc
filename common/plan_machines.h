// The machines that a plan is for, as the flags of `penstock plan` give them: what each stage of a
// request gets of them. Pure; any thread. Knows nothing of a model but its number of layers.
#ifndef PENSTOCK_COMMON_PLAN_MACHINES_H
#define PENSTOCK_COMMON_PLAN_MACHINES_H

#include "common/plan.h"

// Of nodes only the first PP_MAX can have stages: a node has at least one as long as there are any.
struct plan_machines {
    int nodes, gpus;         // gpus: of a node
    int pp, tp;              // 0: a stage a node, a rank a GPU
    int n_bytes, n_rates;    // values given: one for all nodes, or one a node; rates also none
    uint64_t bytes[PP_MAX];  // of a device of each node; also where one value is for all
    const struct device_rates *rates[PP_MAX]; // likewise, if n_rates > 0; borrowed
    enum device_kind device; // N_DEVICE_KINDS: cuda if each device in use has 4 GiB or more
};

// Stages that there are where neither --pp nor --layers says so.
int plan_machines_stages(const struct plan_machines *m, const struct model_config *c);

// Stages on a node, if there are pp.
int plan_machines_per_node(const struct plan_machines *m, int pp);

// Sets the request's pp (but where it pins layers), tp, device, device_bytes and rates; without
// rates a plan for time has those of its kind of device. ERR_INPUT bad_tp, bad_plan: the nodes have
// too few GPUs.
enum status plan_machines_cut(const struct plan_machines *m, struct plan_request *r,
                              struct error *e);

#endif
