#include "kernels/backend.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device.h"

#include "common/limits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct backend *b;

static struct device *open_device(enum precision precision, uint64_t memory_bytes)
{
    struct device_options options = {
        .precision = precision, .n_threads = 2, .memory_bytes = memory_bytes};
    struct device *d;
    struct error e = {0};
    assert_int_equal(b->open(&d, &options, &e), OK);
    return d;
}

static void test_a_device_and_its_arena(void **state)
{
    (void) state;
    struct device *d = open_device(PRECISION_F32, 0);
    struct error e = {0};
    void *base;
    assert_int_equal(b->arena(d, 1000, &base, &e), OK);
    int in[3] = {1, 2, 3}, out[3];
    b->upload(d, base, in, sizeof in);
    b->download(d, out, base, sizeof out);
    assert_int_equal(b->sync(d, &e), OK);
    assert_memory_equal(in, out, sizeof in);
    b->close(&d);
    assert_null(d);
    b->close(&d);
}

static void test_the_arena_is_zeroed_and_aligned(void **state)
{
    (void) state;
    static const uint64_t sizes[] = {0, 1, 4096, 2 * MIB, 5 * MIB + 17};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct device *d = open_device(PRECISION_F32, 0);
        struct error e = {0};
        void *base;
        assert_int_equal(b->arena(d, sizes[i], &base, &e), OK);
        assert_int_equal((uintptr_t) base % 4096, 0);
        for (uint64_t at = 0; at < sizes[i]; at++) assert_true(((char *) base)[at] == 0);
        memset(base, 1, sizes[i]);
        b->close(&d);
    }
}

static void test_more_than_was_granted_is_refused(void **state)
{
    (void) state;
    struct device *d = open_device(PRECISION_F32, 3 * MIB);
    struct error e = {0};
    void *base;
    assert_int_equal(b->arena(d, 3 * MIB + 1, &base, &e), ERR_NOMEM);
    assert_string_equal(e.code, "does_not_fit");
    assert_non_null(strstr(e.text, "GiB"));
    assert_int_equal(b->arena(d, 3 * MIB, &base, &e), OK);
    b->close(&d);

    d = open_device(PRECISION_F32, 0); // nor more than there is
    assert_int_equal(b->arena(d, 1ull << 60, &base, &e), ERR_NOMEM);
    b->close(&d);

    d = open_device(PRECISION_F32, 1ull << 62); // nor what no address space holds
    assert_int_equal(b->arena(d, 1ull << 60, &base, &e), ERR_NOMEM);
    b->close(&d);
}

static void test_scratch_parts_do_not_overlap(void **state)
{
    (void) state;
    struct scratch_shape s = {.max_rows = 33, .max_out = 5, .hidden = 256, .intermediate = 512,
                              .moe_intermediate = 64, .n_experts = 8, .n_chosen = 2, .n_heads = 4,
                              .kv_lora = 64, .rope = 16, .nope = 32, .v = 32, .q_lora = 96,
                              .vocab = 1000, .max_context = 1024, .slots = 8, .tp = 1};
    for (int precision = 0; precision < 2; precision++) {
        struct device *d = open_device((enum precision) precision, 0);
        s.f32 = precision == PRECISION_F32;
        uint64_t bytes = device_sizes(b->kind)->scratch(&s);
        char *base = aligned_alloc(256, bytes);
        b->set_scratch(d, &s, base);
        const struct cpu_scratch *p = &d->scratch;
        size_t pairs = (size_t) p->most_rows * 2;
        const struct {
            const void *at;
            size_t bytes;
        } parts[] = {
            {p->rooms, DEVICE_THREADS_MAX * p->room_floats * 4},
            {p->input, p->input_floats * 4},
            {p->moe_input, 33 * cpu_row_floats(256) * 4},
            {p->moe_act, pairs * 64 * 4},
            {p->moe_act_input, pairs * cpu_row_floats(64) * 4},
            {p->moe_outputs, (size_t) p->n_outputs * pairs * CPU_PANEL * 4},
            {p->moe_pair_row, pairs * 4},
            {p->moe_pair_of, pairs * 4},
            {p->moe_first, 9 * 4},
            {p->moe_busy, 8 * 4},
            {p->mla_tiles, s.f32 ? 0 : DEVICE_THREADS_MAX * KV_BLOCK_ROWS * (64 + 16) * 4},
            {p->route_scores, 33 * 8 * 4},
        };
        const char *end = base;
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            if (parts[i].bytes == 0) continue;
            assert_true((const char *) parts[i].at >= end);
            end = (const char *) parts[i].at + parts[i].bytes;
        }
        assert_true(end <= base + bytes && p->n_outputs == 256 / CPU_PANEL);
        s.max_rows++; // more rows never need less
        assert_true(device_sizes(b->kind)->scratch(&s) >= bytes);
        s.max_rows--;
        free(base);
        b->close(&d);
    }
}

static void test_steps_are_not_recorded(void **state)
{
    (void) state;
    struct device *d = open_device(PRECISION_F32, 0);
    struct error e = {0};
    assert_true(b->graph_begin(d, 1)); // "run now", every time
    b->graph_end(d, 1);
    b->graph_launch(d, 1);
    assert_true(b->graph_begin(d, 1));
    assert_int_equal(b->sync(d, &e), OK);
    b->close(&d);
}

static void test_the_residual_stream_between_stages(void **state)
{
    (void) state;
    float x[5] = {1, -0.1f, 3e8f, 0, 1.00390625f}, back[5];
    char wire[1 + sizeof x];
    for (int precision = 0; precision < 2; precision++) {
        struct device *d = open_device((enum precision) precision, 0);
        b->export_act(d, wire + 1, x, 5); // at any address
        b->import_act(d, back, wire + 1, 5);
        for (int i = 0; i < 5; i++) {
            float wanted = precision == PRECISION_F32 ? x[i] : bf16_widen(bf16_round(x[i]));
            assert_true(back[i] == wanted);
        }
        b->close(&d);
    }
}

static void test_the_table_is_whole(void **state)
{
    (void) state;
    void *const *functions = (void *const *) (const void *) &b->open;
    size_t n = (sizeof *b - offsetof(struct backend, open)) / sizeof *functions;
    // The arena and logits are the host's, ops are done when they return and in order, long runs
    // go the way of all rows, shared experts that of one matrix after the other.
    static const size_t absent[] = {
        offsetof(struct backend, host_memory), offsetof(struct backend, usage),
        offsetof(struct backend, pin),         offsetof(struct backend, step_end),
        offsetof(struct backend, step_passed), offsetof(struct backend, step_wait),
        offsetof(struct backend, apart),       offsetof(struct backend, mla_run),
        offsetof(struct backend, run_least),   offsetof(struct backend, branch),
        offsetof(struct backend, resume),      offsetof(struct backend, join),
        offsetof(struct backend, import_ahead), offsetof(struct backend, moe_shared),
        offsetof(struct backend, sampler)};
    for (size_t i = 0; i < n; i++) {
        size_t at = offsetof(struct backend, open) + i * sizeof *functions;
        bool there = true;
        for (size_t k = 0; k < sizeof absent / sizeof *absent; k++) there &= at != absent[k];
        if (there) assert_non_null(functions[i]);
        else assert_null(functions[i]);
    }
    assert_string_equal(b->name, "cpu");
    assert_string_equal(precision_name(PRECISION_F32), "f32");
    assert_string_equal(precision_name(PRECISION_BF16), "bf16");
    bool half = isa_best() == ISA_AVX512BF16;
    assert_int_equal(precision_auto(), half ? PRECISION_BF16 : PRECISION_F32);
}

static void test_the_instruction_set_can_be_lowered(void **state)
{
    (void) state;
    unsetenv("PENSTOCK_ISA");
    enum isa best = isa_best();
    setenv("PENSTOCK_ISA", "portable", 1);
    struct device *d = open_device(PRECISION_F32, 0);
    assert_int_equal(d->isa, ISA_PORTABLE);
    b->close(&d);
    setenv("PENSTOCK_ISA", "avx512bf16", 1); // but not raised
    assert_int_equal(isa_best(), best);
    unsetenv("PENSTOCK_ISA");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_device_and_its_arena),
        cmocka_unit_test(test_the_arena_is_zeroed_and_aligned),
        cmocka_unit_test(test_more_than_was_granted_is_refused),
        cmocka_unit_test(test_scratch_parts_do_not_overlap),
        cmocka_unit_test(test_steps_are_not_recorded),
        cmocka_unit_test(test_the_residual_stream_between_stages),
        cmocka_unit_test(test_the_table_is_whole),
        cmocka_unit_test(test_the_instruction_set_can_be_lowered),
    };
    b = backend_cpu();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
