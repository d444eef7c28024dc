// The rank seam: collectives between the ranks of one group. One struct comm per rank, used by that
// rank's thread; `comm_abort` may come from any thread. With one rank every collective is a no-op
// copy. A comm takes either memory of the host (comm_local: a call returns when it is done) or
// memory of its rank's device (comm_cuda: calls go onto the device's stream, and what goes wrong
// there is told by the device's next sync).
#ifndef PENSTOCK_KERNELS_COMM_H
#define PENSTOCK_KERNELS_COMM_H

#include "common/status.h"
#include "kernels/backend.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct comm;

struct comm_ops {
    const char *name;
    bool recordable; // collectives may lie within recorded steps (backend.h)
    // The rank's device is open: collectives run on its stream from now on. The rank's thread,
    // before any collective, once; all ranks call, and it returns when all have. Does nothing where
    // collectives take host memory.
    enum status (*attach)(struct comm *c, struct device *d, struct error *e);
    // Gives back what the comm holds of the device. The rank's thread, before the device is closed;
    // no collective may follow.
    void (*detach)(struct comm *c);
    // x (n) f32 in place = sum over ranks, added in rank order 0, 1, 2, ... for every element, so
    // that the result depends on nothing else. All ranks call with the same n.
    enum status (*all_reduce)(struct comm *c, float *x, size_t n);
    // out (tp, n bytes) = every rank's `in` (n bytes), by rank.
    enum status (*all_gather)(struct comm *c, const void *in, void *out, size_t n);
    // data (n bytes) of rank `root` to all.
    enum status (*broadcast)(struct comm *c, void *data, size_t n, int root);
    // Ends every collective in progress and to come, on all ranks, with ERR_ABORTED. Any thread;
    // also after detach.
    void (*abort)(struct comm *c);
    void (*destroy)(struct comm **c);
};

struct comm {
    const struct comm_ops *ops;
    int rank, tp;
};

// Threads of one process, host memory: fills comms[tp]. Waits spin for a short while, then block
// (futex), so ranks may outnumber cores. `max_elements` bounds all_reduce (f32 elements) and
// `max_gather` a rank's all_gather bytes. `area`: comm_local_bytes at a cache line, which outlive
// all comms; NULL: allocated here. Nothing is later. A collective that waits longer than the
// deadline aborts all with ERR_TIMEOUT (a rank died or hangs); 0: no deadline.
enum status comm_local_create(struct comm **comms, int tp, size_t max_elements, size_t max_gather,
                              int64_t deadline_ms, void *area, struct error *e);

// Bytes that the ranks share; 0 with one rank.
size_t comm_local_bytes(int tp, size_t max_elements, size_t max_gather);

// How ranks on GPUs of one process bring their activations together.
enum comm_way {
    COMM_AUTO,
    COMM_PEER, // each rank's kernel adds a slice of all ranks' buffers, reading them where they lie
    COMM_NCCL, // NVIDIA's library
};

struct comm_cuda_options {
    int tp;
    enum comm_way way;
    int64_t deadline_ms; // of a collective, and of a rank that waits for its stream; 0: none
};

// Ranks on CUDA devices, memory of the device: fills comms[tp]. COMM_AUTO is COMM_PEER. Errors:
// ERR_UNSUPPORTED no_cuda in a build without CUDA. `attach` fails with ERR_UNAVAILABLE no_peer
// where one GPU cannot read another's memory.
enum status comm_cuda_create(struct comm **comms, const struct comm_cuda_options *o,
                             struct error *e);

#endif
