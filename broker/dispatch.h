// Dispatch: which ready jobs of a model start now, and in which of its pipelines, given what their
// heads can hold. Pure: no clock, heap, sockets or Redis.
//
// Classes are strict: a job of class 0 goes before one of class 1, and so on. Aging: a job counts
// as a class higher for each age_ms that it has been ready. One that has come up to class 0 that
// way goes behind the jobs that are of class 0, but for one token in DISPATCH_AGED_PART while both
// wait: so class 0 is never held up by age, and nothing waits for ever.
//
// Within a class tenants share by deficit round robin over tokens (prompt + max_tokens): on its
// turn a tenant may run jobs of weight * DISPATCH_QUANTUM tokens, and keeps what it could not use.
// Jobs of a tenant and class go in order of arrival. Of the pipelines where one fits the least
// loaded one takes it: most free slots, then most free blocks. A poison job fits where nothing
// runs.
//
// A job whose turn it is and that fits nowhere holds a pipeline: the one with most room that has no
// hold, or one of a worse class. What runs there tells about when enough of it will be free,
// counted in steps; until then others start there only where, about, they don't delay that: they
// end before, or leave enough beside them (EASY backfilling), and at most DISPATCH_SKIPS_MAX, as
// what is foreseen may be wrong: a step may have no room for a sequence's next rows. Pipelines
// without a hold take whatever fits. So a large job is not starved by small ones, and the room that
// it waits for is not idle.
#ifndef PENSTOCK_BROKER_DISPATCH_H
#define PENSTOCK_BROKER_DISPATCH_H

#include "broker/tenants.h"
#include "common/limits.h"

#include <stdbool.h>
#include <stdint.h>

// The credit of one pipeline and epoch: absolute and cumulative on both sides, so that lost,
// repeated or reordered CREDIT messages heal. Begins as zeros.
struct credit {
    uint64_t granted_slots, granted_blocks; // ever, by the head
    uint64_t taken_slots, taken_blocks;     // ever, by jobs chosen here
};

// The head's word. Lower figures than before are late and ignored.
void credit_grant(struct credit *c, uint64_t slots, uint64_t blocks);

// The head of an adopted pipeline holds `used` of `total`: from then on what was granted less what
// is free has been taken.
void credit_adopt(struct credit *c, uint64_t total_slots, uint64_t total_blocks,
                  uint64_t used_slots, uint64_t used_blocks);

void credit_take(struct credit *c, uint64_t blocks);
// The head never got or refused the job.
void credit_give_back(struct credit *c, uint64_t blocks);

uint64_t credit_slots(const struct credit *c);  // free now
uint64_t credit_blocks(const struct credit *c);

// --- who is next

enum {
    DISPATCH_LEVELS = JOB_CLASSES + 1, // class 0, what age lifted there, classes 1 to 3
    DISPATCH_QUANTUM = 64,             // tokens of a turn, for each of the weight
    DISPATCH_AGED_PART = 16,
    DISPATCH_KEEP_LEAST = 8, // slots, or blocks: of fewer none is kept free for class 0
    DISPATCH_SKIPS_MAX = 256, // jobs that start in a pipeline while another one holds it
    DISPATCH_OWED_MAX = 16384, // tokens that a tenant whose jobs don't fit saves up, for each of
                               // the weight
};

// A ready job.
struct ready_job {
    uint64_t need_blocks; // 0: takes nothing, it is only to be refused
    uint64_t cost;        // tokens of prompt and output
    int64_t since_ms;     // ready since
    bool poison;          // runs alone
    uint64_t seq;         // no other job of its tenant and class has it
    uint64_t steps;       // that it takes at most
};

// Those of a tenant and class, in order of arrival: the first of them, if there are many. A choice
// that took jobs of it, and knows no other that could start, ends before a job of the same level or
// a lower one: that would take the place of one that is not known yet.
struct ready_queue {
    const struct ready_job *jobs;
    int n;
    bool more; // there are more than these
};

struct dispatch_tenant {
    uint32_t weight;       // 0: none of its jobs starts
    uint64_t jobs, blocks; // that it may have in flight beyond those that are; UINT64_MAX: no limit
    bool idle;             // none is: then one may start, however large
};

// A job that has credit of a pipeline.
struct dispatch_running {
    uint64_t blocks, steps; // steps: until it ends, about and at most
};

// A pipeline that takes jobs now: what is free there.
struct dispatch_pipeline {
    uint64_t id; // lasts from one choice to the next; no other pipeline has it, and never 0
    uint64_t slots, blocks;
    int n_running; // jobs that are at the head or on the way
    bool alone;    // one of them is poison
    uint64_t all_slots, all_blocks; // free and taken
    const struct dispatch_running *running; // (n_listed) those of them that are known
    int n_listed;
};

struct dispatch_view {
    int n_pipelines;
    const struct dispatch_pipeline *pipelines;         // (n_pipelines)
    int n_tenants;
    const struct dispatch_tenant *tenants;             // (n_tenants)
    const struct ready_queue (*queues)[JOB_CLASSES];   // (n_tenants)
    bool urgent; // only jobs of class 0 are chosen
    int64_t now_ms;
};

// A job that waits for room in a pipeline. Its tokens are its tenant's no more.
struct dispatch_hold {
    uint64_t pipeline; // its id; 0: none
    int tenant, class, level;
    uint64_t seq, cost;
    int skipped; // jobs that have started there since
};

// What lasts from one choice to the next. Begins as zeros.
struct dispatch {
    int64_t age_ms; // 0: jobs don't age
    int urgent_percent; // of a pipeline's slots and blocks, that others leave free for class 0
    int turn[DISPATCH_LEVELS];
    uint64_t deficit[DISPATCH_LEVELS][TENANTS_MAX]; // tokens that a tenant may still run
    uint64_t strict, aged; // tokens of class 0 and of what age lifted there, while both waited
    struct dispatch_hold holds[PIPELINES_MAX];
};

struct dispatch_pick {
    int tenant, class, level;
    int nth;      // in its queue of the view
    int pipeline; // of the view; any for a job that is only to be refused
    uint64_t cost;
};

// Chooses at most `most` jobs to take now; returns how many.
int dispatch_choose(struct dispatch *d, const struct dispatch_view *v, struct dispatch_pick *picks,
                    int most);

// The job did not start after all: its tenant gets the tokens back.
void dispatch_give_back(struct dispatch *d, const struct dispatch_pick *pick);

// Another tenant has this place now.
void dispatch_forget(struct dispatch *d, int tenant);

// Where a job of that class is, given how long it has been ready: 0, 1 (lifted to class 0), 2...
int dispatch_level(const struct dispatch *d, int class, int64_t ready_ms);

#endif
