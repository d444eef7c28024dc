// What was asked of the queue, and what is right: each job's tokens as an undisturbed run gives
// them, and every way in which it may end. Checks checkpoints as they are written and results in
// the end.
#ifndef PENSTOCK_TESTS_SIM_TRUTH_H
#define PENSTOCK_TESTS_SIM_TRUTH_H

#include "common/limits.h"
#include "common/model_config.h"
#include "tests/sim/sim.h"

struct truth_job {
    char tenant[TENANT_MAX + 1], id[JOB_ID_MAX + 1];
    int n_prompt, max_tokens, class;
    bool ignore_eos, stream;
    bool refused;      // larger than any sequence may be: a dead letter
    bool cancelled;    // someone wants it cancelled, sooner or later
    int64_t at_ms, deadline_ms; // Unix time; 0: none
    int32_t *ids;      // (n_prompt)
    int32_t *tokens;   // (n_tokens) the right ones
    int n_tokens;
    int64_t pushed_ns; // 0: not yet
    bool ended;        // and it was right
};

struct truth {
    const struct model_config *config;
    int n;
    struct truth_job *jobs; // (n)
    int n_ended, n_checked_tokens;
    int n_by_word[5];       // done, failed, cancelled, expired, other
};

extern struct truth truth;

void truth_begin(const struct model_config *c, int n);

// Fills in the prompt and the right tokens, once the sizes are set.
void truth_settle(struct truth_job *j);

// Puts its message into the inbox, or a cancel of it.
void truth_push(struct truth_job *j);
void truth_push_cancel(const struct truth_job *j);
void truth_push_bytes(const char *tenant, const void *bytes, size_t n);

// Looks at the jobs that have not ended, and checks the results of those that have by now. True:
// all have.
bool truth_look(void);

// What still runs, for people.
void truth_show(void);

#endif
