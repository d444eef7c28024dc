// From the inboxes to jobs: takes messages, has them decoded, checked and tokenized in the pool,
// and admits, rejects or cancels in the order of arrival. It runs whatever the groups do, within a
// bound of messages and bytes on the way. The loop's thread. Knows no groups.
//
// Nothing is kept that Redis has not: after an outage, or a call that failed, whatever was taken
// and not settled is read again from Redis (recover), and what the pool still holds of before is
// dropped.
#ifndef PENSTOCK_BROKER_INGEST_H
#define PENSTOCK_BROKER_INGEST_H

#include "broker/model.h"
#include "broker/prompt.h"
#include "broker/queue.h"
#include "broker/tenants.h"

struct ingest;

struct ingest_options {
    zloop_t *loop;
    struct queue *queue;       // borrowed, as the models
    const struct models *models;
    struct prompt_limits limits;
    int n_threads;             // of the pool
    void *arg;
    // A job that may be ready.
    // header: how a window shows it; NULL: it is scheduled for later.
    void (*admitted)(void *arg, const char *tenant, int class, int model,
                     const struct queue_header *header);
    // A job that waits to be split.
    void (*waiting)(void *arg);
    // A cancel met a running job: its attempt is to be dropped.
    void (*cancel)(void *arg, const char *tenant, const char *id, uint64_t attempt);
    uint64_t max_queued_bytes; // of all messages that wait or run; beyond: nothing is taken; 0: any
};

enum status ingest_create(struct ingest **ingest, const struct ingest_options *o, struct error *e);
void ingest_destroy(struct ingest **ingest); // after the queue, whose open calls end here

// The queue's events.
void ingest_ready(struct ingest *in);
void ingest_down(struct ingest *in);
void ingest_pushed(struct ingest *in, const char *tenant);

void ingest_set_tenants(struct ingest *in, const struct tenants *tenants);
// Of a model, for what is taken from now on.
void ingest_set_max_context(struct ingest *in, int model, int max_context);

// Call about ten times a second: polls the inboxes.
void ingest_tick(struct ingest *in, int64_t now_ms);

#endif
