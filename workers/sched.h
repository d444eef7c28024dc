// The scheduler: which rows of which sequences make the next step. Pure: no clock, heap, device or
// socket; the head's leader calls it and applies what it says. Decodes go first and are spread
// evenly over the steps in flight, so that every stage always has a batch; the rest of the token
// budget goes to prefill chunks: a lower class first, then the oldest sequence. A sequence's rows
// go in order, and a row whose token isn't known yet is never planned, so the order of steps cannot
// change a result.
#ifndef PENSTOCK_WORKERS_SCHED_H
#define PENSTOCK_WORKERS_SCHED_H

#include "workers/step.h"

#include <stdbool.h>
#include <stdint.h>

struct sched_seq {
    bool active;
    bool all_logits; // `penstock score`: logits of every row
    int32_t n_known; // ids there are: prompt and chosen tokens
    int32_t n_sent;  // rows handed to the pipeline
    int32_t n_prompt;
    uint64_t order;  // class, then admission number: lower goes first
};

struct sched {
    struct sched_seq *seqs; // (slots), caller's storage
    int slots;
    int max_rows;        // token budget of a step
    int chunk;           // most prefill rows of one sequence in a step
    int max_out;         // most rows with logits in a step
    int steps_in_flight; // decodes are spread over so many
    int cursor;          // slot at which the next round of decodes begins
    uint64_t n_admitted;
};

// `storage` (slots) is zeroed here and outlives `s`. chunk 0: the whole budget.
void sched_init(struct sched *s, struct sched_seq *storage, const struct step_limits *l, int chunk,
                int steps_in_flight);

// A sequence takes the free slot `slot`; n_known >= n_prompt ids are known (more when it resumes).
void sched_admit(struct sched *s, int slot, int n_prompt, int n_known, int class,
                 bool all_logits);
void sched_remove(struct sched *s, int slot);

// The token after the last known one was chosen.
void sched_append(struct sched *s, int slot);

// Writes the next step's runs (at most `slots`) and counts their rows as sent; 0 if nothing can
// run.
int sched_plan(struct sched *s, struct step_run *runs);

#endif
