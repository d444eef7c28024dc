// One rank's forward pass over one step: from ids (head) or activations to activations or chosen
// tokens (tail). Owns the rank's activation buffers, KV pool, step inputs and sampler, all inside
// the arena. Called by the rank's thread only; allocates nothing after init. Knows no sockets.
#ifndef PENSTOCK_WORKERS_FORWARD_H
#define PENSTOCK_WORKERS_FORWARD_H

#include "common/carve.h"
#include "kernels/backend.h"
#include "kernels/comm.h"
#include "kernels/sampler.h"
#include "workers/step.h"
#include "workers/weights.h"

struct forward {
    const struct model_config *config;
    const struct weights *weights;
    const struct backend *backend;
    struct device *device;
    struct comm *comm; // of activations
    void *comm_memory, *comm_pinned; // the device's and the host's, for `comm`
    struct step_limits limits;
    enum precision precision;
    struct attention_shape attention;
    struct step_inputs inputs; // of the bucket of the step at hand
    int32_t *rows, *host_rows; // (RANK_ROW_ARRAYS, rows) the inputs; where they are put together
    int most_recorded;         // rows of the largest recorded step; 0: none is; once prepared
    char *kv;             // (layers) of kv_layer_bytes
    uint64_t kv_layer_bytes;
    float *x;             // (rows, hidden) the residual stream
    void *h;              // (rows, hidden) act
    float *q_a;           // (rows, q_lora)
    void *q_a_normed;     // (rows, q_lora) act
    float *q;             // (rows, heads, nope + rope)
    float *c;             // (rows, kv_lora + rope)
    float *cos_sin;       // (rows, rope/2, 2)
    float *q_abs, *o_lat; // (rows, heads, kv_lora)
    float *o_v;           // (rows, heads, v)
    float *y, *y_shared;  // (rows, hidden)
    float *gate, *up;     // (rows, widest FFN part)
    void *act;            // (rows, widest FFN part) act
    int32_t *chosen;      // (rows, n_chosen)
    float *expert_weight; // (rows, n_chosen)
    float *out_x;         // (max_out, hidden)
    void *out_h;          // (max_out, hidden) act
    float *logits;        // (max_out, vocab part); tail only
    void *on_device;      // the sampler's, where the host does not read logits; tail only
    int32_t *out_slot, *out_pos; // (max_out) host
    struct sampler *sampler;     // tail only
    struct sampled *sampled;     // (max_out) host; tail only
};

// Lays the buffers out in `carve`, and what the host reads in `host` (common/rank_layout.h); called
// twice like weights_layout. All but pointers is set by the first call. The scratch is given and
// the sampler made by the real pass. `comm` takes the device's memory, `host_comm` the host's.
void forward_layout(struct forward *f, const struct weights *weights, const struct backend *backend,
                    struct device *device, struct comm *comm, struct comm *host_comm,
                    enum precision precision, const struct step_limits *limits,
                    struct carve *carve, struct carve *host);

// KV of the i-th of the rank's layers.
static inline struct kv_layer forward_kv_layer(const struct forward *f, int i)
{
    return (struct kv_layer){.pool = f->kv + (uint64_t) i * f->kv_layer_bytes,
                             .n_blocks = f->limits.n_blocks,
                             .fp8 = f->limits.fp8_kv};
}

// Once, after the weights: runs a step of padding for each row bucket, as ops may take memory of
// the device where they run first, and records the buckets of decode steps. All ranks together;
// nothing where the device records no steps. Errors: as of forward_run.
enum status forward_prepare(struct forward *f, struct error *e);

// Puts one expanded step on the device: a tail's as far as its layers go, any other's whole. The
// host waits for nothing: it is done after the device's sync or the step's end (backend.h). Else as
// forward_run.
enum status forward_begin(struct forward *f, const struct step *step, const void *in, void *out,
                          struct error *e);

// Whether the next step may be begun before this one has ended. The ranks of a tail meet while they
// choose tokens: one whose device has the next step could wait there for one that has not begun it.
bool forward_overlaps(const struct forward *f);

// What the step after the one that was begun brings from the stage before (`in`) begins to come, if
// the device can have it ahead. Once for a step, which is begun next.
void forward_ahead(struct forward *f, const struct step *step, const void *in);

// On the tail, once the step that was begun before this one has its tokens, and before the next one
// is begun: puts the step's logits on the device, too.
void forward_logits(struct forward *f, const struct step *step);

// On the tail: waits for the logits and chooses tokens (n_out). Steps are chosen for in order; the
// next one may have been begun, if this runs apart from it (backend.h).
enum status forward_choose(struct forward *f, const struct step *step, struct error *e);

// Runs one expanded step. `in`: (n_rows, hidden) in wire form, unused on the head. `out`: (n_rows,
// hidden) in wire form, written if this is not the tail and `out` is not NULL (rank 0 only needs
// it). On the tail tokens (n_out) are chosen; the same on every rank. Errors: ERR_ABORTED,
// ERR_TIMEOUT from the collectives, device faults from sync.
enum status forward_run(struct forward *f, const struct step *step, const void *in, void *out,
                        struct error *e);

// After forward_run or forward_choose on the tail: the chosen tokens of the step, in order of its
// out rows.
void forward_tokens(const struct forward *f, const struct step *step, struct step_token *tokens);

void forward_deinit(struct forward *f);

#endif
