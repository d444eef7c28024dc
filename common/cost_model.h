// How long a stage takes for a step: bytes read and operations done by each kind of layer, the
// larger of the two at the device's rates, and the collectives. Pure arithmetic from config and
// layout; one init, then any thread. Knows no kernels and no clock: what really was is measured
// elsewhere (workers/pace.h).
//
// A rank, a step of b rows (sources: DeepSeek-V3's report and inference/model.py; the roofline
// model of Williams et al. 2009):
//   a group of matrices   max(bytes / read, 2 b elements / gemm)
//   routed experts        E (1 - (1 - k/E)^b) distinct ones are touched when tokens choose
//                         uniformly; their bytes are read once, and each row multiplies with k
//   attention             absorbed MLA: 2 heads (2 kv_lora_rank + rope) operations for each row and
//                         position it sees; max(KV bytes / read, operations / attention)
//   all-reduce            after o and after down, of b * hidden values, and after the embedding
#ifndef PENSTOCK_COMMON_COST_MODEL_H
#define PENSTOCK_COMMON_COST_MODEL_H

#include "common/device_rates.h"
#include "common/model_config.h"
#include "common/plan_cost.h"

#include <stdbool.h>
#include <stdint.h>

// How the model runs.
struct cost_form {
    int tp;
    int kv_ranks;  // ranks that share out a sequence's KV; 1: each has all of it
    bool f32;      // exact mode: activations are f32, else bf16; KV likewise
    bool fp8_gemm; // FP8 weights are multiplied as FP8, else as the activations are
    bool fp8_kv;   // KV is in FP8 (kv_block.h)
};

// What a step holds. Sums over its runs; a run is consecutive rows of one sequence.
struct cost_step {
    double rows;
    double context; // over rows: positions that each sees, itself included
    double kv_rows; // over runs: KV rows that are read, which is what its last row sees
    double out;     // rows with logits
};

// A group of matrices on a rank.
struct cost_matrices {
    double bytes, elements;
};

struct cost_model {
    struct cost_form form;
    int n_layers, n_dense, n_experts, experts_per_token;
    double hidden, value_bytes;  // of an activation
    double kv_row_bytes;         // of one row in one layer
    double attention_flops;      // of one row and one position in one layer
    bool fp8;                    // the checkpoint is
    struct cost_matrices attention, dense, shared, expert, tail; // shared: with the router
};

// Of the largest rank.
struct stage_cost {
    double seconds;
    double weight_bytes, kv_bytes;
    double gemm_flops, attention_flops;
    double weight_seconds, attention_seconds, reduce_seconds, fixed_seconds; // seconds' parts
    double read_seconds, gemm_seconds; // of weights; weight_seconds takes the larger in each group
};

// `form->tp` is one that layout_check_tp takes.
void cost_model_init(struct cost_model *m, const struct model_config *config,
                     const struct cost_form *form);

// n rows at positions [pos, pos + n) of a sequence, `out` of them with logits.
void cost_step_add(struct cost_step *s, int pos, int n, int out);

// Distinct experts, of E with k a token, that b tokens touch.
double cost_experts_touched(int experts, int per_token, double rows);

struct stage_cost cost_stage(const struct cost_model *m, const struct plan_stage *stage,
                             const struct device_rates *rates, const struct cost_step *step);

// Seconds from a stage's last byte to the next stage having the step; nothing is computed then, but
// other steps may be.
double cost_link(const struct cost_model *m, const struct device_rates *rates,
                 const struct cost_step *step);

#endif
