// Times of the kernels at V3's shapes, beside limits probed in the same run. Weights are random and
// more than the caches hold.
#include "tests/gpu/speed.h"

#include "kernels/cuda/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA (40ull << 30)

static struct side gpu;
static struct result *results;

// A matrix of random bits: rows repeat, which no kernel can tell.
static struct matrix quick_matrix(enum dtype dtype, int n, int k)
{
    static char *rows;
    static size_t bytes;
    struct matrix m = {.dtype = dtype, .n = n, .k = k};
    size_t row_bytes = (size_t) k * dtype_size(dtype);
    if (bytes < 512 * row_bytes) {
        free(rows);
        bytes = 512 * row_bytes;
        struct matrix all = {.dtype = DTYPE_F8_E4M3, .n = 1, .k = (int) bytes};
        rows = noise_rows(&all);
        for (size_t i = 1; i < bytes; i += 2) rows[i] &= (char) 0xbf; // small as bf16, too
    }
    float *scales = noise_scales(&m);
    m.data = side_take(&gpu, matrix_bytes(gpu.b, &m));
    for (int row = 0; row < n; row += 512) {
        gpu.b->matrix_pack(gpu.d, &m, row, n - row < 512 ? n - row : 512, rows);
    }
    if (scales != NULL) {
        size_t blocks = (size_t) ((n + 127) / 128) * (size_t) ((k + 127) / 128);
        m.scales = side_put(&gpu, scales, blocks * sizeof(float));
        free(scales);
    }
    return m;
}

// What PyTorch takes for the same in this run (tests/gpu/peers; none: nothing is said), over what
// is taken here.
static void line_peer(const char *name, const char *peer, double seconds, double bar)
{
    char line[160];
    const char *us = getenv(peer);
    if (us == NULL) return;
    snprintf(line, sizeof line, "%s: %.1f us, PyTorch's %.1f us, over it", name, seconds * 1e6,
             atof(us));
    result_figure(results, line, atof(us) * 1e-6 / seconds, "", bar);
}

static void speed_gemm(enum dtype dtype, int n, int k)
{
    enum { COPIES_MAX = 16 };
    static const int row_counts[] = {1, 4, 8, 16, 32, 64, 512, 2048, 4096};
    struct scratch_shape shape = {.max_rows = 4096, .hidden = k};
    struct matrix m[COPIES_MAX];
    double bytes = (double) n * k * (double) dtype_size(dtype);
    int copies = (int) (400e6 / bytes) + 1; // beyond the caches
    if (copies > COPIES_MAX) copies = COPIES_MAX;
    side_reset(&gpu, &shape);
    for (int i = 0; i < copies; i++) m[i] = quick_matrix(dtype, n, k);
    float *x = put_noise((size_t) 4096 * (size_t) k, 1);
    float *out = side_take(&gpu, (size_t) 4096 * (size_t) n * sizeof *out);
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
        int rows = row_counts[r];
        char name[96];
        snprintf(name, sizeof name, "gemm %s %d x %d, %d rows", dtype_name(dtype), n, k, rows);
        speed_begin();
        for (int i = 0; i < copies; i++) {
            gpu.b->gemm(gpu.d, &m[i], x, k, out, n, rows);
        }
        double s = speed_end() / copies;
        if (rows <= 64) {
            line_bytes(name, s, bytes, bytes >= 50e6 && dtype == DTYPE_F8_E4M3 ? 0.75 : 0);
            continue;
        }
        line_flops(name, s, 2.0 * n * k * rows, 0);
        if (rows < 4096 || dtype != DTYPE_F8_E4M3) continue;
        speed_begin();
        cuda_probe_quantise(gpu.d, x, k, rows);
        double rounding = speed_end();
        char peer[64];
        snprintf(name, sizeof name, "the same without %.1f us of rounding rows", rounding * 1e6);
        snprintf(peer, sizeof peer, "PRODUCT_%d_%d_US", n, k);
        line_flops(name, s - rounding, 2.0 * n * k * rows, 0);
        line_peer(name, peer, s - rounding, 0.85);
        cuda_probe_hopper(gpu.d, false);
        speed_begin();
        gpu.b->gemm(gpu.d, &m[0], x, k, out, n, rows);
        speed_end();
        s = speed_again();
        cuda_probe_hopper(gpu.d, true);
        snprintf(name, sizeof name, "gemm %s %d x %d, %d rows by mma.sync", dtype_name(dtype), n, k,
                 rows);
        line_flops(name, s, 2.0 * n * k * rows, n * k >= 100e6 ? 0.5 : 0);
    }
}

static void speed_moe(void)
{
    enum { EXPERTS = 256, CHOSEN = 8, HIDDEN = 7168, PART = 2048, MOST = 2048 };
    static const int row_counts[] = {1, 8, 32, 128, 512, 2048};
    struct scratch_shape shape = {.max_rows = MOST, .hidden = HIDDEN, .moe_intermediate = PART,
                                  .n_experts = EXPERTS, .n_chosen = CHOSEN};
    static struct expert experts[EXPERTS];
    side_reset(&gpu, &shape);
    for (int e = 0; e < EXPERTS; e++) {
        experts[e].gate = quick_matrix(DTYPE_F8_E4M3, PART, HIDDEN);
        experts[e].up = quick_matrix(DTYPE_F8_E4M3, PART, HIDDEN);
        experts[e].down = quick_matrix(DTYPE_F8_E4M3, HIDDEN, PART);
    }
    float *x = put_noise((size_t) MOST * HIDDEN, 1), *weights = put_noise(MOST * CHOSEN, 1);
    float *out = side_take(&gpu, (size_t) MOST * HIDDEN * sizeof *out);
    static int32_t chosen[MOST * CHOSEN], pos[MOST];
    for (int row = 0; row < MOST; row++) {
        bool taken[EXPERTS] = {false};
        for (int i = 0; i < CHOSEN; i++) { // distinct, uniform
            int32_t e;
            do e = (int32_t) (noise_bits() % EXPERTS);
            while (taken[e]);
            taken[e] = true;
            chosen[row * CHOSEN + i] = e;
        }
        pos[row] = row;
    }
    const int32_t *chosen_there = side_put(&gpu, chosen, sizeof chosen);
    const int32_t *pos_there = side_put(&gpu, pos, sizeof pos);
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
        int rows = row_counts[r], touched = 0;
        bool seen[EXPERTS] = {false};
        for (int i = 0; i < rows * CHOSEN; i++) {
            touched += !seen[chosen[i]];
            seen[chosen[i]] = true;
        }
        speed_begin();
        gpu.b->moe(gpu.d, experts, EXPERTS, CHOSEN, x, chosen_there, weights, pos_there, out, rows);
        double s = speed_end();
        char name[96];
        snprintf(name, sizeof name, "moe 8 of 256, %d rows, %d experts, %.3f ms", rows, touched,
                 s * 1e3);
        line_bytes(name, s, 3.0 * HIDDEN * PART * touched, 0);
        char peer[64];
        snprintf(peer, sizeof peer, "EXPERTS_%d_US", rows);
        line_peer(name, peer, s, 1 / 1.15);
        if (rows >= 512) line_flops(name, s, 6.0 * HIDDEN * PART * rows * CHOSEN, 0);
    }
}

static void line_us(const char *name, int n_rows, double seconds)
{
    char line[96];
    snprintf(line, sizeof line, "%s, %d rows: us", name, n_rows);
    result_figure(results, line, seconds * 1e6, "us", 0);
}

static void speed_route(int n_rows)
{
    enum { EXPERTS = 256, HIDDEN = 7168 };
    struct scratch_shape shape = {.max_rows = n_rows, .hidden = HIDDEN, .n_experts = EXPERTS,
                                  .n_chosen = 8};
    side_reset(&gpu, &shape);
    struct router r = {.weight = put_noise(EXPERTS * HIDDEN, 0.02f),
                       .bias = put_noise(EXPERTS, 0.1f), .n_experts = EXPERTS,
                       .hidden = HIDDEN, .n_groups = 8, .n_groups_kept = 4,
                       .n_chosen = 8, .normalize = true, .scaling = 2.5f};
    const float *x = put_noise((size_t) n_rows * HIDDEN, 1);
    int32_t *chosen = side_take(&gpu, (size_t) n_rows * 32);
    float *weights = side_take(&gpu, (size_t) n_rows * 32);
    speed_begin();
    gpu.b->route(gpu.d, &r, x, chosen, weights, n_rows);
    double s = speed_end();
    line_us("route", n_rows, s);
}

// Ops of rows between the products.
static void speed_rows(int n_rows)
{
    enum { HIDDEN = 7168, HEADS = 128, HEAD = 192, ROPE = 64 };
    struct scratch_shape shape = {.max_rows = n_rows, .hidden = HIDDEN};
    size_t n = (size_t) n_rows * HIDDEN;
    side_reset(&gpu, &shape);
    float *x = put_noise(n, 1), *y = put_noise(n, 1), *weight = put_noise(HIDDEN, 1);
    float *q = put_noise((size_t) n_rows * HEADS * HEAD, 1);
    float *turn = put_noise((size_t) n_rows * ROPE, 1);
    speed_begin();
    gpu.b->rmsnorm(gpu.d, x, HIDDEN, weight, 1e-6f, y, HIDDEN, n_rows);
    line_us("rmsnorm 7168", n_rows, speed_end());
    speed_begin();
    gpu.b->add_rmsnorm(gpu.d, x, y, weight, 1e-6f, q, HIDDEN, n_rows);
    line_us("add_rmsnorm 7168", n_rows, speed_end());
    speed_begin();
    gpu.b->add(gpu.d, x, y, n);
    line_us("add 7168", n_rows, speed_end());
    speed_begin();
    gpu.b->rope(gpu.d, q + HEAD - ROPE, HEADS * HEAD, HEAD, HEADS, ROPE, turn, n_rows);
    line_us("rope, 128 heads", n_rows, speed_end());
}

void check_speed(struct result *r)
{
    results = r;
    side_open(&gpu, backend_cuda(), PRECISION_BF16, ARENA);
    speed_open(&gpu, r);
    speed_gemm(DTYPE_F8_E4M3, 7168, 16384);
    speed_gemm(DTYPE_F8_E4M3, 18432, 7168);
    speed_gemm(DTYPE_F8_E4M3, 7168, 18432);
    speed_gemm(DTYPE_F8_E4M3, 24576, 1536);
    speed_gemm(DTYPE_F8_E4M3, 4096, 7168);
    speed_gemm(DTYPE_F8_E4M3, 576, 7168);
    speed_gemm(DTYPE_BF16, 16160, 7168);
    speed_moe();
    static const int row_counts[] = {1, 32, 128, 512, 2048};
    for (int i = 0; i < 5; i++) speed_route(row_counts[i]);
    for (int i = 0; i < 5; i++) speed_rows(row_counts[i]);
    side_close(&gpu);
}
