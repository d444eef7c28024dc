// The page of `penstock top`, from a fixed view: golden text at 80 and 120 columns
// (`test_top_page golden COLUMNS` prints it), widths, and views of which nothing can be trusted.
#include "tests/support/bytes.h"
#include "tools/top_page.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#define NOW_MS 1795688801795ll // 600 ms after the fixture's view

static json_t *load_view(void)
{
    json_t *view = json_load_file(FIXTURES "/top-view.json", 0, NULL);
    check(view != NULL, "the fixture is JSON");
    return view;
}

// The page as a string that the caller frees.
static char *page_of(const json_t *view, int columns, bool colour, const char *trouble)
{
    struct top_style style = {.columns = columns, .colour = colour, .trouble = trouble,
                              .now_ms = NOW_MS};
    struct buffer page;
    buffer_init(&page, 1 << 20);
    top_page(view, &style, &page);
    buffer_append(&page, "", 1);
    check(page.status == OK);
    return (char *) page.data;
}

static void the_page_is_the_fixture(void **state)
{
    (void) state;
    static const int widths[] = {80, 120};
    json_t *view = load_view();
    for (int i = 0; i < 2; i++) {
        char path[200];
        snprintf(path, sizeof path, FIXTURES "/top-%d.txt", widths[i]);
        char *want = bytes_file(path, NULL), *got = page_of(view, widths[i], false, NULL);
        assert_string_equal(got, want);
        free(want);
        free(got);
    }
    json_decref(view);
}

// Columns of a line: characters that are shown. Fails for what no page may have.
static int columns_of(const char *line, size_t n)
{
    int columns = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char) line[i];
        if (c == 033) { // SGR alone
            assert_int_equal(line[i + 1], '[');
            for (i += 2; line[i] >= '0' && line[i] <= ';'; i++) {}
            assert_int_equal(line[i], 'm');
            continue;
        }
        assert_true(c >= 0x20 && c != 0x7f);
        assert_false(c == 0xc2 && (unsigned char) line[i + 1] < 0xa0);
        columns += (c & 0xc0) != 0x80;
    }
    return columns;
}

static void check_lines(const char *page, int columns)
{
    int lines = 0;
    for (const char *p = page; *p != '\0'; lines++) {
        const char *end = strchr(p, '\n');
        assert_non_null(end);
        int wide = columns_of(p, (size_t) (end - p));
        if (wide > columns) fail_msg("%d columns: %.*s", wide, (int) (end - p), p);
        p = end + 1;
    }
    assert_true(lines >= TOP_HEAD_LINES);
}

static void no_line_is_wider_than_the_terminal(void **state)
{
    (void) state;
    json_t *view = load_view();
    for (int columns = TOP_COLUMNS_LEAST; columns <= 200; columns++) {
        for (int colour = 0; colour < 2; colour++) {
            char *page = page_of(view, columns, colour, "Redis is away");
            check_lines(page, columns);
            free(page);
        }
    }
    json_decref(view);
}

// Without its SGR sequences it is the page without colours.
static void colours_change_nothing_else(void **state)
{
    (void) state;
    json_t *view = load_view();
    char *plain = page_of(view, 100, false, NULL), *page = page_of(view, 100, true, NULL);
    char *to = page;
    assert_non_null(strstr(page, "\033[32m"));
    for (const char *p = page; (*to = *p) != '\0'; p++) {
        if (*p == 033) p = strchr(p, 'm');
        else to++;
    }
    assert_string_equal(page, plain);
    free(plain);
    free(page);
    json_decref(view);
}

static void what_is_missing_is_said(void **state)
{
    (void) state;
    char *page = page_of(NULL, 80, false, "nobody answers at 127.0.0.1:6379; trying again");
    assert_non_null(strstr(page, "nobody answers at 127.0.0.1:6379; trying again"));
    free(page);
    json_t *view = load_view();
    json_object_set_new(view, "leads", json_null());
    json_object_set_new(json_object_get(view, "fleet"), "at", json_integer(1795688781195));
    page = page_of(view, 80, false, "the connection is lost");
    assert_non_null(strstr(page, "nobody leads"));
    assert_non_null(strstr(page, "As broker-1:7300 said 20 s ago:"));
    assert_non_null(strstr(page, "the connection is lost\nWhat follows is 0 s old.\n"));
    free(page);
    json_object_set_new(view, "fleet", json_null());
    page = page_of(view, 80, false, NULL);
    assert_non_null(strstr(page, "Nothing is known of the fleet"));
    free(page);
    json_decref(view);
}

// Every member of every object replaced by each kind of value, in turn.
static void try_all(json_t *view, json_t *at)
{
    static const char *const others[] = {"null", "-1", "1e300", "\"x\\u001b[2Jy\"", "[[],[{}]]",
                                         "{\"bytes\":-5}", "9223372036854775807",
                                         "-9223372036854775808", "[9223372036854775807]"};
    const char *key;
    json_t *value;
    size_t i;
    void *next;
    json_array_foreach(at, i, value) try_all(view, value);
    json_object_foreach_safe(at, next, key, value) {
        json_incref(value);
        for (size_t k = 0; k < sizeof others / sizeof *others; k++) {
            json_object_set_new(at, key, json_loads(others[k], JSON_DECODE_ANY, NULL));
            char *page = page_of(view, 80, true, NULL);
            check_lines(page, 80);
            free(page);
        }
        json_object_set_new(at, key, value);
        try_all(view, value);
    }
}

static void nothing_in_a_view_is_trusted(void **state)
{
    (void) state;
    json_t *view = load_view();
    try_all(view, view);
    json_decref(view);
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "golden") == 0) {
        json_t *view = load_view();
        char *page = page_of(view, atoi(argv[2]), false, NULL);
        fputs(page, stdout);
        free(page);
        json_decref(view);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_page_is_the_fixture),
        cmocka_unit_test(no_line_is_wider_than_the_terminal),
        cmocka_unit_test(colours_change_nothing_else),
        cmocka_unit_test(what_is_missing_is_said),
        cmocka_unit_test(nothing_in_a_view_is_trusted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
