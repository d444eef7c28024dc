// The ring of steps between a stage's leader and its ranks: how far each of them is, and an event
// for the leader. Steps are counted from 0 and lie at their number modulo the ring's size; they go
// in, pass every rank and come out in order. Each function says whose thread calls it. Knows
// nothing of what a step holds or does.
#ifndef PENSTOCK_WORKERS_RING_H
#define PENSTOCK_WORKERS_RING_H

#include "common/limits.h"
#include "common/status.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct ring {
    int n_steps, tp;
    int fd;                     // eventfd of the leader
    atomic_bool stop;
    _Atomic uint64_t submitted; // steps given to the ranks; written under the mutex

    pthread_mutex_t mutex;      // guards what follows
    pthread_cond_t moved;       // submitted, done or stop changed
    uint64_t released;          // steps the leader is done with
    uint64_t done[TP_MAX];      // steps each rank has finished
    bool left[TP_MAX];          // it does no step any more
    enum status status;         // of the first failed step
    struct error error;
};

// ERR_NOMEM without a descriptor; ring_deinit is due in any case. The leader's thread, as all of
// deinit, next, submit, oldest, release, idle, reset and stop.
enum status ring_init(struct ring *r, int n_steps, int tp, struct error *e);
void ring_deinit(struct ring *r);

// Wakes the leader. Any thread.
void ring_notify(struct ring *r);

// The place of the next free step, -1 if all are in use.
int ring_next(struct ring *r);

// Hands the place that ring_next gave to the ranks.
void ring_submit(struct ring *r);

// The place of the oldest step if all ranks have finished it, else -1. *status: of the first failed
// step, with its error in e (which may be NULL); then no step comes out any more.
int ring_oldest(struct ring *r, enum status *status, struct error *e);

// Frees the place of the oldest step, after ring_oldest.
void ring_release(struct ring *r);

// Whether the ranks have finished all that was submitted, or have left: nobody reads a step.
bool ring_idle(struct ring *r);

// Waits until the ranks are idle, then all places are free.
void ring_reset(struct ring *r);

// Ranks stop waiting for steps.
void ring_stop(struct ring *r);

// A rank waits for step `number`. False when the stage ends.
bool ring_wait(struct ring *r, uint64_t number);

// A rank's next step is finished, with `error` if status is not OK.
void ring_finish(struct ring *r, int rank, enum status status, const struct error *error);

// A rank and its device are done with all steps; it calls nothing else.
void ring_leave(struct ring *r, int rank);

#endif
