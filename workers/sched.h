// The scheduler: which rows of which sequences make the next step. Pure: no clock, heap, device or
// socket; the head's leader calls it and applies what it says. A round (round.h) says how many
// steps there are in flight and how many rows each of them has; the scheduler fills them. Decodes
// go first, in the order in which their tokens came back; then prefill chunks: a lower class first,
// then the oldest sequence. A sequence's rows go in order, and a row whose token isn't known yet is
// never planned, so the order of steps cannot change a result. A call looks only at the sequences
// whose rows it plans.
#ifndef PENSTOCK_WORKERS_SCHED_H
#define PENSTOCK_WORKERS_SCHED_H

#include "workers/round.h"
#include "workers/step.h"

#include <stdbool.h>
#include <stdint.h>

// Where a sequence waits: nowhere while all its rows are sent.
enum { SCHED_AWAY, SCHED_READY, SCHED_PREFILL, SCHED_LISTS = SCHED_PREFILL + JOB_CLASSES };

struct sched_seq {
    bool active;
    bool all_logits; // `penstock score`: logits of every row
    uint8_t class, list;
    int32_t n_known; // ids there are: prompt and chosen tokens
    int32_t n_sent;  // rows handed to the pipeline
    int32_t n_prompt;
    int32_t before, after; // in its list: slots, -1 at the ends
};

struct sched_options {
    struct step_limits limits;
    int chunk;               // most prefill rows of one sequence in a step; 0: the whole budget
    int steps_in_flight;     // most
    int stages;
    int64_t fill_ms;         // a step waits at most so long for more rows; 0: never
    int64_t step_ms;         // prefill is kept so small that a step takes no longer; 0: any time
    const struct pace *pace; // borrowed; NULL: any step takes as long as another
};

struct sched_list {
    int32_t first, last; // slots, -1: empty
    int n;
    int64_t rows; // that wait
};

struct sched {
    struct sched_options options;
    struct sched_seq *seqs;  // (slots), caller's storage
    struct sched_list lists[SCHED_LISTS];
    int n_decoding;          // sequences that decode: ready, or their row is in flight
    int64_t context;         // positions of all of them
    int n_urgent;            // ready ones of class 0
    struct round round;
    int left, left_prefill;  // steps of the round, and those of them with prefill
    bool changed;            // there are sequences that the round does not know
    int n_active, n_fresh;   // in slots; come since the last step
    int64_t held_ms;         // since when a step waits for more rows; -1: none does
    int64_t again_ms;        // when to ask again after 0 runs; INT64_MAX: when something comes
};

// `storage` (slots) is zeroed here and outlives `s`.
void sched_init(struct sched *s, struct sched_seq *storage, const struct sched_options *o);

// A sequence takes the free slot `slot`; n_known >= n_prompt ids are known (more when it resumes).
void sched_admit(struct sched *s, int slot, int n_prompt, int n_known, int class,
                 bool all_logits);
void sched_remove(struct sched *s, int slot);

// The token after the last known one was chosen.
void sched_append(struct sched *s, int slot);

// Writes the next step's runs (at most `slots`) and counts their rows as sent; `flying` steps are
// in flight. 0: nothing can run, or it should not yet: a step comes back first, or again_ms.
int sched_plan(struct sched *s, int flying, int64_t now_ms, struct step_run *runs);

#endif
