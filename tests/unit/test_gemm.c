#include "kernels/backend.h"

#include "common/limits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/matrix_case.h"

static const struct backend *b;

static struct device *open_device(enum isa isa, enum precision precision, int n_threads)
{
    struct scratch_shape shape = {.max_rows = 300, .hidden = 1000, .n_heads = 3, .v = 40,
                                  .nope = 33, .kv_lora = 300};
    return device_case_open(isa, precision, n_threads, &shape);
}

static void test_a_product(void **state)
{
    (void) state;
    struct device *d = open_device(isa_best(), PRECISION_F32, 1);
    float rows[2][3] = {{1, 2, 3}, {0, -1, 0.5f}};
    struct matrix w = {.dtype = DTYPE_F32, .n = 2, .k = 3};
    w.data = malloc(matrix_bytes(b, &w));
    b->matrix_pack(d, &w, 0, 2, rows);
    float x[2][3] = {{1, 1, 1}, {2, 0, -2}}, out[2][2];
    b->gemm(d, &w, x, 3, &out[0][0], 2, 2);
    assert_true(out[0][0] == 6 && out[0][1] == -0.5f);
    assert_true(out[1][0] == -4 && out[1][1] == -1);
    free(w.data);
    b->close(&d);
}

static const struct {
    enum dtype dtype;
    int n, k, row_phase, col_phase;
} shapes[] = {
    {DTYPE_F8_E4M3, 1, 1, 0, 0},       {DTYPE_F8_E4M3, 64, 128, 0, 0},
    {DTYPE_F8_E4M3, 130, 257, 0, 0},   {DTYPE_F8_E4M3, 70, 100, 120, 60},
    {DTYPE_F8_E4M3, 200, 300, 37, 127}, {DTYPE_F8_E4M3, 17, 5, 127, 126},
    {DTYPE_F8_E4M3, 256, 896, 64, 0},  {DTYPE_BF16, 1, 1, 0, 0},
    {DTYPE_BF16, 100, 257, 0, 0},      {DTYPE_BF16, 65, 640, 0, 0},
    {DTYPE_F32, 1, 1, 0, 0},           {DTYPE_F32, 67, 301, 0, 0},
    {DTYPE_BF16, 33, 63, 5, 9}, // phases mean nothing without scales
};

enum { N_SHAPES = sizeof shapes / sizeof *shapes, ROWS = 70 };

static void case_init(struct matrix_case *c, struct device *d, int k)
{
    matrix_case_init(c, d, shapes[k].dtype, shapes[k].n, shapes[k].k, shapes[k].row_phase,
                     shapes[k].col_phase);
}

static float *noises(size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = noise();
    return x;
}

// The definition in double; `norm` is the sum of the products' sizes.
static double reference(const struct matrix_case *c, const float *x, int output, double *norm)
{
    double sum = 0;
    *norm = 0;
    for (int i = 0; i < c->m.k; i++) {
        double product = c->values[(size_t) output * c->m.k + i] * x[i];
        sum += product;
        *norm += fabs(product);
    }
    return sum;
}

static void compare(enum isa isa, enum precision precision, double tolerance)
{
    static const int row_counts[] = {1, 2, 3, 4, 5, 9, 13, ROWS};
    struct device *d = open_device(isa, precision, 2);
    for (int k = 0; k < N_SHAPES; k++) {
        struct matrix_case c;
        case_init(&c, d, k);
        int x_stride = c.m.k + 3, out_stride = c.m.n + 5;
        float *x = noises((size_t) ROWS * x_stride);
        float *out = malloc(sizeof *out * ROWS * out_stride);
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            for (int i = 0; i < ROWS * out_stride; i++) out[i] = 12345;
            b->gemm(d, &c.m, x, x_stride, out, out_stride, row_counts[r]);
            for (int i = 0; i < ROWS * out_stride; i++) {
                int row = i / out_stride, column = i % out_stride;
                if (row >= row_counts[r] || column >= c.m.n) {
                    assert_true(out[i] == 12345);
                    continue;
                }
                double norm, wanted = reference(&c, x + (size_t) row * x_stride, column, &norm);
                if (fabs(out[i] - wanted) <= tolerance * norm) continue;
                fail_msg("%s, shape %d, row %d of %d, output %d: %g, not %g", isa_name(isa), k, row,
                         row_counts[r], column, (double) out[i], wanted);
            }
        }
        free(x);
        free(out);
        matrix_case_deinit(&c);
    }
    b->close(&d);
}

static void test_f32_matches_the_definition(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) compare((enum isa) isa, PRECISION_F32, 2e-6);
}

static void test_bf16_stays_near(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) compare((enum isa) isa, PRECISION_BF16, 4e-3);
}

// Rounding to bf16 happens where x is read, and nowhere else.
static void test_bf16_is_f32_of_rounded_activations(void **state)
{
    (void) state;
    enum isa isa = isa_best() == ISA_AVX512BF16 ? ISA_AVX512 : isa_best();
    struct device *exact = open_device(isa, PRECISION_F32, 1);
    struct device *half = open_device(isa, PRECISION_BF16, 1);
    for (int k = 0; k < N_SHAPES; k++) {
        struct matrix_case c;
        case_init(&c, exact, k);
        float *x = noises((size_t) ROWS * c.m.k), *rounded = malloc(sizeof *x * ROWS * c.m.k);
        for (int i = 0; i < ROWS * c.m.k; i++) rounded[i] = bf16_widen(bf16_round(x[i]));
        size_t bytes = sizeof(float) * ROWS * (size_t) c.m.n;
        float *wanted = malloc(bytes), *out = malloc(bytes);
        b->gemm(exact, &c.m, rounded, c.m.k, wanted, c.m.n, ROWS);
        b->gemm(half, &c.m, x, c.m.k, out, c.m.n, ROWS);
        assert_memory_equal(out, wanted, bytes);
        free(x);
        free(rounded);
        free(wanted);
        free(out);
        matrix_case_deinit(&c);
    }
    b->close(&exact);
    b->close(&half);
}

static void same_bits(enum isa isa, enum precision precision)
{
    struct device *one = open_device(isa, precision, 1), *many = open_device(isa, precision, 3);
    for (int k = 0; k < N_SHAPES; k++) {
        struct matrix_case c;
        case_init(&c, one, k);
        size_t n = (size_t) c.m.n, row = n * sizeof(float), x_row = (size_t) c.m.k;
        float *x = noises(ROWS * x_row), *alone = malloc(ROWS * row), *out = malloc(ROWS * row);
        for (int i = 0; i < ROWS; i++) {
            b->gemm(one, &c.m, x + i * x_row, c.m.k, alone + i * n, c.m.n, 1);
        }
        for (int rows = 1; rows <= ROWS; rows++) {
            b->gemm(many, &c.m, x + (ROWS - rows) * x_row, c.m.k, out, c.m.n, rows);
            assert_memory_equal(out, alone + (size_t) (ROWS - rows) * n, (size_t) rows * row);
        }
        free(x);
        free(alone);
        free(out);
        matrix_case_deinit(&c);
    }
    b->close(&one);
    b->close(&many);
}

static void test_a_row_has_the_same_bits_in_any_company(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        same_bits((enum isa) isa, PRECISION_F32);
        same_bits((enum isa) isa, PRECISION_BF16);
    }
}

// More rows than fit in the scratch at once.
static void test_rows_in_several_passes(void **state)
{
    (void) state;
    enum { MANY = 1031 };
    struct device *d = open_device(isa_best(), PRECISION_F32, 2);
    struct matrix_case c;
    matrix_case_init(&c, d, DTYPE_F8_E4M3, 40, 200, 0, 0);
    float *x = noises((size_t) MANY * 200), *out = malloc(sizeof *out * MANY * 40), alone[40];
    b->gemm(d, &c.m, x, 200, out, 40, MANY);
    for (int i = 0; i < MANY; i++) {
        b->gemm(d, &c.m, x + (size_t) i * 200, 200, alone, 40, 1);
        assert_memory_equal(alone, out + (size_t) i * 40, sizeof alone);
    }
    b->gemm(d, &c.m, x, 200, out, 40, 0);
    free(x);
    free(out);
    matrix_case_deinit(&c);
    b->close(&d);
}

static void test_every_e4m3_is_exact(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        for (int precision = 0; precision < 2; precision++) {
            struct device *d = open_device((enum isa) isa, (enum precision) precision, 1);
            struct matrix_case c;
            matrix_case_init(&c, d, DTYPE_F8_E4M3, 256, 1, 3, 5);
            for (int i = 0; i < 3; i++) c.m.scales[i] = 1;
            for (int i = 0; i < 256; i++) matrix_case_set(&c, i, 0, (uint32_t) i);
            matrix_case_pack(&c, d);
            float x[7], out[7][256];
            for (int i = 0; i < 7; i++) x[i] = ldexpf(1, i - 3);
            for (int rows = 1; rows <= 7; rows += 6) { // both regimes
                b->gemm(d, &c.m, x, 1, &out[0][0], 256, rows);
                for (int i = 0; i < rows * 256; i++) {
                    double wanted = c.values[i % 256] * x[i / 256], got = out[i / 256][i % 256];
                    assert_true(isnan(wanted) ? isnan(got) : got == wanted);
                }
            }
            matrix_case_deinit(&c);
            b->close(&d);
        }
    }
}

// NaN of either side goes where it belongs and nowhere else; infinity too.
static void test_nan_stays_in_its_row_and_output(void **state)
{
    (void) state;
    enum { N = 150, K = 260, BAD_ROW = 3, BAD_OUTPUT = 70 };
    static const enum dtype dtypes[] = {DTYPE_F8_E4M3, DTYPE_BF16, DTYPE_F32};
    static const uint32_t nans[] = {0xff, 0x7fc0, 0x7fc00000};
    for (int i = 0; i < 3 * ((int) isa_best() + 1); i++) {
        struct device *d = open_device((enum isa) (i / 3), PRECISION_BF16, 2);
        struct matrix_case c;
        matrix_case_init(&c, d, dtypes[i % 3], N, K, 0, 0);
        matrix_case_set(&c, BAD_OUTPUT, 259, nans[i % 3]);
        matrix_case_pack(&c, d);
        float *x = noises(9 * K), out[9 * N];
        x[BAD_ROW * K + 128] = NAN;
        for (int rows = 4; rows <= 9; rows += 5) {
            b->gemm(d, &c.m, x, K, out, N, rows);
            for (int at = 0; at < rows * N; at++) {
                bool bad = at / N == BAD_ROW || at % N == BAD_OUTPUT;
                assert_true(bad == (isnan(out[at]) != 0));
            }
        }
        matrix_case_set(&c, BAD_OUTPUT, 259, 0); // packed anew: whole again
        matrix_case_pack(&c, d);
        b->gemm(d, &c.m, x, K, out, N, 1);
        assert_false(isnan(out[BAD_OUTPUT]));
        free(x);
        matrix_case_deinit(&c);
        b->close(&d);
    }
}

static void test_heads_are_products_of_their_own(void **state)
{
    (void) state;
    enum { HEADS = 3, N = 30, K = 33, MANY = 41 };
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        struct device *d = open_device((enum isa) isa, PRECISION_F32, 2);
        struct matrix_case c[HEADS];
        struct matrix w[HEADS];
        for (int h = 0; h < HEADS; h++) { // heads of kv_b begin at any row and column of its scales
            matrix_case_init(&c[h], d, DTYPE_F8_E4M3, N, K, h * 60 % 128, h * 55);
            w[h] = c[h].m;
        }
        int x_stride = HEADS * (K + 2), out_stride = HEADS * N + 1;
        float *x = noises((size_t) MANY * x_stride), *out = malloc(sizeof *out * MANY * out_stride);
        b->gemm_heads(d, w, HEADS, x, x_stride, K + 2, out, out_stride, N, MANY);
        for (int row = 0; row < MANY; row++) {
            for (int h = 0; h < HEADS; h++) {
                float alone[N];
                b->gemm(d, &w[h], x + (size_t) row * x_stride + h * (K + 2), 0, alone, N, 1);
                assert_memory_equal(alone, out + (size_t) row * out_stride + h * N, sizeof alone);
            }
        }
        free(x);
        free(out);
        for (int h = 0; h < HEADS; h++) matrix_case_deinit(&c[h]);
        b->close(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_product),
        cmocka_unit_test(test_f32_matches_the_definition),
        cmocka_unit_test(test_bf16_stays_near),
        cmocka_unit_test(test_bf16_is_f32_of_rounded_activations),
        cmocka_unit_test(test_a_row_has_the_same_bits_in_any_company),
        cmocka_unit_test(test_rows_in_several_passes),
        cmocka_unit_test(test_every_e4m3_is_exact),
        cmocka_unit_test(test_nan_stays_in_its_row_and_output),
        cmocka_unit_test(test_heads_are_products_of_their_own),
    };
    b = backend_cpu();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
