// Ranks on GPUs, each a thread with its device and an arena, that run one body with their comms.
#ifndef PENSTOCK_TESTS_GPU_RANKS_H
#define PENSTOCK_TESTS_GPU_RANKS_H

#include "kernels/backend.h"
#include "kernels/comm.h"

#include <pthread.h>

struct ranks_case {
    struct comm_cuda_options comm;
    int n_gpus;          // rank i is on GPU i modulo n_gpus
    uint64_t arena_bytes;
    void *body_arg;
};

struct rank_thread {
    const struct ranks_case *what;
    struct comm *comm;
    struct device *device;
    char *arena;
    pthread_t thread;
    void (*body)(struct rank_thread *r);
    uint64_t attach_bytes; // that GPU 0 has less since rank 0 attached
    // What came of it; all but status and error are the body's.
    enum status status;
    struct error error;
    double wrong, seconds;
    uint64_t hash; // of its results, where all ranks have the same
};

// Runs `body` on what->comm.tp ranks once all have attached. A rank whose attach fails has its
// status and does not run the body.
void ranks_run(struct rank_thread *ranks, const struct ranks_case *what,
               void (*body)(struct rank_thread *r));

// The worst of all ranks: the largest `wrong`, infinite where a status is not OK.
double ranks_wrong(const struct rank_thread *ranks, int tp);

// Whether all ranks have the hash of the first.
bool ranks_agree(const struct rank_thread *ranks, int tp);

// GPUs that this machine has.
int ranks_gpus(void);

#endif
