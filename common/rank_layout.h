// What a rank's device holds beside its weights: KV pool, buffers of a step, logits, sampler and
// the kernels' scratch, in the order in which they are carved. The one list from which the plan
// counts bytes and workers/forward.c takes its memory. Pure; any thread.
#ifndef PENSTOCK_COMMON_RANK_LAYOUT_H
#define PENSTOCK_COMMON_RANK_LAYOUT_H

#include "common/carve.h"
#include "common/device_sizes.h"
#include "common/layout.h"
#include "common/sampler_sizes.h"

#include <stdbool.h>
#include <stdint.h>

struct rank_shape {
    const struct model_config *config;
    struct placement place;
    enum device_kind device;
    bool f32;    // exact mode
    bool fp8_kv; // KV is in FP8, else f32 in exact mode, else bf16
    int slots, max_blocks, n_blocks, max_rows, max_out;
};

// Shapes: workers/forward.h. Those from RANK_OUT_X on are the last stage's.
enum rank_buffer {
    RANK_KV,
    RANK_ROWS, RANK_HOST_ROWS, RANK_BLOCKS, // a step's rows, and where the host puts them together
    RANK_X, RANK_H, RANK_Q_A, RANK_Q_A_NORMED, RANK_Q, RANK_C, RANK_COS_SIN, RANK_Q_ABS, RANK_O_LAT,
    RANK_O_V, RANK_Y, RANK_Y_SHARED, RANK_GATE, RANK_UP, RANK_ACT, RANK_CHOSEN, RANK_EXPERT_WEIGHT,
    RANK_SCRATCH, RANK_COMM,
    RANK_COMM_PINNED, // the host's, for devices that reach it
    RANK_OUT_X, RANK_OUT_H, RANK_OUT_SLOT, RANK_OUT_POS, RANK_SAMPLED,
    RANK_LOGITS, RANK_SAMPLER, // what the sampler has on a device that the host does not read
    N_RANK_BUFFERS,
};

enum { RANK_ROW_ARRAYS = 4 }; // of i32 in RANK_ROWS: ids, positions, slots, rows with logits

enum { RANK_SAMPLED_BYTES = 12 + 8 * LOGPROBS_MAX }; // a chosen token with its alternatives

// Carves all buffers, then the sampler: `at` (N_RANK_BUFFERS) gets their addresses and `sampler`
// its memory (sampler_bytes); NULL while counting, and for what the stage does not have. What the
// host reads comes from `host`, which is `c` where the host reads the device's memory.
void rank_carve(const struct rank_shape *s, struct carve *c, struct carve *host,
                void *at[N_RANK_BUFFERS], void **sampler);

// What a rank holds of the host's memory beside its device: the parts that the host reads, and
// what the open device copies through. Nothing where the host reads the device's memory.
struct ledger rank_host_ledger(const struct rank_shape *s);

// Of the pool of one layer.
uint64_t rank_kv_layer_bytes(const struct rank_shape *s);

// Of one KV block in n layers.
uint64_t rank_kv_block_bytes(const struct model_config *c, int n_layers, bool f32, bool fp8_kv);

// Columns of the rank's widest dense or shared FFN; at least 1.
int rank_ffn_width(const struct model_config *c, const struct placement *p);

struct scratch_shape rank_scratch_shape(const struct rank_shape *s);
struct sampler_shape rank_sampler_shape(const struct rank_shape *s);

#endif
