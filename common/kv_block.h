// How a block of KV lies in a layer's pool: KV_BLOCK_ROWS rows, each with the latent's and the rope
// key's values. As activations have them (f32, bf16) rows lie one behind the other, latent first.
// In FP8 a block has three parts: all rows' latents in e4m3; their rope keys in bf16; and for each
// row an f32 scale for every KV_SCALE_VALUES values of its latent. Scales are powers of two, which
// cost e4m3 no precision, so that bf16 has the same values; or NaN, where a value was no number.
// DeepSeek-V3: 512 + 128 + 16 bytes a row. Pure; any thread.
#ifndef PENSTOCK_COMMON_KV_BLOCK_H
#define PENSTOCK_COMMON_KV_BLOCK_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    KV_SCALE_VALUES = 128, // of a latent that share a scale
    KV_SCALE_MOST = 128,   // of a scale: values beyond 448 times as much become that
};

// Of a block in FP8: scales of a row, where its parts begin (latents: 0), and all its bytes.
struct kv_block {
    int n_scales;
    uint64_t rope, scales, bytes;
};

struct kv_block kv_block_fp8(int kv_lora, int rope);

// Bytes of a block. f32: of what activations are; only without FP8.
uint64_t kv_block_bytes(int kv_lora, int rope, bool f32, bool fp8);

// As --kv has it: "fp8", or "bf16", which is f32 where activations are. ERR_INPUT bad_usage.
enum status kv_parse(const char *text, bool *fp8, struct error *e);

// "fp8", "bf16" or "f32".
const char *kv_name(bool f32, bool fp8);

#endif
