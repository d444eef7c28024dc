#include "tools/made_model.h"

#include "common/layout.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENTRY_MOST = 512, WORDS = 4096 };

struct made {
    enum dtype dtype;
    FILE *file;
    char *header; // NULL while its size is counted
    size_t n_header;
    int n_tensors;
    uint64_t offset, random;
    bool data; // values are written
};

static const char *type_name(enum dtype t)
{
    return t == DTYPE_F32 ? "F32" : t == DTYPE_BF16 ? "BF16" : "F8_E4M3";
}

static uint64_t next(struct made *m)
{
    m->random = m->random * 6364136223846793005u + 1442695040888963407u;
    return m->random ^ m->random >> 29;
}

// Small values in each of the three types: without these bits an exponent is never large.
static void put_random(struct made *m, uint64_t bytes)
{
    uint64_t words[WORDS];
    while (bytes > 0) {
        size_t n = bytes < sizeof words ? (size_t) bytes : sizeof words;
        for (size_t i = 0; i < (n + 7) / 8; i++) words[i] = next(m) & 0xb7b7b7b7b7b7b7b7u;
        fwrite(words, 1, n, m->file);
        bytes -= n;
    }
}

static void put_ones(struct made *m, enum dtype type, int64_t n)
{
    float one = 1;
    uint16_t half = 0x3f80;
    for (int64_t i = 0; i < n; i++) {
        if (type == DTYPE_F32) fwrite(&one, 4, 1, m->file);
        else fwrite(&half, 2, 1, m->file);
    }
}

static void tensor(struct made *m, const char *name, enum dtype type, int64_t rows, int64_t cols,
                   bool ones)
{
    int64_t n = cols == 0 ? rows : rows * cols;
    uint64_t bytes = (uint64_t) n * dtype_size(type);
    m->n_tensors++;
    if (m->data) {
        if (ones) put_ones(m, type, n);
        else put_random(m, bytes);
        return;
    }
    if (m->header == NULL) return;
    char shape[64];
    if (cols == 0) snprintf(shape, sizeof shape, "%lld", (long long) rows);
    else snprintf(shape, sizeof shape, "%lld,%lld", (long long) rows, (long long) cols);
    m->n_header += (size_t) snprintf(
        m->header + m->n_header, ENTRY_MOST,
        "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
        m->n_header > 1 ? "," : "", name, type_name(type), shape, (unsigned long long) m->offset,
        (unsigned long long) (m->offset + bytes));
    m->offset += bytes;
}

static enum status visit(const struct slice *s, void *arg)
{
    struct made *m = arg;
    bool norm = strstr(s->name, "norm") != NULL, bias = s->role == ROLE_ROUTER_BIAS;
    bool fp8 = m->dtype == DTYPE_F8_E4M3 && s->quantized;
    enum dtype plain = m->dtype == DTYPE_F8_E4M3 ? DTYPE_BF16 : m->dtype;
    enum dtype type = bias ? DTYPE_F32 : fp8 ? DTYPE_F8_E4M3 : plain;
    tensor(m, s->name, type, s->rows, norm || bias ? 0 : s->cols, norm);
    if (!fp8) return OK;
    char name[TENSOR_NAME_MAX + 16];
    snprintf(name, sizeof name, "%s_scale_inv", s->name);
    struct range rows = layout_blocks((struct range){0, s->rows}, SCALE_BLOCK);
    struct range cols = layout_blocks((struct range){0, s->cols}, SCALE_BLOCK);
    tensor(m, name, DTYPE_F32, rows.n, cols.n, true);
    return OK;
}

static int or_least(int n, int least) { return n > 0 ? n : least; }

static void print_config(FILE *f, const struct made_shape *s)
{
    char lora[16] = "null", fp8[128] = "";
    if (s->q_lora > 0) snprintf(lora, sizeof lora, "%d", s->q_lora);
    if (s->dtype == DTYPE_F8_E4M3) {
        snprintf(fp8, sizeof fp8, "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":"
                 "\"e4m3\",\"weight_block_size\":[%d,%d]},", SCALE_BLOCK, SCALE_BLOCK);
    }
    fprintf(f,
            "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\",%s"
            "\"attention_bias\":false,\"bos_token_id\":0,\"eos_token_id\":1,\"hidden_act\":"
            "\"silu\",\"max_position_embeddings\":%d,\"moe_layer_freq\":1,\"norm_topk_prob\":"
            "true,\"num_nextn_predict_layers\":0,\"rms_norm_eps\":1e-6,\"rope_theta\":10000,"
            "\"routed_scaling_factor\":2.5,\"scoring_func\":\"sigmoid\",\"tie_word_embeddings\":"
            "false,\"topk_method\":\"noaux_tc\",\"torch_dtype\":\"bfloat16\",\"rope_scaling\":null,"
            "\"hidden_size\":%d,\"intermediate_size\":%d,\"moe_intermediate_size\":%d,"
            "\"num_hidden_layers\":%d,\"first_k_dense_replace\":1,\"num_attention_heads\":%d,"
            "\"num_key_value_heads\":%d,\"q_lora_rank\":%s,\"kv_lora_rank\":%d,"
            "\"qk_nope_head_dim\":%d,\"qk_rope_head_dim\":%d,\"v_head_dim\":%d,"
            "\"n_routed_experts\":%d,\"n_shared_experts\":1,\"num_experts_per_tok\":2,"
            "\"n_group\":1,\"topk_group\":1,\"vocab_size\":%d}\n",
            fp8, or_least(s->context, 256), s->hidden, 2 * s->hidden,
            or_least(s->moe_intermediate, s->hidden), s->layers, s->heads, s->heads, lora,
            or_least(s->kv_lora, 8), or_least(s->nope, 4), or_least(s->rope, 4),
            or_least(s->v, 4), s->experts, or_least(s->vocab, 64));
}

static enum status failed(const char *path, struct error *e)
{
    return error_set(e, ERR_IO, NULL, "cannot write %s: %s", path, strerror(errno));
}

static enum status write_config(const char *dir, const struct made_shape *s, struct error *e)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "we");
    if (f == NULL) return failed(path, e);
    print_config(f, s);
    return fclose(f) == 0 ? OK : failed(path, e);
}

// The header is walked out twice: to learn its size, then to write it.
static enum status make_header(struct made *m, const struct model_config *config,
                               const struct placement *whole, struct error *e)
{
    layout_walk(config, whole, visit, m);
    m->header = malloc((size_t) m->n_tensors * ENTRY_MOST + 16);
    if (m->header == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a header");
    m->header[m->n_header++] = '{';
    layout_walk(config, whole, visit, m);
    m->header[m->n_header++] = '}';
    while (m->n_header % 8 != 0) m->header[m->n_header++] = ' ';
    return OK;
}

enum status made_model_write(const char *dir, const struct made_shape *shape, struct error *e)
{
    struct model_config config;
    struct made m = {.dtype = shape->dtype, .random = 1};
    char path[PATH_MAX];
    try(write_config(dir, shape, e));
    try(model_config_load(&config, dir, e));
    struct placement whole = layout_whole(&config);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    m.file = fopen(path, "wbe");
    if (m.file == NULL) return failed(path, e);
    enum status status = make_header(&m, &config, &whole, e);
    uint64_t length = m.n_header;
    if (status == OK) {
        fwrite(&length, sizeof length, 1, m.file);
        fwrite(m.header, 1, m.n_header, m.file);
        m.data = true;
        layout_walk(&config, &whole, visit, &m);
    }
    bool bad = ferror(m.file) != 0;
    if (fclose(m.file) != 0) bad = true;
    free(m.header);
    return status == OK && bad ? failed(path, e) : status;
}
