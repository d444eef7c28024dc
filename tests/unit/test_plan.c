#include "common/plan.h"

#include "common/layout.h"
#include "common/plan_split.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "plan_case.h"

// DeepSeek-V3 on four nodes of eight 24 GB cards.
static void test_deepseek_v3_on_32_cards(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
    struct plan p = make(&r);
    assert_true(p.fits);
    assert_string_equal(p.reason, "");
    expect_layers(&p, 4, (int[]){17, 15, 15, 14});
    assert_int_equal(p.first[3], 47);
    assert_int_equal(p.slots, 32);
    assert_int_equal(p.max_context, 4096);
    assert_int_equal(p.max_blocks, 64);
    assert_int_equal(p.kv_blocks, 32 * 64); // more are of no use
    assert_int_equal(p.kv_block_bytes[0], 17 * 64 * 576 * 2);
    for (int i = 0; i < 4; i++) {
        assert_true(ledger_total(&p.stages[i]) <= r.device_bytes[i]);
        assert_int_equal(p.stages[i].bytes[LEDGER_LOGITS] > 0, i == 3);
        assert_true(p.weight_bytes[i] >= ledger_weights(&p.stages[i]));
    }
    // So many sequences that memory decides: the same layers.
    r.slots = 256;
    p = make(&r);
    expect_layers(&p, 4, (int[]){17, 15, 15, 14});
    assert_in_range(p.kv_blocks, 3000, 3500);
}

// What FP8 saves, sequences get.
static void test_kv_in_fp8_on_32_cards(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
    r.device = DEVICE_CUDA;
    struct plan wide = make(&r);
    r.fp8_kv = true;
    struct plan p = make(&r);
    expect_layers(&p, 4, (int[]){17, 15, 15, 14});
    assert_int_equal(p.kv_block_bytes[0], 17 * 64 * 656);
    assert_true((double) p.kv_blocks > 1.74 * (double) wide.kv_blocks);
    assert_int_equal(wide.slots, 38);
    assert_int_equal(p.slots, 66);
    r.f32 = true; // of activations alone
    p = make(&r);
    assert_int_equal(p.kv_block_bytes[0], 17 * 64 * 656);
}

// --- the search against trying everything

struct best {
    int64_t need, blocks; // fewer blocks than `need` are of no use where times matter
    uint64_t time, largest;
    int layers[PP_MAX];
};

static void weigh(const struct plan_split *s, const int *layers, int64_t most, struct best *best)
{
    int64_t blocks = plan_split_blocks(s, layers, most);
    uint64_t largest = 0, time = 0;
    for (int i = 0, first = 0; i < s->pp; first += layers[i++]) {
        struct plan_stage stage = plan_split_stage(s, i, first, layers[i]);
        uint64_t bytes = plan_cost_bytes(s->cost, &stage, blocks);
        largest = bytes > largest ? bytes : largest;
        uint64_t ps = s->times == NULL ? 0 : plan_split_time(s, i, first, layers[i]);
        time = ps > time ? ps : time;
    }
    if (s->times != NULL && blocks < best->need) return;
    if (time > best->time) return;
    if (time < best->time) best->blocks = 0, best->largest = UINT64_MAX;
    best->time = time;
    // Tried in descending order of the earlier stages' layers: only what is better replaces.
    if (blocks < best->blocks || (blocks == best->blocks && largest >= best->largest)) return;
    best->blocks = blocks;
    best->largest = largest;
    memcpy(best->layers, layers, (size_t) s->pp * sizeof *layers);
}

static void try_all(const struct plan_split *s, int *layers, int i, int left, int64_t most,
                    struct best *best)
{
    if (i == s->pp - 1) {
        layers[i] = left;
        weigh(s, layers, most, best);
        return;
    }
    for (int n = left - (s->pp - 1 - i); n >= 1; n--) {
        layers[i] = n;
        try_all(s, layers, i + 1, left - n, most, best);
    }
}

static uint64_t random_state = 1;

static uint64_t any(uint64_t least, uint64_t most)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return least + (random_state >> 33) % (most - least + 1);
}

struct small_case {
    struct model_config config;
    struct layout_types types;
    struct plan_cost cost;
    uint64_t device_bytes[PP_MAX];
    const struct device_rates *rates[PP_MAX];
    struct plan_times times;
    struct plan_split split;
    int64_t most;
};

static void draw_case(struct small_case *k, int number)
{
    static const char *const CARDS[] = {"rtx4090", "rtx4090-limit", "h100", "h100-limit", "cpu"};
    struct model_config *c = &k->config;
    *c = load("tiny-fp8");
    c->n_layers = (int) any(1, 9);
    c->n_dense_layers = (int) any(0, (uint64_t) c->n_layers);
    c->vocab_size = (int) any(100, 4000);
    c->intermediate_size = (int) any(64, 8192);
    c->n_routed_experts = (int) any(8, 32);
    int pp = (int) any(1, (uint64_t) (c->n_layers < 5 ? c->n_layers : 5));
    struct plan_source source = {c, &k->types, DEVICE_CPU, 2, false};
    struct plan_limits limits = {.slots = 4, .max_blocks = 8, .max_rows = 16, .max_out = 4};
    layout_types_imply(&k->types, c);
    assert_int_equal(plan_cost_init(&k->cost, &source, NULL), OK);
    plan_cost_limits(&k->cost, &limits);
    uint64_t base = any(4, 32) * MIB;
    for (int i = 0; i < pp; i++) {
        k->device_bytes[i] = number % 3 == 0 ? base : base + any(0, 8) * MIB;
        k->rates[i] = device_rates_find(CARDS[any(0, 4)]);
    }
    struct cost_form form = {.tp = 2, .kv_ranks = 1};
    k->times = (struct plan_times){.rates = k->rates};
    cost_model_init(&k->times.model, c, &form);
    for (int i = 0; i < 4; i++) cost_step_add(&k->times.step, 256, 1, 1);
    k->split = (struct plan_split){&k->cost, pp, c->n_layers, k->device_bytes, NULL};
    k->most = number % 2 == 0 ? 32 : 1000000;
}

// Every split of 1,000 small models on devices that differ in half of them.
static void test_no_other_layers_are_better(void **state)
{
    (void) state;
    static struct small_case k;
    int n_some = 0, n_none = 0;
    for (int i = 0; i < 1000; i++) {
        int layers[PP_MAX], tried[PP_MAX];
        struct best best = {.largest = UINT64_MAX, .time = UINT64_MAX};
        draw_case(&k, i);
        int64_t blocks = plan_split_choose(&k.split, 1, k.most, layers);
        try_all(&k.split, tried, 0, k.config.n_layers, k.most, &best);
        assert_int_equal(blocks, best.blocks);
        assert_int_equal(plan_split_fits(&k.split, 1), blocks > 0);
        n_some += blocks > 0;
        n_none += blocks == 0;
        if (blocks == 0) continue;
        for (int s = 0; s < k.split.pp; s++) assert_int_equal(layers[s], best.layers[s]);
    }
    assert_true(n_some > 100 && n_none > 20);
}

static void test_no_other_layers_are_faster(void **state)
{
    (void) state;
    static struct small_case k;
    int n_some = 0, n_other = 0;
    for (int i = 0; i < 1000; i++) {
        int layers[PP_MAX], for_blocks[PP_MAX], tried[PP_MAX];
        int64_t need = (int64_t) any(1, 8);
        struct best best = {.need = need, .largest = UINT64_MAX, .time = UINT64_MAX};
        draw_case(&k, i);
        int64_t most_blocks = plan_split_choose(&k.split, need, k.most, for_blocks);
        k.split.times = &k.times;
        int64_t blocks = plan_split_choose(&k.split, need, k.most, layers);
        try_all(&k.split, tried, 0, k.config.n_layers, k.most, &best);
        assert_int_equal(best.time != UINT64_MAX, most_blocks >= need);
        if (most_blocks < need) { // times do not matter where it does not fit
            assert_int_equal(blocks, most_blocks);
            continue;
        }
        assert_int_equal(blocks, best.blocks);
        for (int s = 0; s < k.split.pp; s++) {
            assert_int_equal(layers[s], best.layers[s]);
            n_other += layers[s] != for_blocks[s];
        }
        n_some++;
    }
    assert_true(n_some > 100 && n_other > 100);
}

// --- what is left open, and what does not fit

static void test_defaults(void **state)
{
    (void) state;
    struct model_config c = load("tiny-bf16");
    struct plan_request r = request(&c, 1, 1, 4 * GIB);
    struct plan p = make(&r);
    assert_int_equal(p.max_context, 4096);
    assert_int_equal(p.slots, 32);
    assert_int_equal(p.max_rows, 512);
    assert_int_equal(p.chunk, 512);
    assert_int_equal(p.max_out, 32);
    assert_int_equal(p.steps_in_flight, 1);
    c.max_position_embeddings = 1000;
    r.score = true;
    r.slots = 1;
    r.max_rows = 64;
    r.chunk = 7;
    p = make(&r);
    assert_int_equal(p.max_context, 1000);
    assert_int_equal(p.max_blocks, 16);
    assert_int_equal(p.kv_blocks, 16);
    assert_int_equal(p.max_out, 64);
    assert_int_equal(p.chunk, 7);
    r = request(&c, 3, 1, 4 * GIB);
    r.kv_blocks = 10;
    p = make(&r);
    assert_int_equal(p.kv_blocks, 10);
    assert_int_equal(p.slots, 10);
    assert_int_equal(p.max_context, 640);
    assert_int_equal(p.steps_in_flight, 4);
}

// Slots for all of a pool whose size is pinned, as far as memory and a step's rows go; else it says
// how much of it is of no use.
static void test_slots_for_a_pinned_pool(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    for (int device = 0; device < 2; device++) {
        struct plan_request r = request(&c, 4, 8, 80ull * GIB);
        r.device = device == 0 ? DEVICE_CPU : DEVICE_CUDA;
        r.kv_blocks = 20000;
        struct plan p = make(&r);
        assert_true(p.fits);
        assert_int_equal(p.kv_blocks, 20000);
        assert_int_equal(p.slots, (20000 + 63) / 64);
        assert_int_equal(p.max_out, p.slots);
        assert_string_equal(p.reason, "");
        r.max_rows = 100;
        p = make(&r);
        assert_int_equal(p.slots, 100);
        assert_string_equal(p.reason,
                            "100 slots of at most 64 KV blocks can use 6400 of the 20000");
        r.slots = 32;
        p = make(&r);
        assert_int_equal(p.slots, 32);
        assert_non_null(strstr(p.reason, "can use 2048 of the 20000"));
        // From where the pool alone fits: no slot that has room is lacking, and none too many.
        r.slots = 0;
        r.max_rows = 512;
        int n_less = 0;
        uint64_t low = 1, high = 80ull * 1024;
        while (low < high) {
            for (int i = 0; i < 4; i++) r.device_bytes[i] = (low + high) / 2 * MIB;
            if (make(&r).fits) high = (low + high) / 2;
            else low = (low + high) / 2 + 1;
        }
        for (uint64_t mib = low; mib < low + 32 * 16; mib += 16) {
            for (int i = 0; i < 4; i++) r.device_bytes[i] = mib * MIB;
            p = make(&r);
            assert_true(p.fits);
            for (int i = 0; i < 4; i++) assert_true(ledger_total(&p.stages[i]) <= mib * MIB);
            if (p.slots == 313) continue;
            struct plan_request more = r;
            more.slots = p.slots + 1;
            more.max_rows = p.max_rows;
            assert_int_equal(make(&more).fits, p.slots == p.max_rows);
            assert_non_null(strstr(p.reason, "KV blocks can use"));
            n_less++;
        }
        assert_true(n_less > 0);
    }
}

// Down from plenty to nothing: every plan that fits keeps to the memory, and says what it lowered.
static void test_less_and_less_memory(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    int n_lowered = 0, n_short = 0, n_refused = 0, context = 4096, slots = 32;
    for (uint64_t mib = 200; mib > 0; mib--) {
        struct plan_request r = request(&c, 2, 1, mib * MIB);
        struct plan p = make(&r);
        if (!p.fits) {
            assert_non_null(strstr(p.reason, "lacking"));
            n_refused++;
            continue;
        }
        assert_int_equal(n_refused, 0);
        assert_true(p.slots <= slots && p.max_context <= context);
        assert_true(p.kv_blocks >= p.max_blocks && p.slots <= p.kv_blocks);
        assert_int_equal(p.max_blocks, (p.max_context + 63) / 64);
        for (int i = 0; i < 2; i++) assert_true(ledger_total(&p.stages[i]) <= mib * MIB);
        slots = p.slots;
        context = p.max_context;
        bool less = p.max_rows < 512 || context < 4096;
        n_lowered += less;
        n_short += context < 4096;
        assert_int_equal(p.reason[0] != '\0', less);
    }
    assert_true(n_lowered > 0 && n_short > 0 && n_refused > 0);
}

static void test_a_refusal_says_what_lacks_and_what_would_fit(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 2, 8, 24564ull * MIB);
    struct plan p = make(&r);
    assert_false(p.fits);
    assert_non_null(strstr(p.reason, "from the line weights on"));
    // Asked for more blocks than there is room for.
    r = request(&c, 4, 8, 24564ull * MIB);
    r.kv_blocks = 100000;
    p = make(&r);
    assert_false(p.fits);
    assert_int_equal(p.kv_blocks, 100000);
    assert_non_null(strstr(p.reason, "from the line kv on"));
}

// Every number of limits.h at once: no sum of bytes wraps.
static void test_the_largest_model(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    c.vocab_size = MODEL_VOCAB_MAX;
    c.hidden_size = MODEL_HIDDEN_MAX;
    c.n_layers = MODEL_LAYERS_MAX;
    c.n_heads = MODEL_HEADS_MAX;
    c.n_routed_experts = MODEL_EXPERTS_MAX;
    c.n_experts_per_token = MODEL_EXPERTS_PER_TOKEN_MAX;
    c.n_shared_experts = MODEL_SHARED_EXPERTS_MAX;
    c.moe_intermediate_size = c.intermediate_size = MODEL_INTERMEDIATE_MAX;
    c.kv_lora_rank = c.q_lora_rank = MODEL_LORA_RANK_MAX;
    c.qk_nope_head_dim = c.qk_rope_head_dim = c.v_head_dim = MODEL_HEAD_DIM_MAX;
    c.max_position_embeddings = CONTEXT_MAX;
    c.fp8 = false;
    struct plan_request r = request(&c, 1, 1, UINT64_MAX / 2);
    r.slots = SLOTS_MAX;
    r.max_rows = STEP_ROWS_MAX;
    r.max_context = CONTEXT_MAX;
    r.reserve = 1ull << 60;
    r.f32 = true;
    struct plan p = make(&r);
    const uint64_t *l = p.stages[0].bytes;
    assert_true(p.fits && p.kv_blocks == SLOTS_MAX * (CONTEXT_MAX / KV_BLOCK_ROWS));
    assert_true(l[LEDGER_WEIGHTS] > 3ull * MODEL_LAYERS_MAX * MODEL_EXPERTS_MAX * MODEL_HIDDEN_MAX *
                                 MODEL_INTERMEDIATE_MAX);
    uint64_t total = ledger_total(&p.stages[0]);
    assert_true(total > l[LEDGER_WEIGHTS] && total > l[LEDGER_KV] && total < 1ull << 62);
}

static void test_bad_requests(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    const struct plan_request good = request(&c, 2, 2, 1 * GIB);
    struct plan_request bad[9];
    for (int i = 0; i < 9; i++) bad[i] = good;
    bad[0].pp = 0;
    bad[1].pp = 6;
    bad[2].layers[0] = 3, bad[2].layers[1] = 1;
    bad[3].layers[0] = 5, bad[3].layers[1] = 0;
    bad[4].max_context = 4097;
    bad[5].slots = -1;
    bad[6].max_rows = STEP_ROWS_MAX + 1;
    bad[7].reserve = UINT64_MAX / 2;
    bad[8].tp = 3;
    for (int i = 0; i < 9; i++) {
        struct plan p;
        struct error e = {0};
        assert_int_equal(plan_make(&p, &bad[i], &e), ERR_INPUT);
        assert_string_equal(e.code, i < 8 ? "bad_plan" : "bad_tp");
    }
}

// --- GPUs

static void test_slots_never_pass_their_limit(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    struct plan_request r = request(&c, 2, 1, 64 * GIB);
    r.device = DEVICE_CUDA;
    r.max_context = KV_BLOCK_ROWS;
    r.max_rows = STEP_ROWS_MAX;
    struct plan p = make(&r);
    assert_true(p.fits);
    assert_int_equal(p.slots, SLOTS_MAX);
    assert_int_equal(p.max_out, SLOTS_MAX);
}

// Where sequences are short and layers few, a slot's logits are larger than its KV rows.
static void test_more_slots_never_make_a_plan_fail(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    c.n_layers = 2;
    c.n_dense_layers = 2;
    int n_grown = 0, n_kept = 0, n_refused = 0;
    for (uint64_t mib = 8192; mib > 0; mib -= 8) {
        struct plan_request r = request(&c, 1, 1, mib * MIB), fixed;
        r.device = DEVICE_CUDA;
        r.max_context = KV_BLOCK_ROWS;
        fixed = r;
        fixed.slots = 32;
        struct plan p = make(&r), q = make(&fixed);
        if (q.fits && q.max_rows == 512) assert_true(p.fits);
        if (p.fits) assert_true(p.kv_blocks >= p.max_blocks && p.slots <= p.kv_blocks);
        if (p.fits) assert_true(ledger_total(&p.stages[0]) <= mib * MIB);
        n_grown += p.fits && p.slots > 32;
        n_kept += p.fits && p.slots == 32;
        n_refused += !p.fits;
    }
    assert_true(n_grown > 0 && n_kept > 0 && n_refused > 0);
}

// --- the hash

static void test_the_hash_tells_plans_apart(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    struct plan_request r = request(&c, 2, 2, 1 * GIB);
    struct plan p = make(&r), q = p;
    char first[PLAN_HASH_SIZE], hash[PLAN_HASH_SIZE];
    plan_hash(&p, "model", false, false, first);
    plan_hash(&q, "model", false, false, hash);
    assert_int_equal(strlen(hash), PLAN_HASH_SIZE - 1);
    assert_string_equal(first, hash);
    plan_hash(&p, "model", true, false, hash);
    assert_string_not_equal(first, hash);
    plan_hash(&p, "model", false, true, hash);
    assert_string_not_equal(first, hash);
    plan_hash(&p, "modem", false, false, hash);
    assert_string_not_equal(first, hash);
    q.layers[0]++;
    q.layers[1]--;
    plan_hash(&q, "model", false, false, hash);
    assert_string_not_equal(first, hash);
    q = p;
    q.kv_blocks--;
    plan_hash(&q, "model", false, false, hash);
    assert_string_not_equal(first, hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deepseek_v3_on_32_cards),
        cmocka_unit_test(test_kv_in_fp8_on_32_cards),
        cmocka_unit_test(test_no_other_layers_are_better),
        cmocka_unit_test(test_no_other_layers_are_faster),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_slots_for_a_pinned_pool),
        cmocka_unit_test(test_less_and_less_memory),
        cmocka_unit_test(test_a_refusal_says_what_lacks_and_what_would_fit),
        cmocka_unit_test(test_the_largest_model),
        cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_slots_never_pass_their_limit),
        cmocka_unit_test(test_more_slots_never_make_a_plan_fail),
        cmocka_unit_test(test_the_hash_tells_plans_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
