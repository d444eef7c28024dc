#include "common/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/bytes.h"

#define BAD "\xef\xbf\xbd" // U+FFFD

static void test_broken_bytes_are_replaced(void **state)
{
    (void) state;
    struct buffer b;
    buffer_init(&b, 1000);
    utf8_repair(&b, "caf\xc3\xa9 \xe4\xb8 \xf0\x9f", 11);
    assert_int_equal(b.n, 6 + 3 + 1 + 3);
    assert_memory_equal(b.data, "caf\xc3\xa9 " BAD " " BAD, b.n);
    buffer_deinit(&b);
}

static void test_valid_is_the_table_of_the_standard(void **state)
{
    (void) state;
    static const struct {
        const char *text;
        size_t valid;
    } table[] = {
        {"plain", 5},          {"\xc2\x80", 2},         {"\xdf\xbf", 2},
        {"\xe0\xa0\x80", 3},   {"\xed\x9f\xbf", 3},     {"\xee\x80\x80", 3},
        {"\xef\xbf\xbf", 3},   {"\xf0\x90\x80\x80", 4}, {"\xf4\x8f\xbf\xbf", 4},
        {"\x80", 0},           {"\xbf", 0},             {"\xc0\x80", 0}, // overlong
        {"\xc1\xbf", 0},       {"\xe0\x9f\xbf", 0},     {"\xf0\x8f\xbf\xbf", 0},
        {"\xed\xa0\x80", 0},   {"\xed\xbf\xbf", 0}, // surrogates
        {"\xf4\x90\x80\x80", 0}, {"\xf5\x80\x80\x80", 0}, {"\xff", 0},
        {"ab\xc3", 2},         {"ab\xe2\x82", 2},       {"ab\xf0\x9f\x98", 2},
        {"ab\xe2\x82 c", 2},   {"eight by\xffte", 8},   {"sixteen bytes, \xc3\xa9\x80", 17},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        size_t n = strlen(table[i].text);
        uint8_t *copy = bytes_copy(table[i].text, n);
        assert_int_equal(utf8_valid_prefix(copy, n), table[i].valid);
        free(copy);
    }
    assert_int_equal(utf8_valid_prefix("a\0b", 3), 3);
    assert_int_equal(utf8_valid_prefix(NULL, 0), 0);
}

// One U+FFFD for each maximal part; the rows of Unicode 3.9's own examples are among them.
static void test_maximal_parts(void **state)
{
    (void) state;
    static const struct {
        const char *bytes, *text;
    } table[] = {
        {"", ""},
        {"\xff", BAD},
        {"a\xc3", "a" BAD},
        {"\xe4\xb8\xad", "\xe4\xb8\xad"},
        {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", BAD BAD BAD BAD BAD BAD BAD BAD "A"},
        {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", BAD BAD BAD BAD BAD BAD BAD BAD "A"},
        {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", BAD BAD BAD BAD BAD "A" BAD BAD "B"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", BAD BAD BAD BAD "A"},
        {"\xf0\x9f\x98\xf0\x9f\x98\x80", BAD "\xf0\x9f\x98\x80"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct buffer b;
        size_t n = strlen(table[i].bytes), expected = strlen(table[i].text);
        uint8_t *copy = bytes_copy(table[i].bytes, n);
        buffer_init(&b, 1000);
        utf8_repair(&b, copy, n);
        assert_int_equal(b.n, expected);
        if (expected > 0) assert_memory_equal(b.data, table[i].text, expected);
        buffer_deinit(&b);
        free(copy);
    }
}

static void test_what_more_bytes_may_complete(void **state)
{
    (void) state;
    static const struct {
        const char *bytes;
        size_t broken;
        bool cut;
    } table[] = {
        {"\xc3", 1, true},          {"\xe4", 1, true},         {"\xe4\xb8", 2, true},
        {"\xf0\x9f\x98", 3, true},  {"\xf0\x9f\x98 ", 3, false}, {"\xe4 ", 1, false},
        {"\x80", 1, false},         {"\xc0", 1, false},        {"\xf5", 1, false},
        {"\xe0\x9f", 1, false},     {"\xed\xa0", 1, false},    {"\xf4\x90", 1, false},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        bool cut;
        size_t n = strlen(table[i].bytes);
        assert_int_equal(utf8_broken(table[i].bytes, n, &cut), table[i].broken);
        assert_int_equal(cut, table[i].cut);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_broken_bytes_are_replaced),
        cmocka_unit_test(test_valid_is_the_table_of_the_standard),
        cmocka_unit_test(test_maximal_parts),
        cmocka_unit_test(test_what_more_bytes_may_complete),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
