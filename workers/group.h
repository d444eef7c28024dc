// A worker group: the leader of one stage, from HELLO to BYE. One loop over the broker's
// connection, the stage links and the ranks' events; on stage 0 it is the head. The same code runs
// as penstock-worker and, over inproc, inside `penstock generate`. One thread a group.
#ifndef PENSTOCK_WORKERS_GROUP_H
#define PENSTOCK_WORKERS_GROUP_H

#include "common/checkpoint.h"
#include "common/limits.h"
#include "common/model_config.h"
#include "common/status.h"
#include "common/tokenizer.h"
#include "kernels/backend.h"
#include "workers/control.h"

#include <stdbool.h>
#include <stdint.h>

struct group_options {
    void *zmq;                           // context; borrowed, as all that follows
    struct control_options control;      // the brokers, and this group's key
    const struct model_config *config;
    const struct checkpoint *checkpoint;
    const char *model_hash;              // of the checkpoint's manifest
    const struct tokenizer *tokenizer;   // for stage 0; NULL: results have no text
    const struct backend *backend;
    const char *name, *node;
    const char *data; // where stage links bind: "tcp://IP:*", "tcp://IP:PORT" or "inproc://NAME"
    int tp;                // ranks
    int gpu, n_gpus;       // where they are, as a stage has it
    int n_threads;         // of each rank's device; 0: chosen
    bool coarse_sums;      // between GPUs that cannot use each other's memory; not in f32
    enum precision precision;
    uint64_t memory_bytes; // of each rank's device
    int64_t step_deadline_ms; // no progress of the steps in flight for so long ends the epoch
    int64_t drain_ms;      // after a first stop: most time for what runs
    int report_tokens;     // head: TOKENS after so many, or
    int64_t report_ms;     // after this time
    const char *manifest;  // file of the tensors' hashes (common/manifest.h); NULL: none
    const char *status;    // file that the group's health is written to; NULL: none
    int stop_fd;           // an eventfd: 1 asks to drain and leave, 2 or more to leave at once
};

// Runs until it is stopped or its device fails. OK after a stop.
enum status group_run(const struct group_options *o, struct error *e);

#endif
