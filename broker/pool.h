// A few threads beside the loop that do what would block it (parsing and tokenizing a prompt of
// megabytes must not cost a heartbeat). Work is begun in the order it was given and handed back in
// that order. The loop's thread calls everything here; `work` runs in the pool's threads.
#ifndef PENSTOCK_BROKER_POOL_H
#define PENSTOCK_BROKER_POOL_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

struct pool;

// Does one item; `thread` in [0, n_threads) tells scratch of its own apart.
typedef void pool_work(void *arg, void *item, int thread);

// At most max_items wait or run at once.
enum status pool_create(struct pool **pool, int n_threads, int max_items, pool_work *work,
                        void *arg, struct error *e);

// Waits for the items that run; those that wait are handed to `drop` (may be NULL), as are the done
// ones that nobody took.
void pool_destroy(struct pool **pool, void (*drop)(void *item));

// False if it is full.
bool pool_submit(struct pool *p, void *item);

int pool_room(const struct pool *p);

// Becomes readable when an item is done. Read by pool_done.
int pool_fd(const struct pool *p);

// The oldest item if it is done, else NULL.
void *pool_done(struct pool *p);

#endif
