#include "common/row_buckets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void test_a_step_gets_the_smallest_that_holds_it(void **state)
{
    (void) state;
    int buckets[ROW_BUCKETS_MAX];
    static const int want[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100};
    assert_int_equal(row_buckets(100, buckets), sizeof want / sizeof *want);
    assert_memory_equal(buckets, want, sizeof want);
    assert_int_equal(row_bucket(1, 100), 1);
    assert_int_equal(row_bucket(3, 100), 4);
    assert_int_equal(row_bucket(17, 100), 24);
    assert_int_equal(row_bucket(97, 100), 100); // not 128, for which there is no room
}

static void test_any_most(void **state)
{
    (void) state;
    assert_int_equal(row_buckets(0, NULL), 0);
    for (int most = 1; most <= STEP_ROWS_MAX; most++) {
        int buckets[ROW_BUCKETS_MAX], n = row_buckets(most, buckets);
        assert_in_range(n, 1, ROW_BUCKETS_MAX);
        assert_int_equal(buckets[n - 1], most);
        for (int i = 1; i < n; i++) assert_true(buckets[i] > buckets[i - 1]);
    }
}

static void test_padding_is_bounded(void **state)
{
    (void) state;
    int buckets[ROW_BUCKETS_MAX], n = row_buckets(STEP_ROWS_MAX, buckets), at = 0;
    assert_int_equal(n, ROW_BUCKETS_MAX);
    for (int rows = 1; rows <= STEP_ROWS_MAX; rows++) {
        int bucket = row_bucket(rows, STEP_ROWS_MAX);
        while (buckets[at] < rows) at++;
        assert_int_equal(bucket, buckets[at]);
        assert_true(2 * (bucket - rows) < bucket);
        if (rows > 16) assert_true(3 * (bucket - rows) < bucket);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_step_gets_the_smallest_that_holds_it),
        cmocka_unit_test(test_any_most),
        cmocka_unit_test(test_padding_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
