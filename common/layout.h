// Which tensors a rank holds and which slice of each: the one list from which the plan counts bytes
// and the loader copies them. Pure; any thread.
#ifndef PENSTOCK_COMMON_LAYOUT_H
#define PENSTOCK_COMMON_LAYOUT_H

#include "common/checkpoint.h"
#include "common/model_config.h"

#include <stddef.h>
#include <stdint.h>

// Where a rank stands: layers [first, last) of the pipeline, rank tp_rank of tp.
struct placement {
    int first, last; // layers
    bool head, tail; // holds the embedding / the final norm and lm_head
    int tp_rank, tp;
};

// A half-open range.
struct range {
    int64_t begin, n;
};

// How tensor parallelism cuts a tensor.
enum cut {
    CUT_NONE, // replicated
    CUT_ROWS, // by output row
    CUT_COLS, // by input column
};

// What a tensor is to the model. Experts have one entry each.
enum role {
    ROLE_EMBED, ROLE_FINAL_NORM, ROLE_LM_HEAD,
    ROLE_INPUT_NORM, ROLE_POST_NORM,
    ROLE_Q, ROLE_Q_A, ROLE_Q_A_NORM, ROLE_Q_B, ROLE_KV_A, ROLE_KV_A_NORM, ROLE_KV_B, ROLE_O,
    ROLE_GATE, ROLE_UP, ROLE_DOWN,                      // dense
    ROLE_ROUTER, ROLE_ROUTER_BIAS,
    ROLE_EXPERT_GATE, ROLE_EXPERT_UP, ROLE_EXPERT_DOWN, // routed, `expert` says which
    ROLE_SHARED_GATE, ROLE_SHARED_UP, ROLE_SHARED_DOWN,
    ROLE_MTP_TOKEN_NORM, ROLE_MTP_HIDDEN_NORM, ROLE_MTP_PROJECTION, ROLE_MTP_FINAL_NORM,
    N_ROLES,
};

struct slice {
    char name[TENSOR_NAME_MAX];
    enum role role;
    int layer;          // -1 outside layers
    int expert;         // -1 if not a routed expert
    int64_t rows, cols; // of the whole tensor; vectors have cols = 1
    enum cut cut;
    struct range row, col; // this rank's part
    bool quantized;        // stored as e4m3 with a `_scale_inv` companion in an FP8 checkpoint
};

// The part of n that belongs to rank of tp: contiguous, sizes differ by at most one, earlier ranks
// take the larger parts.
struct range layout_part(int64_t n, int rank, int tp);

// Refuses a tp that the architecture can't be cut by: tp must divide n_heads and
// moe_intermediate_size (where there are experts), and may not exceed the vocabulary or the dense
// intermediate size. ERR_INPUT bad_tp.
enum status layout_check_tp(const struct model_config *c, int tp, struct error *e);

// All layers, embedding and head on one rank.
struct placement layout_whole(const struct model_config *c);

// Walks the slices of a placement in loading order: embedding, layers ascending, final norm,
// lm_head. The layers of multi-token prediction are not walked. `visit` returns OK to go on;
// anything else ends the walk and is returned.
typedef enum status layout_visit(const struct slice *s, void *arg);
enum status layout_walk(const struct model_config *c, const struct placement *p,
                        layout_visit *visit, void *arg);

// The same for one layer of multi-token prediction, n_layers or beyond: what stands before its
// decoder layer, the layer, its final norm. `copies`: also the embedding and the head that the
// checkpoint repeats there.
enum status layout_walk_mtp(const struct model_config *c, const struct placement *p, int layer,
                            bool copies, layout_visit *visit, void *arg);

// Whether a slice is a vector or the router, which every device keeps as f32.
bool layout_is_vector(const struct slice *s);

// Gives the slice the part of another rank.
void layout_cut(const struct model_config *c, struct slice *s, int tp_rank, int tp);

// The type that the config implies where there is no checkpoint to ask.
enum dtype layout_implied_type(const struct model_config *c, const struct slice *s);

// Bytes of a slice in the checkpoint's own format: elements plus the scales of every block that it
// touches (a cut through a block: both ranks hold that block's scale); of the implied type.
uint64_t layout_slice_bytes(const struct model_config *c, const struct slice *s);

// The same where the type is known: a matrix of an FP8 checkpoint may be stored unquantised.
uint64_t layout_slice_bytes_as(const struct model_config *c, const struct slice *s,
                               enum dtype dtype);

// Whether the checkpoint holds what the config implies: every tensor of the whole model, of the
// right shape and a type that can be loaded, FP8 ones with their scales, and nothing else in the
// model but layers of multi-token prediction. ERR_INPUT or ERR_UNSUPPORTED bad_checkpoint names the
// tensor, what it is and what was expected.
enum status layout_check_checkpoint(const struct model_config *c,
                                    const struct checkpoint *checkpoint, struct error *e);

// Scale blocks of a range: which rows (or columns) of the scale matrix it touches.
struct range layout_blocks(struct range r, int block);

#endif
