#include "common/sampling.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_default_is_greedy_and_valid(void **state)
{
    (void) state;
    struct sampling s = sampling_default();
    struct error e = {0};
    assert_int_equal(sampling_check(&s, &e), OK);
    assert_true(s.temperature == 0 && s.top_p == 1 && s.repetition_penalty == 1);
    assert_int_equal(s.n_logprobs, -1);
    s.temperature = 101;
    assert_int_equal(sampling_check(&s, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_sampling");
    assert_string_equal(e.text, "temperature is 101 but must be from 0 to 100");
}

struct bound {
    const char *field;
    size_t offset;
    float good[2], bad[2];
};

// Every float field: its bounds are inside, what lies beyond, NaN and infinities are not.
static void test_bounds(void **state)
{
    (void) state;
    static const struct bound bounds[] = {
        {"temperature", offsetof(struct sampling, temperature), {0, 100}, {-1e-6f, 100.01f}},
        {"top_p", offsetof(struct sampling, top_p), {1e-30f, 1}, {0, 1.0001f}},
        {"min_p", offsetof(struct sampling, min_p), {0, 1}, {-0.1f, 1.0001f}},
        {"repetition_penalty", offsetof(struct sampling, repetition_penalty), {0.01f, 10}, {0, 11}},
        {"presence_penalty", offsetof(struct sampling, presence_penalty), {-2, 2}, {-2.1f, 2.1f}},
        {"frequency_penalty", offsetof(struct sampling, frequency_penalty), {-2, 2}, {-2.1f, 2.1f}},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        const struct bound *b = &bounds[i];
        float wrong[] = {b->bad[0], b->bad[1], NAN, -NAN, INFINITY, -INFINITY};
        struct sampling s = sampling_default();
        for (int j = 0; j < 2; j++) {
            memcpy((char *) &s + b->offset, &b->good[j], sizeof(float));
            assert_int_equal(sampling_check(&s, NULL), OK);
        }
        for (size_t j = 0; j < sizeof wrong / sizeof *wrong; j++) {
            struct error e = {0};
            memcpy((char *) &s + b->offset, &wrong[j], sizeof(float));
            assert_int_equal(sampling_check(&s, &e), ERR_INPUT);
            assert_string_equal(e.code, "bad_sampling");
            assert_non_null(strstr(e.text, b->field));
        }
    }
    static const int32_t top_k[][2] = {{0, OK}, {TOP_K_MAX, OK}, {-1, ERR_INPUT},
                                       {TOP_K_MAX + 1, ERR_INPUT}};
    static const int32_t logprobs[][2] = {{-1, OK}, {LOGPROBS_MAX, OK}, {-2, ERR_INPUT},
                                          {LOGPROBS_MAX + 1, ERR_INPUT}};
    for (int i = 0; i < 4; i++) {
        struct sampling s = sampling_default();
        s.top_k = top_k[i][0];
        assert_int_equal(sampling_check(&s, NULL), top_k[i][1]);
        s = sampling_default();
        s.n_logprobs = logprobs[i][0];
        assert_int_equal(sampling_check(&s, NULL), logprobs[i][1]);
    }
}

// The published known-answer vector of Philox-4x32-10 for key 0 and counter 0, and three of ours
// that pin the numbers of jobs that are resumed.
static void test_vectors(void **state)
{
    (void) state;
    assert_true(sampling_random(0, 0) == 0xe169c58d6627e8d5u);
    assert_true(sampling_random(1, 0) == 0xe50a0ebce3e80670u);
    assert_true(sampling_random(0, 1) == 0x5cb200dbf8e4cca4u);
    assert_true(sampling_random(0x0123456789abcdefu, 0xfedcba9876543210u) == 0xd8a290fc2c03a599u);
}

// Chi-square of `n` draws in 256 bins, along positions or along seeds: 255 degrees of freedom, so
// within 255 +- 5 * sqrt(510).
static double chi_square(uint64_t seed, uint64_t position, int along_seed, int shift)
{
    enum { N = 1 << 16, BINS = 256 };
    static int bins[BINS];
    memset(bins, 0, sizeof bins);
    for (uint64_t i = 0; i < N; i++) {
        uint64_t u = along_seed ? sampling_random(seed + i, position)
                                : sampling_random(seed, position + i);
        bins[u >> shift & (BINS - 1)]++;
    }
    double sum = 0, expected = (double) N / (double) BINS;
    for (int i = 0; i < BINS; i++) sum += (bins[i] - expected) * (bins[i] - expected) / expected;
    return sum;
}

static void test_uniform(void **state)
{
    (void) state;
    for (int shift = 0; shift <= 56; shift += 14) {
        for (int along_seed = 0; along_seed < 2; along_seed++) {
            double x = chi_square(42, 7, along_seed, shift);
            assert_true(x > 255 - 113 && x < 255 + 113);
        }
    }
}

// One bit of the seed or the position flips half of the result's bits, whichever bit it is; so
// neighbouring seeds and positions have nothing in common.
static void test_neighbours_are_independent(void **state)
{
    (void) state;
    enum { N = 400 };
    for (int bit = 0; bit < 64; bit++) {
        int by_seed = 0, by_position = 0;
        for (uint64_t i = 0; i < N; i++) {
            uint64_t u = sampling_random(i, 3 * i);
            by_seed += __builtin_popcountll(u ^ sampling_random(i ^ 1ull << bit, 3 * i));
            by_position += __builtin_popcountll(u ^ sampling_random(i, (3 * i) ^ 1ull << bit));
        }
        // 25,600 fair bits: standard deviation 80.
        assert_in_range(by_seed, 32 * N - 480, 32 * N + 480);
        assert_in_range(by_position, 32 * N - 480, 32 * N + 480);
    }
    double sum = 0, scale = 1.0 / 18446744073709551616.0;
    for (uint64_t i = 0; i < 100000; i++) {
        double a = (double) sampling_random(9, i) * scale - 0.5;
        double b = (double) sampling_random(9, i + 1) * scale - 0.5;
        double c = (double) sampling_random(10, i) * scale - 0.5;
        sum += a * b + a * c;
    }
    // Each product has standard deviation 1/12, 200,000 of them.
    assert_true(fabs(sum) < 6 * sqrt(200000.0) / 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_is_greedy_and_valid),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_neighbours_are_independent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
