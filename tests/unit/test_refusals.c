// A refused group is news once a reason.
#include "broker/refusals.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

static struct refusals r;

static bool is_new(const char *key, const char *name, const char *code, const char *text)
{
    struct error why = {0};
    error_set(&why, ERR_INPUT, code, "%s", text);
    return refusals_new(&r, key, name, &why);
}

static void test_a_reason_is_news_once(void **state)
{
    (void) state;
    r = (struct refusals){0};
    assert_true(is_new("key", "a", "bad_tp", "2, not 1"));
    for (int i = 0; i < 3; i++) assert_false(is_new("key", "a", "bad_tp", "2, not 1"));
    assert_true(is_new("key", "a", "bad_tp", "2, not 4"));
    assert_true(is_new("key", "a", "too_small", "2, not 4"));
    assert_false(is_new("key", "a", "too_small", "2, not 4"));
    // The same name under another key is another group.
    assert_true(is_new("key", "b", "too_small", "2, not 4"));
    assert_true(is_new("", "a", "too_small", "2, not 4"));
    assert_false(is_new("key", "a", "too_small", "2, not 4"));
}

static void test_who_was_let_in_is_news_again(void **state)
{
    (void) state;
    r = (struct refusals){0};
    refusals_forget(&r, "", "a");
    assert_true(is_new("", "a", "fleet_full", "full"));
    refusals_forget(&r, "", "a");
    assert_true(is_new("", "a", "fleet_full", "full"));
}

static void test_the_oldest_gives_way(void **state)
{
    (void) state;
    char name[16];
    r = (struct refusals){0};
    for (int i = 0; i <= REFUSALS_KEPT; i++) {
        snprintf(name, sizeof name, "group-%d", i);
        assert_true(is_new("", name, "bad_tp", "text"));
    }
    assert_false(is_new("", "group-1", "bad_tp", "text"));
    assert_true(is_new("", "group-0", "bad_tp", "text"));
    assert_true(is_new("", "group-1", "bad_tp", "text"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_reason_is_news_once),
        cmocka_unit_test(test_who_was_let_in_is_news_again),
        cmocka_unit_test(test_the_oldest_gives_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
