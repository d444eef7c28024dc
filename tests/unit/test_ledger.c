#include "common/carve.h"
#include "common/ledger.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// Two passes of one function: what is counted is what is taken, line by line.
static void lay_out(struct carve *c)
{
    carve_line(c, LEDGER_WEIGHTS);
    carve_take(c, 1000);
    carve_line(c, LEDGER_SCALES);
    carve_take(c, 1);
    carve_line(c, LEDGER_WEIGHTS);
    carve_take(c, 256);
    carve_line(c, LEDGER_KV);
    carve_take(c, 0);
    carve_take(c, 257);
}

static void test_two_passes_take_the_same(void **state)
{
    (void) state;
    struct carve count = {0};
    lay_out(&count);
    assert_int_equal(count.ledger.bytes[LEDGER_WEIGHTS], 1024 + 256);
    assert_int_equal(count.ledger.bytes[LEDGER_SCALES], 256);
    assert_int_equal(count.ledger.bytes[LEDGER_KV], 512);
    assert_int_equal(ledger_total(&count.ledger), count.used);
    struct carve c = {.base = malloc(count.used), .size = count.used};
    assert_non_null(c.base);
    lay_out(&c);
    char text[LEDGER_TEXT_MAX];
    assert_true(ledger_equal(&count.ledger, "one", &c.ledger, "the other", text, sizeof text));
    assert_string_equal(text, "");
    free(c.base);
}

static void test_a_part_of_two_lines(void **state)
{
    (void) state;
    struct carve c = {.line = LEDGER_WEIGHTS};
    carve_take(&c, 1024);
    carve_move(&c, LEDGER_WEIGHTS, LEDGER_PACKING, 24);
    assert_int_equal(c.ledger.bytes[LEDGER_WEIGHTS], 1000);
    assert_int_equal(c.ledger.bytes[LEDGER_PACKING], 24);
    assert_int_equal(ledger_total(&c.ledger), 1024);
}

static void test_every_line_has_a_name_of_its_own(void **state)
{
    (void) state;
    struct ledger all = {{0}};
    for (int i = 0; i < LEDGER_LINES; i++) {
        const char *name = ledger_name((enum ledger_line) i);
        for (int k = 0; k < i; k++) {
            assert_string_not_equal(name, ledger_name((enum ledger_line) k));
        }
        all.bytes[i] = UINT64_MAX / LEDGER_LINES;
    }
    char text[LEDGER_TEXT_MAX];
    ledger_print(&all, text, sizeof text);
    const char *last = ledger_name(LEDGER_LINES - 1);
    assert_non_null(strstr(text, last)); // there is room for all
}

static void test_differences_are_named(void **state)
{
    (void) state;
    struct ledger a = {{0}}, b = {{0}};
    char text[LEDGER_TEXT_MAX], little[20];
    a.bytes[LEDGER_KV] = 5;
    b.bytes[LEDGER_KV] = 5;
    assert_true(ledger_equal(&a, "the plan", &b, "the arena", text, sizeof text));
    a.bytes[LEDGER_SCRATCH] = 8192;
    b.bytes[LEDGER_SCRATCH] = 12288;
    b.bytes[LEDGER_RESERVE] = 1;
    assert_false(ledger_equal(&a, "the plan", &b, "the arena", text, sizeof text));
    assert_string_equal(text, "scratch is 8192 bytes in the plan, 12288 in the arena; "
                              "reserve is 0 bytes in the plan, 1 in the arena");
    assert_false(ledger_equal(&a, "the plan", &b, "the arena", little, sizeof little));
    assert_int_equal(strlen(little), sizeof little - 1);
    ledger_print(&b, text, sizeof text);
    assert_string_equal(text, "kv 5, scratch 12288, reserve 1");
    ledger_add(&a, &b);
    assert_int_equal(ledger_total(&a), 5 + 8192 + 5 + 12288 + 1);
}

// Weights come before KV, whatever their order in the arena.
static void test_the_line_at_which_memory_ends(void **state)
{
    (void) state;
    struct ledger l = {.bytes = {[LEDGER_WEIGHTS] = 100, [LEDGER_KV] = 50, [LEDGER_LOGITS] = 10}};
    static const struct {
        uint64_t has;
        enum ledger_line line;
    } cases[] = {{0, LEDGER_WEIGHTS},  {99, LEDGER_WEIGHTS}, {100, LEDGER_LOGITS},
                 {109, LEDGER_LOGITS}, {110, LEDGER_KV},     {159, LEDGER_KV}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(ledger_line_beyond(&l, cases[i].has), cases[i].line);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_passes_take_the_same),
        cmocka_unit_test(test_a_part_of_two_lines),
        cmocka_unit_test(test_every_line_has_a_name_of_its_own),
        cmocka_unit_test(test_differences_are_named),
        cmocka_unit_test(test_the_line_at_which_memory_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
