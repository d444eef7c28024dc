// The CUDA backend as every machine has it: the table is whole or absent, and where there is no
// device, `open` says so. What it computes is checked on a GPU machine (tests/gpu).
#include "kernels/backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_the_table_is_whole(void **state)
{
    (void) state;
    const struct backend *b = backend_cuda();
    if (b == NULL) skip();
    assert_string_equal(b->name, "cuda");
    assert_int_equal(b->kind, DEVICE_CUDA);
    const char *at = (const char *) b;
    for (size_t i = offsetof(struct backend, memory); i < sizeof *b; i += sizeof(void *)) {
        void *member;
        memcpy(&member, at + i, sizeof member);
        if (member == NULL) fail_msg("member %zu is missing", i / sizeof member);
    }
}

static void test_a_machine_without_a_device_says_so(void **state)
{
    (void) state;
    const struct backend *b = backend_cuda();
    if (b == NULL) skip();
    struct device *d = NULL;
    struct device_options options = {.precision = PRECISION_BF16, .index = 1000};
    struct error e = {0};
    assert_int_equal(b->open(&d, &options, &e), ERR_UNAVAILABLE);
    assert_null(d);
    assert_string_equal(e.code, "no_device");
    assert_non_null(strstr(e.text, "GPU") != NULL ? strstr(e.text, "GPU") : strstr(e.text, "CUDA"));
}

static void test_sizes_follow_from_the_shape(void **state)
{
    (void) state;
    const struct backend *b = backend_cuda();
    if (b == NULL) skip();
    static const struct {
        struct matrix m;
        uint64_t bytes;
    } cases[] = {
        {{.dtype = DTYPE_F8_E4M3, .n = 256, .k = 7168}, 256 + 256 * 7168},
        {{.dtype = DTYPE_F8_E4M3, .n = 3, .k = 128, .col_phase = 1}, 256 + 3 * 256},
        {{.dtype = DTYPE_BF16, .n = 5, .k = 129, .col_phase = 64}, 5 * 256 * 2},
        {{.dtype = DTYPE_F32, .n = 5, .k = 1}, 5 * 128 * 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(matrix_bytes(b, &cases[i].m), cases[i].bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_table_is_whole),
        cmocka_unit_test(test_a_machine_without_a_device_says_so),
        cmocka_unit_test(test_sizes_follow_from_the_shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
