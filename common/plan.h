// The plan: how a model is cut into stages and what each rank then holds, in bytes, before anything
// is loaded. Pure arithmetic from the config (and what the devices have); any thread.
#ifndef PENSTOCK_COMMON_PLAN_H
#define PENSTOCK_COMMON_PLAN_H

#include "common/device_rates.h"
#include "common/device_sizes.h"
#include "common/layout_types.h"
#include "common/ledger.h"
#include "common/limits.h"
#include "common/model_config.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { PLAN_HASH_SIZE = 33, PLAN_LAYERS_TEXT_MAX = PP_MAX * 5 };

struct plan_cost;

struct plan_request {
    const struct model_config *config;
    const struct layout_types *types; // NULL: those that the config implies
    enum device_kind device;
    int pp, tp;
    int layers[PP_MAX];            // of each stage; layers[0] == 0: chosen here
    uint64_t device_bytes[PP_MAX]; // of the smallest device of each stage's group
    bool f32;                      // exact mode: activations and KV are f32, else bf16
    bool fp8_kv;                   // KV is in FP8, in exact mode, too
    bool score;                    // logits of every row travel back
    bool mtp;                      // the last stage has the layers of multi-token prediction
    const struct device_rates *rates[PP_MAX]; // of each stage's devices; rates[0] NULL: no times
    bool for_time;                 // the fastest slowest stage, before the most KV blocks
    // 0: chosen here
    int slots, max_context, max_rows, chunk, max_out, steps_in_flight, kv_blocks;
    uint64_t reserve;              // bytes of each device left alone
    uint64_t context;              // of the driver, measured; 0: the allowance for the device
};

struct plan {
    int pp, tp;
    int layers[PP_MAX], first[PP_MAX];
    int kv_blocks;       // of the pool: the same in every stage
    int slots;
    int max_context;     // tokens of one sequence: prompt and output
    int max_blocks;      // ceil(max_context / KV_BLOCK_ROWS)
    int max_rows, chunk, max_out, steps_in_flight;
    struct ledger stages[PP_MAX];    // of the largest rank
    uint64_t weight_bytes[PP_MAX];   // as the checkpoint has them: of the rank with most of them
    uint64_t kv_block_bytes[PP_MAX]; // of one block in one stage
    int64_t kv_room[PP_MAX];         // blocks that each stage's devices have room for
    double step_s[PP_MAX];           // predicted, of a step of one row a slot; 0 without rates
    bool fits;
    char reason[ERROR_TEXT_SIZE]; // why it does not fit; else what had to be lowered and how much
                                  // of the pool no slot can use, or empty
};

// Chooses the layers that maximise KV blocks (ties: the smallest largest rank, then earlier stages
// take more layers), or those whose slowest stage is fastest in a step in which every slot decodes
// a token, halfway through max_context (ties: as above); and limits that fit. More blocks than
// slots * max_blocks are of no use and not counted. What the request leaves open is 32 slots (on
// GPUs, or where kv_blocks is pinned, more, up to the rows of a step, so that all memory or all of
// the pool is used), 512 rows a step and 4096 tokens a sequence (the model's positions, if fewer);
// where memory is short, slots and rows are halved first, then the sequence is cut. It fits if a
// sequence of max_context does; where max_context and kv_blocks are both pinned, the pool must hold
// one. OK also when it does not fit: see p->fits; kv_blocks and the ledgers then say what was
// wanted. ERR_INPUT bad_plan (layers that do not add up, more stages than layers, a limit out of
// its bounds), bad_tp; ERR_LIMIT bad_plan (plan_cost_init).
enum status plan_make(struct plan *p, const struct plan_request *r, struct error *e);

// Whether any limits that the request leaves open make it fit. `cost` was counted for the request's
// config, types, device, tp and mtp; its limits change.
bool plan_would_fit(const struct plan_request *r, struct plan_cost *cost);

// The ledger of one rank of a stage of a plan made from this request: what it carves, line by line.
struct ledger plan_rank_ledger(const struct plan *p, const struct plan_request *r, int stage,
                               int rank);

// KV blocks that there is room for in every stage.
int64_t plan_kv_room(const struct plan *p);

// "17,15,15,14". PLAN_LAYERS_TEXT_MAX bytes are room for any plan.
void plan_print_layers(const struct plan *p, char *text, size_t n);

// XXH3-128, hex, of everything that stages must agree on: model manifest hash, layers, limits,
// precision, KV.
void plan_hash(const struct plan *p, const char *model_hash, bool f32, bool fp8_kv,
               char hash[PLAN_HASH_SIZE]);

#endif
