// Bytes of a stage's ranks, for any range of layers: the arithmetic that plan.c and plan_split.c
// decide by. Exact: it counts with the same lists by which ranks carve (packed.h, rank_layout.h).
// Pure; no heap; one init, then any thread.
#ifndef PENSTOCK_COMMON_PLAN_COST_H
#define PENSTOCK_COMMON_PLAN_COST_H

#include "common/device_sizes.h"
#include "common/layout_types.h"
#include "common/ledger.h"

#include <stdbool.h>
#include <stdint.h>

// Kinds of layers: those with the same FFN and the same types are alike.
enum { PLAN_KINDS_MAX = 32 };

struct plan_limits {
    int slots, max_blocks, max_rows, max_out;
    bool f32, fp8_kv;
    uint64_t reserve;
    uint64_t context; // 0: the allowance for the device
};

// Layers [first, last) and what else the stage has.
struct plan_stage {
    int first, last;
    bool head, tail;
};

struct plan_source {
    const struct model_config *config; // borrowed
    const struct layout_types *types;  // borrowed
    enum device_kind device;
    int tp;
    bool mtp; // the last stage also has the layers of multi-token prediction
};

// Of one part of the model on one rank.
struct part_bytes {
    uint64_t weights, scales, packing;
};

struct plan_cost {
    struct plan_source source;
    struct plan_limits limits;
    int n_kinds;
    int like[PLAN_KINDS_MAX]; // a layer of the kind
    uint16_t n_before[PLAN_KINDS_MAX][MODEL_LAYERS_MAX + 1]; // layers of the kind below this one
    struct part_bytes kinds[PLAN_KINDS_MAX][TP_MAX];
    struct part_bytes head[TP_MAX], tail[TP_MAX];
    struct part_bytes mtp[TP_MAX], mtp_embed[TP_MAX]; // the latter where the stage has no embedding
    uint64_t rest[2][2][2][TP_MAX]; // [dense][moe][tail] all but weights, MTP and KV
    uint64_t block_layer;           // of one KV block in one layer
    int n_ranks;                    // without those that another outweighs in every part
    int ranks[TP_MAX];
};

// Counts the weights. plan_cost_limits counts the rest and may be called again for other limits.
// ERR_LIMIT bad_plan where the layers are of more than PLAN_KINDS_MAX kinds.
enum status plan_cost_init(struct plan_cost *c, const struct plan_source *source, struct error *e);
void plan_cost_limits(struct plan_cost *c, const struct plan_limits *limits);

// The total of the ledger of the stage's largest rank. More layers never cost less.
uint64_t plan_cost_bytes(const struct plan_cost *c, const struct plan_stage *s, int64_t kv_blocks);

// The ledger of one rank, and of the largest.
struct ledger plan_cost_rank(const struct plan_cost *c, const struct plan_stage *s, int rank,
                             int64_t kv_blocks);
struct ledger plan_cost_ledger(const struct plan_cost *c, const struct plan_stage *s,
                               int64_t kv_blocks);

// Weights as the checkpoint has them, scales and MTP included: of the rank that has most of them.
uint64_t plan_cost_weights(const struct plan_cost *c, const struct plan_stage *s);

// Bytes of one KV block in the stage.
uint64_t plan_cost_block(const struct plan_cost *c, const struct plan_stage *s);

#endif
