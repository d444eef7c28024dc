// Checkpoints made up from a few sizes, with every tensor that the layout names and values that a
// generator gives: for benchmarks that want a large one, and tests that want a small one. Knows
// nothing of what they are loaded into.
#ifndef PENSTOCK_TOOLS_MADE_MODEL_H
#define PENSTOCK_TOOLS_MADE_MODEL_H

#include "common/checkpoint.h"

// DeepSeek-V3's architecture: one dense layer (2 x hidden wide), `layers` - 1 with experts (2
// chosen) and a shared one. Sizes that are 0 are as small as the kernels allow.
struct made_shape {
    int layers, hidden, heads, experts, moe_intermediate;
    int q_lora;       // 0: none
    int kv_lora, nope, rope, v;
    int vocab, context;
    enum dtype dtype; // F32, BF16, or F8_E4M3: matrices with block scales, the rest BF16
};

// Writes config.json and model.safetensors into the folder `dir`. ERR_IO.
enum status made_model_write(const char *dir, const struct made_shape *shape, struct error *e);

#endif
