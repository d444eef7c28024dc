// One serving pipeline as the jobs see it: its head, the credit that the head gives, and how much
// of that is in use. After an adoption nothing is sent before HELLO has told what runs there and a
// CREDIT what is free: what the head has granted less what is free has been taken. Inside of jobs
// only.
#ifndef PENSTOCK_BROKER_ACCOUNT_H
#define PENSTOCK_BROKER_ACCOUNT_H

#include "broker/dispatch.h"
#include "broker/fleet.h"

struct account {
    uint64_t epoch; // 0: a free place
    uint64_t pipeline;
    int model;
    struct peer head;
    char name[GROUP_NAME_MAX + 1]; // of the head's group
    int slots, blocks;
    struct credit credit;
    bool closed;       // a group of it drains: no more jobs
    bool paused;       // as people want it: no more jobs, until they want it otherwise
    int64_t resume_ms; // no jobs earlier
    int n_promised;    // jobs that were chosen for it, and not claimed yet
    int n_promised_poison; // of these poison
    int listed_from, n_listed; // attempts of the last view
    int n_active, n_poison, n_held; // attempts: claimed or at the head; of these poison; and with
                                    // results that Redis has not yet
    // While an adopted head's account is made up:
    bool adopting, listed; // listed: HELLO told what runs
    bool snapped;          // a CREDIT came after that, and marked who is counted
    struct credit snap;
    uint64_t used_slots, used_blocks, latest_slots, latest_blocks;
    int n_unknown;         // counted ones whose need is not known yet
};

// All that is counted is known: the credit is what it is.
bool account_settle(struct account *a);

// What of it dispatch may use now. False: nothing.
bool account_view(const struct account *a, int64_t now_ms, struct dispatch_pipeline *to);

#endif
