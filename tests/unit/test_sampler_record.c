#include "kernels/sampler_record.h"

#include "tests/support/logits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { N_IDS = 300 };

static void expect_places(const int32_t *ids, int n, const struct record_slice *slice,
                          const int32_t *want, int n_want)
{
    struct sampler_patch patch[N_IDS + 1];
    assert_int_equal(record_places(ids, n, slice, patch), n_want);
    for (int i = 0; i < n_want; i++) assert_int_equal(patch[i].at, want[i]);
}

static void test_usage(void **state)
{
    (void) state;
    uint64_t seen[1] = {0};
    struct record_slice slice = {.vocab_begin = 10, .vocab_n = 20, .seen = seen};
    int32_t ids[5] = {12, 40, 12, 29};
    record_mark(ids, 4, &slice);
    expect_places(ids, 4, &slice, (int32_t[]){2, 19}, 2);
    record_append(ids, 4, 29);
    assert_int_equal(record_id(ids[3]), 29);
    expect_places(ids, 4, &slice, (int32_t[]){2}, 1); // 29 occurs again behind these
    expect_places(ids, 5, &slice, (int32_t[]){2, 19}, 2);
    record_mark(ids, 2, &slice);
    expect_places(ids, 2, &slice, (int32_t[]){2}, 1);
    assert_int_equal(seen[0], 0);
}

// Marked at once, one by one, and again after marks of more ids: the same as a search of each id.
static void test_marks_equal_a_search(void **state)
{
    (void) state;
    for (int vocab = 1; vocab < 200; vocab += 13) {
        uint64_t seen[4] = {0};
        struct record_slice slice = {.vocab_begin = vocab / 3, .vocab_n = vocab / 2 + 1,
                                     .seen = seen};
        int32_t plain[N_IDS], ids[N_IDS], grown[N_IDS], want[N_IDS];
        for (int i = 0; i < N_IDS; i++) {
            plain[i] = (int32_t) (next_random() % (uint64_t) vocab);
            record_append(grown, i, plain[i]);
        }
        memcpy(ids, plain, sizeof ids);
        for (int n = N_IDS; n >= 0; n -= 23) {
            int n_want = 0;
            for (int i = 0; i < n; i++) {
                bool last = plain[i] >= slice.vocab_begin &&
                            plain[i] < slice.vocab_begin + slice.vocab_n;
                for (int j = i + 1; j < n; j++) last &= plain[j] != plain[i];
                if (last) want[n_want++] = plain[i] - slice.vocab_begin;
            }
            record_mark(ids, n, &slice);
            expect_places(ids, n, &slice, want, n_want);
            if (n == N_IDS) expect_places(grown, n, &slice, want, n_want);
            for (int i = 0; i < N_IDS; i++) assert_int_equal(record_id(ids[i]), plain[i]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_marks_equal_a_search),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
