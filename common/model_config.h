// The architecture of a DeepSeek-V3 checkpoint, read from config.json: every value that the model's
// arithmetic depends on, and nothing else. Immutable after load; any thread. Knows no files'
// contents but config.json's.
#ifndef PENSTOCK_COMMON_MODEL_CONFIG_H
#define PENSTOCK_COMMON_MODEL_CONFIG_H

#include "common/checkpoint.h"
#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    EOS_IDS_MAX = 8,
    SCALE_BLOCK = 128, // rows and columns that share one scale in an FP8 checkpoint
};

// YaRN (deepseek-v3.md): `enabled` false means plain RoPE.
struct rope_scaling {
    bool enabled;
    double factor, beta_fast, beta_slow, mscale, mscale_all_dim;
    int original_max_position_embeddings;
};

struct model_config {
    int vocab_size, hidden_size, n_layers; // n_layers: without the MTP layers
    int n_mtp_layers;                      // num_nextn_predict_layers
    int n_dense_layers; // first_k_dense_replace: layers [0, n_dense) have a dense FFN; <= n_layers
    int intermediate_size, moe_intermediate_size;
    int n_routed_experts, n_shared_experts, n_experts_per_token;
    int n_expert_groups, n_groups_per_token; // n_group, topk_group
    bool norm_topk_prob;
    double routed_scaling_factor;
    int n_heads;
    int q_lora_rank; // 0: no q_a/q_b, but one q_proj
    int kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    double rms_norm_eps, rope_theta;
    struct rope_scaling rope;
    int max_position_embeddings;
    int bos_id; // -1: none
    int eos_ids[EOS_IDS_MAX], n_eos_ids;
    enum dtype plain_type; // of what is not FP8, as far as the config tells: torch_dtype, else BF16
    bool fp8;        // quantization_config: e4m3, block scales
    int scale_block; // SCALE_BLOCK
};

// Reads `path` (a config.json, or a directory that holds one). Also generation_config.json beside
// it for further EOS ids. Errors: ERR_IO; ERR_INPUT bad_config with the key, its value and what was
// expected; ERR_UNSUPPORTED names the value that isn't supported (model_type, scoring_func,
// topk_method, hidden_act, attention_bias, quantization method, ...).
enum status model_config_load(struct model_config *c, const char *path, struct error *e);

// The same from bytes in memory (config.json's text).
enum status model_config_parse(struct model_config *c, const char *json, size_t n, struct error *e);

// Values a cached token has in one layer: kv_lora_rank + qk_rope_head_dim.
int model_kv_width(const struct model_config *c);

// The softmax scale of the scores: (nope+rope)^-0.5 * mscale(factor, mscale_all_dim)^2.
double model_softmax_scale(const struct model_config *c);

// Inverse frequencies of RoPE, `inv_freq` (qk_rope_head_dim / 2), and the multiplier of cos and
// sin. Formula: deepseek-v3.md, YaRN; clamps included.
void model_rope_frequencies(const struct model_config *c, double *inv_freq, double *multiplier);

#endif
