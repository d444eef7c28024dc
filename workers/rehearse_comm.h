// The collectives of a rehearsed rank. Without peers it declares tp ranks, and each collective
// costs a pass over memory of the size that the true one has, in which the peers bring nothing:
// results are of no use but to go on with. With peers it passes sums on, and marks them. The rank's
// thread calls it.
#ifndef PENSTOCK_WORKERS_REHEARSE_COMM_H
#define PENSTOCK_WORKERS_REHEARSE_COMM_H

#include "kernels/comm.h"
#include "workers/rehearse_times.h"

struct rehearse_comm {
    struct comm comm; // for forward
    struct comm *real; // of a rank with peers; NULL: it has none
    bool host;        // what is gathered is in the host's memory, not the device's
    struct rehearse_times *times;
    struct device *device;
    float *peers;     // (n_peers) zeros of the device: what the others' sums would be
    size_t n_peers;
};

// `peers` is the caller's, and device memory; one that is of the host's memory sums nothing.
void rehearse_comm_init(struct rehearse_comm *c, int rank, int tp, struct rehearse_times *times,
                        struct device *device, bool host);
// Peers of its own, before `attach`: what it is given then is passed on.
void rehearse_comm_real(struct rehearse_comm *c, struct comm *real);
void rehearse_comm_peers(struct rehearse_comm *c, float *peers, size_t n_peers);

#endif
