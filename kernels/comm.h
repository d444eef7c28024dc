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
    // The rank's device is open and has its arena, which is still zeros: collectives run on its
    // stream from now on. `memory`, in the arena, and `pinned`, in its host memory: what
    // device_sizes' comm and comm_pinned count. The rank's thread, before any collective, once; all
    // ranks call, and it returns when all have. On GPUs this looks at the links, for which it uses
    // the arena's head, and chooses the way: the comm's ops may be others afterwards. Does nothing
    // where collectives take host memory.
    enum status (*attach)(struct comm *c, struct device *d, void *memory, void *pinned,
                          struct error *e);
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
    COMM_AUTO,   // COMM_DIRECT where each rank has a GPU of its own, else COMM_PEER
    COMM_PEER,   // each rank's kernel adds a slice of all ranks' buffers where they lie; the ranks
                 // meet on the host, so that several can share a GPU
    COMM_NCCL,   // NVIDIA's library; all_reduce adds in its order, the same from run to run
    COMM_DIRECT, // sums by kernels that wait for each other; large ones between GPUs that use each
                 // other's memory by NCCL if there
};

enum { COMM_COARSE_LEAST = 256 * 1024 }; // where a group is told to: from 37 rows of V3 on

struct comm_cuda_options {
    int tp;
    enum comm_way way;
    int64_t deadline_ms; // of a collective, and of a rank that waits for its stream; 0: none
    bool blocking;       // NCCL calls wait for what they do in the background
    bool staged;         // as if no GPU could use another's memory
    bool without_nccl;   // as if it was not there
    size_t coarse_least; // COMM_DIRECT: values of sums over the host of so many and more travel as
                         // 8 bits, with an error below 1% of a sum; 0: none do
    bool crowded;        // for tests: COMM_DIRECT over the host of ranks that share a GPU, which
                         // has to have room for all ranks' kernels at once
    int damaged; // for tests: what rank `damaged` - 1 gets in the check of the links is not intact
};

// Ranks on CUDA devices, memory of the device: fills comms[tp]. ERR_UNSUPPORTED no_cuda in a build
// without CUDA. `attach` says in one log line (event=collectives) which way is taken and how data
// goes between the GPUs; it fails with ERR_UNAVAILABLE no_peer where one GPU cannot use another's
// memory and the way needs it, no_nccl, bad_link where nothing brings data over intact.
enum status comm_cuda_create(struct comm **comms, const struct comm_cuda_options *o,
                             struct error *e);

#endif
