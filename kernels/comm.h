// The rank seam: collectives between the ranks of one group, on their devices' streams. One struct
// comm per rank, used by that rank's thread; `comm_abort` may come from any thread. With one rank
// every collective is a no-op copy.
#ifndef PENSTOCK_KERNELS_COMM_H
#define PENSTOCK_KERNELS_COMM_H

#include "common/status.h"
#include "kernels/backend.h"

#include <stddef.h>
#include <stdint.h>

struct comm;

struct comm_ops {
    const char *name;
    // x (n) f32 in place = sum over ranks, added in rank order 0, 1, 2, ... for every element, so
    // that the result depends on nothing else. All ranks call with the same n.
    enum status (*all_reduce)(struct comm *c, float *x, size_t n);
    // out (tp, n bytes) = every rank's `in` (n bytes), by rank.
    enum status (*all_gather)(struct comm *c, const void *in, void *out, size_t n);
    // data (n bytes) of rank `root` to all.
    enum status (*broadcast)(struct comm *c, void *data, size_t n, int root);
    // Ends every collective in progress and to come, on all ranks, with ERR_ABORTED. Any thread.
    void (*abort)(struct comm *c);
    void (*destroy)(struct comm **c);
};

struct comm {
    const struct comm_ops *ops;
    int rank, tp;
};

// Threads of one process: fills comms[tp]. Waits spin for a short while, then block (futex), so
// ranks may outnumber cores. `max_elements` bounds all_reduce (f32 elements) and `max_gather` a
// rank's all_gather bytes. `area`: comm_local_bytes at a cache line, which outlive all comms; NULL:
// allocated here. Nothing is later. A collective that waits longer
// than deadline_ms aborts all with ERR_TIMEOUT (a rank died or hangs); 0: no deadline.
enum status comm_local_create(struct comm **comms, int tp, size_t max_elements, size_t max_gather,
                              int64_t deadline_ms, void *area, struct error *e);

// Bytes that the ranks share; 0 with one rank.
size_t comm_local_bytes(int tp, size_t max_elements, size_t max_gather);

#endif
