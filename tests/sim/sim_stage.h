// Devices that compute nothing but remember everything: behind workers/stage.h's interface each
// layer keeps, in its KV blocks, a word for each row that depends on all rows before it, so that
// the token that the last stage chooses tells whether every stage had every row in its place. A
// step takes the time that the scenario says. Checks what the head asks of a stage: blocks that two
// sequences share, rows out of order, more blocks than there are.
#ifndef PENSTOCK_TESTS_SIM_SIM_STAGE_H
#define PENSTOCK_TESTS_SIM_SIM_STAGE_H

#include "tests/sim/sim.h"
#include "workers/stage.h"

enum { SIM_WORD_BYTES = 8 };

// Nanoseconds of a step on this stage, and of loading it.
struct sim_devices {
    int64_t (*step_ns)(const struct stage_options *o, const struct step *s);
    int64_t (*load_ns)(const struct stage_options *o);
    bool light; // a word for each row of a stage, not of each layer, and nothing else in a row
    // What a step costs its leader, half of it before the stage has it and half before it leaves;
    // and how long it waits for a core, if the stage's ranks compute so long. NULL: nothing.
    int64_t (*leader_ns)(const struct stage_options *o, const struct step *s, int64_t *wait_ns);
    int64_t (*late_ns)(const struct stage_options *o); // until ranks that are idle begin a step
};

void sim_stage_begin(const struct sim_devices *devices);

// The process' device does nothing for so long; its next step fails.
void sim_stage_hang(const struct sim_proc *p, int64_t for_ns);
void sim_stage_fail(const struct sim_proc *p);

// What an undisturbed run chooses, whatever the partition: `state` (n_layers) begins as zeros and
// takes one row after another.
int32_t sim_stage_next(const struct model_config *c, uint64_t *state, int32_t id, int pos);

// Of all stages since the seed began.
struct sim_stage_counts {
    uint64_t n_steps;
    int64_t busy_ns[PP_MAX]; // by first layer's stage, in order of first use
    int firsts[PP_MAX], n_firsts;
};

const struct sim_stage_counts *sim_stage_counts(void);

#endif
