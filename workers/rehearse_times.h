// Times of a rank's step on its device: a backend that passes every op on to another and puts marks
// between them, either around all layers together or, op by op, from an op's begin to the next
// one's. One rank's thread at a time.
#ifndef PENSTOCK_WORKERS_REHEARSE_TIMES_H
#define PENSTOCK_WORKERS_REHEARSE_TIMES_H

#include "kernels/measures.h"
#include "workers/weights.h"

enum rehearse_op {
    REHEARSE_INPUTS,    // ids, positions, tables to the device
    REHEARSE_IMPORT,    // activations of the stage before; the embedding on the head
    REHEARSE_NORM,      // with the sum before it
    REHEARSE_Q_A, REHEARSE_Q, REHEARSE_KV_A,
    REHEARSE_ROPE,      // angles and rotation
    REHEARSE_KV_WRITE,
    REHEARSE_ABSORB,    // W_UK into q
    REHEARSE_MLA,
    REHEARSE_UNABSORB,  // W_UV out of the latents
    REHEARSE_O,
    REHEARSE_REDUCE,    // the stand-in of all-reduce
    REHEARSE_ADD,
    REHEARSE_ROUTE, REHEARSE_MOE,
    REHEARSE_FFN,       // dense or shared: gate, up, SiLU, down
    REHEARSE_HEAD,      // final rows and their logits
    REHEARSE_OUTPUTS,   // to the host: logits and the sampler, or the next stage's activations
    REHEARSE_OPS,
};

const char *rehearse_op_name(enum rehearse_op op);

struct rehearse_times {
    struct backend table; // for forward; `real` with ops that mark
    const struct backend *real;
    const struct measures *measures;
    const struct weights *weights;
    struct device *device;
    struct marks *marks;
    uint8_t *ops;         // (max) of each mark
    int n, max;
    bool on;              // op by op; else only the layers have marks
};

// `weights` are laid out later. After it this thread's calls of t->table's ops belong to `t`.
enum status rehearse_times_create(struct rehearse_times *t, const struct backend *real,
                                  const struct measures *measures, struct device *device,
                                  const struct weights *weights, int n_layers, struct error *e);
void rehearse_times_destroy(struct rehearse_times *t);

// The next marks are of a step; the stream is held until the host has given it that step.
void rehearse_times_begin(struct rehearse_times *t);

// After the step's sync: adds the seconds of each op to `to`.
void rehearse_times_end(struct rehearse_times *t, double to[REHEARSE_OPS]);

// A step whose ops are not marked begins; after its sync, seconds of what lies between the import
// of its rows and the export.
void rehearse_times_layers_begin(struct rehearse_times *t);
double rehearse_times_layers(struct rehearse_times *t);

// Marks the begin of an op that is not the backend's.
void rehearse_times_mark(struct rehearse_times *t, enum rehearse_op op);

#endif
