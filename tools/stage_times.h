// What single steps take in each stage of a pipeline on this machine, by rank 0's clock: without
// scheduler, links and leaders, but while the other stages are as busy. One thread calls it.
#ifndef PENSTOCK_TOOLS_STAGE_TIMES_H
#define PENSTOCK_TOOLS_STAGE_TIMES_H

#include "common/plan.h"
#include "common/status.h"
#include "tools/engine.h"

enum { STAGE_TIMES_MAX = 32 };

// Steps of a kind: sequences with so many rows each, of which the last one gets a token.
struct stage_time {
    int seqs, rows, pos; // rows: of each, from row `pos` of it on
    double us[PP_MAX];   // median, by stage
};

struct stage_times {
    int n;
    struct stage_time at[STAGE_TIMES_MAX];
};

// Fills in the times of the steps that `times` lists, each within the plan's rows, slots and
// context. Every step has other ids. Errors: of files and of loading.
enum status stage_times_take(struct stage_times *times, const struct engine_options *o,
                             const struct plan *plan, struct error *e);

#endif
