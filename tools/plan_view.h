// A plan for people and for programs: the table with a bar a rank, the explanation, two splits side
// by side, and the JSON object. Main thread.
#ifndef PENSTOCK_TOOLS_PLAN_VIEW_H
#define PENSTOCK_TOOLS_PLAN_VIEW_H

#include "common/layout_types.h"
#include "common/plan.h"
#include "common/plan_advice.h"

#include <jansson.h>

// What is told of a plan.
struct plan_view {
    const struct plan_request *request;
    const struct plan *plan;
    struct model_size model;
    struct advice remedies; // where it does not fit
    int idle_gpus;          // of a node, which no stage uses
};

// All tables keep to 80 columns, but where a list of values is longer: it can be copied whole.
void plan_view_table(const struct plan_view *v);

// Every line of each stage's ledger in bytes, which stage bounds the KV pool, what a cut through
// scale blocks costs, and what each pin costs.
void plan_view_explain(const struct plan_view *v);

// Both plans stage by stage; where v's does not fit, also why, and the remedies.
void plan_view_compare(const struct plan_view *v, const struct plan *other);

// The object of --json; new reference.
json_t *plan_view_json(const struct plan_view *v);

#endif
