// What people ask of a queue, for tools: tenants and budgets, pauses, dead letters, a look at one
// job. Blocking, over a producer's connection (queue_sync.h), but with the right to call the
// library's functions. One thread at a time. Knows no messages.
#ifndef PENSTOCK_BROKER_QUEUE_ADMIN_H
#define PENSTOCK_BROKER_QUEUE_ADMIN_H

#include "broker/queue.h"
#include "broker/queue_sync.h"

// Calls fn for each tenant; *paused: the queue is.
enum status queue_admin_tenants(struct queue_sync *s, bool *paused,
                                void (*fn)(void *arg, const struct queue_tenant *t), void *arg,
                                struct error *e);

// < 0: as it is, or, of a new tenant, weight 1 and no budget. 0: no budget.
struct queue_budget {
    int64_t weight, max_bytes, max_jobs, max_tokens;
};

// ERR_STATE tenant_exists (add), unknown_tenant (not add).
enum status queue_admin_tenant(struct queue_sync *s, bool add, const char *tenant,
                               const struct queue_budget *budget, struct error *e);

// tenant NULL: the whole queue. Nothing is started from then on; what runs goes on. ERR_STATE
// unknown_tenant.
enum status queue_admin_pause(struct queue_sync *s, const char *tenant, bool pause,
                              struct error *e);

// The same of one pipeline, whether or not it is there. ERR_LIMIT too_many.
enum status queue_admin_pause_pipeline(struct queue_sync *s, const char *model, uint64_t pipeline,
                                       bool pause, struct error *e);

// How many jobs run: of a tenant, or (NULL) of the whole queue. Of what is paused no more start.
enum status queue_admin_busy(struct queue_sync *s, const char *tenant, uint64_t *running,
                             struct error *e);

struct queue_leader {
    uint64_t term;      // 0: nobody leads
    char name[BROKER_NAME_MAX + 1];
    int64_t lease_ms;   // that its lease lasts without being renewed
};

// Who leads, and what the leader last said of its fleet: JSON (broker/README.md) that the caller
// frees, NULL if it said nothing within FLEET_RECORD_MS.
enum status queue_admin_fleet(struct queue_sync *s, struct queue_leader *leader, char **record,
                              struct error *e);

// Calls fn for each model that jobs ever came for: ready ones, and how long the first has waited.
enum status queue_admin_models(struct queue_sync *s,
                               void (*fn)(void *arg, const char *model, uint64_t ready,
                                          uint64_t waited_ms), void *arg, struct error *e);

struct queue_depth {
    const char *tenant;
    bool paused;
    uint64_t inbox, running, ready[JOB_CLASSES];
    uint64_t waited_ms; // the first of its ready jobs
};

// The job that has been ready longest.
struct queue_oldest {
    char tenant[TENANT_MAX + 1], id[JOB_ID_MAX + 1]; // empty: none is ready
    int class;
    uint64_t waited_ms;
};

// Calls fn for each tenant.
enum status queue_admin_depths(struct queue_sync *s, struct queue_oldest *oldest,
                               void (*fn)(void *arg, const struct queue_depth *d), void *arg,
                               struct error *e);

struct queue_dead {
    const char *id, *code, *text;
    int64_t died_ms;
    uint32_t starts, lost; // attempts; groups lost
};

// Calls fn for a tenant's dead letters, newest first: a page of them from *offset on, which moves
// to the next page; 0: there is none.
enum status queue_admin_dead(struct queue_sync *s, const char *tenant, uint64_t *offset,
                             void (*fn)(void *arg, const struct queue_dead *d), void *arg,
                             struct error *e);

// Puts a dead letter's message into the inbox again, as a new job. ERR_STATE not_dead, bytes_lost.
enum status queue_admin_retry(struct queue_sync *s, const char *tenant, const char *id,
                              struct error *e);

// Drops a dead letter. ERR_STATE not_dead.
enum status queue_admin_purge(struct queue_sync *s, const char *tenant, const char *id,
                              struct error *e);

// Calls fn for each name and value of what is known of a job (broker/README.md). ERR_STATE no_job.
enum status queue_admin_show(struct queue_sync *s, const char *tenant, const char *id,
                             void (*fn)(void *arg, const char *name, const char *value), void *arg,
                             struct error *e);

// The same for `penstock why`, with what goes before it, or where its message is; of a job of which
// nothing is known as well.
enum status queue_admin_why(struct queue_sync *s, const char *tenant, const char *id,
                            void (*fn)(void *arg, const char *name, const char *value), void *arg,
                            struct error *e);

#endif
