// The collectives of a stage's ranks: of activations, which lie in their devices, and of what the
// sampler has in host memory; often the same. The leader's thread, but for the abort.
#ifndef PENSTOCK_WORKERS_COMMS_H
#define PENSTOCK_WORKERS_COMMS_H

#include "kernels/comm.h"
#include "workers/stage.h"

struct comms {
    int tp;
    struct comm *device[TP_MAX], *host[TP_MAX]; // of each rank
};

// Bytes of host memory in which they meet (stage_options.comm); 0 with one rank.
uint64_t comms_bytes(const struct stage_options *o);

// Errors: as of comm_local_create and comm_cuda_create; comms_destroy is due in any case.
enum status comms_create(struct comms *c, const struct stage_options *o, struct error *e);

// Ends all collectives. Any thread.
void comms_abort(struct comms *c);

// After the ranks' threads have ended; nothing happens where none was created.
void comms_destroy(struct comms *c);

#endif
