// One stage on one node: the ranks (threads) that hold its layers, and the ring of steps between
// them and the leader. The leader's thread calls everything here; rank threads only run inside.
// Steps go in and come out in order. Knows no sockets: the leader moves frames.
#ifndef PENSTOCK_WORKERS_STAGE_H
#define PENSTOCK_WORKERS_STAGE_H

#include "common/checkpoint.h"
#include "common/histogram.h"
#include "common/layout.h"
#include "common/manifest.h"
#include "common/ledger.h"
#include "kernels/backend.h"
#include "kernels/comm.h"
#include "workers/step.h"

#include <stdbool.h>
#include <stdint.h>

struct stage_options {
    const struct model_config *config;     // borrowed
    const struct checkpoint *checkpoint;   // borrowed until loading has ended
    const struct backend *backend;         // for sizes alone, with nothing but its kind
    int first, last;                       // layers
    bool head, tail;
    int tp;                                // ranks
    int gpu, n_gpus;                       // rank i is on GPU gpu + i, modulo n_gpus unless 0
    int n_threads;                         // of each rank's device; 0: chosen
    enum precision precision;
    uint64_t memory_bytes;                 // a rank's device; 0: what it has
    struct step_limits limits;
    int n_steps;                           // ring size
    int64_t collective_deadline_ms;        // 0: none
    struct comm_cuda_options sums;         // on GPUs; tp and deadline are those above
    struct manifest *manifest;             // compared with as it loads; NULL: none
    void *memory;                          // stage_memory_bytes, zeroed; outlives the stage
    void *staging;                         // stage_staging_bytes; the same
    void *comm;                            // stage_comm_bytes; the same, or NULL: the heap's
};

enum stage_state { STAGE_LOADING, STAGE_READY, STAGE_FAILED };

// A step's place in the ring. The leader fills `step` (expanded) and `in`, submits, and after
// stage_done reads `out` or `tokens` and releases.
struct stage_step {
    struct step step;
    const void *in;             // (n_rows, hidden) wire form; not on the head
    void *out;                  // (n_rows, hidden) wire form; not on the tail
    struct step_token *tokens;  // (n_out); tail only
    float *logits;              // (n_out, vocab); tail in score mode only
    int index;                  // of this place in the ring
};

struct stage;

// Bytes of the ring of steps in host memory; `memory` need not be there yet.
uint64_t stage_memory_bytes(const struct stage_options *o);

// Bytes of host memory that the checkpoint passes through.
uint64_t stage_staging_bytes(const struct stage_options *o);

// Bytes of host memory in which the ranks' collectives meet; 0 with one rank.
uint64_t stage_comm_bytes(const struct stage_options *o);

// Starts the rank threads, which lay out, check that it fits, load and report. The event descriptor
// (stage_fd) becomes readable when the state changes or a step is done.
enum status stage_create(struct stage **stage, const struct stage_options *options,
                         struct error *e);

// Also fills e when failed: the first rank's error.
enum stage_state stage_state(struct stage *s, struct error *e);

// An eventfd; the leader reads it before it looks at state and steps.
int stage_fd(const struct stage *s);

// Bytes of the stage's tensors that were packed so far, and of all (progress of loading).
void stage_progress(const struct stage *s, uint64_t *loaded, uint64_t *total);

// After READY: nanoseconds from when all ranks had their arenas until all was packed.
int64_t stage_load_ns(const struct stage *s);

// After READY: what was carved of a rank's device, line by line; and of the largest rank's.
struct ledger stage_rank_ledger(const struct stage *s, int rank);
struct ledger stage_ledger(const struct stage *s);

// After READY: what all ranks together pinned of the host's memory, beside that of the group.
struct ledger stage_host_ledger(const struct stage *s);

// Place i of the ring, 0 <= i < n_steps, whose buffers stay where they are.
struct stage_step *stage_place(struct stage *s, int i);

// What the ranks have done since stage_create.
struct stage_figures {
    uint64_t rows;
    struct histogram decode, prefill; // steps with one row of each sequence, and with more of any
    uint64_t busy_us[TP_MAX];         // of each rank
    uint64_t sampler_rows, sampler_fallbacks, sampler_hosted; // tail
};

void stage_figures(struct stage *s, struct stage_figures *to);

// The next free place of the ring, NULL if all are in use.
struct stage_step *stage_next(struct stage *s);

// Hands the place that stage_next gave to the ranks.
void stage_submit(struct stage *s);

// The oldest step if it is done, else NULL. ERR through *status if it failed: the stage is lost.
struct stage_step *stage_done(struct stage *s, enum status *status, struct error *e);

// Frees the oldest step's place, after stage_done.
void stage_release(struct stage *s);

// Whether the ranks have done all that was submitted, or have ended: nobody reads a step's `in` any
// more.
bool stage_idle(struct stage *s);

// Waits until the ranks are idle, then forgets steps and sequences: a new epoch. Weights stay.
void stage_reset(struct stage *s);

// What the system shows of a rank's thread, as in `top -H`; first: layer of the stage.
enum { STAGE_THREAD_NAME_MAX = 16 };
void stage_thread_name(char to[STAGE_THREAD_NAME_MAX], int first, int rank);

// Bytes of a row's activations between stages.
size_t stage_row_bytes(const struct model_config *c, enum precision p);

// Ends the threads (aborting collectives) and frees everything.
void stage_destroy(struct stage **stage);

#endif
