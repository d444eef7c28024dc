// One rank's weights: its slices of the checkpoint, copied once into its arena in the backend's
// packed layout. Laid out here and filled by pack.h, in the rank's thread; immutable afterwards.
// Knows no steps and no peers.
#ifndef PENSTOCK_WORKERS_WEIGHTS_H
#define PENSTOCK_WORKERS_WEIGHTS_H

#include "common/carve.h"
#include "common/checkpoint.h"
#include "common/layout.h"
#include "common/model_config.h"
#include "kernels/backend.h"

#include <stdint.h>

struct layer {
    const float *input_norm, *post_norm; // (hidden)
    const float *q_a_norm;               // (q_lora_rank); NULL without q_lora
    const float *kv_a_norm;              // (kv_lora_rank)
    struct matrix q_a;                   // (q_lora_rank, hidden); with q_lora only
    struct matrix q; // q_b or q_proj: (heads * (nope+rope), q_lora_rank | hidden)
    struct matrix kv_a;                  // (kv_lora + rope, hidden)
    struct matrix *uk;                   // (heads) of (kv_lora, nope): W_UK transposed
    struct matrix *uv;                   // (heads) of (v, kv_lora)
    struct matrix o;                     // (hidden, heads * v)
    bool dense;
    struct matrix gate, up, down;        // dense FFN, or the shared experts
    struct router router;                // MoE layers
    struct expert *experts;              // (n_routed_experts)
};

struct weights {
    const struct model_config *config; // borrowed
    struct placement place;
    int n_heads;                       // of this rank
    struct range vocab;                // ids of this rank's embedding and lm_head slices
    const void *embed;                 // (vocab.n, hidden) embed_dtype; head stage only
    enum dtype embed_dtype;            // BF16 or F32
    const float *final_norm;           // (hidden); tail stage only
    struct matrix lm_head;             // (vocab.n, hidden); tail stage only
    const float *inv_freq;             // (rope/2)
    float rope_multiplier;
    struct layer *layers;              // (last - first), host memory owned by this struct
    void *tables;                      // the matrix tables of all layers, owned
};

// Lays the weights out: fills every shape and, where `carve` has memory, every pointer. Called
// twice (counting, then real); both passes carve the same bytes. The first call allocates the
// tables. `checkpoint` NULL: types are those that the config implies. Errors: ERR_INPUT
// bad_checkpoint where a tensor is missing or has an unsupported type.
enum status weights_layout(struct weights *w, const struct model_config *config,
                           const struct placement *place, const struct checkpoint *checkpoint,
                           const struct backend *backend, struct carve *carve, struct error *e);

// Where a slice of this rank goes. The matrix: NULL for vectors, the embedding, the router and
// kv_b. The f32 vector: NULL for everything else. The layer: NULL outside layers.
struct matrix *weights_matrix(struct weights *w, const struct slice *s);
const float **weights_vector(struct weights *w, const struct slice *s);
struct layer *weights_layer(struct weights *w, const struct slice *s);

void weights_deinit(struct weights *w);

#endif
