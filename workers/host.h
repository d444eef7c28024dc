// The group's host memory after READY: one arena, carved in the order of the ledger; it lives as
// long as the ranks and is used again by every epoch of the same shape. What is beside it
// (libzmq's received frames) is counted here, too. The leader's thread.
#ifndef PENSTOCK_WORKERS_HOST_H
#define PENSTOCK_WORKERS_HOST_H

#include "common/arena.h"
#include "common/ledger.h"
#include "workers/epoch.h"

struct host {
    struct arena *arena;
    struct ledger ledger;    // of the arena; its total is the arena's bytes
    void *comm;              // stage_comm_bytes
    void *steps;             // the ring between leader and ranks: stage_memory_bytes
    void *sequences;         // head_bytes; head only
    void *links;             // epoch_bytes
    void *staging;           // stage_staging_bytes
    uint64_t received_bytes; // most that libzmq's received frames take of the heap
};

// What host_create takes, line by line; pointers of the options need not be there.
struct ledger host_ledger(const struct stage_options *stage, const struct epoch_options *epoch);

// Takes what a stage and its epochs need. ERR_NOMEM does_not_fit.
enum status host_create(struct host *h, const struct stage_options *stage,
                        const struct epoch_options *epoch, struct error *e);

// libzmq may keep the arena for some moments more.
void host_release(struct host *h);

#endif
