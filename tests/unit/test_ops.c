#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device.h"
#include "kernels/cpu/e4m3.h"
#include "kernels/cpu/ops.h"

#include "common/limits.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/serial_team.h"

static uint64_t seed;

// Uniform in [-1, 1).
static float noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float) (int32_t) (seed >> 32) * 0x1p-31f;
}

static float *noises(int n)
{
    assert_true(n > 0);
    float *x = calloc((size_t) n, sizeof *x);
    for (int i = 0; i < n; i++) x[i] = noise();
    return x;
}

static struct device device_of(enum isa isa, enum precision precision, int n_threads)
{
    struct device d = {.precision = precision, .isa = isa};
    struct error e = {0};
    assert_int_equal(team_create(&d.team, n_threads, &e), OK);
    return d;
}

static void assert_near(double got, double wanted, double relative, double absolute)
{
    if (fabs(got - wanted) <= relative * fabs(wanted) + absolute) return;
    fail_msg("%.9g is not %.9g", got, wanted);
}

static void test_rmsnorm_of_a_row(void **state)
{
    (void) state;
    struct device d = device_of(isa_best(), PRECISION_F32, 1);
    float x[4] = {1, -1, 3, -3}, weight[4] = {1, 1, 2, 0}, out[4];
    cpu_rmsnorm(&d, x, 4, weight, 0, out, 4, 1);
    double scale = 1 / sqrt(5.0);
    assert_near(out[0], scale, 1e-6, 0);
    assert_near(out[1], -scale, 1e-6, 0);
    assert_near(out[2], 6 * scale, 1e-6, 0);
    assert_true(out[3] == 0);
    team_destroy(&d.team);
}

static void test_rmsnorm_follows_the_formula_and_one_order(void **state)
{
    (void) state;
    static const int dims[] = {1, 7, 20, 1536, 7168};
    struct device one = device_of(ISA_PORTABLE, PRECISION_F32, 1);
    struct device many = device_of(ISA_PORTABLE, PRECISION_BF16, 3);
    for (size_t k = 0; k < sizeof dims / sizeof *dims; k++) {
        int dim = dims[k], stride = dim + 3, rows = 37;
        float *x = noises(rows * stride), *weight = noises(dim);
        float *out = malloc(sizeof *out * rows * dim), *single = malloc(sizeof *out * dim);
        cpu_rmsnorm(&many, x, stride, weight, 1e-6f, out, dim, rows);
        for (int row = 0; row < rows; row++) {
            const float *from = x + (size_t) row * stride;
            double sum = 0;
            for (int i = 0; i < dim; i++) sum += (double) from[i] * from[i];
            double scale = 1 / sqrt(sum / dim + 1e-6f);
            for (int i = 0; i < dim; i++) {
                assert_near(out[row * dim + i], from[i] * scale * weight[i], 1e-6, 1e-12);
            }
            cpu_rmsnorm(&one, from, stride, weight, 1e-6f, single, dim, 1);
            assert_memory_equal(single, out + row * dim, sizeof *out * dim);
        }
        free(x);
        free(weight);
        free(out);
        free(single);
    }
    team_destroy(&one.team);
    team_destroy(&many.team);
}

static void test_add_rmsnorm_is_both(void **state)
{
    (void) state;
    enum { DIM = 1001, ROWS = 9 };
    struct device d = device_of(isa_best(), PRECISION_F32, 3);
    float *x = noises(ROWS * DIM), *y = noises(ROWS * DIM), *weight = noises(DIM);
    float *sum = malloc(sizeof *sum * ROWS * DIM), *out = malloc(sizeof *out * ROWS * DIM);
    float *wanted = malloc(sizeof *wanted * ROWS * DIM);
    memcpy(sum, x, sizeof *sum * ROWS * DIM);
    cpu_add(&d, sum, y, ROWS * DIM);
    cpu_rmsnorm(&d, sum, DIM, weight, 1e-6f, wanted, DIM, ROWS);
    cpu_add_rmsnorm(&d, x, y, weight, 1e-6f, out, DIM, ROWS);
    assert_memory_equal(x, sum, sizeof *x * ROWS * DIM);
    assert_memory_equal(out, wanted, sizeof *out * ROWS * DIM);
    free(x);
    free(y);
    free(weight);
    free(sum);
    free(out);
    free(wanted);
    team_destroy(&d.team);
}

static void test_embed_serves_its_slice_only(void **state)
{
    (void) state;
    enum { HIDDEN = 21, BEGIN = 100, N = 5 };
    struct device d = device_of(isa_best(), PRECISION_F32, 2);
    uint16_t table[N * HIDDEN];
    float wide[N * HIDDEN]; // the same
    for (int i = 0; i < N * HIDDEN; i++) {
        table[i] = bf16_round(noise());
        wide[i] = bf16_widen(table[i]);
    }
    static const int32_t ids[] = {100, 104, 99, 105, -1, INT32_MIN, INT32_MAX, 102};
    float x[8 * HIDDEN], y[8 * HIDDEN];
    cpu_embed(&d, table, DTYPE_BF16, BEGIN, N, HIDDEN, ids, x, 8);
    cpu_embed(&d, wide, DTYPE_F32, BEGIN, N, HIDDEN, ids, y, 8);
    assert_memory_equal(x, y, sizeof x);
    for (int row = 0; row < 8; row++) {
        bool mine = ids[row] >= BEGIN && ids[row] < BEGIN + N;
        for (int i = 0; i < HIDDEN; i++) {
            float wanted = mine ? bf16_widen(table[(ids[row] - BEGIN) * HIDDEN + i]) : 0;
            assert_true(x[row * HIDDEN + i] == wanted);
        }
    }
    team_destroy(&d.team);
}

static void test_gather_and_add(void **state)
{
    (void) state;
    enum { DIM = 7168, ROWS = 9, OUT = 4 };
    struct device d = device_of(isa_best(), PRECISION_F32, 2);
    float *x = noises(ROWS * DIM), *y = noises(OUT * DIM), *out = malloc(OUT * DIM * sizeof *out);
    static const int32_t rows[OUT] = {8, 0, 3, 3};
    cpu_gather(&d, x, rows, DIM, out, OUT);
    for (int i = 0; i < OUT; i++) assert_memory_equal(out + i * DIM, x + rows[i] * DIM, DIM * 4);
    cpu_add(&d, out, y, OUT * DIM - 1);
    for (int i = 0; i < OUT * DIM; i++) {
        float before = x[rows[i / DIM] * DIM + i % DIM];
        assert_true(out[i] == (i < OUT * DIM - 1 ? before + y[i] : before));
    }
    cpu_gather(&d, x, rows, DIM, out, 0); // no row wants logits
    free(x);
    free(y);
    free(out);
    team_destroy(&d.team);
}

static void test_swiglu_in_every_instruction_set(void **state)
{
    (void) state;
    enum { N = 40003 };
    float *gate = malloc(N * sizeof *gate), *up = noises(N), *out = malloc(N * sizeof *out);
    for (int i = 0; i < N; i++) gate[i] = -100 + 200.0f * (float) i / (N - 1);
    gate[0] = NAN;
    gate[1] = -INFINITY;
    gate[2] = INFINITY;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        struct device d = device_of((enum isa) isa, PRECISION_F32, 2);
        cpu_swiglu(&d, gate, up, out, N, 1);
        assert_true(isnan(out[0]));
        assert_true(isinf(out[2]));
        for (int i = 3; i < N; i++) {
            double wanted = gate[i] / (1 + exp(-(double) gate[i])) * up[i];
            assert_near(out[i], wanted, 5e-7, 1e-35);
        }
        // The same elements as rows of another width: the same bits.
        float *again = malloc(N * sizeof *again);
        for (int at = 0, n = 1; at < N; at += n, n = n * 3 % 1000 + 1) {
            if (n > N - at) n = N - at;
            cpu_swiglu(&d, gate + at, up + at, again + at, n, 1);
        }
        assert_memory_equal(again + 1, out + 1, (N - 1) * sizeof *out);
        free(again);
        team_destroy(&d.team);
    }
    free(gate);
    free(up);
    free(out);
}

static void test_rope_turns_interleaved_pairs(void **state)
{
    (void) state;
    enum { ROPE = 6, HEADS = 3, ROWS = 4, HEAD_STRIDE = 11, STRIDE = 40 };
    struct device d = device_of(isa_best(), PRECISION_F32, 2);
    static const float inv_freq[ROPE / 2] = {1, 0.05623413252f, 3.33380358e-05f};
    static const int32_t pos[ROWS] = {0, 7, -1, 163839};
    float cos_sin[ROWS * ROPE] = {0}, *x = noises(ROWS * STRIDE), before[ROWS * STRIDE];
    memcpy(before, x, sizeof before);
    cpu_rope_angles(&d, inv_freq, 1.25f, ROPE, pos, cos_sin, ROWS);
    cpu_rope(&d, x, STRIDE, HEAD_STRIDE, HEADS, ROPE, cos_sin, ROWS);
    for (int row = 0; row < ROWS; row++) {
        if (pos[row] < 0) continue;
        for (int i = 0; i < STRIDE; i++) {
            int head = i / HEAD_STRIDE, at = i % HEAD_STRIDE, pair = at / 2;
            const float *b = &before[row * STRIDE + head * HEAD_STRIDE];
            if (head >= HEADS || at >= ROPE) {
                assert_true(x[row * STRIDE + i] == before[row * STRIDE + i]);
                continue;
            }
            double angle = (double) pos[row] * inv_freq[pair];
            double c = 1.25 * cos(angle), s = 1.25 * sin(angle);
            double wanted = at % 2 == 0 ? b[2 * pair] * c - b[2 * pair + 1] * s
                                        : b[2 * pair] * s + b[2 * pair + 1] * c;
            assert_near(x[row * STRIDE + i], wanted, 0, 5e-7);
        }
    }
    free(x);
    team_destroy(&d.team);
}

static void kv_write_case(int lora, int rope, enum precision precision)
{
    enum { ROWS = 5, MAX_BLOCKS = 2, N_BLOCKS = 4 };
    struct device d = device_of(isa_best(), precision, 2);
    int width = lora + rope;
    int32_t pos[ROWS] = {0, 63, 64, -1, 100}, slot[ROWS] = {1, 1, 1, 0, 0};
    int32_t blocks[2 * MAX_BLOCKS] = {2, 3, 1, 0};
    struct step_inputs in = {.pos = pos, .slot = slot, .blocks = blocks, .max_blocks = MAX_BLOCKS};
    struct attention_shape a = {.kv_lora = lora, .rope = rope, .norm_eps = 1e-6f};
    size_t n = (size_t) N_BLOCKS * KV_BLOCK_ROWS * width;
    size_t bytes = precision == PRECISION_F32 ? 4 : 2;
    struct kv_layer kv = {.pool = calloc(n, bytes), .n_blocks = N_BLOCKS};
    float *c = noises(ROWS * width), *norm = noises(lora);
    float *cos_sin = noises(ROWS * rope);
    cpu_kv_write(&d, &a, c, norm, cos_sin, &in, &kv, ROWS);

    float *wanted = malloc((size_t) width * sizeof *wanted);
    size_t written = 0;
    for (int row = 0; row < ROWS; row++) {
        if (pos[row] < 0) continue;
        size_t block = (size_t) blocks[slot[row] * MAX_BLOCKS + pos[row] / 64];
        size_t first = (block * 64 + pos[row] % 64) * width;
        row_rmsnorm(c + row * width, norm, a.norm_eps, wanted, lora);
        row_rope(c + row * width + lora, cos_sin + row * rope, wanted + lora, rope);
        for (int i = 0; i < width; i++, written++) {
            if (precision == PRECISION_F32) {
                assert_true(((float *) kv.pool)[first + i] == wanted[i]);
            } else {
                uint16_t half = ((uint16_t *) kv.pool)[first + i];
                assert_int_equal(half, bf16_round(wanted[i]));
                assert_near(bf16_widen(half), wanted[i], 0x1p-8, 0);
            }
        }
    }
    size_t zeros = 0;
    for (size_t i = 0; i < n; i++) {
        zeros += precision == PRECISION_F32 ? ((float *) kv.pool)[i] == 0
                                            : ((uint16_t *) kv.pool)[i] == 0;
    }
    assert_int_equal(zeros, n - written); // nothing else was touched
    free(kv.pool);
    free(c);
    free(norm);
    free(cos_sin);
    free(wanted);
    team_destroy(&d.team);
}

static void kv_write_fp8_case(int lora, int rope, enum precision precision)
{
    enum { ROWS = 5, MAX_BLOCKS = 2, N_BLOCKS = 4 };
    struct device d = device_of(isa_best(), precision, 2);
    int32_t pos[ROWS] = {0, 63, 64, -1, 100}, slot[ROWS] = {1, 1, 1, 0, 0};
    int32_t blocks[2 * MAX_BLOCKS] = {2, 3, 1, 0};
    struct step_inputs in = {.pos = pos, .slot = slot, .blocks = blocks, .max_blocks = MAX_BLOCKS};
    struct attention_shape a = {.kv_lora = lora, .rope = rope, .norm_eps = 1e-6f};
    struct kv_block shape = kv_block_fp8(lora, rope);
    char *pool = calloc(N_BLOCKS, shape.bytes), *want = calloc(N_BLOCKS, shape.bytes);
    struct kv_layer kv = {.pool = pool, .n_blocks = N_BLOCKS, .fp8 = true};
    float *c = noises(ROWS * (lora + rope)), *norm = noises(lora);
    float *cos_sin = noises(ROWS * rope), *values = malloc((lora + rope) * sizeof *values);
    c[4 * (lora + rope)] = NAN; // and so the whole row
    cpu_kv_write(&d, &a, c, norm, cos_sin, &in, &kv, ROWS);
    for (int row = 0; row < ROWS; row++) {
        if (pos[row] < 0) continue;
        int block = blocks[slot[row] * MAX_BLOCKS + pos[row] / 64], at = pos[row] % 64;
        char *to = want + (size_t) block * shape.bytes;
        row_rmsnorm(c + row * (lora + rope), norm, a.norm_eps, values, lora);
        row_rope(c + row * (lora + rope) + lora, cos_sin + row * rope, values + lora, rope);
        for (int i = 0; i < lora; i++) {
            int k = i / KV_SCALE_VALUES, first = k * KV_SCALE_VALUES;
            int n = lora - first < KV_SCALE_VALUES ? lora - first : KV_SCALE_VALUES;
            float scale = kv_scale(values + first, n);
            memcpy(to + shape.scales + (at * shape.n_scales + k) * 4, &scale, 4);
            to[at * lora + i] = (char) e4m3_round(values[i] / scale);
            float got = e4m3_widen((uint8_t) to[at * lora + i]) * scale;
            if (row < 4) assert_near(got, values[i], 0x1p-4, 0x1p-10 * scale);
            else assert_true(isnan(got));
        }
        for (int i = 0; i < rope; i++) {
            uint16_t half = bf16_round(values[lora + i]);
            memcpy(to + shape.rope + (at * rope + i) * 2, &half, 2);
        }
    }
    assert_memory_equal(pool, want, N_BLOCKS * shape.bytes); // nothing else was touched
    free(pool);
    free(want);
    free(c);
    free(norm);
    free(cos_sin);
    free(values);
    team_destroy(&d.team);
}

static void test_kv_rows_in_fp8_have_scales(void **state)
{
    (void) state;
    kv_write_fp8_case(20, 6, PRECISION_F32);
    kv_write_fp8_case(131, 6, PRECISION_BF16);
    kv_write_fp8_case(512, 64, PRECISION_F32);
    kv_write_fp8_case(512, 64, PRECISION_BF16);
}

static void test_kv_rows_go_to_their_blocks(void **state)
{
    (void) state;
    kv_write_case(20, 6, PRECISION_F32);
    kv_write_case(20, 6, PRECISION_BF16);
    kv_write_case(512, 64, PRECISION_F32);
    kv_write_case(512, 64, PRECISION_BF16);
}

static void test_bf16_rounds_to_nearest_even(void **state)
{
    (void) state;
    assert_int_equal(bf16_round(1.0f), 0x3f80);
    assert_int_equal(bf16_round(1.0f + 0x1p-8f), 0x3f80);           // a tie: to even
    assert_int_equal(bf16_round(1.0f + 3 * 0x1p-8f), 0x3f82);       // a tie: to even
    assert_int_equal(bf16_round(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
    assert_int_equal(bf16_round(INFINITY), 0x7f80);
    assert_true(isnan(bf16_widen(bf16_round(NAN))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm_of_a_row),
        cmocka_unit_test(test_rmsnorm_follows_the_formula_and_one_order),
        cmocka_unit_test(test_add_rmsnorm_is_both),
        cmocka_unit_test(test_embed_serves_its_slice_only),
        cmocka_unit_test(test_gather_and_add),
        cmocka_unit_test(test_swiglu_in_every_instruction_set),
        cmocka_unit_test(test_rope_turns_interleaved_pairs),
        cmocka_unit_test(test_kv_rows_go_to_their_blocks),
        cmocka_unit_test(test_kv_rows_in_fp8_have_scales),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
