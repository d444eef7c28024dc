// One rank of a bigger deployment on the device at hand: laid out by the plan, at its true size,
// with random weights, links that are local buffers, and peers that bring nothing or are rehearsed
// beside it. What it holds is compared with the plan, and its steps are timed. One thread calls
// everything; it becomes the rank's.
#ifndef PENSTOCK_WORKERS_REHEARSE_H
#define PENSTOCK_WORKERS_REHEARSE_H

#include "common/plan.h"
#include "kernels/comm.h"
#include "workers/rehearse_predict.h"
#include "workers/rehearse_times.h"

struct rehearse_options {
    const struct plan_request *request; // borrowed, with its config
    const struct plan *plan;            // made from it, and fits; borrowed
    int stage, rank;
    const struct backend *backend;
    int n_threads;                      // of a CPU device; 0: chosen
    int context;                        // tokens that a sequence has when it decodes
    int gpu;                            // where it runs
    // With peers: this rank's of comm_cuda_create, borrowed. All ranks' threads make the same calls
    // with the same numbers, and repeat each step `repeats` times. NULL: alone, as often as fits.
    struct comm *comm;
    int repeats;
};

struct rehearsal;

// Bytes of the device, all at READY but `free_now`; where the driver shows none, zeros.
struct rehearse_memory {
    struct ledger planned, carved; // of the rank; `carved` has what was measured or taken instead
                                   // in the lines that a process does not carve
    struct ledger host_planned, host_carved;
    uint64_t arena_bytes;
    uint64_t stand_in; // of the collectives, among the line of the libraries that it replaces
    bool alone;        // the driver's context is told apart from other processes'
    uint64_t total, free_ready, free_now;
    bool heap_watched;
    uint64_t heap_calls;           // of this thread in the steps since READY
    double fill_s;                 // of weights and KV
};

// A step, or those of a prompt, at their median over `repeats`.
struct rehearse_time {
    int rows;
    double seconds;           // as a rank takes, from inputs to outputs, by the host's clock
    double pace;              // between the ends of steps that follow each other
    double layers;            // of it by the device's clock, between import and export
    double ops[REHEARSE_OPS]; // the device's, op by op, each given by the host
    int repeats;
    int experts;              // distinct ones in the last layer; 0: it has none
    bool shared_kv;           // sequences share blocks: the pool does not hold so many
};

// A rank's seconds without its collectives, or their stand-in.
struct rehearse_own rehearse_time_own(const struct rehearse_time *t);

// The device is opened and capped at the request's device_bytes, and filled. ERR_NOMEM
// does_not_fit; ERR_UNAVAILABLE no_device; ERR_STATE bad_ledger if what is carved is not what was
// planned.
enum status rehearse_open(struct rehearsal **r, const struct rehearse_options *o, struct error *e);
void rehearse_close(struct rehearsal **r);

enum status rehearse_memory(struct rehearsal *r, struct rehearse_memory *m, struct error *e);

// A step in which `rows` sequences, at most the plan's slots, decode a token at the end of their
// context.
enum status rehearse_decode(struct rehearsal *r, int rows, struct rehearse_time *t,
                            struct error *e);

// A prompt of `rows` tokens, at most the plan's context, in as many steps as the plan cuts it.
enum status rehearse_prefill(struct rehearsal *r, int rows, struct rehearse_time *t,
                             struct error *e);

#endif
