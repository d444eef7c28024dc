#include "common/plan_advice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "plan_case.h"

static const char *find(const struct advice *a, const char *flag)
{
    for (int i = 0; i < a->n; i++) {
        if (strncmp(a->at[i], flag, strlen(flag)) == 0) return a->at[i];
    }
    return NULL;
}

static long value(const struct advice *a, const char *flag)
{
    const char *line = find(a, flag);
    if (line == NULL) fail_msg("nothing of %s", flag);
    return strtol(line + strlen(flag), NULL, 10);
}

static bool fits(const struct plan_request *r) { return make(r).fits; }

static struct plan_machines machines_of(const struct plan_request *r)
{
    struct plan_machines m = {.nodes = r->pp, .gpus = r->tp, .n_bytes = 1, .device = r->device};
    for (int i = 0; i < PP_MAX; i++) m.bytes[i] = r->device_bytes[0];
    return m;
}

static struct advice advise(const struct plan_request *r)
{
    struct advice a;
    struct plan_machines m = machines_of(r);
    assert_false(fits(r));
    plan_remedies(r, &m, &a);
    assert_true(a.n > 0);
    return a;
}

// DeepSeek-V3 on three nodes: a fourth, larger cards, or more of them.
static void test_three_nodes(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 3, 8, 24564ull * MIB);
    struct advice a = advise(&r);
    assert_int_equal(value(&a, "--nodes "), 4);
    assert_int_equal(value(&a, "--gpus "), 16);
    long mib = value(&a, "--vram ");
    assert_non_null(strstr(find(&a, "--vram "), "MiB"));
    for (int i = 0; i < 3; i++) r.device_bytes[i] = (uint64_t) mib * (uint64_t) MIB;
    assert_true(fits(&r));
    for (int i = 0; i < 3; i++) r.device_bytes[i] -= (uint64_t) MIB;
    assert_false(fits(&r));
}

// Each limit that was pinned too high is told as the highest with which it fits: one more does not.
static void test_the_least_change_of_a_pinned_limit(void **state)
{
    (void) state;
    struct model_config c = load("tiny-fp8");
    struct plan_request asked = request(&c, 2, 1, 24 * MIB);
    for (int i = 0; i < 4; i++) {
        struct plan_request r = asked;
        const struct {
            int *field, pinned, step;
            const char *flag;
        } pins[] = {
            {&r.kv_blocks, 100000, 1, "--kv-blocks "}, {&r.slots, 4096, 1, "--slots "},
            {&r.max_context, 4096, KV_BLOCK_ROWS, "--max-context "},
            {&r.max_rows, 8192, 1, "--max-rows "},
        };
        if (i == 1) r.max_context = 2048; // history of many sequences
        if (i == 2) r.slots = 1500;
        *pins[i].field = pins[i].pinned;
        struct advice a = advise(&r);
        long n = value(&a, pins[i].flag);
        assert_true(n > 0 && n < pins[i].pinned);
        *pins[i].field = (int) n;
        assert_true(fits(&r));
        *pins[i].field = (int) n + pins[i].step;
        assert_false(fits(&r));
    }
}

static void test_another_form(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
    memcpy(r.layers, (int[]){10, 11, 20, 20}, 4 * sizeof *r.layers);
    struct advice a = advise(&r);
    assert_string_equal(find(&a, "--layers "), "--layers 17,15,15,14: another split");
    // KV in f32 takes twice the room.
    r = request(&c, 4, 8, 24564ull * MIB);
    r.kv_blocks = 1800;
    r.slots = 1;
    r.f32 = true;
    a = advise(&r);
    assert_non_null(find(&a, "--precision bf16"));
    assert_non_null(find(&a, "--kv fp8"));
    assert_null(find(&a, "--layers"));
    r.f32 = false;
    r.reserve = 8ull * GIB;
    a = advise(&r);
    assert_non_null(find(&a, "--reserve 0"));
    r.reserve = 0;
    r.mtp = true;
    r.kv_blocks = 3100;
    a = advise(&r);
    assert_non_null(find(&a, "without --mtp"));
}

// Nodes of two stages each, the one with less memory counts.
static void test_stages_of_a_node(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 6, 4, 24564ull * MIB);
    struct advice a;
    struct plan_machines m = machines_of(&r);
    m.nodes = 3;
    m.gpus = 8;
    m.tp = 4;
    m.pp = 6;
    plan_remedies(&r, &m, &a);
    const char *line = find(&a, "--nodes ");
    int nodes, pp;
    assert_non_null(line);
    assert_int_equal(sscanf(line, "--nodes %d --pp %d", &nodes, &pp), 2);
    assert_int_equal(nodes, (pp + 1) / 2);
    r.pp = pp;
    for (int i = 0; i < pp; i++) r.device_bytes[i] = 24564ull * MIB;
    assert_true(fits(&r));
    // A node of eight has room for one stage of eight ranks.
    assert_string_equal(find(&a, "--nodes 6 --tp 8"), "--nodes 6 --tp 8: more ranks a stage");
}

// A pool that holds no sequence: either pin yields, or where memory is short, too, the sequence.
static void test_a_pool_smaller_than_a_sequence(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
    r.kv_blocks = 10;
    r.max_context = 4096;
    struct advice a = advise(&r);
    assert_int_equal(a.n, 2);
    assert_string_equal(a.at[0], "--kv-blocks 64: a pool of 4096 tokens");
    assert_string_equal(a.at[1], "--max-context 640: shorter sequences");
    assert_non_null(strstr(make(&r).reason, "kv_blocks has to be at least 64, or max_context at "
                                            "most 640"));
    r.max_context = 640;
    assert_true(fits(&r));
    r.max_context = 641;
    assert_false(fits(&r));
    r = request(&c, 3, 8, 24564ull * MIB);
    r.kv_blocks = 10;
    r.max_context = 4096;
    a = advise(&r);
    assert_int_equal(value(&a, "--nodes 4 --max-context "), 640);
}

static void test_what_pins_cost(void **state)
{
    (void) state;
    struct model_config c = load("deepseek-v3");
    struct plan_request r = request(&c, 4, 8, 24564ull * MIB);
    struct advice a;
    r.device = DEVICE_CUDA;
    memcpy(r.layers, (int[]){16, 15, 15, 15}, 4 * sizeof *r.layers);
    struct plan p = make(&r), open;
    assert_true(p.fits);
    plan_pins(&r, &p, &a);
    assert_int_equal(a.n, 1);
    memset(r.layers, 0, sizeof r.layers);
    open = make(&r);
    char want[ADVICE_SIZE];
    snprintf(want, sizeof want, "KV blocks %d instead of %d", p.kv_blocks, open.kv_blocks);
    assert_non_null(strstr(a.at[0], want));
    assert_non_null(strstr(a.at[0], "layers 16,15,15,15 instead of 17,15,15,14"));
    assert_true(p.kv_blocks < open.kv_blocks);
    plan_pins(&r, &open, &a);
    assert_int_equal(a.n, 0);
    r.max_rows = 512; // what is chosen anyway
    p = make(&r);
    plan_pins(&r, &p, &a);
    assert_int_equal(a.n, 1);
    assert_non_null(strstr(a.at[0], "costs nothing"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three_nodes),
        cmocka_unit_test(test_the_least_change_of_a_pinned_limit),
        cmocka_unit_test(test_another_form),
        cmocka_unit_test(test_stages_of_a_node),
        cmocka_unit_test(test_a_pool_smaller_than_a_sequence),
        cmocka_unit_test(test_what_pins_cost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
