// Where the ranks of one process meet: a barrier of threads whose waits have a deadline and which
// any thread can end for all. What a rank wrote before a meeting, all see after it. Knows nothing
// of what the ranks exchange.
#ifndef PENSTOCK_KERNELS_COMM_HUB_H
#define PENSTOCK_KERNELS_COMM_HUB_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

struct hub;

// For tp ranks; deadline_ms of a wait, 0: none. NULL: no memory.
struct hub *hub_create(int tp, int64_t deadline_ms);

// Waits until all ranks are here: spins for a short while, then sleeps. ERR_TIMEOUT, on all ranks,
// if one is not here within the deadline; what hub_end was given.
enum status hub_meet(struct hub *h);

// Ends the present meeting and all to come, with `why`, on all ranks; the first reason stays. Any
// thread.
void hub_end(struct hub *h, enum status why);

// OK, or why all has ended. Any thread.
enum status hub_status(struct hub *h);

// A rank is done with the hub. True for the last one: then the hub is gone.
bool hub_leave(struct hub *h);

#endif
