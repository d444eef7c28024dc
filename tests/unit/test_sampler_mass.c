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

struct scan_case {
    float l[SCAN_CHUNK];
    int n;
    struct sampler_bounds bounds;
    struct softmax softmax;
};

static void check_sums(const struct scan *scan, const struct scan_case *c, float above)
{
    uint64_t mass[SCAN_CHUNK], all = 0, beyond = 0;
    const float *l = c->l;
    scan->list(l, c->n, c->softmax, mass);
    for (int i = 0; i < c->n; i++) {
        uint64_t m = mass_of(c->softmax, l[i]);
        assert_true(mass[i] == m);
        all += m;
        if (l[i] > above) beyond += m;
    }
    assert_true(scan->sum(l, c->n, c->softmax, BOUNDS_NONE, NULL) == all);
    assert_true(scan->sum(l, c->n, c->softmax, c->bounds, NULL) == all);
    assert_true(scan->sum(l, c->n, c->softmax, c->bounds, l) == all);
    assert_true(scan->sum_above(l, c->n, c->softmax, BOUNDS_NONE, above) == beyond);
    assert_true(scan->sum_above(l, c->n, c->softmax, c->bounds, above) == beyond);
}

static void check_places(const struct scan *scan, struct scan_case *c, float floor)
{
    float max[SCAN_CHUNK / SCAN_BLOCK], *l = c->l;
    int32_t index[SCAN_CHUNK];
    union sampler_chunk chunk;
    assert_true(scan->maxima(l, c->n, max, &chunk));
    assert_true(chunk.bounds.least == c->bounds.least && chunk.bounds.most == c->bounds.most);
    float picked[SCAN_CHUNK];
    int reached = scan->reach(l, c->n, floor, index), seen = 0;
    assert_int_equal(scan->pick(l, c->n, floor, picked), reached);
    for (int i = 0; i < c->n; i++) {
        assert_true(key_logit(key_of(l[i])) == l[i]);
        if (!(l[i] >= floor)) continue;
        assert_true(picked[seen] == l[i]);
        assert_int_equal(index[seen++], i);
    }
    assert_int_equal(reached, seen);
    for (int b = 0; b * SCAN_BLOCK < c->n; b++) {
        float most = -INFINITY;
        for (int i = b * SCAN_BLOCK; i < c->n && i < (b + 1) * SCAN_BLOCK; i++) {
            most = l[i] > most ? l[i] : most;
        }
        assert_true(max[b] == most);
    }
    float kept = l[c->n / 3];
    l[c->n / 3] = NAN;
    assert_false(scan->maxima(l, c->n, max, &chunk));
    l[c->n / 3] = kept;
}

// Every variant of the scans against the definition, bit by bit; the largest logit of all is among
// these, or so far above that all four masses of a lane, few, or none of them count.
static void test_scans(void **state)
{
    (void) state;
    const struct scan *scans[] = {&scan_portable, scan_best(), scan_best()};
    if (isa_best() >= ISA_AVX2) scans[1] = &scan_avx2;
    static const float temperatures[] = {0.9f, 1e-3f, 1e-12f, 100}, above_all[] = {0, 0.1f, 15, 40};
    for (int shape = 0; shape < N_SHAPES; shape++) {
        for (int n = 1; n <= SCAN_CHUNK; n += n < 150 ? 7 : 93) {
            struct scan_case c = {.n = n, .bounds = {INFINITY, -INFINITY}};
            for (int i = 0; i < n; i++) {
                float l = c.l[i] = logit_of((enum shape_of_logits) shape, i, n);
                c.bounds.least = l < c.bounds.least ? l : c.bounds.least;
                c.bounds.most = l > c.bounds.most ? l : c.bounds.most;
            }
            for (int k = 0; k < 4; k++) {
                c.softmax = softmax_of(c.bounds.most + above_all[k], temperatures[n % 4]);
                for (int v = 0; v < 3; v++) check_sums(scans[v], &c, c.l[n / 2]);
            }
            for (int v = 0; v < 3; v++) check_places(scans[v], &c, c.l[n / 2]);
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
