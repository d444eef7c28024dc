#include "common/cost_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plan_case.h"

static struct device_rates rates(const char *name)
{
    struct device_rates r;
    assert_int_equal(device_rates_named(&r, name, NULL), OK);
    return r;
}

static void expect_within(double got, double wanted, double share)
{
    if (fabs(got / wanted - 1) > share) fail_msg("%g, but %g within %g", got, wanted, share);
}

// b sequences decode a token each behind `context` positions.
static struct cost_step decode(double b, double context)
{
    return (struct cost_step){.rows = b, .context = b * context, .kv_rows = b * context, .out = b};
}

// One H100, five full-size MoE layers, 4k of context, the latent in FP8: what bytes alone take, at
// the card's rate and at 85% of it.
static void test_five_layers_on_an_h100(void **state)
{
    (void) state;
    static const struct {
        double batch, limit_ms, reached_ms;
    } CASES[] = {
        {1, 0.88, 1.04}, {8, 4.16, 4.89}, {32, 11.2, 13.2}, {128, 17.4, 20.5}, {512, 19.2, 22.6}};
    struct model_config c = load("deepseek-v3");
    struct cost_form form = {.tp = 1, .kv_ranks = 1, .fp8_gemm = true, .fp8_kv = true};
    struct plan_stage five = {.first = 10, .last = 15};
    struct cost_model m;
    cost_model_init(&m, &c, &form);
    struct device_rates limit = rates("h100-limit"), reached = rates("h100");
    limit.attention = reached.attention = limit.fp8_gemm = reached.fp8_gemm = INFINITY;
    reached.layer_s = reached.step_s = 0;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        struct cost_step s = decode(CASES[i].batch, 4096);
        expect_within(cost_stage(&m, &five, &limit, &s).seconds * 1e3, CASES[i].limit_ms, 0.01);
        expect_within(cost_stage(&m, &five, &reached, &s).seconds * 1e3, CASES[i].reached_ms, 0.01);
    }
    struct cost_step s = decode(512, 4096);
    struct device_rates h100 = rates("h100");
    expect_within(cost_stage(&m, &five, &h100, &s).attention_seconds, 5.8e-3, 0.01); // arithmetic
}

static void test_experts_touched(void **state)
{
    (void) state;
    static const double CASES[][2] = {{1, 8}, {8, 57}, {32, 163}, {128, 252}, {512, 256}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        expect_within(cost_experts_touched(256, 8, CASES[i][0]), CASES[i][1], 0.01);
    }
    assert_true(cost_experts_touched(256, 8, 0) == 0);
    assert_true(cost_experts_touched(0, 0, 5) == 0);
    assert_true(cost_experts_touched(4, 4, 1) == 4);
}

// Operations of one token through the whole model; context changes only attention.
static void test_operations_of_a_token(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct cost_form form = {.tp = 1, .kv_ranks = 1};
    struct plan_stage whole = {0, c.n_layers, true, true};
    struct device_rates r = rates("h100");
    struct cost_model m;
    cost_model_init(&m, &c, &form);
    static const double CONTEXTS[][2] = {{1024, 17}, {4096, 70}, {16384, 278}};
    for (size_t i = 0; i < sizeof CONTEXTS / sizeof *CONTEXTS; i++) {
        struct cost_step s = decode(1, CONTEXTS[i][0]);
        struct stage_cost cost = cost_stage(&m, &whole, &r, &s);
        expect_within(cost.gemm_flops, 73.2e9, 0.01);
        expect_within(cost.attention_flops, CONTEXTS[i][1] * 1e9, 0.03);
        expect_within(cost.kv_bytes, CONTEXTS[i][0] * 70272, 1e-9);
    }
    struct cost_step prefill = {0};
    cost_step_add(&prefill, 0, 1, 0);
    expect_within(cost_stage(&m, &whole, &r, &prefill).gemm_flops, 71.4e9, 0.01);
    form.fp8_kv = true;
    cost_model_init(&m, &c, &form);
    struct cost_step one = decode(1, 1);
    expect_within(cost_stage(&m, &whole, &r, &one).kv_bytes, 40016, 1e-9);
}

// Below about 5,200 tokens a step a 4090 waits for the experts' bytes, beyond for its own
// arithmetic.
static void test_where_experts_stop_being_memory_bound(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct cost_form form = {.tp = 8, .kv_ranks = 1, .fp8_gemm = true};
    struct device_rates r = rates("rtx4090-limit");
    struct cost_model m;
    cost_model_init(&m, &c, &form);
    double bytes = c.n_routed_experts * m.expert.bytes;
    double rows = bytes / r.read * r.fp8_gemm / (2 * c.n_experts_per_token * m.expert.elements);
    expect_within(rows, 5200, 0.02);
}

// Round trips of four steps in flight through four nodes of eight 4090s, KV shared out over the
// ranks: tokens a second at `batch` sequences, 4k of context.
static double decode_rate(const struct cost_model *m, const struct device_rates *r, double batch)
{
    static const struct plan_stage STAGES[] = {
        {0, 17, true, false}, {17, 32, false, false}, {32, 47, false, false}, {47, 61, false, true},
    };
    double steps = batch < 4 ? 1 : 4, seconds = 0;
    struct cost_step s = decode(batch / steps, 4096);
    for (int i = 0; i < 4; i++) seconds += cost_stage(m, &STAGES[i], r, &s).seconds;
    seconds += 3 * cost_link(m, r, &s) + r->link_s; // and the tokens back
    return batch / seconds;
}

static void test_decode_of_32_cards(void **state)
{
    (void) state;
    static const struct {
        double batch, stock, limit;
    } CASES[] = {
        {1, 63, 129}, {8, 423, 780}, {32, 896, 1351}, {128, 1563, 2200}, {339, 2634, 4029}};
    struct model_config c = load("deepseek-v3");
    struct cost_form form = {.tp = 8, .kv_ranks = 8, .fp8_gemm = true, .fp8_kv = true};
    struct device_rates stock = rates("rtx4090"), limit = rates("rtx4090-limit");
    struct cost_model m;
    cost_model_init(&m, &c, &form);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        expect_within(decode_rate(&m, &stock, CASES[i].batch), CASES[i].stock, 0.03);
        expect_within(decode_rate(&m, &limit, CASES[i].batch), CASES[i].limit, 0.04);
    }
    // Each rank reading all of the KV, as it is kept today, is slower.
    form.kv_ranks = 1;
    struct cost_model replicated;
    cost_model_init(&replicated, &c, &form);
    assert_true(decode_rate(&replicated, &limit, 32) < decode_rate(&m, &limit, 32));
}

// The same with this program's own sums over the host (kernels/README.md), exact or as 8 bits.
static void test_sums_of_32_cards(void **state)
{
    (void) state;
    static const struct {
        double batch, direct, coarse; // 0: its steps are too small to be coarse
    } CASES[] = {{1, 116, 0}, {8, 676, 0}, {32, 1090, 0}, {128, 1641, 0}, {339, 2619, 3192}};
    struct model_config c = load("deepseek-v3");
    struct cost_form form = {.tp = 8, .kv_ranks = 8, .fp8_gemm = true, .fp8_kv = true};
    struct device_rates direct = rates("rtx4090-direct"), coarse = rates("rtx4090-coarse");
    struct cost_model m;
    cost_model_init(&m, &c, &form);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        expect_within(decode_rate(&m, &direct, CASES[i].batch), CASES[i].direct, 0.01);
        if (CASES[i].coarse == 0) continue;
        expect_within(decode_rate(&m, &coarse, CASES[i].batch), CASES[i].coarse, 0.01);
    }
}

// Prefill at TP 8 is bound by the all-reduces: 10,000 to 29,000 tokens/s of 66,000 by arithmetic.
static void test_prefill_of_32_cards(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct cost_form form = {.tp = 8, .kv_ranks = 1};
    struct plan_stage first = {0, 17, true, false};
    struct device_rates stock = rates("rtx4090");
    struct cost_step s = {0};
    struct cost_model m;
    cost_model_init(&m, &c, &form);
    cost_step_add(&s, 0, 2048, 0);
    struct stage_cost cost = cost_stage(&m, &first, &stock, &s);
    assert_true(cost.reduce_seconds > cost.weight_seconds);
    assert_true(2048 / cost.reduce_seconds > 10e3 && 2048 / cost.reduce_seconds < 29e3);
}

static void test_content_of_a_step(void **state)
{
    (void) state;
    struct cost_step s = {0};
    cost_step_add(&s, 99, 1, 1); // sees 100
    cost_step_add(&s, 10, 3, 0); // see 11, 12, 13
    assert_true(s.rows == 4 && s.out == 1);
    assert_true(s.context == 100 + 11 + 12 + 13);
    assert_true(s.kv_rows == 100 + 13);
}

// What must hold of any model and split: stages add up to the whole, more work is never cheaper,
// ranks share the work, and every field is a number.
static void test_any_model(void **state)
{
    (void) state;
    static const char *const NAMES[] = {"tiny-fp8", "tiny-bf16", "deepseek-v3"};
    for (size_t k = 0; k < sizeof NAMES / sizeof *NAMES; k++) {
        struct model_config c = load(NAMES[k]);
        struct cost_form form = {.tp = 1, .kv_ranks = 1, .f32 = k == 0};
        struct device_rates r = rates("cpu");
        struct cost_model one, two;
        cost_model_init(&one, &c, &form);
        form.tp = 2;
        cost_model_init(&two, &c, &form);
        struct cost_step small = decode(3, 50), large = decode(7, 50);
        struct plan_stage whole = {0, c.n_layers, true, true};
        double all = cost_stage(&one, &whole, &r, &small).seconds, sum = 0;
        for (int i = 0; i < c.n_layers; i++) {
            struct plan_stage stage = {i, i + 1, i == 0, i == c.n_layers - 1};
            sum += cost_stage(&one, &stage, &r, &small).seconds - r.step_s;
        }
        expect_within(sum + r.step_s, all, 1e-9);
        assert_true(cost_stage(&one, &whole, &r, &large).seconds > all);
        struct stage_cost half = cost_stage(&two, &whole, &r, &small);
        assert_true(half.weight_seconds < cost_stage(&one, &whole, &r, &small).weight_seconds);
        assert_true(half.reduce_seconds > 0);
        assert_true(cost_link(&one, &r, &large) > cost_link(&one, &r, &small));
    }
}

// A model of dense layers only, one of layers with experts only.
static void test_models_of_one_kind_of_layer(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    struct cost_form form = {.tp = 1, .kv_ranks = 1};
    struct device_rates r = rates("cpu");
    struct cost_step s = decode(2, 9);
    for (int dense = 0; dense <= c.n_layers; dense += c.n_layers) {
        struct cost_model m;
        c.n_dense_layers = dense;
        cost_model_init(&m, &c, &form);
        struct plan_stage whole = {0, c.n_layers, true, true};
        struct stage_cost cost = cost_stage(&m, &whole, &r, &s);
        assert_true(isfinite(cost.seconds) && cost.seconds > 0);
        assert_true((m.dense.bytes > 0) == (dense > 0) && (m.expert.bytes > 0) == (dense == 0));
    }
}

static void test_presets(void **state)
{
    (void) state;
    struct device_rates r;
    struct error e = {0};
    static const char *const CARDS[] = {"rtx4090", "rtx4090-direct", "rtx4090-coarse",
                                        "rtx4090-limit", "h100", "h100-limit", "cpu"};
    for (size_t i = 0; i < sizeof CARDS / sizeof *CARDS; i++) {
        assert_int_equal(device_rates_named(&r, CARDS[i], &e), OK);
        assert_string_equal(r.name, CARDS[i]);
        assert_true(r.read > 0 && r.fp8_gemm > 0 && r.bf16_gemm > 0 && r.f32_gemm > 0);
        assert_true(r.attention > 0 && r.reduce > 0 && r.link > 0 && r.reduce_s > 0);
    }
    for (int kind = 0; kind < N_DEVICE_KINDS; kind++) {
        assert_non_null(device_rates_of((enum device_kind) kind));
    }
    assert_null(device_rates_find("abacus"));
    assert_int_equal(device_rates_named(&r, "abacus", &e), ERR_INPUT);
    assert_string_equal(e.text, "no rates are known of abacus; there are rtx4090, "
                                "rtx4090-direct, rtx4090-coarse, rtx4090-limit, h100, "
                                "h100-limit, cpu");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_five_layers_on_an_h100),
        cmocka_unit_test(test_experts_touched),
        cmocka_unit_test(test_operations_of_a_token),
        cmocka_unit_test(test_where_experts_stop_being_memory_bound),
        cmocka_unit_test(test_decode_of_32_cards),
        cmocka_unit_test(test_sums_of_32_cards),
        cmocka_unit_test(test_prefill_of_32_cards),
        cmocka_unit_test(test_content_of_a_step),
        cmocka_unit_test(test_any_model),
        cmocka_unit_test(test_models_of_one_kind_of_layer),
        cmocka_unit_test(test_presets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
