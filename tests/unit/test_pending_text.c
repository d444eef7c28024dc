#include "broker/pending_text.h"

#include "common/limits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void assert_text(const struct pending_text *t, uint64_t offset, const char *text)
{
    assert_int_equal(t->offset, offset);
    assert_int_equal(t->n, strlen(text));
    assert_memory_equal(t->bytes, text, t->n);
}

static void kept_until_it_is_published(void **state)
{
    (void) state;
    struct pending_text t = {0};
    size_t total = 0;
    assert_true(pending_text_add(&t, 0, "abc", 3, &total));
    assert_true(pending_text_add(&t, 3, "def", 3, &total));
    assert_text(&t, 0, "abcdef");
    assert_true(pending_text_shown(&t, 4, &total));
    assert_text(&t, 4, "ef");
    assert_int_equal(total, 2);
    assert_false(pending_text_shown(&t, 4, &total));
    assert_true(pending_text_shown(&t, 6, &total));
    assert_text(&t, 6, "");
    assert_int_equal(t.room, 0); // nothing is held that `total` does not count
    assert_true(pending_text_add(&t, 6, "g", 1, &total));
    assert_text(&t, 6, "g");
    pending_text_free(&t, &total);
    assert_int_equal(total, 0);
}

static void said_again_it_is_there_once(void **state)
{
    (void) state;
    struct pending_text t = {0};
    size_t total = 0;
    pending_text_add(&t, 0, "abc", 3, &total);
    assert_true(pending_text_add(&t, 0, "abcd", 4, &total)); // all of it again
    assert_true(pending_text_add(&t, 1, "bc", 2, &total));
    assert_text(&t, 0, "abcd");
    // An earlier attempt had published more than this one has said by now.
    assert_true(pending_text_shown(&t, 6, &total));
    assert_true(pending_text_add(&t, 4, "ef", 2, &total));
    assert_text(&t, 6, "");
    assert_true(pending_text_add(&t, 4, "efgh", 4, &total));
    assert_text(&t, 6, "gh");
    pending_text_free(&t, &total);
}

static void a_gap_is_not_taken_and_heals_from_the_beginning(void **state)
{
    (void) state;
    struct pending_text t = {0};
    size_t total = 0;
    pending_text_add(&t, 0, "abc", 3, &total);
    assert_false(pending_text_add(&t, 4, "e", 1, &total));
    assert_true(pending_text_add(&t, 0, "abcde", 5, &total));
    assert_text(&t, 0, "abcde");
    // Redis came back with less than it had acknowledged.
    pending_text_shown(&t, 5, &total);
    assert_false(pending_text_shown(&t, 2, &total));
    assert_false(pending_text_add(&t, 5, "f", 1, &total));
    assert_true(pending_text_add(&t, 0, "abcdef", 6, &total));
    assert_text(&t, 2, "cdef");
    pending_text_free(&t, &total);
}

static void all_together_are_bounded(void **state)
{
    (void) state;
    struct pending_text a = {0}, b = {0};
    size_t total = 0, half = (size_t) STREAM_PENDING_MAX / 2;
    char *bytes = calloc(1, half + 1);
    assert_true(pending_text_add(&a, 0, bytes, half, &total));
    assert_false(pending_text_add(&b, 0, bytes, half + 1, &total));
    assert_true(pending_text_add(&b, 0, bytes, half, &total));
    assert_false(pending_text_add(&b, half, bytes, 1, &total));
    pending_text_free(&a, &total);
    assert_true(pending_text_add(&b, half, bytes, 1, &total));
    pending_text_free(&b, &total);
    assert_int_equal(total, 0);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_until_it_is_published),
        cmocka_unit_test(said_again_it_is_there_once),
        cmocka_unit_test(a_gap_is_not_taken_and_heals_from_the_beginning),
        cmocka_unit_test(all_together_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
