// Plays a backlog of jobs of mixed length over a pool of KV blocks that holds few of them, without
// faults, and tells how much of the pool they kept reserved.
#ifndef PENSTOCK_TESTS_SIM_ADMISSION_H
#define PENSTOCK_TESTS_SIM_ADMISSION_H

#include "common/model_config.h"

#include <stdbool.h>

// The report of `sim --admission`; jobs take from 1 token to `context` of them, prompt and output.
// Returns whether 95% of the bound (the jobs' block-seconds over the blocks) are reached, the last
// 5% of the jobs left out, and every job was done.
bool admission_show(const struct model_config *c, int context, bool trace);

#endif
