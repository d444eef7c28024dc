#include "kernels/sampler_mass.h"

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

// The integer exponential against the C library's, and its vector forms bit by bit.
static void test_exponential_and_scans(void **state)
{
    (void) state;
    assert_true(mass_at(0) == MASS_ONE);
    assert_true(mass_at(-INFINITY) == 0);
    for (int i = 0; i < 400000; i++) {
        float t = -(float) i * 1e-4f;
        double want = exp2((double) t) * (double) MASS_ONE;
        assert_true(fabs((double) mass_at(t) - want) <= want * 2.5e-7 + 1);
    }
    struct softmax infinite = softmax_of(INFINITY, 0.5f);
    assert_true(mass_of(infinite, INFINITY) == MASS_ONE && mass_of(infinite, 3e38f) == 0);

    const struct scan *scans[] = {&scan_portable, scan_best()};
    float l[SCAN_CHUNK], max[2][SCAN_CHUNK / SCAN_BLOCK];
    uint64_t mass[SCAN_CHUNK];
    for (int shape = 0; shape < N_SHAPES; shape++) {
        for (int n = 1; n <= SCAN_CHUNK; n += 93) {
            float most = -INFINITY;
            for (int i = 0; i < n; i++) {
                l[i] = logit_of((enum shape_of_logits) shape, i, n);
                most = l[i] > most ? l[i] : most;
            }
            struct softmax s = softmax_of(most, 0.9f);
            float above = l[n / 2], least = -9.5f;
            uint64_t all = 0, want = 0;
            for (int i = 0; i < n; i++) {
                all += mass_of(s, l[i]);
                if (l[i] > above && softmax_exponent(s, l[i]) >= least) want += mass_of(s, l[i]);
            }
            for (int v = 0; v < 2; v++) {
                assert_true(scans[v]->sum(l, n, s) == all);
                assert_true(scans[v]->sum_kept(l, n, s, above, least) == want);
                assert_true(scans[v]->maxima(l, n, max[v]));
                scans[v]->list(l, n, s, mass);
                for (int i = 0; i < n; i++) {
                    assert_true(mass[i] == mass_of(s, l[i]));
                    assert_true(l[i] <= max[v][i / SCAN_BLOCK]);
                    assert_true(key_logit(key_of(l[i])) == l[i]);
                }
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_offs),
        cmocka_unit_test(test_exponential_and_scans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
