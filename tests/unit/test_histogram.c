// How long things took, in buckets.
#include "common/histogram.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

static void times_are_counted(void **state)
{
    (void) state;
    struct histogram h = {0};
    histogram_add(&h, 100);
    histogram_add(&h, 1000);
    histogram_add(&h, 1000);
    assert_int_equal(histogram_count(&h, HISTOGRAM_BUCKETS - 1), 3);
    assert_int_equal(histogram_count(&h, 0), 1);
    assert_int_equal(h.sum_us, 2100);
    assert_int_equal(h.n, 4); // 512 < 1000 <= 1024
}

static void bounds_belong_to_their_buckets(void **state)
{
    (void) state;
    for (int i = 0; i + 1 < HISTOGRAM_BUCKETS; i++) {
        struct histogram h = {0};
        histogram_add(&h, histogram_bound_us(i));
        assert_int_equal(h.counts[i], 1);
        histogram_add(&h, histogram_bound_us(i) + 1);
        assert_int_equal(h.counts[i + 1], 1);
        assert_int_equal(h.n, i + 2);
    }
    struct histogram h = {0};
    histogram_add(&h, UINT64_MAX); // beyond all bounds
    assert_int_equal(h.counts[HISTOGRAM_BUCKETS - 1], 1);
}

static void what_is_merged_is_the_same_as_counted_at_once(void **state)
{
    (void) state;
    struct histogram a = {0}, b = {0}, all = {0};
    for (uint64_t us = 1; us < 1000000000; us *= 3) {
        histogram_add(us % 2 == 0 || us < 1000 ? &a : &b, us);
        histogram_add(&all, us);
    }
    histogram_merge(&a, &b);
    assert_memory_equal(&a, &all, sizeof a);
}

static void quantiles_lie_within_their_bucket(void **state)
{
    (void) state;
    struct histogram h = {0};
    assert_int_equal(histogram_quantile_us(&h, 0.5), 0);
    for (int i = 0; i < 99; i++) histogram_add(&h, 200);
    histogram_add(&h, 5000);
    uint64_t half = histogram_quantile_us(&h, 0.5), most = histogram_quantile_us(&h, 1);
    assert_true(half > 128 && half <= 256);
    assert_int_equal(most, 8192);
    assert_true(histogram_quantile_us(&h, 0.99) <= 256);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_are_counted),
        cmocka_unit_test(bounds_belong_to_their_buckets),
        cmocka_unit_test(what_is_merged_is_the_same_as_counted_at_once),
        cmocka_unit_test(quantiles_lie_within_their_bucket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
