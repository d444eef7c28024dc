// One rank of a stage: the thread that opens a device, loads the rank's slices into its arena, and
// then runs the ring's steps until the stage ends. rank_main is that thread; the leader's thread
// calls the others. Knows no sockets and nobody's frames but as memory to read.
#ifndef PENSTOCK_WORKERS_RANK_H
#define PENSTOCK_WORKERS_RANK_H

#include "workers/comms.h"
#include "workers/forward.h"
#include "workers/load.h"
#include "workers/ring.h"
#include "workers/stage.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

// What all ranks of a stage share; outlives their threads.
struct rank_stage {
    struct stage_options options;
    struct ring ring;
    struct stage_step *steps;  // (n_steps)
    struct comms comms;
    struct load *load;         // until all ranks are ready
    _Atomic uint64_t loaded;   // bytes that ranks are done with, all ranks together
};

struct rank {
    struct rank_stage *stage;
    int index;
    pthread_t thread;
    struct device *device;
    struct weights weights;
    struct forward forward;
    struct ledger ledger, host_ledger; // of its device; of host memory beside it
    int64_t begun_ns[DEVICE_STEPS]; // of the steps that its device has begun
    int64_t ended_ns;               // of the last step
    enum status status;             // of loading
    struct error error;
    _Atomic enum stage_state state; // written once: the ledgers, status and error are there then
    pthread_mutex_t counting;       // guards `figures`
    struct stage_figures figures;   // rank 0 counts steps and rows for all
};

// `r` is where it stays. ERR_IO if there is no thread; then nothing is to be joined.
enum status rank_start(struct rank *r, struct rank_stage *stage, int index, struct error *e);

// Waits for the end of its thread, after ring_stop, comms_abort and load_abort.
void rank_join(struct rank *r);

enum stage_state rank_state(const struct rank *r);

// Adds what it has done.
void rank_count(struct rank *r, struct stage_figures *to);

// Where a rank of the stage stands in the model.
struct placement rank_placement(const struct stage_options *o, int index);

// Bytes of stage_options.staging: what the load reads into, and a scratch for each rank.
uint64_t rank_staging_bytes(const struct stage_options *o);

#endif
