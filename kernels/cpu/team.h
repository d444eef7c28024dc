// The threads of one CPU device: the rank's own thread and helpers that work for it. Work is cut
// into items; which thread runs an item never changes a result. Waits spin for a short while, then
// block.
#ifndef PENSTOCK_KERNELS_CPU_TEAM_H
#define PENSTOCK_KERNELS_CPU_TEAM_H

#include "common/status.h"

struct team;

// Does items [begin, end); `thread` in [0, n_threads) tells scratch of its own apart.
typedef void team_work(void *arg, int begin, int end, int thread);

// n_threads - 1 helpers are started; n_threads >= 1.
enum status team_create(struct team **team, int n_threads, struct error *e);
void team_destroy(struct team **team);

int team_threads(const struct team *t);

// Runs `work` over items [0, n) in contiguous pieces of about `grain` items, on all threads;
// returns when all are done. One piece, or one thread, runs in place. From the owner's thread only.
void team_run(struct team *t, team_work *work, void *arg, int n, int grain);

#endif
