// Lines of our logs as supervisors hand them on.
#include "tools/found_line.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static char text[1024];

static struct found_line found(const char *line)
{
    struct found_line l = {0};
    snprintf(text, sizeof text, "%s", line);
    if (!found_line_read(text, &l)) fail_msg("not found: %s", line);
    return l;
}

static void test_each_form_is_found(void **state)
{
    (void) state;
    static const char *const lines[] = {
        "t=1764000000123 level=info who=broker event=sent tenant=default id=a-1 attempt=7\n",
        "t=1764000000123 level=info who=broker event=sent tenant=default id=a-1",
        "t=1764000000123 level=info who=broker event=sent tenant=default id=a-1\r\n",
        "broker-1  | t=1764000000123 level=info event=sent tenant=default id=a-1 attempt=7\n",
        "2026-11-26T01:02:03Z stderr F t=1764000000123 level=info tenant=default id=a-1\n",
        "x t=5 y t=1764000000123 level=info event=sent tenant=default id=a-1\n",
        "{\"t\":1764000000123,\"level\":\"info\",\"tenant\":\"default\",\"id\":\"a-1\"}\n",
        "broker-1 | {\"t\":1764000000123,\"level\":\"info\",\"tenant\":\"default\",\"id\":\"a-1\"}",
        "{\"log\":\"t=1764000000123 level=info tenant=default id=a-1\\n\",\"stream\":\"stderr\"}\n",
        ("{\"log\":\"{\\\"t\\\":1764000000123,\\\"tenant\\\":\\\"default\\\",\\\"id\\\":\\\"a-1\\\""
         "}\\n\",\"stream\":\"stderr\",\"time\":\"2026-11-26T01:02:03.4Z\"}\n"),
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct found_line l = found(lines[i]);
        bool right = l.t_ms == 1764000000123 && found_line_says(&l, "id", "a-1") &&
                     found_line_says(&l, "tenant", "default") && !found_line_says(&l, "id", "a") &&
                     !found_line_says(&l, "id", "1") && !found_line_says(&l, "d", "a-1");
        if (!right) fail_msg("line %zu: %s", i, lines[i]);
    }
}

static void test_attempts_and_steps_give_the_order_within_a_millisecond(void **state)
{
    (void) state;
    static const struct {
        const char *line;
        int attempt, step;
    } table[] = {
        {"t=1 level=info who=broker event=admitted tenant=t id=a", 0, 0},
        {"t=1 level=info who=broker event=sent tenant=t id=a attempt=12", 12, 1},
        {"{\"t\":1,\"level\":\"info\",\"event\":\"accepted\",\"attempt\":12}", 12, 2},
        {"t=1 level=info event=first_token attempt=3", 3, 3},
        {"t=1 level=info event=ended attempt=3", 3, 4},
        {"{\"t\":1,\"level\":\"info\",\"event\":\"result\",\"attempt\":12}", 12, 5},
        {"t=1 level=info event=result_refused attempt=3", 3, 6},
        {"t=1 level=info event=lost attempt=3", 3, 6},
        {"t=1 level=info", 0, 6},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct found_line l = found(table[i].line);
        assert_int_equal(l.attempt, table[i].attempt);
        assert_int_equal(l.step, table[i].step);
    }
}

static void test_what_stands_before_it_is_shown(void **state)
{
    (void) state;
    struct found_line l = found("broker-1  | t=12 level=info id=a\n");
    assert_string_equal(l.shown, "broker-1  | t=12 level=info id=a\n");
    assert_string_equal(l.said, "t=12 level=info id=a\n");
    l = found("{\"log\":\"t=12 level=info id=a\\n\",\"stream\":\"stderr\"}");
    assert_string_equal(l.shown, "t=12 level=info id=a\n");
}

static void test_other_lines_are_none(void **state)
{
    (void) state;
    static const char *const lines[] = {
        "", "\n", "t=", "t= level=info", "t=12", "t=12 id=a", "at=12 level=info id=a",
        "penstock up: broker started, pid 7", "{\"log\":", "{\"log\":\"t=1", "{\"log\":7}",
        "{\"log\":\"nothing\"}", "{\"a\":\"t\"}",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct found_line l;
        snprintf(text, sizeof text, "%s", lines[i]);
        if (found_line_read(text, &l)) fail_msg("found: %s", lines[i]);
    }
    // A name that no line can hold.
    char longest[200] = "";
    memset(longest, 'x', sizeof longest - 1);
    struct found_line l = found("t=12 level=info id=a");
    assert_false(found_line_says(&l, "id", longest));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_form_is_found),
        cmocka_unit_test(test_attempts_and_steps_give_the_order_within_a_millisecond),
        cmocka_unit_test(test_what_stands_before_it_is_shown),
        cmocka_unit_test(test_other_lines_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
