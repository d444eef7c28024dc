// One seed: chance decides on a deployment, jobs and faults; then they run until every job has
// ended and every credit is back, or for too long.
#ifndef PENSTOCK_TESTS_SIM_PLAY_H
#define PENSTOCK_TESTS_SIM_PLAY_H

#include "common/model_config.h"

#include <stdbool.h>
#include <stdint.h>

struct play_counts {
    uint64_t n_seeds, n_jobs, n_faults, n_lives, n_steps, n_tokens, n_by_word[4];
    int64_t simulated_ns;
};

// Returns if all invariants held; else it ends the program.
void play_seed(const struct model_config *c, uint64_t seed, bool trace, struct play_counts *counts);

#endif
