// CPU and CUDA op by op on identical inputs, over a table of shapes; and twice on CUDA, whose
// results must be the same bits.
#include "tests/gpu/check.h"
#include "tests/gpu/side.h"

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/e4m3.h"
#include "kernels/cuda/probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_POISON = 0xff }; // NaN: what is not written shows

static struct side cpu, gpu;
static enum precision precision;
static struct result *results;

static double bar(void) { return precision == PRECISION_F32 ? 1e-4 : 1e-2; }

static void reset(const struct scratch_shape *shape)
{
    side_reset(&cpu, shape);
    side_reset(&gpu, shape);
}

static float *take_out(struct side *s, size_t n)
{
    float *out = side_take(s, n * sizeof *out);
    void *poison = malloc(n * sizeof *out);
    check(poison != NULL);
    memset(poison, OUT_POISON, n * sizeof *out);
    s->b->upload(s->d, out, poison, n * sizeof *out);
    free(poison);
    return out;
}

static float *fetch(struct side *s, const float *from, size_t n)
{
    float *to = malloc(n * sizeof *to);
    check(to != NULL);
    side_get(s, to, from, n * sizeof *to);
    return to;
}

// Compares outputs of both sides, and of a second run on the GPU (`again` NULL: none). `or`, unless
// NULL: what the CPU has for rows in FP8, which a GPU may take where there are many.
static void compare_either(const char *name, const float *want, const float *or, const float *have,
                           const float *again, size_t n)
{
    float *a = fetch(&cpu, want, n), *b = fetch(&gpu, have, n);
    double off = difference(b, a, n);
    if (or != NULL) {
        float *c = fetch(&cpu, or, n);
        double other = difference(b, c, n);
        if (other < off) off = other;
        free(c);
    }
    if (again != NULL) {
        float *c = fetch(&gpu, again, n);
        if (memcmp(b, c, n * sizeof *b) != 0) off = INFINITY;
        free(c);
    }
    result_error(results, name, off, bar());
    free(a);
    free(b);
}

static void compare(const char *name, const float *want, const float *have, const float *again,
                    size_t n)
{
    compare_either(name, want, NULL, have, again, n);
}

// --- matrix products

struct gemm_case {
    enum dtype dtype;
    int n, k, row_phase, col_phase, rows;
};

// `dense`: rows lie one after the other; `way`: said of it.
static void check_gemm(const struct gemm_case *c, bool dense, const char *way)
{
    struct scratch_shape shape = {.max_rows = c->rows, .hidden = c->k, .intermediate = c->k};
    struct matrix m = {.dtype = c->dtype, .n = c->n, .k = c->k, .row_phase = c->row_phase,
                       .col_phase = c->col_phase};
    void *rows = noise_rows(&m);
    float *scales = noise_scales(&m);
    int x_stride = c->k + (dense ? 0 : 3), out_stride = c->n + (dense ? 0 : 5);
    size_t n_out = (size_t) c->rows * (size_t) out_stride;
    float *x = noises((size_t) c->rows * (size_t) x_stride, 2), *out[4];
    struct side *sides[] = {&gpu, &gpu, &cpu, &cpu};
    bool fp8 = c->dtype == DTYPE_F8_E4M3 && precision == PRECISION_BF16 && c->rows > 64;
    reset(&shape);
    for (int i = 0; i < (fp8 ? 4 : 3); i++) {
        struct matrix packed = side_matrix(sides[i], &m, rows, scales);
        for (int row = 0; i == 3 && row < c->rows; row++) {
            round_to_fp8(x + (size_t) row * (size_t) x_stride, c->k, c->col_phase);
        }
        const float *in = side_put(sides[i], x, (size_t) c->rows * (size_t) x_stride * 4);
        out[i] = take_out(sides[i], n_out);
        sides[i]->b->gemm(sides[i]->d, &packed, in, x_stride, out[i], out_stride, c->rows);
    }
    char name[96];
    snprintf(name, sizeof name, "gemm %s %d x %d (+%d, +%d), %d rows%s", dtype_name(c->dtype), c->n,
             c->k, c->row_phase, c->col_phase, c->rows, way);
    compare_either(name, out[2], fp8 ? out[3] : NULL, out[0], out[1], n_out);
    free(rows);
    free(scales);
    free(x);
}

static void check_gemms(void)
{
    static const struct gemm_case cases[] = {
        {DTYPE_F8_E4M3, 1, 1, 0, 0, 1},         {DTYPE_F8_E4M3, 17, 130, 120, 5, 3},
        {DTYPE_F8_E4M3, 300, 257, 64, 127, 9},  {DTYPE_F8_E4M3, 576, 1024, 0, 0, 16},
        {DTYPE_F8_E4M3, 1000, 640, 1, 64, 33},  {DTYPE_F8_E4M3, 128, 2048, 0, 0, 64},
        {DTYPE_F8_E4M3, 257, 512, 0, 0, 65},    {DTYPE_F8_E4M3, 129, 384, 7, 3, 300},
        {DTYPE_F8_E4M3, 1000, 640, 0, 0, 128},  {DTYPE_F8_E4M3, 515, 7168, 2, 0, 129},
        {DTYPE_F8_E4M3, 2176, 300, 64, 100, 1500}, {DTYPE_F8_E4M3, 4480, 128, 0, 0, 2050},
        {DTYPE_F8_E4M3, 7168, 2048, 0, 0, 17},  {DTYPE_F8_E4M3, 7100, 2000, 28, 48, 60},
        {DTYPE_F8_E4M3, 1536, 7168, 0, 0, 1},   {DTYPE_F8_E4M3, 576, 7168, 0, 0, 4},
        {DTYPE_F8_E4M3, 256, 1536, 0, 0, 4096}, {DTYPE_BF16, 1, 3, 0, 0, 2},
        {DTYPE_BF16, 100, 129, 0, 0, 8},        {DTYPE_BF16, 515, 1030, 0, 0, 12},
        {DTYPE_BF16, 1024, 896, 0, 0, 31},      {DTYPE_BF16, 77, 333, 0, 0, 130},
        {DTYPE_BF16, 512, 7168, 0, 0, 1},       {DTYPE_F32, 65, 33, 0, 0, 5},
        {DTYPE_F32, 200, 300, 0, 0, 40},
    };
    // Of several tiles a multiprocessor, and more blocks than a warp asks scales of at once.
    static const struct gemm_case many[] = {
        {DTYPE_F8_E4M3, 4096, 4224, 0, 0, 2000}, {DTYPE_F8_E4M3, 640, 4236, 4, 20, 1500},
    };
    // Few rows: read by vectors where they are dense, one by one else.
    static const struct gemm_case few[] = {
        {DTYPE_F8_E4M3, 576, 7168, 0, 0, 1},     {DTYPE_F8_E4M3, 7168, 1536, 64, 64, 8},
        {DTYPE_F8_E4M3, 4100, 2044, 0, 4, 13},   {DTYPE_F8_E4M3, 2000, 7168, 0, 0, 16},
        {DTYPE_F8_E4M3, 7168, 2048, 0, 0, 32},   {DTYPE_F8_E4M3, 4097, 3000, 127, 64, 64},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_gemm(&cases[i], false, "");
    for (size_t i = 0; i < sizeof few / sizeof *few; i++) {
        check_gemm(&few[i], false, "");
        check_gemm(&few[i], true, ", dense");
    }
    if (precision == PRECISION_F32) return;
    for (size_t i = 0; i < sizeof many / sizeof *many; i++) check_gemm(&many[i], true, ", dense");
    cuda_probe_hopper(gpu.d, false);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].rows > 16) check_gemm(&cases[i], false, ", mma.sync");
    }
    for (size_t i = 0; i < sizeof many / sizeof *many; i++) {
        check_gemm(&many[i], true, ", dense, mma.sync");
    }
    cuda_probe_hopper(gpu.d, true);
}

// A weight that is not a number makes its output one, whatever x is.
static void check_nan_weights(void)
{
    struct scratch_shape shape = {.max_rows = 4, .hidden = 256};
    struct matrix m = {.dtype = DTYPE_F8_E4M3, .n = 40, .k = 256};
    uint8_t *rows = noise_rows(&m);
    float *scales = noise_scales(&m), *x = noises(4 * 256, 1), *out[2];
    rows[7 * 256 + 13] = 0x7f;
    rows[39 * 256 + 255] = 0xff;
    struct side *sides[] = {&cpu, &gpu};
    reset(&shape);
    for (int i = 0; i < 2; i++) {
        struct matrix packed = side_matrix(sides[i], &m, rows, scales);
        const float *in = side_put(sides[i], x, 4 * 256 * 4);
        out[i] = take_out(sides[i], 4 * 40);
        sides[i]->b->gemm(sides[i]->d, &packed, in, 256, out[i], 40, 4);
    }
    float *have = fetch(&gpu, out[1], 4 * 40);
    bool right = true;
    for (int i = 0; i < 4 * 40; i++) {
        right = right && isnan(have[i]) == (i % 40 == 7 || i % 40 == 39);
    }
    result_error(results, "gemm with weights that are not numbers", right ? 0 : INFINITY, 0);
    free(have);
    compare("gemm beside weights that are not numbers", out[0], out[1], NULL, 4 * 40);
    free(rows);
    free(scales);
    free(x);
}

// `even`: rows and heads lie as those of attention do.
static void check_heads(enum dtype dtype, int n_heads, int n, int k, int phase_step, int n_rows,
                        bool even)
{
    struct scratch_shape shape = {.max_rows = n_rows, .n_heads = n_heads, .nope = k, .kv_lora = n,
                                  .v = n};
    struct matrix *m[2];
    int x_head = even ? k : k + 2, out_head = even ? n : n + 1;
    int x_stride = x_head * n_heads + (even ? 0 : 3);
    int out_stride = out_head * n_heads;
    float *x = noises((size_t) n_rows * (size_t) x_stride, 1), *out[2];
    struct side *sides[] = {&cpu, &gpu};
    reset(&shape);
    for (int i = 0; i < 2; i++) m[i] = calloc((size_t) n_heads, sizeof **m);
    for (int h = 0; h < n_heads; h++) {
        struct matrix s = {.dtype = dtype, .n = n, .k = k,
                           .row_phase = h * phase_step % SCALE_BLOCK,
                           .col_phase = h * phase_step % SCALE_BLOCK};
        void *rows = noise_rows(&s);
        float *scales = noise_scales(&s);
        for (int i = 0; i < 2; i++) m[i][h] = side_matrix(sides[i], &s, rows, scales);
        free(rows);
        free(scales);
    }
    for (int i = 0; i < 2; i++) {
        const float *in = side_put(sides[i], x, (size_t) n_rows * (size_t) x_stride * 4);
        out[i] = take_out(sides[i], (size_t) n_rows * (size_t) out_stride);
        sides[i]->b->gemm_heads(sides[i]->d, m[i], n_heads, in, x_stride, x_head, out[i],
                                out_stride, out_head, n_rows);
        free(m[i]);
    }
    char name[96];
    snprintf(name, sizeof name, "gemm_heads %s %d of %d x %d, %d rows", dtype_name(dtype), n_heads,
             n, k, n_rows);
    compare(name, out[0], out[1], NULL, (size_t) n_rows * (size_t) out_stride);
    free(x);
}

struct pair_case {
    enum dtype dtype;
    int n, second_n, k, row_phase, col_phase, rows;
};

static void check_pair(const struct pair_case *c)
{
    struct scratch_shape shape = {.max_rows = c->rows, .hidden = c->k, .intermediate = c->k};
    struct matrix m[2] = {{.dtype = c->dtype, .n = c->n, .k = c->k, .row_phase = c->row_phase,
                           .col_phase = c->col_phase},
                          {.dtype = c->dtype, .n = c->second_n, .k = c->k,
                           .col_phase = c->col_phase}};
    void *rows[2] = {noise_rows(&m[0]), noise_rows(&m[1])};
    float *scales[2] = {noise_scales(&m[0]), noise_scales(&m[1])};
    float *x = noises((size_t) c->rows * (size_t) c->k, 2), *out[3][2];
    struct side *sides[] = {&cpu, &gpu, &gpu};
    int strides[2] = {c->n + 3, c->second_n + 1};
    reset(&shape);
    for (int i = 0; i < 3; i++) {
        struct side *s = sides[i];
        struct matrix packed[2];
        for (int j = 0; j < 2; j++) {
            packed[j] = side_matrix(s, &m[j], rows[j], scales[j]);
            out[i][j] = take_out(s, (size_t) c->rows * (size_t) strides[j]);
        }
        s->b->gemm_pair(s->d, &packed[0], &packed[1],
                        side_put(s, x, (size_t) c->rows * (size_t) c->k * 4), c->k, out[i][0],
                        strides[0], out[i][1], strides[1], c->rows);
    }
    for (int j = 0; j < 2; j++) {
        char name[96];
        snprintf(name, sizeof name, "gemm_pair %s %d and %d x %d, %d rows: %s",
                 dtype_name(c->dtype), c->n, c->second_n, c->k, c->rows,
                 j == 0 ? "first" : "second");
        compare(name, out[0][j], out[1][j], out[2][j], (size_t) c->rows * (size_t) strides[j]);
        free(rows[j]);
        free(scales[j]);
    }
    free(x);
}

// --- attention

// A pool in FP8 as rows of f32.
static void widen_fp8(float *to, const char *pool, int kv_lora, int rope, int n_blocks)
{
    struct kv_block shape = kv_block_fp8(kv_lora, rope);
    for (int row = 0; row < n_blocks * KV_BLOCK_ROWS; row++, to += kv_lora + rope) {
        const char *block = pool + (size_t) (row / KV_BLOCK_ROWS) * shape.bytes;
        int at = row % KV_BLOCK_ROWS;
        for (int i = 0; i < kv_lora; i++) {
            float scale;
            memcpy(&scale, block + shape.scales +
                               (at * shape.n_scales + i / KV_SCALE_VALUES) * 4, 4);
            to[i] = e4m3_widen((uint8_t) block[at * kv_lora + i]) * scale;
        }
        for (int i = 0; i < rope; i++) {
            uint16_t half;
            memcpy(&half, block + shape.rope + (at * rope + i) * 2, 2);
            to[kv_lora + i] = bf16_widen(half);
        }
    }
}

// kv_write, and latents, which does the same beside the norm of q_lora values.
static void check_kv_write(int kv_lora, int rope, int n_rows, int q_lora, bool fp8)
{
    int width = kv_lora + rope, max_blocks = n_rows / KV_BLOCK_ROWS + 2, n_blocks = max_blocks;
    struct attention_shape a = {.n_heads = 1, .rope = rope, .kv_lora = kv_lora, .norm_eps = 1e-6f};
    struct scratch_shape shape = {.max_rows = n_rows, .kv_lora = kv_lora, .rope = rope};
    size_t pool = (size_t) n_blocks * KV_BLOCK_ROWS * (size_t) width;
    float *c = noises((size_t) n_rows * (size_t) width, 3), *norm = noises((size_t) kv_lora, 1);
    float *freq = noises((size_t) rope / 2, 1), *out[2], *both[2], *normed[2], *alone[2];
    size_t n_q = (size_t) n_rows * (size_t) q_lora;
    float *q = noises(n_q, 2), *q_norm = noises((size_t) q_lora, 1);
    int32_t *blocks = malloc((size_t) n_blocks * 4), *rows = malloc((size_t) n_rows * 8);
    for (int i = 0; i < n_blocks; i++) blocks[i] = n_blocks - 1 - i;
    for (int i = 0; i < n_rows; i++) {
        rows[i] = i == 2 ? -1 : i + 5;
        rows[n_rows + i] = 0;
    }
    bool f32 = precision == PRECISION_F32;
    size_t bytes = (size_t) n_blocks * kv_block_bytes(kv_lora, rope, f32, fp8);
    struct side *sides[] = {&cpu, &gpu};
    reset(&shape);
    for (int i = 0; i < 2; i++) {
        struct side *s = sides[i];
        int32_t *in = side_put(s, rows, (size_t) n_rows * 8);
        struct step_inputs inputs = {.pos = in, .slot = in + n_rows, .max_blocks = max_blocks,
                                     .blocks = side_put(s, blocks, (size_t) n_blocks * 4)};
        float *cos_sin = take_out(s, (size_t) n_rows * (size_t) rope);
        out[i] = side_take(s, bytes);
        both[i] = side_take(s, bytes);
        normed[i] = take_out(s, n_q);
        alone[i] = take_out(s, n_q);
        char *zeros = calloc(1, bytes);
        s->b->upload(s->d, out[i], zeros, bytes);
        s->b->upload(s->d, both[i], zeros, bytes);
        free(zeros);
        struct kv_layer layer = {.pool = out[i], .n_blocks = n_blocks, .fp8 = fp8};
        struct kv_layer layer_both = {.pool = both[i], .n_blocks = n_blocks, .fp8 = fp8};
        float *there = side_put(s, c, (size_t) n_rows * (size_t) width * 4);
        float *norm_there = side_put(s, norm, (size_t) kv_lora * 4);
        float *q_there = side_put(s, q, n_q * 4);
        float *q_norm_there = side_put(s, q_norm, (size_t) q_lora * 4);
        s->b->rope_angles(s->d, side_put(s, freq, (size_t) rope / 2 * 4), 1.25f, rope, in, cos_sin,
                          n_rows);
        s->b->kv_write(s->d, &a, there, norm_there, cos_sin, &inputs, &layer, n_rows);
        s->b->rmsnorm(s->d, q_there, q_lora, q_norm_there, a.norm_eps, alone[i], q_lora, n_rows);
        s->b->latents(s->d, &a, q_there, q_norm_there, q_lora, normed[i], there, norm_there,
                      cos_sin, &inputs, &layer_both, n_rows);
    }
    float *wide[2];
    for (int i = 0; i < 2; i++) {
        char *have = malloc(bytes);
        wide[i] = malloc(pool * 4);
        side_get(sides[i], have, out[i], bytes);
        if (fp8) widen_fp8(wide[i], have, kv_lora, rope, n_blocks);
        for (size_t j = 0; !fp8 && j < pool; j++) {
            wide[i][j] = f32 ? ((float *) (void *) have)[j]
                             : bf16_widen(((uint16_t *) (void *) have)[j]);
        }
        free(have);
    }
    char name[96];
    snprintf(name, sizeof name, "rope_angles, kv_write %d + %d, %d rows%s", kv_lora, rope, n_rows,
             fp8 ? ", FP8" : "");
    result_error(results, name, difference(wide[1], wide[0], pool), fp8 ? 1e-2 : bar());
    snprintf(name, sizeof name, "latents %d, %d + %d, %d rows: norm", q_lora, kv_lora, rope,
             n_rows);
    compare(name, normed[0], normed[1], alone[1], n_q);
    char *one = malloc(bytes), *other = malloc(bytes);
    side_get(&gpu, one, out[1], bytes);
    side_get(&gpu, other, both[1], bytes);
    snprintf(name, sizeof name, "latents %d, %d + %d, %d rows: other KV than kv_write's", q_lora,
             kv_lora, rope, n_rows);
    result_error(results, name, memcmp(one, other, bytes) == 0 ? 0 : INFINITY, 0);
    free(one);
    free(other);
    free(wide[0]);
    free(wide[1]);
    free(q);
    free(q_norm);
    free(c);
    free(norm);
    free(freq);
    free(blocks);
    free(rows);
}

// --- router and experts

// In double, what experts are chosen by.
static double biased(const float *x, const float *weight, const float *bias, int expert, int hidden)
{
    double sum = 0;
    const float *w = weight + (size_t) expert * (size_t) hidden;
    for (int i = 0; i < hidden; i++) sum += (double) x[i] * w[i];
    return 1 / (1 + exp(-sum)) + bias[expert];
}

// Two experts that are closer than f32 sums tell apart may change places.
#define ROUTE_CLOSE 2e-6

static void check_route(int n_experts, int n_groups, int kept, int n_chosen, int hidden, int n_rows)
{
    struct scratch_shape shape = {.max_rows = n_rows, .hidden = hidden, .n_experts = n_experts,
                                  .n_chosen = n_chosen};
    float *x = noises((size_t) n_rows * (size_t) hidden, 1);
    float *bias = noises((size_t) n_experts, 0.1f);
    float *weight = noises((size_t) n_experts * (size_t) hidden, 3 / sqrtf((float) hidden));
    size_t n = (size_t) n_rows * (size_t) n_chosen;
    // Ties: rows of zeros and biases that are often equal. A row of NaN still gets experts.
    for (int i = 0; i < n_experts; i++) bias[i] = roundf(bias[i] * 100) / 100;
    for (int i = 0; i < hidden && n_rows > 2; i++) {
        x[i] = 0;
        x[(size_t) (n_rows - 1) * (size_t) hidden + (size_t) i] = NAN;
    }
    int32_t *chosen[2];
    float *weights[2];
    struct side *sides[] = {&cpu, &gpu};
    reset(&shape);
    for (int i = 0; i < 2; i++) {
        struct side *s = sides[i];
        struct router r = {
            .weight = side_put(s, weight, (size_t) n_experts * (size_t) hidden * 4),
            .bias = side_put(s, bias, (size_t) n_experts * 4), .n_experts = n_experts,
            .hidden = hidden, .n_groups = n_groups, .n_groups_kept = kept, .n_chosen = n_chosen,
            .normalize = true, .scaling = 2.5f};
        chosen[i] = side_take(s, n * 4);
        weights[i] = take_out(s, n);
        s->b->route(s->d, &r, side_put(s, x, (size_t) n_rows * (size_t) hidden * 4), chosen[i],
                    weights[i], n_rows);
    }
    int32_t *a = malloc(n * 4), *b = malloc(n * 4);
    float *wa = malloc(n * 4), *wb = malloc(n * 4);
    side_get(&cpu, a, chosen[0], n * 4);
    side_get(&gpu, b, chosen[1], n * 4);
    side_get(&cpu, wa, weights[0], n * 4);
    side_get(&gpu, wb, weights[1], n * 4);
    double off = 0, worst = 0; // rows with other experts; of a weight in the others
    int close = 0;
    for (int row = 0; row < n_rows; row++) {
        const float *values = x + (size_t) row * (size_t) hidden;
        bool same = true, apart = false;
        for (int k = row * n_chosen; k < (row + 1) * n_chosen; k++) {
            if (a[k] == b[k]) continue;
            same = false;
            double gap = biased(values, weight, bias, a[k], hidden) -
                         biased(values, weight, bias, b[k], hidden);
            apart |= !(fabs(gap) <= ROUTE_CLOSE);
        }
        off += apart;
        close += !same && !apart;
        for (int k = row * n_chosen; same && k < (row + 1) * n_chosen; k++) {
            double error = isnan(wa[k]) && isnan(wb[k]) ? 0 : fabs(wa[k] - wb[k]) / 2.5;
            if (!(error <= worst)) worst = error;
        }
    }
    char name[96];
    snprintf(name, sizeof name, "route %d of %d in %d groups, %d rows: other experts", n_chosen,
             n_experts, n_groups, n_rows);
    if (close > 1 + n_rows / 100) off += close;
    result_error(results, name, off, 0);
    snprintf(name, sizeof name, "route %d of %d in %d groups, %d rows: weights; %d close calls",
             n_chosen, n_experts, n_groups, n_rows, close);
    result_error(results, name, worst, 1e-5);
    free(wa);
    free(wb);
    free(a);
    free(b);
    free(x);
    free(bias);
    free(weight);
}

struct moe_case {
    enum dtype dtype;
    int n_experts, n_chosen, hidden, part, phase, rows;
    int max_rows; // that the scratch is for; 0: rows
};

// What the CPU has for experts whose rows, and act, are rounded to FP8: for every expert all rows.
static float *moe_in_fp8(const struct moe_case *c, const struct expert *experts, const float *x,
                         const int32_t *chosen, const float *weights, const int32_t *pos)
{
    const struct backend *b = cpu.b;
    int rows = c->rows, hidden = c->hidden, part = c->part;
    size_t n = (size_t) rows * (size_t) hidden, n_act = (size_t) rows * (size_t) part;
    float *in = side_put(&cpu, x, n * 4), *gate = side_take(&cpu, n_act * 4);
    float *up = side_take(&cpu, n_act * 4), *y = side_take(&cpu, n * 4);
    float *out = side_take(&cpu, n * 4);
    memset(out, 0, n * 4);
    for (int row = 0; row < rows; row++) {
        round_to_fp8(in + (size_t) row * (size_t) hidden, hidden, 0);
    }
    for (int e = 0; e < c->n_experts; e++) {
        b->gemm(cpu.d, &experts[e].gate, in, hidden, gate, part, rows);
        b->gemm(cpu.d, &experts[e].up, in, hidden, up, part, rows);
        b->swiglu(cpu.d, gate, up, gate, part, rows);
        side_sync(&cpu);
        for (int row = 0; row < rows; row++) {
            round_to_fp8(gate + (size_t) row * (size_t) part, part, c->phase);
        }
        b->gemm(cpu.d, &experts[e].down, gate, part, y, hidden, rows);
        side_sync(&cpu);
        for (int i = 0; i < rows * c->n_chosen; i++) {
            if (chosen[i] != e || pos[i / c->n_chosen] < 0) continue;
            size_t row = (size_t) (i / c->n_chosen) * (size_t) hidden;
            for (int j = 0; j < hidden; j++) out[row + j] += weights[i] * y[row + j];
        }
    }
    return out;
}

// out += the shared expert of all rows that are no padding, by its parts.
static void add_shared(const struct moe_case *c, const struct expert *e, const float *x,
                       const int32_t *pos, float *out)
{
    const struct backend *b = cpu.b;
    size_t n = (size_t) c->rows * (size_t) c->hidden, n_act = (size_t) c->rows * (size_t) c->part;
    float *in = side_put(&cpu, x, n * 4), *gate = side_take(&cpu, n_act * 4);
    float *up = side_take(&cpu, n_act * 4), *y = side_take(&cpu, n * 4);
    b->gemm_pair(cpu.d, &e->gate, &e->up, in, c->hidden, gate, c->part, up, c->part, c->rows);
    b->swiglu(cpu.d, gate, up, gate, c->part, c->rows);
    b->gemm(cpu.d, &e->down, gate, c->part, y, c->hidden, c->rows);
    side_sync(&cpu);
    for (size_t i = 0; i < n; i++) out[i] += pos[i / (size_t) c->hidden] < 0 ? 0 : y[i];
}

// The last of `experts` is the shared one.
static void check_moe_shared(const struct moe_case *c, struct expert *const experts[2],
                             const float *x, const int32_t *chosen, const float *weights,
                             const int32_t *pos, const float *routed)
{
    size_t pairs = (size_t) c->rows * (size_t) c->n_chosen;
    size_t n = (size_t) c->rows * (size_t) c->hidden;
    float *zeros = calloc(n, 4), *out[2];
    bool takes = true;
    for (int i = 0; i < 2; i++) {
        out[i] = side_put(&gpu, zeros, n * 4);
        takes &= gpu.b->moe_shared(gpu.d, experts[1], &experts[1][c->n_experts], c->n_experts,
                                   c->n_chosen, side_put(&gpu, x, n * 4),
                                   side_put(&gpu, chosen, pairs * 4),
                                   side_put(&gpu, weights, pairs * 4),
                                   side_put(&gpu, pos, (size_t) c->rows * 4), out[i], c->rows);
    }
    float *want = side_put(&cpu, routed, n * 4);
    add_shared(c, &experts[0][c->n_experts], x, pos, want);
    char name[96];
    snprintf(name, sizeof name, "moe_shared %s %d of %d, %d x %d (+%d), %d rows",
             dtype_name(c->dtype), c->n_chosen, c->n_experts, c->part, c->hidden, c->phase,
             c->rows);
    if (takes) compare(name, want, out[0], out[1], n);
    else result_error(results, name, INFINITY, bar());
    free(zeros);
}

// Whether the shared expert is to be taken as one more.
static bool has_shared(const struct moe_case *c)
{
    return precision == PRECISION_BF16 && c->dtype != DTYPE_F32 && c->rows <= 8 &&
           c->max_rows > c->rows;
}

static void check_moe(const struct moe_case *c)
{
    struct scratch_shape shape = {.max_rows = c->max_rows > 0 ? c->max_rows : c->rows,
                                  .hidden = c->hidden, .n_chosen = c->n_chosen,
                                  .n_experts = c->n_experts, .moe_intermediate = c->part,
                                  .intermediate = c->part};
    struct matrix in = {.dtype = c->dtype, .n = c->part, .k = c->hidden, .row_phase = c->phase};
    struct matrix down = {.dtype = c->dtype, .n = c->hidden, .k = c->part, .col_phase = c->phase};
    struct expert *experts[2];
    struct side *sides[] = {&cpu, &gpu};
    reset(&shape);
    for (int i = 0; i < 2; i++) experts[i] = calloc((size_t) c->n_experts + 1, sizeof **experts);
    for (int e = 0; e < c->n_experts + has_shared(c); e++) {
        void *rows[3] = {noise_rows(&in), noise_rows(&in), noise_rows(&down)};
        float *scales[3] = {noise_scales(&in), noise_scales(&in), noise_scales(&down)};
        for (int i = 0; i < 2; i++) {
            experts[i][e].gate = side_matrix(sides[i], &in, rows[0], scales[0]);
            experts[i][e].up = side_matrix(sides[i], &in, rows[1], scales[1]);
            experts[i][e].down = side_matrix(sides[i], &down, rows[2], scales[2]);
        }
        for (int i = 0; i < 3; i++) {
            free(rows[i]);
            free(scales[i]);
        }
    }
    size_t pairs = (size_t) c->rows * (size_t) c->n_chosen;
    size_t n = (size_t) c->rows * (size_t) c->hidden;
    int32_t *chosen = malloc(pairs * 4), *pos = malloc((size_t) c->rows * 4);
    for (int row = 0; row < c->rows; row++) {
        int first = (int) (noise_bits() % (uint32_t) c->n_experts);
        if (row % 3 == 0) first = 0; // some experts have many rows
        for (int i = 0; i < c->n_chosen; i++) {
            chosen[row * c->n_chosen + i] = (first + i) % c->n_experts;
        }
        pos[row] = row == 1 ? -1 : row;
    }
    float *x = noises(n, 1), *weights = noises(pairs, 1), *out[3];
    struct side *three[] = {&cpu, &gpu, &gpu};
    float *zeros = calloc(n, 4);
    for (int i = 0; i < 3; i++) {
        struct side *s = three[i];
        out[i] = side_put(s, zeros, n * 4); // a padding row stays as it was
        s->b->moe(s->d, experts[i > 0], c->n_experts, c->n_chosen, side_put(s, x, n * 4),
                  side_put(s, chosen, pairs * 4), side_put(s, weights, pairs * 4),
                  side_put(s, pos, (size_t) c->rows * 4), out[i], c->rows);
    }
    char name[96];
    snprintf(name, sizeof name, "moe %s %d of %d, %d x %d (+%d), %d rows", dtype_name(c->dtype),
             c->n_chosen, c->n_experts, c->part, c->hidden, c->phase, c->rows);
    bool fp8 = c->dtype == DTYPE_F8_E4M3 && precision == PRECISION_BF16 && c->rows > 64;
    float *other = fp8 ? moe_in_fp8(c, experts[0], x, chosen, weights, pos) : NULL;
    compare_either(name, out[0], other, out[1], out[2], n);
    if (has_shared(c)) check_moe_shared(c, experts, x, chosen, weights, pos, out[0]);
    for (int i = 0; i < 2; i++) free(experts[i]);
    free(zeros);
    free(chosen);
    free(pos);
    free(x);
    free(weights);
}

// --- rows

static void check_rows(int dim, int n_rows)
{
    struct scratch_shape shape = {.max_rows = n_rows, .hidden = dim};
    int rope = 64, vocab = 50;
    size_t n = (size_t) n_rows * (size_t) dim;
    float *x = noises(n, 2), *y = noises(n, 4), *weight = noises((size_t) dim, 1), *out[2][7];
    float *table = noises((size_t) vocab * (size_t) dim, 1);
    float *turn = noises((size_t) n_rows * (size_t) rope, 1);
    int32_t *ids = malloc((size_t) n_rows * 4), *rows = malloc((size_t) n_rows * 4);
    for (int i = 0; i < n_rows; i++) {
        ids[i] = i % (vocab + 20);
        rows[i] = n_rows - 1 - i;
    }
    struct side *sides[] = {&cpu, &gpu};
    char *wire = malloc(n * 4);
    reset(&shape);
    for (int i = 0; i < 2; i++) {
        struct side *s = sides[i];
        float *in = side_put(s, x, n * 4), *other = side_put(s, y, n * 4);
        for (int j = 0; j < 7; j++) out[i][j] = take_out(s, n);
        s->b->embed(s->d, side_put(s, table, (size_t) vocab * (size_t) dim * 4), DTYPE_F32, 3,
                    vocab - 3, dim, side_put(s, ids, (size_t) n_rows * 4), out[i][0], n_rows);
        s->b->rmsnorm(s->d, in, dim, side_put(s, weight, (size_t) dim * 4), 1e-6f, out[i][1], dim,
                      n_rows);
        s->b->swiglu(s->d, in, other, out[i][2], dim, n_rows);
        s->b->gather(s->d, in, side_put(s, rows, (size_t) n_rows * 4), dim, out[i][3], n_rows);
        s->b->export_act(s->d, wire, in, n);
        side_sync(s);
        s->b->import_act(s->d, out[i][5], wire, n);
        side_sync(s);
        float *sum = side_put(s, x, n * 4);
        s->b->add_rmsnorm(s->d, sum, other, side_put(s, weight, (size_t) dim * 4), 1e-6f, out[i][6],
                          dim, n_rows);
        out[i][4] = in;
        s->b->add(s->d, in, other, n);
        s->b->add(s->d, out[i][6], sum, n); // both results
        if (dim >= 2 * rope) {
            int heads = dim / (rope + 2);
            s->b->rope(s->d, in, dim, rope + 2, heads, rope,
                       side_put(s, turn, (size_t) n_rows * (size_t) rope * 4), n_rows);
        }
    }
    static const char *const names[] = {"embed", "rmsnorm", "swiglu", "gather", "add, rope",
                                        "export_act, import_act", "add_rmsnorm"};
    for (int j = 0; j < 7; j++) {
        char name[96];
        snprintf(name, sizeof name, "%s %d, %d rows", names[j], dim, n_rows);
        compare(name, out[0][j], out[1][j], NULL, n);
    }
    free(x);
    free(y);
    free(weight);
    free(table);
    free(turn);
    free(ids);
    free(rows);
    free(wire);
}

// Imports of steps of all sizes, each with the next one ahead, as they come alone.
static void check_ahead(void)
{
    enum { HIDDEN = 7168, MOST = 1024 };
    static const int rows[] = {3, MOST, MOST / 2, MOST / 2 + 1, 1, MOST, 1};
    enum { STEPS = sizeof rows / sizeof *rows };
    // MOST rows are too many to come ahead.
    struct scratch_shape shape = {.max_rows = MOST - 24, .hidden = HIDDEN};
    size_t value = precision == PRECISION_F32 ? 4 : 2, most = (size_t) MOST * HIDDEN;
    char *wire[STEPS];
    float *alone = malloc(most * 4), *have = malloc(most * 4);
    double off = 0;
    reset(&shape);
    float *x = side_take(&gpu, most * 4);
    for (int i = 0; i < STEPS; i++) {
        wire[i] = malloc(most * value);
        for (size_t k = 0; k < most * value / 2; k++) {
            uint16_t bits = (uint16_t) (noise_bits() & 0xbfff);
            memcpy(wire[i] + 2 * k, &bits, 2);
        }
    }
    for (int i = 0; i < STEPS; i++) {
        size_t n = (size_t) rows[i] * HIDDEN;
        gpu.b->import_act(gpu.d, x, wire[i], n);
        if (i + 1 < STEPS) {
            gpu.b->import_ahead(gpu.d, wire[i + 1], (size_t) rows[i + 1] * HIDDEN);
        }
        side_get(&gpu, have, x, n * 4);
        for (size_t k = 0; k < n; k++) {
            uint32_t bits = 0;
            memcpy((char *) &bits + 4 - value, wire[i] + value * k, value);
            memcpy(&alone[k], &bits, 4);
        }
        off += memcmp(alone, have, n * 4) != 0;
    }
    result_error(results, "imports with the next one ahead: that differ", off, 0);
    for (int i = 0; i < STEPS; i++) free(wire[i]);
    free(alone);
    free(have);
}

void check_ops(struct result *r, enum precision p)
{
    results = r;
    precision = p;
    side_open(&cpu, backend_cpu(), p, 6ull << 30);
    side_open(&gpu, backend_cuda(), p, 6ull << 30);
    static const int row_counts[] = {1, 7, 300};
    for (int i = 0; i < 3; i++) check_rows(i == 0 ? 7168 : i == 1 ? 129 : 512, row_counts[i]);
    check_ahead();
    check_gemms();
    check_nan_weights();
    check_heads(DTYPE_F8_E4M3, 16, 512, 128, 0, 1, false);
    check_heads(DTYPE_F8_E4M3, 5, 40, 130, 24, 6, false);
    check_heads(DTYPE_F8_E4M3, 130, 128, 512, 0, 33, false);
    check_heads(DTYPE_BF16, 3, 33, 70, 24, 100, false);
    check_heads(DTYPE_F8_E4M3, 9, 512, 128, 0, 3, true);
    check_heads(DTYPE_BF16, 128, 512, 128, 0, 1, true);
    check_heads(DTYPE_BF16, 128, 128, 512, 0, 1, true);
    check_heads(DTYPE_BF16, 70, 130, 72, 0, 16, true);
    check_heads(DTYPE_BF16, 128, 512, 128, 0, 40, true);
    static const struct pair_case pairs[] = {
        {DTYPE_F8_E4M3, 1536, 576, 7168, 0, 0, 1}, {DTYPE_F8_E4M3, 100, 300, 640, 64, 0, 8},
        {DTYPE_F8_E4M3, 70, 33, 333, 3, 20, 5},    {DTYPE_F8_E4M3, 256, 256, 512, 0, 0, 30},
        {DTYPE_BF16, 200, 17, 1024, 0, 0, 16},     {DTYPE_F32, 40, 50, 60, 0, 0, 2},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) check_pair(&pairs[i]);
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_kv_write(512, 64, 200, 1536, fp8);
        check_kv_write(512, 64, 1, 1536, fp8);
        check_kv_write(512, 64, 5, 130, fp8);
        check_kv_write(48, 6, 3, 36, fp8);
        check_kv_write(131, 6, 70, 36, fp8);
        check_kv_write(1600, 64, 5, 36, fp8);
    }
    check_route(256, 8, 4, 8, 7168, 1);
    check_route(256, 8, 4, 8, 512, 77);
    check_route(256, 8, 4, 8, 7168, 600);
    check_route(384, 1, 1, 8, 300, 9);
    check_route(384, 1, 1, 8, 320, 70);
    check_route(16, 8, 2, 6, 64, 3);
    check_route(256, 8, 4, 8, 7168, 4);
    check_route(256, 8, 4, 8, 7168, 11);
    check_route(256, 4, 1, 8, 1024, 300);
    check_route(384, 1, 1, 8, 512, 40);
    check_route(250, 5, 3, 8, 528, 259);
    check_route(288, 32, 2, 12, 64, 5);
    static const struct moe_case moes[] = {
        {DTYPE_F8_E4M3, 16, 4, 256, 128, 0, 1, 0},
        {DTYPE_F8_E4M3, 16, 4, 256, 128, 0, 40, 0},
        {DTYPE_F8_E4M3, 8, 3, 300, 70, 20, 23, 0},
        {DTYPE_F8_E4M3, 64, 8, 512, 256, 0, 128, 0},
        {DTYPE_F8_E4M3, 32, 8, 640, 384, 0, 700, 0},
        {DTYPE_F8_E4M3, 9, 3, 1000, 200, 72, 400, 0},
        {DTYPE_F8_E4M3, 16, 8, 512, 256, 0, 150, 0},
        {DTYPE_BF16, 8, 2, 200, 65, 0, 17, 0},
        {DTYPE_BF16, 16, 4, 512, 256, 0, 300, 0},
        {DTYPE_F32, 8, 2, 64, 48, 0, 90, 0},
        {DTYPE_F8_E4M3, 8, 8, 7168, 256, 0, 4, 0},
        {DTYPE_F8_E4M3, 16, 4, 1024, 384, 0, 1, 32},
        {DTYPE_F8_E4M3, 16, 8, 7168, 256, 0, 8, 32},
        {DTYPE_F8_E4M3, 12, 3, 300, 70, 20, 2, 32},
        {DTYPE_BF16, 16, 4, 520, 200, 0, 3, 32},
        {DTYPE_BF16, 16, 6, 264, 64, 0, 1, 32},
        {DTYPE_F8_E4M3, 8, 8, 7168, 64, 0, 512, 600},
    };
    for (size_t i = 0; i < sizeof moes / sizeof *moes; i++) check_moe(&moes[i]);
    side_close(&gpu);
    side_close(&cpu);
}
