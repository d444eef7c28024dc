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

enum { ROWS = 9, SLOTS = 3, MAX_BLOCKS = 5, N_BLOCKS = SLOTS * MAX_BLOCKS };

// A step of prefill and decode rows over sequences whose blocks lie shuffled in the pool.
struct step {
    struct attention_shape a;
    int nope; // q of a head: nope | rope
    int32_t pos[ROWS], slot[ROWS], blocks[N_BLOCKS];
    struct step_inputs in;
    struct kv_layer exact, half, eighth;
    bool fp8; // of `eighth`, whose values `exact` has then
    float *q_abs, *q;
};

static uint64_t seed;

static float noise(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float) (int32_t) (seed >> 32) * 0x1p-31f;
}

static int row_width(const struct step *s) { return s->a.kv_lora + s->a.rope; }

static int q_stride(const struct step *s) { return s->a.n_heads * (s->nope + s->a.rope); }

static void step_init(struct step *s, int n_heads, int kv_lora, int rope)
{
    static const int32_t pos[ROWS] = {63, 64, 65, 66, 0, -1, 200, 1, 319};
    static const int32_t slot[ROWS] = {0, 0, 0, 0, 1, 1, 1, 2, 2};
    *s = (struct step) {.a = {.n_heads = n_heads, .nope = 10, .rope = rope, .v = 12,
                              .kv_lora = kv_lora, .softmax_scale = 0.3f}, .nope = 10};
    memcpy(s->pos, pos, sizeof pos);
    memcpy(s->slot, slot, sizeof slot);
    for (int i = 0; i < N_BLOCKS; i++) s->blocks[i] = i * 7 % N_BLOCKS;
    s->in = (struct step_inputs) {.pos = s->pos, .slot = s->slot, .blocks = s->blocks,
                                  .max_blocks = MAX_BLOCKS};
    size_t n = (size_t) N_BLOCKS * KV_BLOCK_ROWS * row_width(s);
    float *exact = malloc(n * sizeof *exact);
    uint16_t *half = malloc(n * sizeof *half);
    // What no row may see is NaN: positions behind each sequence's last.
    static const int last[SLOTS] = {66, 200, 319};
    for (size_t i = 0; i < n; i++) exact[i] = NAN;
    for (int k = 0; k < SLOTS; k++) {
        for (int p = 0; p <= last[k]; p++) {
            size_t block = (size_t) s->blocks[k * MAX_BLOCKS + p / KV_BLOCK_ROWS];
            float *to = exact + (block * KV_BLOCK_ROWS + p % KV_BLOCK_ROWS) * row_width(s);
            for (int i = 0; i < row_width(s); i++) to[i] = noise();
        }
    }
    for (size_t i = 0; i < n; i++) half[i] = bf16_round(exact[i]);
    s->exact = (struct kv_layer) {.pool = exact, .n_blocks = N_BLOCKS};
    s->half = (struct kv_layer) {.pool = half, .n_blocks = N_BLOCKS};
    s->q_abs = malloc(sizeof(float) * ROWS * n_heads * kv_lora);
    for (int i = 0; i < ROWS * n_heads * kv_lora; i++) s->q_abs[i] = noise();
    s->q = malloc(sizeof(float) * ROWS * q_stride(s));
    for (int i = 0; i < ROWS * q_stride(s); i++) s->q[i] = noise();
}

// The same in FP8, rounded by the definition; `exact` gets the values that are left.
static void step_round(struct step *s)
{
    int lora = s->a.kv_lora, rope = s->a.rope;
    struct kv_block shape = kv_block_fp8(lora, rope);
    char *pool = calloc(N_BLOCKS, shape.bytes);
    for (int row = 0; row < N_BLOCKS * KV_BLOCK_ROWS; row++) {
        int at = row % KV_BLOCK_ROWS;
        float *x = (float *) s->exact.pool + (size_t) row * row_width(s);
        char *block = pool + row / KV_BLOCK_ROWS * shape.bytes;
        uint8_t *codes = (uint8_t *) block + (size_t) at * lora;
        float *scales = (float *) (void *) (block + shape.scales) + at * shape.n_scales;
        for (int k = 0; k < shape.n_scales; k++) {
            int first = k * KV_SCALE_VALUES, end = first + KV_SCALE_VALUES;
            if (end > lora) end = lora;
            scales[k] = kv_scale(x + first, end - first);
            for (int i = first; i < end; i++) {
                codes[i] = e4m3_round(x[i] / scales[k]);
                x[i] = e4m3_widen(codes[i]) * scales[k];
            }
        }
        for (int i = 0; i < rope; i++) {
            uint16_t value = bf16_round(x[lora + i]);
            memcpy(block + shape.rope + (at * rope + i) * 2, &value, 2);
            x[lora + i] = bf16_widen(value);
        }
    }
    s->eighth = (struct kv_layer) {.pool = pool, .n_blocks = N_BLOCKS, .fp8 = true};
    s->fp8 = true;
}

static void step_deinit(struct step *s)
{
    free(s->eighth.pool);
    free(s->exact.pool);
    free(s->half.pool);
    free(s->q_abs);
    free(s->q);
}

static struct device device_of(const struct step *s, enum isa isa, enum precision precision,
                               int n_threads)
{
    struct device d = {.precision = precision, .isa = isa};
    struct error e = {0};
    assert_int_equal(team_create(&d.team, n_threads, &e), OK);
    size_t tile = (size_t) (KV_BLOCK_ROWS * (s->a.kv_lora + s->a.rope)) * sizeof(float);
    if (precision != PRECISION_F32 || s->fp8) {
        d.scratch.mla_tiles = malloc((size_t) n_threads * tile);
    }
    return d;
}

static void device_end(struct device *d)
{
    team_destroy(&d->team);
    free(d->scratch.mla_tiles);
}

// Rows [first, first + n) of the step, each with its own output in `out`.
static void run_rows(struct device *d, const struct step *s, int first, int n, float *out)
{
    struct step_inputs in = s->in;
    in.pos += first;
    in.slot += first;
    size_t head = (size_t) s->a.n_heads * s->a.kv_lora;
    const struct kv_layer *kv = d->precision == PRECISION_F32 ? &s->exact : &s->half;
    if (s->fp8) kv = &s->eighth;
    cpu_mla(d, &s->a, s->q_abs + first * head, s->q + first * q_stride(s) + s->nope, q_stride(s),
            s->nope + s->a.rope, &in, kv, out + first * head, n);
}

// The definition, in double: scores of all positions, softmax, weighted sum. Returns the norm of
// the sum of absolute values: results that cancel out are as exact as their terms.
static double reference(const struct step *s, int row, int head, double *out)
{
    const float *q_abs = s->q_abs + ((size_t) row * s->a.n_heads + head) * s->a.kv_lora;
    const float *q = s->q + row * q_stride(s) + head * (s->nope + s->a.rope) + s->nope;
    double score[MAX_BLOCKS * KV_BLOCK_ROWS], highest = -INFINITY, sum = 0;
    const float *kv[MAX_BLOCKS * KV_BLOCK_ROWS];
    for (int p = 0; p <= s->pos[row]; p++) {
        size_t block = (size_t) s->blocks[s->slot[row] * MAX_BLOCKS + p / KV_BLOCK_ROWS];
        kv[p] = (float *) s->exact.pool +
                (block * KV_BLOCK_ROWS + p % KV_BLOCK_ROWS) * row_width(s);
        score[p] = 0;
        for (int i = 0; i < s->a.kv_lora; i++) score[p] += (double) q_abs[i] * kv[p][i];
        for (int i = 0; i < s->a.rope; i++) score[p] += (double) q[i] * kv[p][s->a.kv_lora + i];
        score[p] *= s->a.softmax_scale;
        highest = fmax(highest, score[p]);
    }
    for (int p = 0; p <= s->pos[row]; p++) sum += exp(score[p] - highest);
    double norm = 0;
    for (int i = 0; i < s->a.kv_lora; i++) {
        double absolute = 0;
        out[i] = 0;
        for (int p = 0; p <= s->pos[row]; p++) {
            double term = exp(score[p] - highest) / sum * kv[p][i];
            out[i] += term;
            absolute += fabs(term);
        }
        norm += absolute * absolute;
    }
    return sqrt(norm);
}

static double distance(const float *a, const double *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sqrt(sum);
}

static void test_a_first_token_attends_to_itself(void **state)
{
    (void) state;
    struct step s;
    step_init(&s, 2, 8, 4);
    struct device d = device_of(&s, isa_best(), PRECISION_F32, 1);
    float out[ROWS * 2 * 8];
    run_rows(&d, &s, 4, 1, out); // position 0 of slot 1: the softmax of one score is 1
    const float *kv = (float *) s.exact.pool + s.blocks[MAX_BLOCKS] * KV_BLOCK_ROWS * 12;
    for (int head = 0; head < 2; head++) assert_memory_equal(out + (4 * 2 + head) * 8, kv, 32);
    device_end(&d);
    step_deinit(&s);
}

static const struct {
    int n_heads, kv_lora, rope;
} shapes[] = {{3, 20, 6}, {1, 1, 2}, {5, 33, 10}, {16, 512, 64}, {17, 64, 16}, {4, 72, 8},
              {2, 131, 4}};

enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void compare_with_reference(enum isa isa, enum precision precision, bool fp8,
                                   double tolerance)
{
    for (int k = 0; k < N_SHAPES; k++) {
        struct step s;
        step_init(&s, shapes[k].n_heads, shapes[k].kv_lora, shapes[k].rope);
        if (fp8) step_round(&s);
        struct device d = device_of(&s, isa, precision, 2);
        int lora = s.a.kv_lora;
        size_t n = (size_t) ROWS * s.a.n_heads * lora;
        float *out = malloc(n * sizeof *out);
        double *wanted = malloc(sizeof *wanted * lora);
        for (size_t i = 0; i < n; i++) out[i] = 12345;
        run_rows(&d, &s, 0, ROWS, out);
        for (int row = 0; row < ROWS; row++) {
            for (int head = 0; head < s.a.n_heads; head++) {
                const float *got = out + ((size_t) row * s.a.n_heads + head) * lora;
                if (s.pos[row] < 0) {
                    assert_true(got[0] == 12345);
                    continue;
                }
                double norm = reference(&s, row, head, wanted);
                double far = distance(got, wanted, lora) / norm;
                if (!(far < tolerance)) {
                    fail_msg("%s, shape %d, row %d, head %d: %g", isa_name(isa), k, row, head, far);
                }
            }
        }
        free(out);
        free(wanted);
        device_end(&d);
        step_deinit(&s);
    }
}

static void test_f32_matches_the_definition(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        compare_with_reference((enum isa) isa, PRECISION_F32, false, 5e-6);
    }
}

static void test_bf16_stays_near(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        compare_with_reference((enum isa) isa, PRECISION_BF16, false, 1e-2);
    }
}

static void test_fp8_has_its_values_in_any_precision(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        compare_with_reference((enum isa) isa, PRECISION_F32, true, 5e-6);
        compare_with_reference((enum isa) isa, PRECISION_BF16, true, 5e-6);
    }
}

static void test_a_row_has_the_same_bits_in_any_company(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        for (int i = 0; i < 2 * N_SHAPES; i++) { // half of them in FP8
            struct step s;
            int k = i / 2;
            step_init(&s, shapes[k].n_heads, shapes[k].kv_lora, shapes[k].rope);
            if (i % 2) step_round(&s);
            size_t n = (size_t) ROWS * s.a.n_heads * s.a.kv_lora;
            float *together = calloc(n, sizeof *together), *apart = calloc(n, sizeof *apart);
            // 9 threads make smaller groups of heads.
            struct device one = device_of(&s, (enum isa) isa, PRECISION_F32, 1);
            struct device many = device_of(&s, (enum isa) isa, PRECISION_F32, 9);
            run_rows(&one, &s, 0, ROWS, together);
            for (int row = 0; row < ROWS; row++) run_rows(&many, &s, row, 1, apart);
            assert_memory_equal(together, apart, n * sizeof *together);
            for (int row = 0; row < ROWS; row += 2) {
                run_rows(&one, &s, row, row + 2 < ROWS ? 2 : 1, apart);
            }
            assert_memory_equal(together, apart, n * sizeof *together);
            device_end(&one);
            device_end(&many);
            free(together);
            free(apart);
            step_deinit(&s);
        }
    }
}

static void test_far_scores_do_not_overflow(void **state)
{
    (void) state;
    for (int isa = 0; isa <= (int) isa_best(); isa++) {
        struct step s;
        step_init(&s, 4, 20, 6);
        s.a.softmax_scale = 1000; // all weight on one position
        struct device d = device_of(&s, (enum isa) isa, PRECISION_F32, 1);
        float out[ROWS * 4 * 20];
        double wanted[20];
        run_rows(&d, &s, 0, ROWS, out);
        for (int row = 0; row < ROWS; row++) {
            for (int head = 0; s.pos[row] >= 0 && head < 4; head++) {
                double norm = reference(&s, row, head, wanted);
                assert_true(distance(out + (row * 4 + head) * 20, wanted, 20) < 1e-3 * norm);
            }
        }
        ((float *) s.exact.pool)[s.blocks[0] * KV_BLOCK_ROWS * 26] = NAN; // broken input: broken
        run_rows(&d, &s, 0, ROWS, out);                                   // output, no crash
        assert_true(isnan(out[0]));
        device_end(&d);
        step_deinit(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_first_token_attends_to_itself),
        cmocka_unit_test(test_f32_matches_the_definition),
        cmocka_unit_test(test_bf16_stays_near),
        cmocka_unit_test(test_fp8_has_its_values_in_any_precision),
        cmocka_unit_test(test_a_row_has_the_same_bits_in_any_company),
        cmocka_unit_test(test_far_scores_do_not_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
