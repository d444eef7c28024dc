#include "common/status.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_an_error_has_a_code_and_a_sentence(void **state)
{
    (void) state;
    struct error e = {0};
    assert_int_equal(error_set(&e, ERR_INPUT, "bad_field", "field %s is %d", "n", 3), ERR_INPUT);
    assert_string_equal(e.code, "bad_field");
    error_prefix(&e, "file %s", "a.json");
    assert_string_equal(e.text, "file a.json: field n is 3");
    error_set(&e, ERR_IO, NULL, "x");
    assert_string_equal(e.code, "io");
    error_set(&e, ERR_INPUT, "bad_field", "twice");
    error_set(&e, ERR_INPUT, e.code, "said %s", e.text);
    assert_string_equal(e.code, "bad_field");
    assert_string_equal(e.text, "said twice");
}

static void test_long_texts_are_cut(void **state)
{
    (void) state;
    char big[2000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    struct error e = {0};
    error_set(&e, ERR_INPUT, big, "%s", big);
    assert_int_equal(strlen(e.text), ERROR_TEXT_SIZE - 1);
    error_prefix(&e, "file");
    assert_int_equal(strlen(e.text), ERROR_TEXT_SIZE - 1);
    assert_memory_equal(e.text, "file: xxx", 9);
    error_prefix(&e, "%s", big);
    assert_int_equal(strlen(e.text), ERROR_TEXT_SIZE - 1);
    assert_memory_equal(e.text, "xxx", 3);
    assert_int_equal(error_set(NULL, ERR_IO, NULL, "no record is fine"), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_error_has_a_code_and_a_sentence),
        cmocka_unit_test(test_long_texts_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
