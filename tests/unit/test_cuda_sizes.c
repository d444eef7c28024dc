// Scratch of a GPU's attention by expanded keys and values: bounded, and in the experts' place.
#include "common/cuda_sizes.h"
#include "common/device_sizes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const struct scratch_shape RANK = {.max_rows = 2048, .max_out = 256, .hidden = 7168,
                                          .intermediate = 2304, .moe_intermediate = 256,
                                          .n_experts = 256, .n_chosen = 8, .n_heads = 16,
                                          .kv_lora = 512, .rope = 64, .nope = 128, .v = 128,
                                          .q_lora = 1536, .max_context = 32768, .slots = 64,
                                          .tp = 8};

static void test_some_heads_at_once(void **state)
{
    (void) state;
    assert_int_equal(cuda_expanded_head(1), CUDA_MLA_KEYS * 512); // whole tiles
    assert_int_equal(cuda_expanded_heads(16, 4096), 16);
    assert_int_equal(cuda_expanded_heads(128, 4096), CUDA_HEADS_MAX);
    assert_int_equal(cuda_expanded_heads(16, 32768), 8);
    assert_int_equal(cuda_expanded_heads(16, 1 << 20), 1); // whatever it takes
    for (int context = 1; context < 300000; context += 777) {
        int heads = cuda_expanded_heads(128, context);
        uint64_t bytes = (uint64_t) heads * cuda_expanded_head(context);
        assert_true(heads == 1 || bytes <= CUDA_EXPANDED_BYTES);
    }
}

// A shorter run has more heads at once, but never more bytes than there is room for.
static void test_runs_have_room(void **state)
{
    (void) state;
    static char memory[1];
    struct cuda_scratch scratch;
    struct scratch_shape shape = RANK;
    uint64_t bytes = device_sizes(DEVICE_CUDA)->scratch(&shape);
    struct carve c = {.base = memory, .size = bytes}; // addresses alone are looked at
    cuda_scratch_carve(&scratch, &shape, &c);
    assert_int_equal(c.used, bytes);
    uint64_t room = (uint64_t) ((char *) scratch.mla - scratch.run.expanded);
    for (int context = 1; context <= shape.max_context; context += 333) {
        int heads = cuda_expanded_heads(shape.n_heads, context);
        assert_true((uint64_t) heads * cuda_expanded_head(context) <= room);
    }
    assert_true(scratch.run.weights == scratch.moe.input); // one place for both
    assert_true(scratch.run.expanded - scratch.run.weights >= 16 * (int64_t) cuda_widened_head());
}

// KV in FP8: a sequence's, widened, lies behind all that is expanded.
static void test_runs_widen_fp8(void **state)
{
    (void) state;
    static char memory[1];
    struct cuda_scratch plain, fp8;
    struct scratch_shape shape = RANK;
    struct carve c = {.base = memory, .size = 1ull << 40}, other = c;
    shape.n_experts = 0;
    cuda_scratch_carve(&plain, &shape, &c);
    shape.fp8_kv = true;
    cuda_scratch_carve(&fp8, &shape, &other);
    assert_true(plain.run.kv == NULL && fp8.run.kv > fp8.run.expanded);
    assert_int_equal(fp8.run.kv - fp8.run.expanded, (char *) plain.mla - plain.run.expanded);
    assert_int_equal((char *) fp8.mla - fp8.run.kv, (uint64_t) shape.max_context * 576 * 2);
    shape.f32 = true;
    cuda_scratch_carve(&fp8, &shape, &(struct carve){.base = memory, .size = 1ull << 40});
    assert_true(fp8.run.kv == NULL);
}

static void test_other_shapes_have_none(void **state)
{
    (void) state;
    struct scratch_shape shape = RANK, other = RANK;
    shape.n_experts = other.n_experts = 0;
    other.nope = 64;
    uint64_t (*scratch)(const struct scratch_shape *) = device_sizes(DEVICE_CUDA)->scratch;
    assert_true(scratch(&shape) >= scratch(&other) + CUDA_EXPANDED_BYTES);
    other = shape;
    other.f32 = true;
    assert_true(scratch(&shape) >= scratch(&other) + CUDA_EXPANDED_BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_some_heads_at_once),
                                       cmocka_unit_test(test_runs_have_room),
                                       cmocka_unit_test(test_runs_widen_fp8),
                                       cmocka_unit_test(test_other_shapes_have_none)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
