// Bytes of a stage's largest rank, for any range of layers: the arithmetic that plan.c and
// plan_split.c decide by. Pure; no heap; one init, then any thread. Exact for weights and KV; the
// buffers follow the forward pass; scratch and sampler are upper bounds by stated formulas, since
// the kernels lie above this folder (a group checks the exact sum again when it carves its arena).
#ifndef PENSTOCK_COMMON_PLAN_COST_H
#define PENSTOCK_COMMON_PLAN_COST_H

#include "common/plan.h"

#include <stdbool.h>
#include <stdint.h>

// What stages are made of. All dense layers are alike, and so are all layers with experts.
enum plan_part { PART_HEAD, PART_DENSE, PART_MOE, PART_TAIL, N_PARTS };

struct plan_limits {
    int slots, max_context, max_blocks, max_rows, max_out;
    bool f32;
    uint64_t reserve;
};

// Layers [first, last) and what else the stage has.
struct plan_stage {
    int first, last;
    bool head, tail;
};

struct plan_cost {
    const struct model_config *config; // borrowed
    int tp;
    int n_ranks;                          // without those that another outweighs in every part
    uint64_t weights[TP_MAX][N_PARTS];    // (n_ranks)
    uint64_t packing[N_PARTS];            // what the kernels' form of the weights adds, at most
    uint64_t kv_layer_block;              // of one KV block in one layer
    struct plan_ledger rest[2][2][2][2];  // [head][dense][moe][tail] all but weights and KV
};

// Counts once; plan_cost_limits fills `rest` and may be called again for other limits.
void plan_cost_init(struct plan_cost *c, const struct model_config *config, int tp);
void plan_cost_limits(struct plan_cost *c, const struct plan_limits *limits);

// The sum of the ledger of plan_cost_ledger. More layers never cost less.
uint64_t plan_cost_bytes(const struct plan_cost *c, const struct plan_stage *s, int64_t kv_blocks);

struct plan_ledger plan_cost_ledger(const struct plan_cost *c, const struct plan_stage *s,
                                    int64_t kv_blocks);

// Bytes of one KV block in n layers.
uint64_t plan_cost_block(const struct plan_cost *c, int n_layers);

#endif
