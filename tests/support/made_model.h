// Checkpoints that tests make from a config: every tensor that the layout names, with small values
// that a seed gives. Tests only.
#ifndef PENSTOCK_TESTS_MADE_MODEL_H
#define PENSTOCK_TESTS_MADE_MODEL_H

#include "common/checkpoint.h"

// DeepSeek-V3's architecture with a few thousand parameters: one dense layer, `layers` - 1 with
// experts. Its vocabulary is 64 ids, its context 256.
struct made_shape {
    int layers, hidden, heads, experts;
    int q_lora;       // 0: none
    enum dtype dtype; // F32, BF16, or F8_E4M3: matrices with block scales, the rest BF16
};

// Writes config.json and model.safetensors into the folder `dir`; ends the test if that fails.
void made_model_write(const char *dir, const struct made_shape *shape);

#endif
