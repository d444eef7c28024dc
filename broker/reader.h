// Claimed jobs on their way to a head: their bytes are read again in a pool, and the ids handed
// over to `jobs`, or the job refused. The loop's thread. Knows neither credit nor who is next.
#ifndef PENSTOCK_BROKER_READER_H
#define PENSTOCK_BROKER_READER_H

#include "broker/jobs.h"
#include "broker/model.h"
#include "broker/prompt.h"
#include "broker/queue.h"

enum { READER_JOBS_MAX = 1024 }; // being read at once
#define READER_BYTES_MAX (32 * MIB) // of their messages and checkpoints

struct reader;

struct reader_options {
    zloop_t *loop;
    struct jobs *jobs; // borrowed, as what follows
    const struct models *models;
    int model; // index of the one it is about
    struct prompt_limits limits;
    int n_threads; // of the pool
    void *arg;
    void (*read)(void *arg); // there is room for more
};

enum status reader_create(struct reader **reader, const struct reader_options *o, struct error *e);
void reader_destroy(struct reader **reader); // before the jobs

void reader_set_context(struct reader *r, int max_context);

int reader_room(const struct reader *r);         // jobs
size_t reader_bytes_room(const struct reader *r); // at least 1: one job may go over
bool reader_idle(const struct reader *r);

// Copies what it needs. most_blocks: what pipelines can give a job, where it was admitted with
// more: it is to be refused, whatever it needs by now; 0: it fits. False: no memory, or no room.
bool reader_add(struct reader *r, const struct queue_job *j, const struct job_key *key,
                uint64_t most_blocks);

#endif
