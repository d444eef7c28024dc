#include "common/buffer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

static void failure_sticks_until_the_end(void **state)
{
    (void) state;
    struct buffer b;
    struct error e = {0};
    buffer_init(&b, 10);
    assert_null(b.data);
    assert_int_equal(buffer_append(&b, "0123456", 7), OK);
    assert_int_equal(buffer_append(&b, "789ab", 5), ERR_LIMIT); // all or nothing
    assert_int_equal(buffer_append(&b, "7", 1), ERR_LIMIT);
    assert_int_equal(b.n, 7);
    assert_memory_equal(b.data, "0123456", 7);
    assert_int_equal(buffer_check(&b, "the letter", &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_large");
    assert_string_equal(e.text, "the letter takes more than 10 bytes");
    buffer_deinit(&b);
}

static void clear_keeps_the_memory_and_deinit_gives_it_back(void **state)
{
    (void) state;
    struct buffer b;
    buffer_init(&b, 1000);
    for (int i = 0; i < 1000; i++) assert_int_equal(buffer_append(&b, "x", 1), OK);
    assert_int_equal(buffer_append(&b, "x", 1), ERR_LIMIT);
    uint8_t *data = b.data;
    buffer_clear(&b);
    assert_ptr_equal(b.data, data);
    assert_true(b.n == 0 && b.status == OK && b.capacity >= 1000);
    assert_int_equal(buffer_append(&b, "y", 1), OK);
    buffer_deinit(&b);
    assert_true(b.data == NULL && b.n == 0 && b.capacity == 0 && b.most == 1000);
    assert_int_equal(buffer_append(&b, "z", 1), OK); // it may be used again
    buffer_deinit(&b);
}

static void takes_just_what_it_may_hold(void **state)
{
    (void) state;
    static const size_t most[] = {0, 1, 255, 256, 257, 1000, 65536};
    for (size_t i = 0; i < sizeof most / sizeof *most; i++) {
        struct buffer b;
        char *bytes = calloc(1, most[i] + 1);
        buffer_init(&b, most[i]);
        assert_int_equal(buffer_append(&b, NULL, 0), OK);
        assert_int_equal(buffer_append(&b, bytes, most[i]), OK);
        assert_int_equal(buffer_append(&b, NULL, 0), OK);
        assert_int_equal(buffer_append(&b, bytes, 1), ERR_LIMIT);
        buffer_clear(&b);
        assert_int_equal(buffer_append(&b, bytes, most[i] + 1), ERR_LIMIT);
        assert_int_equal(buffer_append(&b, bytes, SIZE_MAX), ERR_LIMIT);
        buffer_deinit(&b);
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(failure_sticks_until_the_end),
        cmocka_unit_test(clear_keeps_the_memory_and_deinit_gives_it_back),
        cmocka_unit_test(takes_just_what_it_may_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
