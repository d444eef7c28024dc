#include "common/model_config.h"

#include "tests/support/folder.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include <cmocka.h>

static void test_reads_deepseek_v3(void **state)
{
    (void) state;
    struct model_config c;
    struct error e = {0};
    assert_int_equal(model_config_load(&c, FIXTURES "/deepseek-v3", &e), OK);
    assert_int_equal(c.n_layers, 61);
    assert_int_equal(c.n_dense_layers, 3);
    assert_int_equal(c.n_mtp_layers, 1);
    assert_int_equal(c.hidden_size, 7168);
    assert_int_equal(c.q_lora_rank, 1536);
    assert_int_equal(c.n_routed_experts, 256);
    assert_int_equal(c.n_shared_experts, 1);
    assert_int_equal(c.n_experts_per_token, 8);
    assert_int_equal(c.n_expert_groups, 8);
    assert_int_equal(c.n_groups_per_token, 4);
    assert_true(c.norm_topk_prob);
    assert_true(c.fp8);
    assert_int_equal(c.bos_id, 0);
    assert_int_equal(c.n_eos_ids, 1);
    assert_int_equal(c.eos_ids[0], 1);
    assert_int_equal(model_kv_width(&c), 576);
    assert_float_equal(c.routed_scaling_factor, 2.5, 0);
}

static void assert_close(double is, double should, double relative)
{
    if (fabs(is - should) > relative * fabs(should)) fail_msg("%.12g is not %.12g", is, should);
}

// Check values of deepseek-v3.md.
static void test_yarn_of_deepseek_v3(void **state)
{
    (void) state;
    struct model_config c;
    assert_int_equal(model_config_load(&c, FIXTURES "/deepseek-v3/config.json", NULL), OK);
    double f[32], multiplier;
    model_rope_frequencies(&c, f, &multiplier);
    assert_close(f[0], 1, 1e-12);
    assert_close(f[10], 0.05623413252, 1e-9);
    assert_close(f[11], 0.03900692657, 1e-9);
    assert_close(f[16], 0.0055, 1e-9);
    assert_close(f[22], 0.000177827941, 1e-9);
    assert_close(f[23], 3.33380358e-05, 1e-8);
    assert_close(multiplier, 1, 1e-15);
    assert_close(model_softmax_scale(&c), 0.1352337788608801, 1e-14);
}

static void test_reads_plain_rope_without_q_lora(void **state)
{
    (void) state;
    struct model_config c;
    assert_int_equal(model_config_load(&c, FIXTURES "/tiny-bf16", NULL), OK);
    assert_int_equal(c.q_lora_rank, 0);
    assert_int_equal(c.n_expert_groups, 1);
    assert_false(c.fp8);
    assert_false(c.rope.enabled);
    double f[8], multiplier;
    model_rope_frequencies(&c, f, &multiplier);
    assert_close(f[1], pow(10000, -1.0 / 8), 1e-12);
    assert_close(multiplier, 1, 0);
    assert_close(model_softmax_scale(&c), 1 / sqrt(48), 1e-15);
}

// --- one key changed at a time

// V3's config with the members of `changes` put over it ("rope_scaling.type" reaches inside; the
// string "(absent)" removes a key).
static enum status parse_with(struct model_config *c, const char *changes, struct error *e)
{
    json_t *root = json_load_file(FIXTURES "/deepseek-v3/config.json", 0, NULL);
    json_t *over = json_loads(changes, 0, NULL), *value;
    assert_non_null(root);
    assert_non_null(over);
    const char *key;
    json_object_foreach(over, key, value) {
        json_t *object = root;
        const char *dot = strchr(key, '.'), *last = dot != NULL ? dot + 1 : key;
        char outer[64];
        if (dot != NULL) {
            snprintf(outer, sizeof outer, "%.*s", (int) (dot - key), key);
            object = json_object_get(root, outer);
        }
        const char *text = json_string_value(value);
        if (text != NULL && strcmp(text, "(absent)") == 0) json_object_del(object, last);
        else json_object_set(object, last, value);
    }
    char *text = json_dumps(root, 0);
    enum status status = model_config_parse(c, text, strlen(text), e);
    free(text);
    json_decref(over);
    json_decref(root);
    return status;
}

static void test_accepts_what_the_architecture_allows(void **state)
{
    (void) state;
    static const char *const CHANGES[] = {
        "{\"hidden_size\": 100, \"kv_lora_rank\": 33, \"qk_nope_head_dim\": 7, \"v_head_dim\": 5}",
        "{\"quantization_config\": null}",
        "{\"quantization_config.scale_fmt\": \"ue8m0\"}",
        "{\"num_key_value_heads\": \"(absent)\", \"torch_dtype\": \"(absent)\"}",
        "{\"n_group\": 1, \"topk_group\": 1}",
        "{\"n_group\": null, \"topk_group\": null}",
        "{\"n_group\": \"(absent)\", \"topk_group\": \"(absent)\"}",
        "{\"rope_theta\": 50000.0, \"rms_norm_eps\": 1e-5}",
        "{\"generation\": {\"anything\": [1, 2]}}",
    };
    for (size_t i = 0; i < sizeof CHANGES / sizeof CHANGES[0]; i++) {
        struct model_config c;
        struct error e = {0};
        if (parse_with(&c, CHANGES[i], &e) != OK) fail_msg("%s: %s", CHANGES[i], e.text);
    }
    struct model_config c;
    assert_int_equal(parse_with(&c, "{\"n_shared_experts\": null}", NULL), OK);
    assert_int_equal(c.n_shared_experts, 0);
    assert_int_equal(parse_with(&c, "{\"n_shared_experts\": 3}", NULL), OK);
    assert_int_equal(c.n_shared_experts, 3);
    static const struct {
        const char *change;
        enum dtype type;
    } TYPES[] = {
        {"{}", DTYPE_BF16},
        {"{\"torch_dtype\": \"float32\"}", DTYPE_F32},
        {"{\"torch_dtype\": \"(absent)\", \"dtype\": \"float16\"}", DTYPE_F16},
        {"{\"torch_dtype\": \"auto\"}", DTYPE_BF16},
    };
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++) {
        assert_int_equal(parse_with(&c, TYPES[i].change, NULL), OK);
        assert_int_equal(c.plain_type, TYPES[i].type);
    }
    assert_int_equal(parse_with(&c, "{\"norm_topk_prob\": false}", NULL), OK);
    assert_false(c.norm_topk_prob);
    assert_int_equal(parse_with(&c, "{\"num_nextn_predict_layers\": \"(absent)\"}", NULL), OK);
    assert_int_equal(c.n_mtp_layers, 0);
    assert_int_equal(parse_with(&c, "{\"eos_token_id\": [1, 7, 1]}", NULL), OK);
    assert_int_equal(c.n_eos_ids, 2);
    assert_int_equal(c.eos_ids[1], 7);
    assert_int_equal(parse_with(&c, "{\"eos_token_id\": null, \"bos_token_id\": null}", NULL), OK);
    assert_int_equal(c.n_eos_ids, 0);
    assert_int_equal(c.bos_id, -1);
}

// More dense layers than layers: all are dense, and nothing is asked of the experts.
static void test_all_layers_may_be_dense(void **state)
{
    (void) state;
    struct model_config c;
    assert_int_equal(parse_with(&c,
                                "{\"first_k_dense_replace\": 1000, \"n_routed_experts\": null,"
                                "\"moe_intermediate_size\": null}",
                                NULL),
                     OK);
    assert_int_equal(c.n_dense_layers, 61);
    assert_int_equal(c.n_routed_experts, 0);
}

static void test_rope_may_be_written_in_three_ways(void **state)
{
    (void) state;
    struct model_config c;
    const char *newer = "{\"rope_scaling\": \"(absent)\", \"rope_theta\": \"(absent)\","
                        "\"rope_parameters\": {\"rope_theta\": 5000, \"rope_type\": \"yarn\","
                        "\"factor\": 4, \"original_max_position_embeddings\": 1024}}";
    assert_int_equal(parse_with(&c, newer, NULL), OK);
    assert_true(c.rope.enabled);
    assert_close(c.rope_theta, 5000, 0);
    assert_close(c.rope.factor, 4, 0);
    const char *least = "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}}";
    assert_int_equal(parse_with(&c, least, NULL), OK);
    assert_int_equal(c.rope.original_max_position_embeddings, c.max_position_embeddings);
    assert_close(c.rope.mscale, 1, 0);
    assert_close(c.rope.mscale_all_dim, 0, 0);
    assert_int_equal(parse_with(&c,
                                "{\"rope_scaling.type\": \"(absent)\","
                                "\"rope_scaling.rope_type\": \"yarn\"}",
                                NULL),
                     OK);
    assert_true(c.rope.enabled);
    assert_int_equal(parse_with(&c, "{\"rope_scaling\": null}", NULL), OK);
    assert_false(c.rope.enabled);
    assert_int_equal(parse_with(&c,
                                "{\"rope_scaling\": null, \"rope_parameters\":"
                                "{\"rope_type\": \"default\", \"rope_theta\": 300}}",
                                NULL),
                     OK);
    assert_false(c.rope.enabled);
}

static void test_refuses_by_name(void **state)
{
    (void) state;
    static const struct {
        const char *changes, *code, *says;
    } CASES[] = {
        {"{\"model_type\": \"llama\"}", "unsupported_config", "model_type is \"llama\""},
        {"{\"model_type\": 3}", "bad_config", "model_type"},
        {"{\"hidden_act\": \"gelu\"}", "unsupported_config", "hidden_act"},
        {"{\"scoring_func\": \"softmax\"}", "unsupported_config", "scoring_func"},
        {"{\"topk_method\": \"greedy\"}", "unsupported_config", "topk_method"},
        {"{\"attention_bias\": true}", "unsupported_config", "attention_bias"},
        {"{\"tie_word_embeddings\": true}", "unsupported_config", "tie_word_embeddings"},
        {"{\"moe_layer_freq\": 2}", "unsupported_config", "moe_layer_freq"},
        {"{\"num_key_value_heads\": 8}", "unsupported_config", "num_key_value_heads"},
        {"{\"rope_interleave\": false}", "unsupported_config", "rope_interleave"},
        {"{\"rope_scaling.type\": \"linear\"}", "unsupported_config", "\"linear\""},
        {"{\"rope_scaling.attention_factor\": 1.5}", "unsupported_config", "attention_factor"},
        {"{\"rope_scaling.factor\": \"(absent)\"}", "bad_config", "factor is missing"},
        {"{\"rope_scaling.factor\": 0.5}", "bad_config", "factor"},
        {"{\"rope_scaling\": 7}", "bad_config", "rope_scaling"},
        {"{\"quantization_config.quant_method\": \"awq\"}", "unsupported_config", "quant_method"},
        {"{\"quantization_config.fmt\": \"e5m2\"}", "unsupported_config", "fmt"},
        {"{\"quantization_config.weight_block_size\": [64, 128]}", "unsupported_config",
         "weight_block_size is [64,128]"},
        {"{\"quantization_config.weight_block_size\": \"(absent)\"}", "unsupported_config",
         "weight_block_size is missing"},
        {"{\"quantization_config.activation_scheme\": \"static\"}", "unsupported_config",
         "activation_scheme"},
        {"{\"hidden_size\": 7168.0}", "bad_config", "hidden_size is 7168.0"},
        {"{\"hidden_size\": \"7168\"}", "bad_config", "hidden_size"},
        {"{\"hidden_size\": \"(absent)\"}", "bad_config", "hidden_size is missing"},
        {"{\"hidden_size\": 65537}", "bad_config", "from 1 to 65536"},
        {"{\"hidden_size\": -1}", "bad_config", "hidden_size is -1"},
        {"{\"hidden_size\": 99999999999999}", "bad_config", "hidden_size"},
        {"{\"num_hidden_layers\": 0}", "bad_config", "num_hidden_layers"},
        {"{\"num_hidden_layers\": 1025}", "bad_config", "num_hidden_layers"},
        {"{\"q_lora_rank\": \"(absent)\"}", "bad_config", "q_lora_rank"},
        {"{\"qk_rope_head_dim\": 63}", "bad_config", "an even number"},
        {"{\"rms_norm_eps\": 0}", "bad_config", "rms_norm_eps"},
        {"{\"rms_norm_eps\": \"nan\"}", "bad_config", "rms_norm_eps"},
        {"{\"n_group\": 7}", "bad_config", "a divisor of n_routed_experts"},
        {"{\"n_group\": 256}", "bad_config", "at least two experts"},
        {"{\"topk_group\": 9}", "bad_config", "topk_group"},
        {"{\"topk_group\": \"(absent)\"}", "bad_config", "topk_group"},
        {"{\"num_experts_per_tok\": 64, \"topk_group\": 1}", "bad_config", "num_experts_per_tok"},
        {"{\"norm_topk_prob\": 1}", "bad_config", "norm_topk_prob"},
        {"{\"eos_token_id\": 129280}", "bad_config", "eos_token_id"},
        {"{\"eos_token_id\": [1, \"2\"]}", "bad_config", "eos_token_id"},
        {"{\"bos_token_id\": -5}", "bad_config", "bos_token_id"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        struct model_config c;
        struct error e = {0};
        enum status status = parse_with(&c, CASES[i].changes, &e);
        bool unsupported = strcmp(CASES[i].code, "unsupported_config") == 0;
        if (status != (unsupported ? ERR_UNSUPPORTED : ERR_INPUT) ||
            strcmp(e.code, CASES[i].code) != 0 || strstr(e.text, CASES[i].says) == NULL) {
            fail_msg("%s: %s: %s", CASES[i].changes, e.code, e.text);
        }
    }
}

static void test_refuses_what_is_no_object(void **state)
{
    (void) state;
    static const char *const TEXTS[] = {"",    "{",           "[1]", "{\"a\": 1, \"a\": 2}",
                                        "nul", "{\"a\": NaN}"};
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++) {
        struct model_config c;
        struct error e = {0};
        assert_int_equal(model_config_parse(&c, TEXTS[i], strlen(TEXTS[i]), &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_config");
    }
    struct error e = {0};
    struct model_config c;
    char *big = calloc(1, CONFIG_JSON_MAX + 1);
    assert_int_equal(model_config_parse(&c, big, CONFIG_JSON_MAX + 1, &e), ERR_LIMIT);
    free(big);
    assert_int_equal(model_config_load(&c, FIXTURES "/no-such-model", &e), ERR_IO);
}

static void test_generation_config_adds_ends(void **state)
{
    (void) state;
    char dir[FOLDER_SIZE], path[128];
    folder_make(dir, "config");
    json_t *root = json_load_file(FIXTURES "/tiny-fp8/config.json", 0, NULL);
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
    char beside[128];
    snprintf(beside, sizeof beside, "%s/generation_config.json", dir);
    static const struct {
        const char *text;
        enum status status;
        int n;
    } CASES[] = {{"{\"eos_token_id\": [1, 5]}", OK, 2},
                 {"{\"eos_token_id\": 9}", OK, 2},
                 {"{}", OK, 1},
                 {"{\"eos_token_id\": 4096}", ERR_INPUT, 0},
                 {"[]", ERR_INPUT, 0}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        FILE *f = fopen(beside, "w");
        fputs(CASES[i].text, f);
        fclose(f);
        struct model_config c;
        struct error e = {0};
        assert_int_equal(model_config_load(&c, dir, &e), CASES[i].status);
        if (CASES[i].status == OK) assert_int_equal(c.n_eos_ids, CASES[i].n);
        else assert_non_null(strstr(e.text, "generation_config.json"));
    }
    folder_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_deepseek_v3),
        cmocka_unit_test(test_yarn_of_deepseek_v3),
        cmocka_unit_test(test_reads_plain_rope_without_q_lora),
        cmocka_unit_test(test_accepts_what_the_architecture_allows),
        cmocka_unit_test(test_all_layers_may_be_dense),
        cmocka_unit_test(test_rope_may_be_written_in_three_ways),
        cmocka_unit_test(test_refuses_by_name),
        cmocka_unit_test(test_refuses_what_is_no_object),
        cmocka_unit_test(test_generation_config_adds_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
