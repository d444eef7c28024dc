// From ready jobs of one model to the heads of its pipelines: keeps a bounded window of headers of
// each tenant and class, lets dispatch choose against the credit, claims what it chose by name, has
// the bytes read again and the ids handed over to `jobs`. One round at a time, but jobs of class 0
// don't wait for a round of others that was begun before. The backlog stays in Redis. The loop's
// thread.
#ifndef PENSTOCK_BROKER_CLAIMS_H
#define PENSTOCK_BROKER_CLAIMS_H

#include "broker/jobs.h"
#include "broker/model.h"
#include "broker/prompt.h"
#include "broker/queue.h"
#include "broker/tenants.h"

struct claims;

typedef void claims_active_fn(void *arg, const char *tenant, uint64_t need_blocks);

struct claims_options {
    zloop_t *loop;
    struct queue *queue; // borrowed, as what follows
    struct jobs *jobs;
    const struct models *models;
    int model; // index of the one it is about
    struct prompt_limits limits;
    int n_threads; // of the pool
    int64_t age_ms; // of dispatch
    int urgent_percent;
    // Calls fn with tenant and blocks of all jobs that run or were chosen, of whatever model:
    // budgets are a tenant's over all of them.
    void *arg;
    void (*each_active)(void *arg, claims_active_fn *fn, void *fn_arg);
};

enum status claims_create(struct claims **claims, const struct claims_options *o, struct error *e);
void claims_destroy(struct claims **claims); // after the queue, before the jobs

// The pipelines' limits. A job that is too large for them is claimed to be refused with the
// numbers.
void claims_set_limits(struct claims *c, int max_context, uint64_t max_blocks);
void claims_set_tenants(struct claims *c, const struct tenants *tenants);

void claims_stop(struct claims *c); // nothing is claimed any more

// What was chosen, and is not known to jobs yet.
void claims_each_chosen(const struct claims *c, claims_active_fn *fn, void *arg);

void claims_wake(struct claims *c); // there may be room for work
// Jobs of this tenant may be ready; class < 0: any.
void claims_changed(struct claims *c, const char *tenant, int class);
// One has been admitted. Where its window has all there are it is added to it, and need not be read
// first. h NULL: it is not ready yet, or not known.
void claims_admitted(struct claims *c, const char *tenant, int class,
                     const struct queue_header *h);
void claims_ready(struct claims *c); // the queue's event
void claims_tick(struct claims *c, int64_t now_ms);
bool claims_idle(const struct claims *c); // nothing is claimed that jobs does not know

#endif
