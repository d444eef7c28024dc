// Dispatch: which ready jobs a pipeline takes now, given what its head can hold. Pure: no clock,
// heap, sockets or Redis. Jobs go in order of arrival; the first that does not fit waits, and what
// is behind it waits too, so that a large job is never starved by small ones.
#ifndef PENSTOCK_BROKER_DISPATCH_H
#define PENSTOCK_BROKER_DISPATCH_H

#include <stdbool.h>
#include <stdint.h>

// The credit of one pipeline and epoch: absolute and cumulative on both sides, so that lost,
// repeated or reordered CREDIT messages heal.
struct credit {
    uint64_t granted_slots, granted_blocks; // ever, by the head
    uint64_t taken_slots, taken_blocks;     // ever, by jobs chosen here
};

// A new epoch: nothing is granted yet.
void credit_reset(struct credit *c);

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

struct ready_job {
    uint64_t need_blocks;
    bool poison; // runs alone
};

// How many of the first `n` ready jobs to take now. n_running: jobs that are at the head or on the
// way; alone: one of them is poison.
int dispatch_choose(const struct credit *c, const struct ready_job *jobs, int n, int n_running,
                    bool alone);

#endif
