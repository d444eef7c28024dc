#include "common/model_config.h"

#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// The reader keeps the first error, so that a list of fields reads without a check at each.
struct reader {
    const json_t *object;
    const char *where; // file, and the object in it
    struct error *e;
    enum status status;
};

static void refuse(struct reader *r, enum status status, const char *key, const char *wants)
{
    if (r->status != OK) return;
    json_t *value = json_object_get(r->object, key);
    char *text = value != NULL ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    r->status = error_set(
        r->e, status, status == ERR_UNSUPPORTED ? "unsupported_config" : "bad_config",
        "%s: %s is %.80s, expected %s", r->where, key, text != NULL ? text : "missing", wants);
    free(text);
}

enum { REQUIRED = INT_MIN }; // as a default: the key must be there

static bool is_null(const struct reader *r, const char *key)
{
    return json_is_null(json_object_get(r->object, key));
}

// An integer in [least, most]; null or absent gives `absent`.
static int read_int(struct reader *r, const char *key, int least, int most, int absent)
{
    const json_t *v = json_object_get(r->object, key);
    if ((v == NULL || json_is_null(v)) && absent != REQUIRED) return absent;
    json_int_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < least || n > most) {
        char wants[64];
        snprintf(wants, sizeof wants, "an integer from %d to %d", least, most);
        refuse(r, ERR_INPUT, key, wants);
        return least;
    }
    return (int) n;
}

static double read_number(struct reader *r, const char *key, double least, double most,
                          double absent)
{
    const json_t *v = json_object_get(r->object, key);
    if ((v == NULL || json_is_null(v)) && !isnan(absent)) return absent; // NAN: required
    double n = json_number_value(v);
    if (!json_is_number(v) || !isfinite(n) || n < least || n > most) {
        char wants[80];
        snprintf(wants, sizeof wants, "a number from %g to %g", least, most);
        refuse(r, ERR_INPUT, key, wants);
        return least;
    }
    return n;
}

static bool read_bool(struct reader *r, const char *key, bool absent)
{
    const json_t *v = json_object_get(r->object, key);
    if (v == NULL || json_is_null(v)) return absent;
    if (!json_is_boolean(v)) refuse(r, ERR_INPUT, key, "true or false");
    return json_is_true(v);
}

// A string that must be one value; absent is accepted where `optional`.
static void require_string(struct reader *r, const char *key, const char *value, bool optional)
{
    const json_t *v = json_object_get(r->object, key);
    if ((v == NULL || json_is_null(v)) && optional) return;
    const char *text = json_string_value(v);
    if (text == NULL) {
        refuse(r, ERR_INPUT, key, value);
    } else if (strcmp(text, value) != 0) {
        refuse(r, ERR_UNSUPPORTED, key, value);
    }
}

// A boolean that must be `value` (which is also what absence means).
static void require_bool(struct reader *r, const char *key, bool value)
{
    if (read_bool(r, key, value) == value || r->status != OK) return;
    refuse(r, ERR_UNSUPPORTED, key, value ? "true" : "false");
}

// A number that must be `value` where it is given.
static void require_int(struct reader *r, const char *key, int value)
{
    char wants[16];
    snprintf(wants, sizeof wants, "%d", value);
    if (read_int(r, key, INT_MIN + 1, INT_MAX, value) != value) {
        refuse(r, ERR_UNSUPPORTED, key, wants);
    }
}

static void read_shape(struct reader *r, struct model_config *c)
{
    c->vocab_size = read_int(r, "vocab_size", 2, MODEL_VOCAB_MAX, REQUIRED);
    c->hidden_size = read_int(r, "hidden_size", 1, MODEL_HIDDEN_MAX, REQUIRED);
    c->n_layers = read_int(r, "num_hidden_layers", 1, MODEL_LAYERS_MAX, REQUIRED);
    c->n_mtp_layers = read_int(r, "num_nextn_predict_layers", 0, MODEL_MTP_LAYERS_MAX, 0);
    c->n_dense_layers = read_int(r, "first_k_dense_replace", 0, INT_MAX, REQUIRED);
    if (c->n_dense_layers > c->n_layers) c->n_dense_layers = c->n_layers;
    c->n_heads = read_int(r, "num_attention_heads", 1, MODEL_HEADS_MAX, REQUIRED);
    // null says that there is no low-rank q; absence says nothing, and a guess would be wrong.
    if (!is_null(r, "q_lora_rank")) {
        c->q_lora_rank = read_int(r, "q_lora_rank", 0, MODEL_LORA_RANK_MAX, REQUIRED);
    }
    c->kv_lora_rank = read_int(r, "kv_lora_rank", 1, MODEL_LORA_RANK_MAX, REQUIRED);
    c->qk_nope_head_dim = read_int(r, "qk_nope_head_dim", 1, MODEL_HEAD_DIM_MAX, REQUIRED);
    c->qk_rope_head_dim = read_int(r, "qk_rope_head_dim", 2, MODEL_HEAD_DIM_MAX, REQUIRED);
    c->v_head_dim = read_int(r, "v_head_dim", 1, MODEL_HEAD_DIM_MAX, REQUIRED);
    if (c->qk_rope_head_dim % 2 != 0) refuse(r, ERR_INPUT, "qk_rope_head_dim", "an even number");
    c->max_position_embeddings = read_int(r, "max_position_embeddings", 1, CONTEXT_MAX, REQUIRED);
    c->rms_norm_eps = read_number(r, "rms_norm_eps", 1e-20, 1, 1e-6);
    require_int(r, "num_key_value_heads", c->n_heads);
    require_bool(r, "attention_bias", false);
    require_bool(r, "tie_word_embeddings", false);
}

static void read_groups(struct reader *r, struct model_config *c)
{
    c->n_expert_groups = read_int(r, "n_group", 1, MODEL_EXPERTS_MAX, 1);
    c->n_groups_per_token =
        read_int(r, "topk_group", 1, MODEL_EXPERTS_MAX, c->n_expert_groups == 1 ? 1 : REQUIRED);
    if (r->status != OK) return;
    int per_group = c->n_routed_experts / c->n_expert_groups;
    if (c->n_routed_experts % c->n_expert_groups != 0) {
        refuse(r, ERR_INPUT, "n_group", "a divisor of n_routed_experts");
    } else if (c->n_groups_per_token > c->n_expert_groups) {
        refuse(r, ERR_INPUT, "topk_group", "at most n_group");
    } else if (c->n_expert_groups > 1 && per_group < 2) {
        refuse(r, ERR_INPUT, "n_group", "groups of at least two experts");
    } else if (c->n_experts_per_token > per_group * c->n_groups_per_token) {
        refuse(r, ERR_INPUT, "num_experts_per_tok", "at most the experts of topk_group groups");
    }
}

static void read_ffn(struct reader *r, struct model_config *c)
{
    bool dense = c->n_dense_layers > 0, moe = c->n_dense_layers < c->n_layers;
    c->intermediate_size =
        read_int(r, "intermediate_size", 1, MODEL_INTERMEDIATE_MAX, dense ? REQUIRED : 0);
    c->n_expert_groups = c->n_groups_per_token = 1;
    c->norm_topk_prob = true;
    c->routed_scaling_factor = 1;
    if (!moe) return; // what else the config says of experts has no meaning
    c->moe_intermediate_size =
        read_int(r, "moe_intermediate_size", 1, MODEL_INTERMEDIATE_MAX, REQUIRED);
    c->n_routed_experts = read_int(r, "n_routed_experts", 1, MODEL_EXPERTS_MAX, REQUIRED);
    c->n_experts_per_token =
        read_int(r, "num_experts_per_tok", 1, MODEL_EXPERTS_PER_TOKEN_MAX, REQUIRED);
    if (!is_null(r, "n_shared_experts")) {
        c->n_shared_experts = read_int(r, "n_shared_experts", 0, MODEL_SHARED_EXPERTS_MAX, 1);
    }
    c->norm_topk_prob = read_bool(r, "norm_topk_prob", true);
    c->routed_scaling_factor = read_number(r, "routed_scaling_factor", -1e6, 1e6, NAN);
    require_string(r, "scoring_func", "sigmoid", true);
    require_string(r, "topk_method", "noaux_tc", true);
    require_int(r, "moe_layer_freq", 1);
    read_groups(r, c);
}

static void read_yarn(struct reader *s, const struct model_config *c, struct rope_scaling *rope)
{
    rope->enabled = true;
    rope->factor = read_number(s, "factor", 1, 1e6, NAN);
    rope->beta_fast = read_number(s, "beta_fast", 1e-6, 1e6, 32);
    rope->beta_slow = read_number(s, "beta_slow", 1e-6, 1e6, 1);
    rope->mscale = read_number(s, "mscale", 0, 1e3, 1);
    rope->mscale_all_dim = read_number(s, "mscale_all_dim", 0, 1e3, 0);
    rope->original_max_position_embeddings =
        read_int(s, "original_max_position_embeddings", 1, CONTEXT_MAX, c->max_position_embeddings);
    require_bool(s, "truncate", true);
    if (json_object_get(s->object, "attention_factor") != NULL && !is_null(s, "attention_factor")) {
        refuse(s, ERR_UNSUPPORTED, "attention_factor", "null");
    }
}

// `rope_theta` and `rope_scaling`, or, as newer writers have it, both in `rope_parameters`.
static void read_rope(struct reader *r, struct model_config *c)
{
    const char *key = "rope_scaling";
    const json_t *scaling = json_object_get(r->object, key);
    const json_t *parameters = json_object_get(r->object, "rope_parameters");
    bool newer = (scaling == NULL || json_is_null(scaling)) && parameters != NULL;
    if (newer) {
        key = "rope_parameters";
        scaling = parameters;
    }
    if (scaling != NULL && !json_is_null(scaling) && !json_is_object(scaling)) {
        refuse(r, ERR_INPUT, key, "an object or null");
        return;
    }
    struct reader s = {scaling,
                       newer ? "config.json: rope_parameters" : "config.json: rope_scaling", r->e,
                       r->status};
    bool nested = newer && json_object_get(r->object, "rope_theta") == NULL;
    c->rope_theta = read_number(nested ? &s : r, "rope_theta", 1.001, 1e12, 10000);
    require_bool(r, "rope_interleave", true);
    if (s.status == OK) s.status = r->status;
    if (json_is_object(scaling)) {
        const char *type_key = json_object_get(scaling, "rope_type") != NULL ? "rope_type" : "type";
        const char *type = json_string_value(json_object_get(scaling, type_key));
        bool plain = type != NULL ? strcmp(type, "default") == 0
                                  : newer && json_object_get(scaling, "factor") == NULL;
        if (!plain) {
            require_string(&s, type_key, "yarn", false);
            read_yarn(&s, c, &c->rope);
        }
    }
    r->status = s.status;
}

static void read_quantization(struct reader *r, struct model_config *c)
{
    const json_t *q = json_object_get(r->object, "quantization_config");
    c->scale_block = SCALE_BLOCK;
    if (q == NULL || json_is_null(q)) return;
    if (!json_is_object(q)) {
        refuse(r, ERR_INPUT, "quantization_config", "an object or null");
        return;
    }
    struct reader s = {q, "config.json: quantization_config", r->e, r->status};
    require_string(&s, "quant_method", "fp8", false);
    require_string(&s, "fmt", "e4m3", true);
    require_string(&s, "activation_scheme", "dynamic", true);
    const json_t *block = json_object_get(q, "weight_block_size");
    const json_t *rows = json_array_get(block, 0), *cols = json_array_get(block, 1);
    if (!json_is_array(block) || json_array_size(block) != 2 || !json_is_integer(rows) ||
        !json_is_integer(cols) || json_integer_value(rows) != SCALE_BLOCK ||
        json_integer_value(cols) != SCALE_BLOCK) {
        refuse(&s, ERR_UNSUPPORTED, "weight_block_size", "[128,128]");
    }
    c->fp8 = true;
    r->status = s.status;
}

// Newer writers call it `dtype`. A type that no tensor here has says nothing.
static enum dtype plain_type(const json_t *config)
{
    const char *name = json_string_value(json_object_get(config, "torch_dtype"));
    if (name == NULL) name = json_string_value(json_object_get(config, "dtype"));
    if (name != NULL && strcmp(name, "float32") == 0) return DTYPE_F32;
    if (name != NULL && strcmp(name, "float16") == 0) return DTYPE_F16;
    return DTYPE_BF16;
}

static void add_eos(struct reader *r, struct model_config *c, const json_t *id)
{
    json_int_t n = json_integer_value(id);
    if (!json_is_integer(id) || n < 0 || n >= c->vocab_size) {
        refuse(r, ERR_INPUT, "eos_token_id", "a token id below vocab_size, or a list of them");
        return;
    }
    for (int i = 0; i < c->n_eos_ids; i++) {
        if (c->eos_ids[i] == n) return;
    }
    if (c->n_eos_ids == EOS_IDS_MAX) {
        refuse(r, ERR_INPUT, "eos_token_id", "at most 8 different ids");
        return;
    }
    c->eos_ids[c->n_eos_ids++] = (int) n;
}

// eos_token_id: a number, a list of numbers, or null. `absent` (if not negative): as transformers.
static void read_eos(struct reader *r, struct model_config *c, int absent)
{
    const json_t *eos = json_object_get(r->object, "eos_token_id");
    if (eos == NULL && absent >= 0) c->eos_ids[c->n_eos_ids++] = absent;
    if (eos == NULL || json_is_null(eos)) return;
    if (!json_is_array(eos)) add_eos(r, c, eos);
    for (size_t i = 0; i < json_array_size(eos); i++) add_eos(r, c, json_array_get(eos, i));
}

enum status model_config_parse(struct model_config *c, const char *json, size_t n, struct error *e)
{
    *c = (struct model_config){0};
    json_error_t bad;
    if (n > CONFIG_JSON_MAX) {
        return error_set(e, ERR_LIMIT, "bad_config", "config.json has over %lld bytes",
                         CONFIG_JSON_MAX);
    }
    json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &bad);
    if (!json_is_object(root)) {
        json_decref(root);
        return error_set(e, ERR_INPUT, "bad_config", "config.json is no JSON object: line %d: %s",
                         bad.line, root != NULL ? "it is something else" : bad.text);
    }
    struct reader r = {root, "config.json", e, OK};
    // Kimi-K2 is this architecture under a name of its own.
    const char *type = json_string_value(json_object_get(root, "model_type"));
    if (type == NULL || strcmp(type, "kimi_k2") != 0) {
        require_string(&r, "model_type", "deepseek_v3", false);
    }
    require_string(&r, "hidden_act", "silu", true);
    if (r.status == OK) read_shape(&r, c);
    if (r.status == OK) read_ffn(&r, c);
    if (r.status == OK) read_rope(&r, c);
    if (r.status == OK) read_quantization(&r, c);
    c->plain_type = plain_type(r.object);
    if (r.status == OK) {
        c->bos_id = is_null(&r, "bos_token_id")
                        ? -1
                        : read_int(&r, "bos_token_id", 0, c->vocab_size - 1, 0);
        read_eos(&r, c, 1);
    }
    json_decref(root);
    return r.status;
}

static enum status read_file(const char *path, char **text, size_t *n, struct error *e)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) return error_set(e, ERR_IO, NULL, "cannot open %s: %m", path);
    *text = malloc(CONFIG_JSON_MAX + 1);
    *n = *text != NULL ? fread(*text, 1, CONFIG_JSON_MAX + 1, f) : 0;
    bool failed = *text == NULL || ferror(f) != 0;
    fclose(f);
    if (!failed) return OK;
    free(*text);
    return error_set(e, ERR_IO, NULL, "cannot read %s", path);
}

// generation_config.json beside config.json may name further ends.
static enum status read_generation_config(struct model_config *c, const char *config_path,
                                          struct error *e)
{
    char path[PATH_MAX], *text;
    size_t n;
    const char *slash = strrchr(config_path, '/');
    int dir = slash != NULL ? (int) (slash - config_path) + 1 : 0;
    int length = snprintf(path, sizeof path, "%.*sgeneration_config.json", dir, config_path);
    struct stat s;
    if (length >= (int) sizeof path || stat(path, &s) != 0) return OK;
    try(read_file(path, &text, &n, e));
    json_t *root = n <= CONFIG_JSON_MAX ? json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL) : NULL;
    free(text);
    enum status status = OK;
    if (!json_is_object(root)) {
        status = error_set(e, ERR_INPUT, "bad_config", "generation_config.json is no JSON object");
    } else {
        struct reader r = {root, "generation_config.json", e, OK};
        read_eos(&r, c, -1);
        status = r.status;
    }
    json_decref(root);
    return status;
}

enum status model_config_load(struct model_config *c, const char *path, struct error *e)
{
    char file[PATH_MAX + 16], *text;
    size_t n;
    struct stat s;
    if (stat(path, &s) != 0) return error_set(e, ERR_IO, "no_model", "no model at %s: %m", path);
    snprintf(file, sizeof file, "%s%s", path, S_ISDIR(s.st_mode) ? "/config.json" : "");
    try(read_file(file, &text, &n, e));
    enum status status = model_config_parse(c, text, n, e);
    free(text);
    if (status == OK) status = read_generation_config(c, file, e);
    if (status != OK) error_prefix(e, "%s", path);
    return status;
}

int model_kv_width(const struct model_config *c) { return c->kv_lora_rank + c->qk_rope_head_dim; }

static double mscale(double scale, double m) { return scale <= 1 ? 1 : 0.1 * m * log(scale) + 1; }

double model_softmax_scale(const struct model_config *c)
{
    double scale = 1 / sqrt(c->qk_nope_head_dim + c->qk_rope_head_dim);
    if (!c->rope.enabled) return scale;
    double m = mscale(c->rope.factor, c->rope.mscale_all_dim);
    return scale * m * m;
}

// The dimension whose wavelength makes r turns within the original context.
static double correction_dim(const struct model_config *c, double r)
{
    double turns = c->rope.original_max_position_embeddings / (r * 2 * M_PI);
    return c->qk_rope_head_dim * log(turns) / (2 * log(c->rope_theta));
}

void model_rope_frequencies(const struct model_config *c, double *inv_freq, double *multiplier)
{
    int d = c->qk_rope_head_dim;
    const struct rope_scaling *s = &c->rope;
    *multiplier = 1;
    for (int i = 0; i < d / 2; i++) inv_freq[i] = pow(c->rope_theta, -2.0 * i / d);
    if (!s->enabled) return;
    double low = fmax(floor(correction_dim(c, s->beta_fast)), 0);
    double high = fmin(ceil(correction_dim(c, s->beta_slow)), d - 1);
    double width = fmax(high - low, 0.001);
    for (int i = 0; i < d / 2; i++) {
        double ramp = fmin(fmax((i - low) / width, 0), 1);
        inv_freq[i] = inv_freq[i] / s->factor * ramp + inv_freq[i] * (1 - ramp);
    }
    *multiplier = mscale(s->factor, s->mscale) / mscale(s->factor, s->mscale_all_dim);
}
