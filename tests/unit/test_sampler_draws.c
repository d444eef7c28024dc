#include "kernels/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum { DRAWN_VOCAB = 96, N_DRAWS = 20000 };

// Draws with the parameters and compares with expected shares; one degree of freedom a kept token.
static struct sampler_counts draw_many(struct sampling sampling, float *logits,
                                       const double share[DRAWN_VOCAB])
{
    struct sampler_shape shape = {.slots = 1, .max_context = 4, .max_out = 1,
                                  .vocab_n = DRAWN_VOCAB, .vocab_size = DRAWN_VOCAB, .tp = 1};
    void *memory = malloc(sampler_bytes(&shape));
    struct sampler *s = sampler_init(memory, &shape, NULL, NULL, NULL, NULL);
    const int32_t slot = 0, pos = 0;
    int count[DRAWN_VOCAB] = {0}, kept = 0;
    double x = 0;
    for (uint64_t seed = 0; seed < N_DRAWS; seed++) {
        struct sampled out;
        sampling.seed = seed;
        sampler_open(s, 0, &sampling, 0);
        assert_int_equal(sampler_run(s, logits, 1, &slot, &pos, &out, NULL), OK);
        count[out.id]++;
    }
    for (int i = 0; i < DRAWN_VOCAB; i++) {
        double expected = N_DRAWS * share[i], off = count[i] - expected;
        if (expected == 0) {
            assert_int_equal(count[i], 0);
        } else {
            x += off * off / expected;
            kept++;
        }
    }
    // Chi-square's mean is its degrees of freedom n, its deviation sqrt(2 n).
    assert_true(x < kept + 6 * sqrt(2.0 * kept));
    struct sampler_counts counts = sampler_counts(s);
    free(memory);
    return counts;
}

// Shares of the `n` most likely tokens. Logits fall with (i * 5) % DRAWN_VOCAB, all different.
static void share_of_first(const float *logits, float temperature, int n, double share[DRAWN_VOCAB])
{
    double sum = 0;
    for (int i = 0; i < DRAWN_VOCAB; i++) {
        share[i] = (i * 5) % DRAWN_VOCAB < n ? exp((double) logits[i] / (double) temperature) : 0;
        sum += share[i];
    }
    for (int i = 0; i < DRAWN_VOCAB; i++) share[i] /= sum;
}

// How many of the most likely tokens have `p` of all mass.
static int nucleus_of(const double share[DRAWN_VOCAB], double p)
{
    double sum = 0;
    for (int n = 0;; n++) {
        if (sum >= p) return n;
        for (int i = 0; i < DRAWN_VOCAB; i++) sum += (i * 5) % DRAWN_VOCAB == n ? share[i] : 0;
    }
}

static void test_draws_follow_the_distribution(void **state)
{
    (void) state;
    float logits[DRAWN_VOCAB];
    double share[DRAWN_VOCAB];
    for (int i = 0; i < DRAWN_VOCAB; i++) logits[i] = 2 - (float) ((i * 5) % DRAWN_VOCAB) * 0.02f;
    struct sampling sampling = sampling_default();
    sampling.temperature = 1.3f;
    share_of_first(logits, 1.3f, DRAWN_VOCAB, share);
    draw_many(sampling, logits, share);
    int nucleus = nucleus_of(share, 0.7);

    sampling.top_k = 6;
    share_of_first(logits, 1.3f, 6, share);
    draw_many(sampling, logits, share);

    // Longer than the lists of candidates: most rows are decided by tests, a few by a search.
    sampling.top_k = 0;
    sampling.top_p = 0.7f;
    assert_true(nucleus > 40 && nucleus < DRAWN_VOCAB - 10);
    share_of_first(logits, 1.3f, nucleus, share);
    struct sampler_counts counts = draw_many(sampling, logits, share);
    assert_true(counts.tests > N_DRAWS / 4);
    assert_true(counts.fallbacks > 0 && counts.fallbacks < N_DRAWS / 50);

    // Inside the lists.
    sampling.temperature = 0.02f;
    share_of_first(logits, 0.02f, DRAWN_VOCAB, share);
    share_of_first(logits, 0.02f, nucleus_of(share, 0.7), share);
    counts = draw_many(sampling, logits, share);
    assert_true(counts.tests == 0 && counts.fallbacks == 0);
}

// DeepSeek-V3's vocabulary, 256 rows: where sorting would need 1,168 MiB.
static void test_scratch_is_small(void **state)
{
    (void) state;
    for (int tp = 1; tp <= TP_MAX; tp++) {
        struct sampler_shape shape = {.slots = 256, .max_context = 163840, .max_out = 256,
                                      .vocab_n = (129280 + tp - 1) / tp, .vocab_size = 129280,
                                      .tp = tp};
        struct carve count = {0};
        struct sampler_parts parts;
        sampler_carve(&parts, &shape, &count);
        assert_true(count.ledger.bytes[LEDGER_SAMPLER] <= SAMPLER_SCRATCH_MAX);
        assert_true(count.ledger.bytes[LEDGER_HISTORY] >= 256ull * 163840 * sizeof(int32_t));
        assert_int_equal(ledger_total(&count.ledger), sampler_bytes(&shape));
        shape.on_device = true;
        struct carve host = {0}, device = {0};
        struct sampler_device_parts there;
        sampler_carve(&parts, &shape, &host);
        sampler_device_carve(&there, &shape, &device);
        assert_true(host.ledger.bytes[LEDGER_SAMPLER] + device.used <= SAMPLER_SCRATCH_MAX);
        assert_int_equal(device.used, sampler_device_bytes(&shape));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_draws_follow_the_distribution),
        cmocka_unit_test(test_scratch_is_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
