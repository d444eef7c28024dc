#include "kernels/cpu/device.h"
#include "kernels/cpu/ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/serial_team.h"

enum { ROWS = 19, EXPERTS_MAX = 384, CHOSEN_MAX = 8 };

static uint64_t seed;

static float noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float) (int32_t) (seed >> 32) * 0x1p-31f;
}

static float *noises(int n, float scale)
{
    assert_true(n > 0);
    float *x = calloc((size_t) n, sizeof *x);
    for (int i = 0; i < n; i++) x[i] = noise() * scale;
    return x;
}

static struct device device_of(enum isa isa, enum precision precision, int n_threads)
{
    struct device d = {.precision = precision, .isa = isa};
    struct error e = {0};
    assert_int_equal(team_create(&d.team, n_threads, &e), OK);
    d.scratch.route_scores = malloc(sizeof(float) * ROWS * EXPERTS_MAX);
    return d;
}

static void device_end(struct device *d)
{
    team_destroy(&d->team);
    free(d->scratch.route_scores);
}

// One row whose scores are given: x = 1 and the weights are the scores' logits.
static void route_logits(struct router r, const float *logits, int32_t *chosen, float *weights)
{
    struct device d = device_of(isa_best(), PRECISION_F32, 1);
    float one = 1;
    r.weight = logits;
    r.hidden = 1;
    cpu_route(&d, &r, &one, chosen, weights, 1);
    device_end(&d);
}

static void test_the_best_groups_then_the_best_experts(void **state)
{
    (void) state;
    // Groups of 4; scores by bias alone. Group sums of the best two: 3, 11, 10, 9.
    static const float bias[16] = {2, 1, 0, 0, 10, 1, 0, 0, 5, 5, 4, 0, 9, 0, 0, -1};
    static const float logits[16] = {0};
    struct router r = {.bias = bias, .n_experts = 16, .n_groups = 4, .n_groups_kept = 2,
                       .n_chosen = 4, .normalize = true, .scaling = 2.5f};
    int32_t chosen[4];
    float weights[4];
    route_logits(r, logits, chosen, weights);
    static const int32_t wanted[4] = {4, 8, 9, 10}; // 12 has 9, but its group is out
    assert_memory_equal(chosen, wanted, sizeof wanted);
    for (int k = 0; k < 4; k++) assert_true(weights[k] == 2.5f / 4); // the bias only chooses
}

static void test_masked_experts_are_below_negative_ones(void **state)
{
    (void) state;
    static const float bias[8] = {-3, -3, -3, -4, -9, -9, -9, -9};
    static const float logits[8] = {0};
    struct router r = {.bias = bias, .n_experts = 8, .n_groups = 2, .n_groups_kept = 1,
                       .n_chosen = 4, .scaling = 1};
    int32_t chosen[5];
    float weights[5];
    route_logits(r, logits, chosen, weights);
    static const int32_t wanted[5] = {0, 1, 2, 3, 4};
    assert_memory_equal(chosen, wanted, 4 * sizeof *wanted);
    for (int k = 0; k < 4; k++) assert_true(weights[k] == 0.5f); // not normalised
    r.n_chosen = 5; // more than the kept group has: the others all tie
    route_logits(r, logits, chosen, weights);
    assert_memory_equal(chosen, wanted, sizeof wanted);
}

static void test_ties_take_the_lowest_index(void **state)
{
    (void) state;
    static const float bias[16] = {0};
    static const float logits[16] = {0};
    struct router r = {.bias = bias, .n_experts = 16, .n_groups = 8, .n_groups_kept = 3,
                       .n_chosen = 4, .scaling = 1};
    int32_t chosen[4];
    float weights[4];
    route_logits(r, logits, chosen, weights);
    for (int32_t k = 0; k < 4; k++) assert_int_equal(chosen[k], k);
    r.n_groups = 16; // groups of one expert: its own score
    r.n_groups_kept = 4;
    route_logits(r, logits, chosen, weights);
    for (int32_t k = 0; k < 4; k++) assert_int_equal(chosen[k], k);
    r.n_groups = 1;
    r.n_groups_kept = 1;
    route_logits(r, logits, chosen, weights);
    for (int32_t k = 0; k < 4; k++) assert_int_equal(chosen[k], k);
}

static int by_value_down(const void *a, const void *b)
{
    double x = **(double *const *) a, y = **(double *const *) b;
    if (x != y) return x < y ? 1 : -1;
    return *(double *const *) a < *(double *const *) b ? -1 : 1;
}

// The definition in double, by sorting.
static void reference(const struct router *r, const float *x, int32_t *chosen, double *weights)
{
    double s[EXPERTS_MAX], c[EXPERTS_MAX], g[EXPERTS_MAX], *order[EXPERTS_MAX], sum = 0;
    int size = r->n_experts / r->n_groups;
    for (int e = 0; e < r->n_experts; e++) {
        double dot = 0;
        for (int i = 0; i < r->hidden; i++) dot += (double) r->weight[e * r->hidden + i] * x[i];
        s[e] = 1 / (1 + exp(-dot));
        c[e] = s[e] + r->bias[e];
    }
    for (int j = 0; j < r->n_groups; j++) {
        for (int i = 0; i < size; i++) order[i] = &c[j * size + i];
        qsort(order, (size_t) size, sizeof *order, by_value_down);
        g[j] = *order[0] + (size > 1 ? *order[1] : 0);
    }
    for (int j = 0; j < r->n_groups; j++) order[j] = &g[j];
    qsort(order, (size_t) r->n_groups, sizeof *order, by_value_down);
    for (int k = r->n_groups_kept; k < r->n_groups; k++) {
        for (int i = 0; i < size; i++) c[(order[k] - g) * size + i] = -INFINITY;
    }
    for (int e = 0; e < r->n_experts; e++) order[e] = &c[e];
    qsort(order, (size_t) r->n_experts, sizeof *order, by_value_down);
    for (int k = 0; k < r->n_chosen; k++) {
        chosen[k] = (int32_t) (order[k] - c);
        sum += s[chosen[k]];
    }
    for (int k = 0; k < r->n_chosen; k++) {
        weights[k] = s[chosen[k]] / (r->normalize ? sum + 1e-20 : 1) * r->scaling;
    }
}

static const struct {
    int n_experts, hidden, n_groups, n_groups_kept, n_chosen;
    bool normalize;
} shapes[] = {{256, 701, 8, 4, 8, true}, {384, 64, 1, 1, 8, true},  {16, 64, 4, 2, 4, false},
              {16, 33, 16, 6, 6, true},  {7, 5, 1, 1, 2, true}, {64, 7168, 8, 3, 6, true}};

enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void compare_shape(int k, enum isa isa)
{
    int n = shapes[k].n_experts, hidden = shapes[k].hidden, n_chosen = shapes[k].n_chosen;
    float *x = noises(ROWS * hidden, 1);
    float *weight = noises(n * hidden, 3 / sqrtf((float) hidden));
    float *bias = noises(n, 0.3f);
    struct router r = {weight, bias, n, hidden, shapes[k].n_groups, shapes[k].n_groups_kept,
                       n_chosen, shapes[k].normalize, 2.5f};
    int32_t chosen[ROWS * CHOSEN_MAX], single[CHOSEN_MAX], wanted[CHOSEN_MAX];
    float weights[ROWS * CHOSEN_MAX], single_weights[CHOSEN_MAX];
    double wanted_weights[CHOSEN_MAX];
    struct device many = device_of(isa, PRECISION_F32, 3), one = device_of(isa, PRECISION_BF16, 1);
    cpu_route(&many, &r, x, chosen, weights, ROWS);
    for (int row = 0; row < ROWS; row++) {
        reference(&r, x + (size_t) row * hidden, wanted, wanted_weights);
        assert_memory_equal(chosen + row * n_chosen, wanted, sizeof *wanted * n_chosen);
        for (int i = 0; i < n_chosen; i++) {
            double w = weights[row * n_chosen + i];
            assert_true(fabs(w - wanted_weights[i]) < 2e-6 * wanted_weights[i]);
        }
        // By itself, on one thread, and in bf16 precision: the router is f32 in both.
        cpu_route(&one, &r, x + (size_t) row * hidden, single, single_weights, 1);
        assert_memory_equal(single, chosen + row * n_chosen, sizeof *single * n_chosen);
        assert_memory_equal(single_weights, weights + row * n_chosen, sizeof(float) * n_chosen);
    }
    device_end(&many);
    device_end(&one);
    free(x);
    free(weight);
    free(bias);
}

static void test_random_rows_match_the_definition(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        for (int k = 0; k < N_SHAPES; k++) compare_shape(k, (enum isa) isa);
    }
}

static void test_broken_scores_still_choose_distinct_experts(void **state)
{
    (void) state;
    float bias[32] = {0}, logits[32];
    struct router r = {.bias = bias, .n_experts = 32, .n_groups = 4, .n_groups_kept = 2,
                       .n_chosen = 8, .normalize = true, .scaling = 1};
    for (int variant = 0; variant < 4; variant++) {
        for (int i = 0; i < 32; i++) {
            logits[i] = variant == 0 || (variant == 1 && i % 3 != 0) ? NAN : (float) i;
            if (variant == 2) logits[i] = i % 2 == 0 ? INFINITY : -INFINITY;
            bias[i] = variant == 3 ? -INFINITY : 0;
        }
        int32_t chosen[8];
        float weights[8];
        route_logits(r, logits, chosen, weights);
        uint32_t seen = 0;
        for (int k = 0; k < 8; k++) {
            assert_in_range(chosen[k], 0, 31);
            assert_false(seen >> chosen[k] & 1);
            seen |= 1u << chosen[k];
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_best_groups_then_the_best_experts),
        cmocka_unit_test(test_masked_experts_are_below_negative_ones),
        cmocka_unit_test(test_ties_take_the_lowest_index),
        cmocka_unit_test(test_random_rows_match_the_definition),
        cmocka_unit_test(test_broken_scores_still_choose_distinct_experts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
