#include "kernels/backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/matrix_case.h"

static const struct backend *b;

struct moe_case {
    enum dtype dtype;
    int n_experts, n_chosen, hidden, part, phase; // phase: of this rank's part in its 128-block
};

enum { N_EXPERTS_MAX = 12, ROWS = 37 };

static const struct moe_case cases[] = {
    {DTYPE_F8_E4M3, 8, 3, 200, 96, 96},  {DTYPE_F8_E4M3, 12, 4, 128, 128, 0},
    {DTYPE_F8_E4M3, 1, 1, 70, 130, 126}, {DTYPE_BF16, 5, 2, 100, 37, 0},
    {DTYPE_F32, 3, 3, 64, 65, 0},
};

enum { N_CASES = sizeof cases / sizeof *cases };

struct experts {
    const struct moe_case *k;
    struct matrix_case gate[N_EXPERTS_MAX], up[N_EXPERTS_MAX], down[N_EXPERTS_MAX];
    struct expert table[N_EXPERTS_MAX];
};

static void experts_init(struct experts *x, const struct moe_case *k, struct device *d)
{
    x->k = k;
    for (int i = 0; i < k->n_experts; i++) {
        matrix_case_init(&x->gate[i], d, k->dtype, k->part, k->hidden, k->phase, 0);
        matrix_case_init(&x->up[i], d, k->dtype, k->part, k->hidden, k->phase, 0);
        matrix_case_init(&x->down[i], d, k->dtype, k->hidden, k->part, 0, k->phase);
        x->table[i] = (struct expert) {x->gate[i].m, x->up[i].m, x->down[i].m};
    }
}

static void experts_deinit(struct experts *x)
{
    for (int i = 0; i < x->k->n_experts; i++) {
        matrix_case_deinit(&x->gate[i]);
        matrix_case_deinit(&x->up[i]);
        matrix_case_deinit(&x->down[i]);
    }
}

// A step: each row's experts are distinct, in no order of ids; every sixth row is padding.
struct rows {
    float *x, *weights;
    int32_t *chosen, *pos;
};

static void rows_init(struct rows *r, const struct moe_case *k, int n)
{
    r->x = malloc(sizeof(float) * (size_t) (n * k->hidden));
    r->weights = malloc(sizeof(float) * (size_t) (n * k->n_chosen));
    r->chosen = malloc(sizeof(int32_t) * (size_t) (n * k->n_chosen));
    r->pos = malloc(sizeof(int32_t) * (size_t) n);
    for (int i = 0; i < n * k->hidden; i++) r->x[i] = noise();
    for (int row = 0; row < n; row++) {
        r->pos[row] = row % 6 == 4 ? -1 : row;
        int first = (int) (noise_seed >> 33) % k->n_experts;
        for (int j = 0; j < k->n_chosen; j++) {
            r->weights[row * k->n_chosen + j] = 0.5f + 0.4f * noise();
            int32_t id = (first + (k->n_experts - 1) * j) % k->n_experts;
            r->chosen[row * k->n_chosen + j] = r->pos[row] < 0 ? -7 : id;
        }
    }
}

static void rows_deinit(struct rows *r)
{
    free(r->x);
    free(r->weights);
    free(r->chosen);
    free(r->pos);
}

static struct device *open_device(enum isa isa, enum precision precision, int n_threads,
                                  const struct moe_case *k)
{
    struct scratch_shape shape = {.max_rows = 600, .hidden = k->hidden, .n_experts = k->n_experts,
                                  .n_chosen = k->n_chosen, .moe_intermediate = k->part};
    return device_case_open(isa, precision, n_threads, &shape);
}

static void run(struct device *d, const struct experts *x, const struct rows *r, int first, int n,
                float *out)
{
    const struct moe_case *k = x->k;
    b->moe(d, x->table, k->n_experts, k->n_chosen, r->x + first * k->hidden,
           r->chosen + first * k->n_chosen, r->weights + first * k->n_chosen, r->pos + first,
           out + first * k->hidden, n);
}

static double product(const struct matrix_case *c, int output, const double *x)
{
    double sum = 0;
    for (int i = 0; i < c->m.k; i++) sum += c->values[(size_t) output * c->m.k + i] * x[i];
    return sum;
}

// The definition in double. Returns the norm of the row.
static double reference(const struct experts *x, const struct rows *r, int row, double *out)
{
    const struct moe_case *k = x->k;
    double from[256], act[256], norm = 0;
    for (int i = 0; i < k->hidden; i++) {
        from[i] = r->x[row * k->hidden + i];
        out[i] = 0;
    }
    for (int j = 0; j < k->n_chosen; j++) {
        int e = r->chosen[row * k->n_chosen + j];
        for (int i = 0; i < k->part; i++) {
            double gate = product(&x->gate[e], i, from);
            act[i] = gate / (1 + exp(-gate)) * product(&x->up[e], i, from);
        }
        for (int i = 0; i < k->hidden; i++) {
            out[i] += r->weights[row * k->n_chosen + j] * product(&x->down[e], i, act);
        }
    }
    for (int i = 0; i < k->hidden; i++) norm += out[i] * out[i];
    return sqrt(norm);
}

static void test_one_expert_for_one_row(void **state)
{
    (void) state;
    // Gate and up see x, so act = silu(2) * 2; down doubles it; the weight halves it.
    static const struct moe_case k = {DTYPE_F32, 1, 1, 1, 1, 0};
    struct device *d = open_device(isa_best(), PRECISION_F32, 1, &k);
    struct experts x;
    experts_init(&x, &k, d);
    float one = 1, two = 2, weight = 0.5f, in = 2, out;
    b->matrix_pack(d, &x.gate[0].m, 0, 1, &one);
    b->matrix_pack(d, &x.up[0].m, 0, 1, &one);
    b->matrix_pack(d, &x.down[0].m, 0, 1, &two);
    int32_t chosen = 0, pos = 0;
    b->moe(d, x.table, 1, 1, &in, &chosen, &weight, &pos, &out, 1);
    assert_true(fabs(out - 4 / (1 + exp(-2.0))) < 1e-6);
    experts_deinit(&x);
    b->close(&d);
}

static void compare(enum isa isa, enum precision precision, double tolerance)
{
    for (int k = 0; k < N_CASES; k++) {
        struct device *d = open_device(isa, precision, 2, &cases[k]);
        struct experts x;
        struct rows r;
        experts_init(&x, &cases[k], d);
        rows_init(&r, &cases[k], ROWS);
        int hidden = cases[k].hidden;
        float *out = malloc(sizeof *out * (size_t) (ROWS * hidden));
        double wanted[256];
        run(d, &x, &r, 0, ROWS, out);
        for (int row = 0; row < ROWS; row++) {
            if (r.pos[row] < 0) continue;
            double norm = reference(&x, &r, row, wanted), far = 0;
            for (int i = 0; i < hidden; i++) far += pow(out[row * hidden + i] - wanted[i], 2);
            if (sqrt(far) <= tolerance * norm) continue;
            fail_msg("%s, case %d, row %d: %g", isa_name(isa), k, row, sqrt(far) / norm);
        }
        free(out);
        rows_deinit(&r);
        experts_deinit(&x);
        b->close(&d);
    }
}

static void test_f32_matches_the_definition(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) compare((enum isa) isa, PRECISION_F32, 1e-5);
}

static void test_bf16_stays_near(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) compare((enum isa) isa, PRECISION_BF16, 1e-2);
}

static void test_a_row_has_the_same_bits_in_any_company(void **state)
{
    (void) state;
    enum { MANY = 1100 }; // more than are sorted at once
    for (int i = 0; i < N_CASES * ((int) isa_best() + 1); i++) {
        const struct moe_case *k = &cases[i % N_CASES];
        struct device *one = open_device((enum isa) (i / N_CASES), PRECISION_F32, 1, k);
        struct device *many = open_device((enum isa) (i / N_CASES), PRECISION_F32, 3, k);
        struct experts x;
        struct rows r;
        experts_init(&x, k, one);
        rows_init(&r, k, MANY);
        size_t n = (size_t) MANY * k->hidden;
        float *together = calloc(n, sizeof *together), *apart = calloc(n, sizeof *apart);
        run(many, &x, &r, 0, MANY, together);
        for (int row = 0, rows = 1; row < MANY; row += rows, rows = rows * 3 % 101 + 1) {
            run(one, &x, &r, row, rows < MANY - row ? rows : MANY - row, apart);
        }
        assert_memory_equal(together, apart, n * sizeof *together);
        for (int row = 0; row < MANY; row++) { // padding was left alone
            if (r.pos[row] < 0) assert_true(together[row * k->hidden] == 0);
        }
        free(together);
        free(apart);
        rows_deinit(&r);
        experts_deinit(&x);
        b->close(&one);
        b->close(&many);
    }
}

static void test_a_step_of_padding(void **state)
{
    (void) state;
    struct device *d = open_device(isa_best(), PRECISION_F32, 2, &cases[0]);
    struct experts x;
    struct rows r;
    experts_init(&x, &cases[0], d);
    rows_init(&r, &cases[0], 3);
    for (int i = 0; i < 3; i++) r.pos[i] = -1;
    float out[3 * 200] = {0};
    run(d, &x, &r, 0, 3, out);
    run(d, &x, &r, 0, 0, out);
    rows_deinit(&r);
    experts_deinit(&x);
    b->close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_expert_for_one_row),
        cmocka_unit_test(test_f32_matches_the_definition),
        cmocka_unit_test(test_bf16_stays_near),
        cmocka_unit_test(test_a_row_has_the_same_bits_in_any_company),
        cmocka_unit_test(test_a_step_of_padding),
    };
    b = backend_cpu();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
