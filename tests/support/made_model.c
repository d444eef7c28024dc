#include "tests/support/made_model.h"

#include "common/layout.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { HEADER_MOST = 1 << 20 };

struct made {
    enum dtype dtype;
    FILE *file;
    char *header;
    size_t n_header, most;
    uint64_t offset, random;
    bool data; // the second walk writes values
};

static const char *type_name(enum dtype t)
{
    return t == DTYPE_F32 ? "F32" : t == DTYPE_BF16 ? "BF16" : "F8_E4M3";
}

static uint32_t next(struct made *m)
{
    m->random = m->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (m->random >> 33);
}

// Values of [-0.25, 0.25), around 1 for norms and scales.
static void put_value(struct made *m, enum dtype type, bool one)
{
    float x = one ? 1.0f : (float) (next(m) % 1024) / 2048.0f - 0.25f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (type == DTYPE_F32) fwrite(&bits, 4, 1, m->file);
    else if (type == DTYPE_BF16) fwrite((uint16_t[]){(uint16_t) (bits >> 16)}, 2, 1, m->file);
    else fputc((int) (next(m) & 0xb7), m->file); // no NaN, at most 0.5
}

static void tensor(struct made *m, const char *name, enum dtype type, int64_t rows, int64_t cols,
                   bool one)
{
    bool vector = cols == 0;
    int64_t n = vector ? rows : rows * cols;
    uint64_t bytes = (uint64_t) n * dtype_size(type);
    if (m->data) {
        for (int64_t i = 0; i < n; i++) put_value(m, type, one);
        return;
    }
    char shape[64];
    if (vector) snprintf(shape, sizeof shape, "%lld", (long long) rows);
    else snprintf(shape, sizeof shape, "%lld,%lld", (long long) rows, (long long) cols);
    assert_true(m->n_header + 512 < m->most);
    m->n_header += (size_t) snprintf(
        m->header + m->n_header, m->most - m->n_header,
        "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
        m->n_header > 1 ? "," : "", name, type_name(type), shape, (unsigned long long) m->offset,
        (unsigned long long) (m->offset + bytes));
    m->offset += bytes;
}

static enum status visit(const struct slice *s, void *arg)
{
    struct made *m = arg;
    bool norm = strstr(s->name, "norm") != NULL, bias = s->role == ROLE_ROUTER_BIAS;
    bool fp8 = m->dtype == DTYPE_F8_E4M3;
    enum dtype type = bias ? DTYPE_F32 : !fp8 ? m->dtype : s->quantized ? DTYPE_F8_E4M3
                                                                         : DTYPE_BF16;
    tensor(m, s->name, type, s->rows, norm || bias ? 0 : s->cols, norm);
    if (type != DTYPE_F8_E4M3) return OK;
    char name[TENSOR_NAME_MAX + 16];
    snprintf(name, sizeof name, "%s_scale_inv", s->name);
    tensor(m, name, DTYPE_F32, (s->rows + SCALE_BLOCK - 1) / SCALE_BLOCK,
           (s->cols + SCALE_BLOCK - 1) / SCALE_BLOCK, true);
    return OK;
}

static void write_config(const char *dir, const struct made_shape *s)
{
    char path[512], lora[16] = "null", fp8[128] = "";
    snprintf(path, sizeof path, "%s/config.json", dir);
    if (s->q_lora > 0) snprintf(lora, sizeof lora, "%d", s->q_lora);
    if (s->dtype == DTYPE_F8_E4M3) {
        snprintf(fp8, sizeof fp8, "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":"
                 "\"e4m3\",\"weight_block_size\":[%d,%d]},", SCALE_BLOCK, SCALE_BLOCK);
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f,
            "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\",%s"
            "\"attention_bias\":false,\"bos_token_id\":0,\"eos_token_id\":1,\"hidden_act\":"
            "\"silu\",\"max_position_embeddings\":256,\"moe_layer_freq\":1,\"norm_topk_prob\":"
            "true,\"num_nextn_predict_layers\":0,\"rms_norm_eps\":1e-6,\"rope_theta\":10000,"
            "\"routed_scaling_factor\":2.5,\"scoring_func\":\"sigmoid\",\"tie_word_embeddings\":"
            "false,\"topk_method\":\"noaux_tc\",\"torch_dtype\":\"bfloat16\",\"rope_scaling\":null,"
            "\"hidden_size\":%d,\"intermediate_size\":%d,\"moe_intermediate_size\":%d,"
            "\"num_hidden_layers\":%d,\"first_k_dense_replace\":1,\"num_attention_heads\":%d,"
            "\"num_key_value_heads\":%d,\"q_lora_rank\":%s,\"kv_lora_rank\":8,"
            "\"qk_nope_head_dim\":4,\"qk_rope_head_dim\":4,\"v_head_dim\":4,"
            "\"n_routed_experts\":%d,\"n_shared_experts\":1,\"num_experts_per_tok\":2,"
            "\"n_group\":1,\"topk_group\":1,\"vocab_size\":64}\n",
            fp8, s->hidden, 2 * s->hidden, s->hidden, s->layers, s->heads, s->heads, lora,
            s->experts);
    assert_int_equal(fclose(f), 0);
}

void made_model_write(const char *dir, const struct made_shape *shape)
{
    struct model_config config;
    struct error e = {0};
    struct made m = {.dtype = shape->dtype, .random = 1, .most = HEADER_MOST};
    char path[512];
    write_config(dir, shape);
    if (model_config_load(&config, dir, &e) != OK) fail_msg("%s", e.text);
    struct placement whole = layout_whole(&config);
    m.header = malloc(m.most);
    assert_non_null(m.header);
    m.header[m.n_header++] = '{';
    assert_int_equal(layout_walk(&config, &whole, visit, &m), OK);
    m.header[m.n_header++] = '}';
    while (m.n_header % 8 != 0) m.header[m.n_header++] = ' ';
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    m.file = fopen(path, "wb");
    assert_non_null(m.file);
    uint64_t length = m.n_header;
    fwrite(&length, 8, 1, m.file);
    fwrite(m.header, 1, m.n_header, m.file);
    m.data = true;
    assert_int_equal(layout_walk(&config, &whole, visit, &m), OK);
    assert_int_equal(fclose(m.file), 0);
    free(m.header);
}
