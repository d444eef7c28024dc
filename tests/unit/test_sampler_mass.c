#include "kernels/sampler_mass.h"

#include "kernels/cpu/isa.h"
#include "kernels/sampler_scan.h"
#include "tests/support/logits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

// The cut-offs in integers, on values worked out by hand.
static void test_cut_offs(void **state)
{
    (void) state;
    assert_true(top_p_mass(0.5f, 2) == 1 && top_p_mass(0.5f, 3) == 2);
    assert_true(top_p_mass(0.9f, 10) == 9); // 0.9f is just below 0.9
    assert_true(top_p_mass(0.1f, 10) == 2); // 0.1f just above 0.1
    assert_true(top_p_mass(0.75f, 1ull << 60) == 3ull << 58);
    assert_true(top_p_mass(1e-30f, 1ull << 60) == 1 && top_p_mass(1e-45f, 1ull << 60) == 1);
    assert_true(min_p_exponent(1) == 0 && min_p_exponent(0.5f) == -1);
    assert_true(min_p_exponent(0) == -INFINITY);
    assert_true(mass_draw(0, 9) == 0 && mass_draw(UINT64_MAX, 9) == 8);
    assert_true(mass_draw(1ull << 63, 9) == 4);
    assert_true(entry_of(1, 5) < entry_of(0.5f, 0) && entry_of(-0.0f, 1) < entry_of(0.0f, 2));
    assert_true(entry_of(-1, 0) > entry_of(0, 9) && entry_of(-INFINITY, 0) < ENTRY_NONE);
}

// The integer exponential against the C library's.
static void test_exponential(void **state)
{
    (void) state;
    assert_true(mass_at(0) == MASS_ONE);
    assert_true(mass_at(-INFINITY) == 0);
    for (int i = 0; i < 400000; i++) {
        float t = -(float) i * 1e-4f;
        double want = exp2((double) t) * (double) MASS_ONE;
        assert_true(fabs((double) mass_at(t) - want) <= want * 2.5e-7 + 0.5);
    }
    struct softmax infinite = softmax_of(INFINITY, 0.5f);
    assert_true(mass_of(infinite, INFINITY) == MASS_ONE && mass_of(infinite, 3e38f) == 0);
}

// Masses of a row have the ratios of its softmax, whatever its largest logit and temperature.
static void test_masses_are_of_the_softmax(void **state)
{
    (void) state;
    static const float maxima[] = {0,     -0.0f, 1e-30f,  0.3f,  -7.9f,
                                   31.7f, -1000, 1234.5f, 90000, 1e20f};
    static const float temperatures[] = {1, 0.01f, 0.7f, 1.9f, 100};
    for (size_t i = 0; i < sizeof maxima / sizeof *maxima; i++) {
        for (size_t j = 0; j < sizeof temperatures / sizeof *temperatures; j++) {
            float max = maxima[i], temperature = temperatures[j];
            struct softmax s = softmax_of(max, temperature);
            uint64_t most = mass_of(s, max);
            assert_true(most > MASS_ONE / 10 * 9 && most <= MASS_ONE);
            for (float d = 0; d < 20 * temperature; d += temperature / 16) {
                float l = max - d;
                double want = exp(((double) l - (double) max) / (double) temperature);
                double got = (double) mass_of(s, l) / (double) most;
                assert_true(fabs(got - want) <= want * 3e-6 + 2.0 / (double) MASS_ONE);
            }
        }
    }
}

// Every variant of the scans against the definition, bit by bit.
static void test_scans(void **state)
{
    (void) state;
    const struct scan *scans[] = {&scan_portable, scan_best(), scan_best()};
    if (isa_best() >= ISA_AVX2) scans[1] = &scan_avx2;
    static const float temperatures[] = {0.9f, 1e-3f, 1e-12f, 100};
    float l[SCAN_CHUNK], max[SCAN_CHUNK / SCAN_BLOCK];
    uint64_t mass[SCAN_CHUNK];
    int32_t index[SCAN_CHUNK];
    for (int shape = 0; shape < N_SHAPES; shape++) {
        for (int n = 1; n <= SCAN_CHUNK; n += n < 150 ? 7 : 93) {
            float most = -INFINITY;
            for (int i = 0; i < n; i++) {
                l[i] = logit_of((enum shape_of_logits) shape, i, n);
                most = l[i] > most ? l[i] : most;
            }
            struct softmax s = softmax_of(most, temperatures[n % 4]);
            float above = l[n / 2];
            uint64_t all = 0, want = 0;
            for (int i = 0; i < n; i++) {
                all += mass_of(s, l[i]);
                if (l[i] > above) want += mass_of(s, l[i]);
            }
            for (int v = 0; v < 3; v++) {
                assert_true(scans[v]->sum(l, n, s, NULL) == all);
                assert_true(scans[v]->sum(l, n, s, l) == all);
                assert_true(scans[v]->sum_above(l, n, s, above) == want);
                assert_true(scans[v]->maxima(l, n, max));
                scans[v]->list(l, n, s, mass);
                int reached = scans[v]->reach(l, n, above, index), seen = 0;
                for (int i = 0; i < n; i++) {
                    assert_true(mass[i] == mass_of(s, l[i]));
                    assert_true(l[i] <= max[i / SCAN_BLOCK]);
                    assert_true(key_logit(key_of(l[i])) == l[i]);
                    if (l[i] >= above) assert_int_equal(index[seen++], i);
                }
                assert_int_equal(reached, seen);
                float kept = l[n / 3];
                l[n / 3] = NAN;
                assert_false(scans[v]->maxima(l, n, max));
                l[n / 3] = kept;
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_offs),
        cmocka_unit_test(test_exponential),
        cmocka_unit_test(test_masses_are_of_the_softmax),
        cmocka_unit_test(test_scans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
