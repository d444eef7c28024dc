#include "common/bars.h"
#include "common/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GB = 1000000000 };

static void one_bar_takes_the_line(void **state)
{
    (void) state;
    struct bar b = {"group-0", 5ull * GB, 10ull * GB, 1.25e9};
    char text[401];
    assert_int_equal(bars_print(&b, 1, 60, text), 60);
    assert_string_equal(text, "group-0  50% 1.25 GB/s [#################                  ]");
    bars_print(&b, 1, 30, text);
    assert_string_equal(text, "group-0  50% 1.25 GB/s");
    bars_print(&b, 1, 14, text);
    assert_string_equal(text, "group-0  50%");
    assert_int_equal(bars_print(&b, 0, 60, text), 0);
}

static void several_share_it(void **state)
{
    (void) state;
    struct bar b[] = {{"group-0", 0, 10, 0}, {"group-1", 10, 10, 2e9}, {"group-2", 1, 3, 1e9}};
    char text[401];
    bars_print(b, 2, 80, text);
    assert_string_equal(text, "group-0   0% 0.00 GB/s [              ]  "
                              "group-1 100% 2.00 GB/s [##############]");
    bars_print(b, 3, 30, text);
    assert_string_equal(text, "group-0   0% 0.00 GB/s    +2");
}

// Whatever the width and the number of bars: within the line, and printable.
static void the_line_is_never_too_long(void **state)
{
    (void) state;
    static struct bar b[BARS_MAX];
    for (int i = 0; i < BARS_MAX; i++) {
        snprintf(b[i].name, sizeof b[i].name, "a-group-with-a-long-name-%d", i);
        b[i].done = (uint64_t) i;
        b[i].total = BARS_MAX;
        b[i].rate = 1e13;
    }
    for (int n = 0; n <= BARS_MAX; n++) {
        for (int width = 10; width <= 400; width++) {
            char text[402];
            memset(text, '~', sizeof text);
            size_t length = bars_print(b, n, width, text);
            assert_true(length <= (size_t) width && text[length] == 0 && text[width + 1] == '~');
            for (size_t i = 0; i < length; i++) assert_true(text[i] >= ' ' && text[i] < '~');
        }
    }
}

// On a terminal: drawn, overwritten by a log line, gone at the end.
static void a_terminal_shows_it(void **state)
{
    (void) state;
    char seen[4096];
    int main_side = posix_openpt(O_RDWR | O_NOCTTY), kept = dup(STDERR_FILENO);
    if (main_side < 0 || grantpt(main_side) != 0 || unlockpt(main_side) != 0) skip();
    int terminal = open(ptsname(main_side), O_RDWR | O_NOCTTY);
    assert_true(terminal >= 0 && dup2(terminal, STDERR_FILENO) >= 0);
    bars_show("group-0", 1, 4, 1000);
    bars_show("group-0", 2, 4, 1001); // too soon
    log_line(LOG_INFO, "between");
    bars_show("group-0", 3, 4, 1200);
    bars_show("group-0", 4, 4, 1201);
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(terminal);
    ssize_t n = 0, got;
    while ((got = read(main_side, seen + n, sizeof seen - 1 - (size_t) n)) > 0) n += got;
    close(main_side);
    assert_true(n > 0);
    seen[n] = 0;
    const char *first = strstr(seen, "group-0  25%"), *line = strstr(seen, "\r\033[Kt=");
    const char *second = strstr(seen, "group-0  75%");
    assert_true(first != NULL && line != NULL && second != NULL && first < line && line < second);
    assert_null(strstr(seen, "50%"));
    assert_string_equal(seen + n - 4, "\r\033[K");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_bar_takes_the_line),
        cmocka_unit_test(several_share_it),
        cmocka_unit_test(the_line_is_never_too_long),
        cmocka_unit_test(a_terminal_shows_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
