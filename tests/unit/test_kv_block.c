#include "common/kv_block.h"
#include "common/limits.h"
#include "kernels/cpu/e4m3.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_a_token_of_deepseek_v3_takes_656_bytes(void **state)
{
    (void) state;
    struct kv_block b = kv_block_fp8(512, 64);
    assert_int_equal(b.n_scales, 4);
    assert_int_equal(b.rope, KV_BLOCK_ROWS * 512);
    assert_int_equal(b.scales, KV_BLOCK_ROWS * (512 + 128));
    assert_int_equal(b.bytes, KV_BLOCK_ROWS * 656);
    assert_int_equal(kv_block_bytes(512, 64, false, true), KV_BLOCK_ROWS * 656);
    assert_int_equal(kv_block_bytes(512, 64, true, true), KV_BLOCK_ROWS * 656);
    assert_int_equal(kv_block_bytes(512, 64, false, false), KV_BLOCK_ROWS * 1152);
    assert_int_equal(kv_block_bytes(512, 64, true, false), KV_BLOCK_ROWS * 2304);
}

static void test_parts_of_any_shape_are_aligned(void **state)
{
    (void) state;
    for (int lora = 1; lora < 300; lora++) {
        for (int rope = 2; rope < 20; rope += 2) {
            struct kv_block b = kv_block_fp8(lora, rope);
            assert_true(b.n_scales * KV_SCALE_VALUES >= lora);
            assert_true((b.n_scales - 1) * KV_SCALE_VALUES < lora);
            assert_int_equal(b.rope % 16 + b.scales % 16 + b.bytes % 16, 0);
            assert_int_equal(b.bytes, KV_BLOCK_ROWS * (lora + rope * 2 + b.n_scales * 4));
        }
    }
}

static void test_what_kv_may_be_is_said(void **state)
{
    (void) state;
    bool fp8 = false;
    struct error e = {0};
    assert_int_equal(kv_parse("fp8", &fp8, &e), OK);
    assert_true(fp8);
    assert_int_equal(kv_parse("bf16", &fp8, &e), OK);
    assert_false(fp8);
    assert_int_equal(kv_parse("fp4", &fp8, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_usage");
    assert_non_null(strstr(e.text, "--kv wants bf16 or fp8"));
    assert_string_equal(kv_name(true, true), "fp8");
    assert_string_equal(kv_name(true, false), "f32");
    assert_string_equal(kv_name(false, false), "bf16");
}

// The definition: 1 sign, 4 exponent (bias 7), 3 mantissa.
static double value_of(int code)
{
    int e = code >> 3 & 15, m = code & 7;
    double x = e == 0 ? ldexp(m, -9) : ldexp(8 + m, e - 10);
    return code & 0x80 ? -x : x;
}

static void test_e4m3_rounds_to_the_nearest(void **state)
{
    (void) state;
    for (int code = 0; code < 256; code++) {
        float x = e4m3_widen((uint8_t) code);
        if ((code & 0x7f) == 0x7f) {
            assert_true(isnan(x));
            continue;
        }
        assert_true(x == value_of(code));
        assert_int_equal(e4m3_round(x), code);
    }
    for (int code = 0; code < 0x7e; code++) { // between neighbours
        float low = e4m3_widen((uint8_t) code), high = e4m3_widen((uint8_t) (code + 1));
        float middle = (low + high) / 2; // exact
        int even = code % 2 == 0 ? code : code + 1;
        assert_int_equal(e4m3_round(middle), even);
        assert_int_equal(e4m3_round(nextafterf(middle, 0)), code);
        assert_int_equal(e4m3_round(nextafterf(middle, 1000)), code + 1);
        assert_int_equal(e4m3_round(-middle), even | 0x80);
    }
    assert_int_equal(e4m3_round(1e30f), 0x7e);
    assert_int_equal(e4m3_round(-INFINITY), 0xfe);
    assert_int_equal(e4m3_round(463.9f), 0x7e);
    assert_int_equal(e4m3_round(500.0f), 0x7e);
    assert_int_equal(e4m3_round(NAN), 0x7f);
}

static void test_scales_are_the_least_powers_of_two(void **state)
{
    (void) state;
    static const float most[] = {448, 448.001f, 1, 3.5f, 1e-20f, 57344, 0.1f, 20000};
    for (size_t i = 0; i < sizeof most / sizeof *most; i++) {
        float x[3] = {most[i] / 2, -most[i], 0}, scale = kv_scale(x, 3);
        int e;
        assert_true(frexpf(scale, &e) == 0.5f);
        assert_true(most[i] <= 448 * scale && most[i] > 448 * scale / 2);
    }
    assert_true(kv_scale((float[]){1e20f, 1}, 2) == KV_SCALE_MOST);
    assert_true(kv_scale((float[]){0, 0}, 2) > 0);
    assert_true(isnan(kv_scale((float[]){1, NAN}, 2)));
    assert_true(isnan(kv_scale((float[]){-INFINITY, 1}, 2)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_token_of_deepseek_v3_takes_656_bytes),
        cmocka_unit_test(test_parts_of_any_shape_are_aligned),
        cmocka_unit_test(test_what_kv_may_be_is_said),
        cmocka_unit_test(test_e4m3_rounds_to_the_nearest),
        cmocka_unit_test(test_scales_are_the_least_powers_of_two),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
