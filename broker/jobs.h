// The attempts that run: from the claim, over the head, to an outcome that Redis has. It keeps
// their leases, checkpoints their tokens, stores results and tells the head what is safe
// (COMMITTED), and keeps account of each pipeline's credit. The loop's thread. Knows no ready jobs
// and no groups but the heads.
//
// A result is not kept here: the head keeps it until COMMITTED and sends it again. So whatever
// happens to Redis or to this process, an attempt is at the head, or its outcome is in Redis, or
// its lease ends.
#ifndef PENSTOCK_BROKER_JOBS_H
#define PENSTOCK_BROKER_JOBS_H

#include "broker/dispatch.h"
#include "broker/fleet.h"
#include "broker/queue.h"
#include "common/histogram.h"
#include "common/job_key.h"
#include "common/wire.h"

#include <stdbool.h>

enum { JOBS_MAX = 2 * SLOTS_MAX };

struct jobs;

struct jobs_options {
    struct queue *queue; // borrowed
    void *arg;
    // False: the peer is away.
    bool (*send)(void *arg, const struct peer *to, const struct wire_message *m);
    // Credit came back: dispatch may have room.
    void (*freed)(void *arg);
    // A job of this tenant is ready again.
    void (*returned)(void *arg, const char *tenant);
};

enum status jobs_create(struct jobs **jobs, const struct jobs_options *o, struct error *e);
void jobs_destroy(struct jobs **jobs); // after the queue

// --- pipelines, of all models; each is named by its epoch

struct jobs_pipeline {
    int model;
    uint64_t id, epoch;
    struct peer head;
    const char *name;  // of the head's group
    int slots, blocks; // that it can hold
    bool adopted;      // an earlier broker filled it: nothing is sent before jobs_hello told what
                       // runs and a CREDIT what is free
    bool paused;       // it gets no jobs
};

void jobs_up(struct jobs *j, const struct jobs_pipeline *p);

// The epoch has ended: what was at the head goes back to the queue.
void jobs_down(struct jobs *j, uint64_t epoch);

// It gets no more jobs: a group of it wants to leave.
void jobs_close(struct jobs *j, uint64_t epoch);

// Which pipelines get no jobs until they are named otherwise.
void jobs_set_paused(struct jobs *j, bool (*paused)(void *arg, int model, uint64_t id), void *arg);

// How many jobs a paused pipeline runs, or has promised to run, or has results of; -1: it is not
// paused, or does not serve.
int jobs_paused_load(const struct jobs *j, uint64_t epoch);

// One that was closed and holds nothing any more, or 0.
uint64_t jobs_drained(const struct jobs *j);

// The head said HELLO: on a new connection what never arrived goes back, what runs there and is not
// known here is taken over, and the leases are renewed.
void jobs_hello(struct jobs *j, uint64_t epoch, const struct peer *head,
                const struct wire_hello *h);

// --- attempts

// A claimed job; its lease is kept from now on. steps: that it takes at most. epoch: of the
// pipeline that it was promised to; 0: none, or one that is gone: it is to be refused or given
// back. ERR_LIMIT, ERR_NOMEM: the promise stays.
enum status jobs_add(struct jobs *j, const struct job_key *key, uint64_t need_blocks,
                     uint64_t steps, bool poison, uint64_t epoch);

// Sends it to the head; `job` holds everything but pipeline and epoch. resume: checkpointed ids. An
// attempt that is not waiting for this any more is left alone.
void jobs_start(struct jobs *j, const struct wire_job *job, uint64_t need_blocks);

// It cannot run. result NULL: made by the library.
void jobs_refuse(struct jobs *j, uint64_t attempt, const struct error *why, bool retryable,
                 const uint8_t *result, size_t n_result);

// Back to the queue before it ran.
void jobs_give_back(struct jobs *j, uint64_t attempt);

// The job was cancelled, or its deadline has passed: the head ends it with what it has, and Redis
// ends it with what was saved if the head does not answer within CANCEL_WAIT_MS.
void jobs_cancel(struct jobs *j, uint64_t attempt, enum wire_reason reason);

// Another attempt owns the job by now.
void jobs_forget(struct jobs *j, uint64_t attempt);

// --- what the head says. True if m was for here.
bool jobs_message(struct jobs *j, const struct peer *from, const struct wire_message *m);

// --- the queue's events and time

void jobs_ready(struct jobs *j, int64_t now_ms); // renews all leases; call it before the first reap
void jobs_tick(struct jobs *j, int64_t now_ms);  // a few times a second

// --- for dispatch

// The pipelines of a model that take jobs now, by their epochs; returns how many. What they run is
// listed in memory of `jobs` until the next call.
int jobs_view(struct jobs *j, int model, struct dispatch_pipeline to[PIPELINES_MAX]);

bool jobs_room(const struct jobs *j, int model); // one of them has a free slot
bool jobs_serves(const struct jobs *j, uint64_t epoch);

// Takes the credit for a job that was chosen for this pipeline of the last view, until jobs_add or
// jobs_withdraw. poison: nothing is chosen beside it from now on. Returns the name of its head's
// group.
const char *jobs_promise(struct jobs *j, uint64_t epoch, uint64_t need_blocks, bool poison);
void jobs_withdraw(struct jobs *j, uint64_t epoch, uint64_t need_blocks, bool poison);

int jobs_n_active(const struct jobs *j);   // claimed, or at the head
// Calls fn with tenant and blocks of each of them.
void jobs_each_active(const struct jobs *j,
                      void (*fn)(void *arg, const char *tenant, uint64_t need_blocks), void *arg);
// Gives back whatever has not been sent to the head yet: the broker stops.
void jobs_release(struct jobs *j);

// --- for metrics

// From admission to the result in Redis, of jobs that a head ended since this process began.
const struct histogram *jobs_done_times(const struct jobs *j);

// Calls fn with model, number, and the credit that is left of each pipeline that serves. An adopted
// one is left out until it is known.
void jobs_each_credit(const struct jobs *j,
                      void (*fn)(void *arg, int model, uint64_t pipeline, uint64_t slots,
                                 uint64_t blocks), void *arg);

#endif
