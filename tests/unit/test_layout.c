#include "common/layout.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <cmocka.h>

#include "model_dir.h"
#include "plan_case.h"

struct tally {
    const struct model_config *config;
    uint64_t bytes, elements;
    int n, n_quantized;
    int last_layer; // of the walk so far; -1 before, n_layers after the layers
    enum role first, last;
};

static enum status add(const struct slice *s, void *arg)
{
    struct tally *t = arg;
    if (t->n == 0) t->first = s->role;
    t->last = s->role;
    t->n++;
    t->n_quantized += s->quantized;
    t->bytes += layout_slice_bytes(t->config, s);
    t->elements += (uint64_t) (s->row.n * s->col.n);
    int layer = s->layer >= 0 ? s->layer : s->role == ROLE_EMBED ? -1 : t->config->n_layers;
    assert_true(layer >= t->last_layer);
    t->last_layer = layer;
    return OK;
}

static struct tally tally(const struct model_config *c, struct placement p)
{
    struct tally t = {.config = c, .last_layer = -1};
    assert_int_equal(layout_walk(c, &p, add, &t), OK);
    return t;
}

// The figures of deepseek-v3.md.
static void test_bytes_of_deepseek_v3(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct tally whole = tally(&c, layout_whole(&c));
    assert_int_equal(whole.bytes, 673150611808);
    assert_int_equal(whole.first, ROLE_EMBED);
    assert_int_equal(whole.last, ROLE_LM_HEAD);
    assert_int_equal(whole.last_layer, c.n_layers);
    assert_int_equal(tally(&c, (struct placement){0, 1, false, false, 0, 1}).bytes, 583642336);
    assert_int_equal(tally(&c, (struct placement){60, 61, false, false, 0, 1}).bytes, 11511947488);
    // Per GPU at tp 8, in MiB.
    double dense = (double) tally(&c, (struct placement){0, 1, false, false, 3, 8}).bytes / 1048576;
    double moe = (double) tally(&c, (struct placement){3, 4, false, false, 3, 8}).bytes / 1048576;
    double embed = (double) tally(&c, (struct placement){0, 0, true, false, 3, 8}).bytes / 1048576;
    assert_float_equal(dense, 82.24, 0.005);
    assert_float_equal(moe, 1388.06, 0.005);
    assert_float_equal(embed, 220.9, 0.05);
}

static void test_layouts_cover_the_fixtures(void **state)
{
    (void) state;
    static const char *const NAMES[] = {"tiny-fp8", "tiny-bf16"};
    for (int i = 0; i < 2; i++) {
        struct model_config c = load(NAMES[i]);
        struct checkpoint *checkpoint;
        struct error e = {0};
        char path[256];
        snprintf(path, sizeof path, FIXTURES "/%s", NAMES[i]);
        assert_int_equal(checkpoint_open(&checkpoint, path, &e), OK);
        if (layout_check_checkpoint(&c, checkpoint, &e) != OK) fail_msg("%s", e.text);
        struct tally t = tally(&c, layout_whole(&c));
        if (c.n_mtp_layers == 0) {
            assert_int_equal(t.n + t.n_quantized, checkpoint_n_tensors(checkpoint));
            assert_int_equal(t.bytes, checkpoint_bytes(checkpoint));
        }
        checkpoint_close(&checkpoint);
    }
}

// --- the parts of all ranks make the whole, without gap or overlap

struct parts {
    struct slice *list; // (n) of the rank before
    int n, at;
    int rank, tp;
};

static enum status follow(const struct slice *s, void *arg)
{
    struct parts *p = arg;
    struct slice *before = &p->list[p->at++];
    if (p->rank == 0) {
        assert_int_equal(s->row.begin, 0);
        assert_int_equal(s->col.begin, 0);
    } else {
        assert_string_equal(s->name, before->name);
        struct range a = s->cut == CUT_COLS ? before->col : before->row;
        struct range b = s->cut == CUT_COLS ? s->col : s->row;
        assert_int_equal(b.begin, s->cut == CUT_NONE ? 0 : a.begin + a.n);
        if (s->cut != CUT_NONE) assert_in_range(a.n - b.n, 0, 1);
    }
    assert_true(s->row.n > 0 && s->col.n > 0);
    if (p->rank == p->tp - 1) {
        assert_int_equal(s->row.begin + s->row.n, s->rows);
        assert_int_equal(s->col.begin + s->col.n, s->cols);
    }
    *before = *s;
    return OK;
}

static void test_ranks_share_every_tensor(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    c.vocab_size = 1021; // divides by nothing
    c.intermediate_size = 509;
    static struct slice before[1024];
    for (int tp = 1; tp <= 4; tp *= 2) {
        assert_int_equal(layout_check_tp(&c, tp, NULL), OK);
        for (int rank = 0; rank < tp; rank++) {
            struct parts p = {before, 1024, 0, rank, tp};
            struct placement place = layout_whole(&c);
            place.tp_rank = rank;
            place.tp = tp;
            assert_int_equal(layout_walk(&c, &place, follow, &p), OK);
        }
    }
}

static enum status heads_stay_whole(const struct slice *s, void *arg)
{
    const struct model_config *c = arg;
    if (s->role == ROLE_Q_B)
        assert_int_equal(s->row.n % (c->qk_nope_head_dim + c->qk_rope_head_dim), 0);
    if (s->role == ROLE_KV_B) assert_int_equal(s->row.n, 2 * (c->qk_nope_head_dim + c->v_head_dim));
    if (s->role == ROLE_O) assert_int_equal(s->col.n, 2 * c->v_head_dim);
    return OK;
}

static void test_heads_stay_whole(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    struct placement p = {1, 2, false, false, 1, 2};
    assert_int_equal(layout_walk(&c, &p, heads_stay_whole, &c), OK);
}

static void test_parts_and_blocks(void **state)
{
    (void) state;
    assert_int_equal(layout_part(10, 0, 4).n, 3);
    assert_int_equal(layout_part(10, 1, 4).begin, 3);
    assert_int_equal(layout_part(10, 3, 4).begin, 8);
    assert_int_equal(layout_part(10, 3, 4).n, 2);
    assert_int_equal(layout_part(2, 3, 4).n, 0);
    // A cut through a block: both sides hold its scale.
    struct range a = layout_blocks((struct range){0, 192}, 128);
    struct range b = layout_blocks((struct range){192, 64}, 128);
    assert_int_equal(a.n, 2);
    assert_int_equal(b.begin, 1);
    assert_int_equal(b.n, 1);
    assert_int_equal(layout_blocks((struct range){127, 2}, 128).n, 2);
    assert_int_equal(layout_blocks((struct range){128, 128}, 128).n, 1);
    assert_int_equal(layout_blocks((struct range){5, 0}, 128).n, 0);
}

static void test_refuses_tp(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct error e = {0};
    assert_int_equal(layout_check_tp(&c, 64, &e), OK);
    assert_int_equal(layout_check_tp(&c, 3, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_tp");
    assert_int_equal(layout_check_tp(&c, 0, &e), ERR_INPUT);
    assert_int_equal(layout_check_tp(&c, 128, &e), ERR_INPUT);
    c.moe_intermediate_size = 100;
    assert_int_equal(layout_check_tp(&c, 8, &e), ERR_INPUT);
}

static enum status stop_at_router(const struct slice *s, void *arg)
{
    ++*(int *) arg;
    return s->role == ROLE_ROUTER ? ERR_ABORTED : OK;
}

static void test_visit_can_end_the_walk(void **state)
{
    (void) state;
    struct model_config c = load("tiny-bf16");
    struct placement whole = layout_whole(&c);
    int n = 0;
    assert_int_equal(layout_walk(&c, &whole, stop_at_router, &n), ERR_ABORTED);
    assert_true(n > 10 && n < 30);
}

// --- checkpoints that disagree with the config

// Writes the tensors of tiny-bf16's headers as one file of zeros, with `change` made to the entry
// of `name` (NULL removes it), and checks it against `c`.
static void assert_refused(const struct model_config *c, const char *name, const char *dtype,
                           const char *shape, const char *says)
{
    struct checkpoint *from, *checkpoint;
    assert_int_equal(checkpoint_open(&from, FIXTURES "/tiny-bf16", NULL), OK);
    json_t *header = json_object();
    json_int_t at = 0;
    for (int i = 0; i <= checkpoint_n_tensors(from); i++) {
        bool extra = i == checkpoint_n_tensors(from);
        const struct tensor *t = extra ? NULL : checkpoint_tensor(from, i);
        if (extra && checkpoint_find(from, name) != NULL) break;
        bool changed = extra || strcmp(t->name, name) == 0;
        if (changed && shape == NULL) continue;
        json_t *dims = changed ? json_loads(shape, 0, NULL) : json_array();
        const char *type = changed ? dtype : dtype_name(t->dtype);
        json_int_t size = strcmp(type, "F32") == 0 || strcmp(type, "I32") == 0 ? 4
                          : strcmp(type, "F8_E4M3") == 0                       ? 1
                                                                               : 2;
        for (int j = 0; !changed && j < t->n_dims; j++) {
            json_array_append_new(dims, json_integer(t->shape[j]));
        }
        for (size_t j = 0; j < json_array_size(dims); j++) {
            size *= json_integer_value(json_array_get(dims, j));
        }
        json_object_set_new(header, extra ? name : t->name,
                            json_pack("{s:s, s:o, s:[I,I]}", "dtype", type, "shape", dims,
                                      "data_offsets", at, at + size));
        at += size;
    }
    checkpoint_close(&from);
    char *text = json_dumps(header, 0);
    json_decref(header);
    struct model_dir d = model_dir_create();
    model_dir_safetensors(&d, "model.safetensors", text, -1, (size_t) at);
    free(text);
    struct error e = {0};
    if (checkpoint_open(&checkpoint, d.path, &e) != OK) fail_msg("%s", e.text);
    enum status status = layout_check_checkpoint(c, checkpoint, &e);
    checkpoint_close(&checkpoint);
    model_dir_remove(&d);
    if (says == NULL ? status != OK
                     : status == OK || strcmp(e.code, "bad_checkpoint") != 0 ||
                           strstr(e.text, says) == NULL) {
        fail_msg("%s: %s: %s", name, e.code, e.text);
    }
}

static void test_refuses_tensors_that_disagree(void **state)
{
    (void) state;
    struct model_config c = load("tiny-bf16");
    const char *router = "model.layers.3.mlp.gate.weight";
    assert_refused(&c, "lm_head.weight", "BF16", "[512,128]", NULL);
    assert_refused(&c, "lm_head.weight", NULL, NULL, "lm_head.weight is missing");
    assert_refused(&c, "model.layers.2.mlp.experts.7.up_proj.weight", NULL, NULL,
                   "model.layers.2.mlp.experts.7.up_proj.weight is missing");
    assert_refused(
        &c, router, "BF16", "[9,128]",
        "model.layers.3.mlp.gate.weight has shape [9, 128], config.json implies [8, 128]");
    assert_refused(&c, router, "BF16", "[1024]", "has shape [1024], config.json implies [8, 128]");
    assert_refused(&c, "model.norm.weight", "BF16", "[128,1]", "config.json implies [128]");
    assert_refused(&c, router, "I32", "[8,128]", "expected BF16, F16 or F32");
    assert_refused(&c, router, "F8_E4M3", "[8,128]", "is F8_E4M3, expected BF16, F16 or F32");
    assert_refused(&c, router, "F32", "[8,128]", NULL);
    assert_refused(&c, "model.embed_tokens.weight", "F32", "[512,128]", NULL);
    assert_refused(&c, "model.layers.2.mlp.experts.7.up_proj.weight", "F32", "[64,128]",
                   "experts.7.up_proj.weight is F32, but model.layers.2.mlp.experts.0.gate_proj");
    assert_refused(&c, "model.layers.2.mlp.experts.7.down_proj.weight", "F16", "[128,64]",
                   "the experts of a layer must have one type");
    assert_refused(&c, "model.layers.0.self_attn.o_proj.bias", "BF16", "[128]",
                   "o_proj.bias, which nothing in config.json implies");
    assert_refused(&c, "model.layers.4.input_layernorm.weight", "BF16", "[128]",
                   "which nothing in config.json implies");
    assert_refused(&c, "model.layers.4.eh_proj.weight", "BF16", "[128,256]", NULL);
    assert_refused(&c, "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", "[8]", NULL);
}

// The same weights under another config.
static void test_refuses_configs_that_disagree(void **state)
{
    (void) state;
    const char *same = "lm_head.weight";
    struct model_config c = load("tiny-bf16");
    c.n_layers = 5;
    assert_refused(&c, same, "BF16", "[512,128]",
                   "model.layers.4.input_layernorm.weight is missing");
    c.n_layers = 3;
    assert_refused(&c, same, "BF16", "[512,128]", "the checkpoint holds model.layers.3.");
    c = load("tiny-bf16");
    c.n_routed_experts = 7;
    assert_refused(&c, same, "BF16", "[512,128]", "config.json implies [7, 128]");
    c = load("tiny-bf16");
    c.n_shared_experts = 0;
    assert_refused(&c, same, "BF16", "[512,128]", "shared_experts.down_proj.weight, which nothing");
    c = load("tiny-bf16");
    c.hidden_size = 256;
    assert_refused(&c, same, "BF16", "[512,128]", "model.embed_tokens.weight has shape [512, 128]");
    c = load("tiny-bf16");
    c.fp8 = true; // its matrices may still be stored as they are
    assert_refused(&c, same, "BF16", "[512,128]", NULL);
    assert_refused(&c, "model.layers.0.self_attn.o_proj.weight", "F8_E4M3", "[128,128]",
                   "o_proj.weight_scale_inv is missing");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_of_deepseek_v3),
        cmocka_unit_test(test_layouts_cover_the_fixtures),
        cmocka_unit_test(test_ranks_share_every_tensor),
        cmocka_unit_test(test_heads_stay_whole),
        cmocka_unit_test(test_parts_and_blocks),
        cmocka_unit_test(test_refuses_tp),
        cmocka_unit_test(test_visit_can_end_the_walk),
        cmocka_unit_test(test_refuses_tensors_that_disagree),
        cmocka_unit_test(test_refuses_configs_that_disagree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
