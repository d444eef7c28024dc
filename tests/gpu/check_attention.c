// Attention: CPU and CUDA on identical inputs, twice on CUDA (the same bits), on a Hopper card also
// with what other cards run; then its speed beside limits probed in the same run.
#include "tests/gpu/speed.h"

#include "kernels/cpu/bf16.h"
#include "kernels/cpu/e4m3.h"
#include "kernels/cuda/probe.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA (24ull << 30)

static struct side cpu, gpu;
static struct result *results;

// A pool of random rows, what a sequence has not reached yet being no numbers; block tables in
// which no block has its place; rows of positions and slots.
struct scene {
    int n_rows, slots, max_blocks, n_blocks, kv_lora, rope;
    enum precision precision; // of the pool, unless it is FP8
    bool fp8;
    size_t bytes; // of a block
    int32_t *blocks, *rows; // (slots, max_blocks), (2, n_rows): positions, then slots
    char *pool;
};

static void shuffle(int32_t *x, int n)
{
    for (int i = 0; i < n; i++) x[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = (int) (noise_bits() % (uint32_t) (i + 1));
        int32_t swap = x[i];
        x[i] = x[j];
        x[j] = swap;
    }
}

// A random row of a block in FP8.
static void put_fp8(const struct scene *s, char *block, int at)
{
    struct kv_block shape = kv_block_fp8(s->kv_lora, s->rope);
    uint8_t *latent = (uint8_t *) block + at * s->kv_lora;
    for (int k = 0; k < shape.n_scales; k++) {
        int first = k * KV_SCALE_VALUES, n = s->kv_lora - first;
        if (n > KV_SCALE_VALUES) n = KV_SCALE_VALUES;
        float x[KV_SCALE_VALUES];
        for (int i = 0; i < n; i++) x[i] = noise() * (float) (1 + k);
        float scale = kv_scale(x, n);
        for (int i = 0; i < n; i++) latent[first + i] = e4m3_round(x[i] / scale);
        memcpy(block + shape.scales + (at * shape.n_scales + k) * 4, &scale, 4);
    }
    for (int i = 0; i < s->rope; i++) {
        uint16_t half = bf16_round(noise());
        memcpy(block + shape.rope + (at * s->rope + i) * 2, &half, 2);
    }
}

static void put_plain(const struct scene *s, char *block, int at)
{
    size_t width = (size_t) (s->kv_lora + s->rope), value = s->precision == PRECISION_F32 ? 4 : 2;
    for (size_t i = 0; i < width; i++) {
        float x = noise();
        uint16_t half = bf16_round(x);
        memcpy(block + ((size_t) at * width + i) * value, value == 4 ? (void *) &x : (void *) &half,
               value);
    }
}

static void scene_pool(struct scene *s)
{
    s->bytes = kv_block_bytes(s->kv_lora, s->rope, s->precision == PRECISION_F32, s->fp8);
    s->blocks = malloc((size_t) s->n_blocks * 4);
    s->pool = malloc((size_t) s->n_blocks * s->bytes);
    check(s->blocks != NULL && s->pool != NULL);
    shuffle(s->blocks, s->n_blocks);
    memset(s->pool, 0xff, (size_t) s->n_blocks * s->bytes);
    for (int slot = 0; slot < s->slots; slot++) {
        int last = -1;
        for (int i = 0; i < s->n_rows; i++) {
            if (s->rows[s->n_rows + i] == slot && s->rows[i] > last) last = s->rows[i];
        }
        for (int pos = 0; pos <= last; pos++) {
            int id = s->blocks[slot * s->max_blocks + pos / KV_BLOCK_ROWS];
            char *block = s->pool + (size_t) id * s->bytes;
            if (s->fp8) put_fp8(s, block, pos % KV_BLOCK_ROWS);
            else put_plain(s, block, pos % KV_BLOCK_ROWS);
        }
    }
}

static void scene_free(struct scene *s)
{
    free(s->blocks);
    free(s->pool);
    free(s->rows);
}

static void put_scene(struct side *side, const struct scene *s, struct step_inputs *in,
                      struct kv_layer *layer)
{
    int32_t *rows = side_put(side, s->rows, (size_t) s->n_rows * 8);
    *in = (struct step_inputs){.pos = rows, .slot = rows + s->n_rows, .max_blocks = s->max_blocks,
                               .blocks = side_put(side, s->blocks, (size_t) s->n_blocks * 4)};
    *layer = (struct kv_layer){.pool = side_put(side, s->pool, (size_t) s->n_blocks * s->bytes),
                               .n_blocks = s->n_blocks, .fp8 = s->fp8};
}

// NaN where nothing is written.
static float *take_out(struct side *s, size_t n)
{
    float *out = side_take(s, n * sizeof *out);
    void *poison = malloc(n * sizeof *out);
    check(poison != NULL);
    memset(poison, 0xff, n * sizeof *out);
    s->b->upload(s->d, out, poison, n * sizeof *out);
    free(poison);
    return out;
}

static float *fetch(struct side *s, const float *from, const struct scene *scene, size_t width)
{
    size_t n = (size_t) scene->n_rows * width;
    float *to = malloc(n * sizeof *to);
    check(to != NULL);
    side_get(s, to, from, n * sizeof *to);
    for (int i = 0; i < scene->n_rows; i++) {
        if (scene->rows[i] < 0) memset(to + (size_t) i * width, 0, width * sizeof *to);
    }
    return to;
}

// `have`: two runs.
static void compare(const char *name, const float *want, float *const *have,
                    const struct scene *scene, size_t width, enum precision p)
{
    float *a = fetch(&cpu, want, scene, width), *b = fetch(&gpu, have[0], scene, width);
    float *c = fetch(&gpu, have[1], scene, width);
    size_t n = (size_t) scene->n_rows * width;
    double off = difference(b, a, n);
    for (size_t i = 0; i < n; i++) {
        if (isnan(a[i]) || isnan(b[i])) off = INFINITY;
    }
    if (memcmp(b, c, n * sizeof *b) != 0) off = INFINITY;
    result_error(results, name, off, p == PRECISION_F32 ? 1e-4 : 1e-2);
    free(a);
    free(b);
    free(c);
}

// Rows of up to 5 sequences, contexts from 1 to `context`; the second row is padding, and of many
// the last quarter, as where a recorded step has more rows than are there.
static void check_mla(int heads, int kv_lora, int rope, int n_rows, int context, enum precision p,
                      bool fp8)
{
    int slots = n_rows < 5 ? n_rows : 5, q_head = 7 + rope;
    struct scene scene = {.n_rows = n_rows, .slots = slots, .kv_lora = kv_lora, .rope = rope,
                          .max_blocks = context / KV_BLOCK_ROWS + 1, .precision = p, .fp8 = fp8};
    scene.n_blocks = slots * scene.max_blocks;
    scene.rows = malloc((size_t) n_rows * 8);
    check(scene.rows != NULL);
    for (int i = 0; i < n_rows; i++) {
        bool padding = (i == 1 && n_rows > 2) || (n_rows > 64 && i > n_rows * 3 / 4);
        scene.rows[i] = padding ? -1 : context - 1 - i * 37 % context;
        scene.rows[n_rows + i] = i % slots;
    }
    scene_pool(&scene);
    struct attention_shape a = {.n_heads = heads, .nope = 7, .rope = rope, .v = kv_lora,
                                .kv_lora = kv_lora, .softmax_scale = 0.13f, .norm_eps = 1e-6f};
    struct scratch_shape shape = {.max_rows = n_rows, .n_heads = heads, .kv_lora = kv_lora,
                                  .rope = rope, .max_context = context, .slots = slots,
                                  .fp8_kv = fp8};
    size_t n_q = (size_t) n_rows * (size_t) heads * (size_t) q_head;
    size_t width = (size_t) heads * (size_t) kv_lora, n_out = (size_t) n_rows * width;
    float *q = noises(n_q, 1), *q_abs = noises(n_out, 1), *out[5];
    side_reset(&cpu, &shape);
    side_reset(&gpu, &shape);
    for (int i = 0; i < 5; i++) { // the CPU, the GPU, the GPU as if it were another
        struct side *s = i == 0 ? &cpu : &gpu;
        struct step_inputs in;
        struct kv_layer layer;
        put_scene(s, &scene, &in, &layer);
        float *q_side = side_put(s, q, n_q * 4);
        const float *abs_side = side_put(s, q_abs, n_out * 4);
        out[i] = take_out(s, n_out);
        if (i > 0) cuda_probe_hopper(gpu.d, i < 3);
        s->b->mla(s->d, &a, abs_side, q_side + 7, heads * q_head, q_head, &in, &layer, out[i],
                  n_rows);
    }
    cuda_probe_hopper(gpu.d, true);
    char name[96];
    for (int i = 1; i < 5; i += 2) {
        snprintf(name, sizeof name, "mla %d heads of %d + %d, %d rows at %d%s%s", heads, kv_lora,
                 rope, n_rows, context, fp8 ? ", FP8" : "", i == 1 ? "" : ", mma.sync");
        compare(name, out[0], out + i, &scene, width, p);
    }
    scene_free(&scene);
    free(q);
    free(q_abs);
}

// A run of the second of two sequences, against the CPU's three steps by latents.
static void check_run(enum dtype dtype, int heads, int pos, int n, bool fp8)
{
    enum { LORA = 512, ROPE = 64, HEAD = 128, Q_HEAD = HEAD + ROPE };
    struct scene scene = {.n_rows = n, .slots = 2, .kv_lora = LORA, .rope = ROPE,
                          .max_blocks = (pos + n) / KV_BLOCK_ROWS + 1,
                          .precision = PRECISION_BF16, .fp8 = fp8};
    scene.n_blocks = 2 * scene.max_blocks;
    scene.rows = malloc((size_t) n * 8);
    check(scene.rows != NULL);
    for (int i = 0; i < n; i++) {
        scene.rows[i] = pos + i;
        scene.rows[n + i] = 1;
    }
    scene_pool(&scene);
    struct attention_shape a = {.n_heads = heads, .nope = HEAD, .rope = ROPE, .v = HEAD,
                                .kv_lora = LORA, .softmax_scale = 0.13f, .norm_eps = 1e-6f};
    struct scratch_shape shape = {.max_rows = n, .n_heads = heads, .kv_lora = LORA, .rope = ROPE,
                                  .nope = HEAD, .v = HEAD, .max_context = pos + n, .slots = 2,
                                  .fp8_kv = fp8};
    side_reset(&cpu, &shape);
    side_reset(&gpu, &shape);
    struct matrix *m[2][2]; // uk, uv of the CPU, of the GPU
    for (int i = 0; i < 4; i++) m[i / 2][i % 2] = calloc((size_t) heads, sizeof ***m);
    for (int i = 0; i < 2 * heads; i++) {
        struct matrix one = {.dtype = dtype, .n = i % 2 ? HEAD : LORA, .k = i % 2 ? LORA : HEAD};
        void *rows = noise_rows(&one);
        if (dtype == DTYPE_BF16) {
            for (int j = 0; j < LORA * HEAD; j++) ((uint16_t *) rows)[j] &= 0xbdff; // small
        }
        float *scales = noise_scales(&one);
        m[0][i % 2][i / 2] = side_matrix(&cpu, &one, rows, scales);
        m[1][i % 2][i / 2] = side_matrix(&gpu, &one, rows, scales);
        free(rows);
        free(scales);
    }
    size_t rows = (size_t) n * (size_t) heads, width = (size_t) heads * HEAD;
    float *q = noises(rows * Q_HEAD, 1), *out[3];
    struct attention_run run = {1, pos, n};
    for (int i = 0; i < 3; i++) {
        struct side *s = i == 0 ? &cpu : &gpu;
        struct step_inputs in;
        struct kv_layer layer;
        put_scene(s, &scene, &in, &layer);
        float *q_side = side_put(s, q, rows * Q_HEAD * 4);
        out[i] = take_out(s, rows * HEAD);
        if (i > 0) {
            s->b->mla_run(s->d, &a, q_side, heads * Q_HEAD, Q_HEAD, m[1][0], m[1][1], &run, &in,
                          &layer, out[i], heads * HEAD);
            continue;
        }
        float *q_abs = side_take(s, rows * LORA * 4), *o_lat = side_take(s, rows * LORA * 4);
        s->b->gemm_heads(s->d, m[0][0], heads, q_side, heads * Q_HEAD, Q_HEAD, q_abs,
                         heads * LORA, LORA, n);
        s->b->mla(s->d, &a, q_abs, q_side + HEAD, heads * Q_HEAD, Q_HEAD, &in, &layer, o_lat, n);
        s->b->gemm_heads(s->d, m[0][1], heads, o_lat, heads * LORA, LORA, out[i], heads * HEAD,
                         HEAD, n);
    }
    char name[96];
    snprintf(name, sizeof name, "mla_run %s %d heads, %d rows from %d%s", dtype_name(dtype), heads,
             n, pos, fp8 ? ", KV in FP8" : "");
    compare(name, out[0], out + 1, &scene, width, PRECISION_BF16);
    for (int i = 0; i < 4; i++) free(m[i / 2][i % 2]);
    scene_free(&scene);
    free(q);
}

static void check_runs(void)
{
    struct attention_shape a = {.n_heads = 1, .nope = 128, .rope = 64, .v = 128, .kv_lora = 512};
    struct scratch_shape shape = {.max_rows = 1, .n_heads = 1, .kv_lora = 512, .rope = 64,
                                  .nope = 128, .v = 128, .max_context = 64};
    side_reset(&gpu, &shape);
    if (gpu.b->run_least(gpu.d, &a) == INT_MAX) {
        printf("       mla_run: not on this GPU\n");
        return;
    }
    check_run(DTYPE_F8_E4M3, 1, 0, 1, false);
    check_run(DTYPE_F8_E4M3, 2, 0, 128, false);
    check_run(DTYPE_F8_E4M3, 3, 0, 300, false);
    check_run(DTYPE_F8_E4M3, 16, 100, 257, false);
    check_run(DTYPE_F8_E4M3, 70, 0, 130, false);
    check_run(DTYPE_BF16, 5, 1000, 64, false);
    check_run(DTYPE_F8_E4M3, 4, 37, 900, false);
    check_run(DTYPE_F8_E4M3, 3, 0, 300, true);
    check_run(DTYPE_F8_E4M3, 16, 100, 257, true);
    check_run(DTYPE_F8_E4M3, 70, 0, 130, true);
    check_run(DTYPE_BF16, 5, 1000, 64, true);
}

void check_attention(struct result *r, enum precision p)
{
    results = r;
    side_open(&cpu, backend_cpu(), p, 4ull << 30);
    side_open(&gpu, backend_cuda(), p, 8ull << 30);
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_mla(16, 512, 64, 3, 700, p, fp8);
        check_mla(128, 512, 64, 4, 100, p, fp8);
        check_mla(70, 512, 64, 6, 333, p, fp8);
        check_mla(16, 512, 64, 1, 4096, p, fp8);
        check_mla(5, 512, 64, 300, 200, p, fp8);
        check_mla(1, 512, 64, 600, 130, p, fp8); // more rows than are cut
        check_mla(64, 512, 64, 40, 1000, p, fp8);
        check_mla(128, 512, 64, 128, 1500, p, fp8);
        check_mla(16, 512, 64, 256, 1500, p, fp8);
        check_mla(128, 512, 64, 1, 1, p, fp8);
        check_mla(3, 100, 6, 5, 130, p, fp8);
        check_mla(2, 131, 6, 5, 130, p, fp8);
    }
    if (p == PRECISION_BF16) check_runs();
    side_close(&gpu);
    side_close(&cpu);
}

// --- speed

// Blocks of one layer in reversed order, random rows that repeat.
static struct kv_layer quick_layer(int n_blocks, bool fp8)
{
    enum { SOME = 8 }; // blocks
    struct scene s = {.n_rows = 1, .slots = 1, .max_blocks = SOME, .n_blocks = SOME,
                      .kv_lora = 512, .rope = 64, .precision = PRECISION_BF16, .fp8 = fp8};
    s.rows = calloc(2, 4);
    check(s.rows != NULL);
    s.rows[0] = SOME * KV_BLOCK_ROWS - 1;
    scene_pool(&s);
    struct kv_layer layer = {.pool = side_take(&gpu, (size_t) n_blocks * s.bytes),
                             .n_blocks = n_blocks, .fp8 = fp8};
    for (int at = 0; at < n_blocks; at += SOME) {
        int n = n_blocks - at < SOME ? n_blocks - at : SOME;
        gpu.b->upload(gpu.d, (char *) layer.pool + (size_t) at * s.bytes, s.pool,
                      (size_t) n * s.bytes);
    }
    scene_free(&s);
    return layer;
}

// n_rows of so many sequences, all of them at the context's end, or at random (`ragged`), or one
// after the other in one sequence (more rows than slots).
static void speed_mla(int heads, int n_rows, int context, int slots, bool ragged, bool fp8,
                      double flops_bar, double bytes_bar)
{
    int max_blocks = context / KV_BLOCK_ROWS, n_blocks = max_blocks * slots;
    struct attention_shape a = {.n_heads = heads, .nope = 128, .rope = 64, .v = 128,
                                .kv_lora = 512, .softmax_scale = 0.13f, .norm_eps = 1e-6f};
    struct scratch_shape shape = {.max_rows = n_rows, .n_heads = heads, .kv_lora = 512,
                                  .rope = 64};
    side_reset(&gpu, &shape);
    struct kv_layer layer = quick_layer(n_blocks, fp8);
    int32_t *tables = malloc(((size_t) n_blocks + 2 * (size_t) n_rows) * 4);
    check(tables != NULL);
    for (int i = 0; i < n_blocks; i++) tables[i] = n_blocks - 1 - i;
    bool prefill = n_rows > slots;
    double tokens = 0;
    for (int i = 0; i < n_rows; i++) {
        int last = ragged ? (int) (noise_bits() % (uint32_t) context) : context - 1;
        tables[n_blocks + i] = prefill ? i : last;
        tables[n_blocks + n_rows + i] = prefill ? 0 : i;
        tokens += tables[n_blocks + i] + 1;
    }
    int32_t *there = side_put(&gpu, tables, ((size_t) n_blocks + 2 * (size_t) n_rows) * 4);
    free(tables);
    struct step_inputs in = {.blocks = there, .max_blocks = max_blocks, .pos = there + n_blocks,
                             .slot = there + n_blocks + n_rows};
    size_t n = (size_t) n_rows * (size_t) heads;
    float *q_abs = put_noise(n * 512, 1), *q = put_noise(n * 192, 1);
    float *out = side_take(&gpu, n * 512 * sizeof *out);
    speed_begin();
    gpu.b->mla(gpu.d, &a, q_abs, q + 128, heads * 192, 192, &in, &layer, out, n_rows);
    double s = speed_end();
    char name[96];
    snprintf(name, sizeof name, "mla %d heads, %d rows of %d %s %d%s", heads, n_rows, slots,
             ragged ? "to" : "at", context, fp8 ? ", FP8" : "");
    line_tflops(name, s, 2.0 * tokens * heads * (576 + 512), flops_bar);
    double row = (double) kv_block_bytes(512, 64, false, fp8) / KV_BLOCK_ROWS;
    if (!prefill) line_bytes(name, s, tokens * row, bytes_bar);
}

// n rows from `pos` on, counted as the model's paper writes attention: scores of 192 values, sums
// of 128, no row sees what comes after it.
static void speed_run(int heads, int pos, int n, bool fp8, double bar)
{
    enum { LORA = 512, ROPE = 64, HEAD = 128, Q_HEAD = HEAD + ROPE };
    int context = pos + n, n_blocks = (context + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS;
    struct attention_shape a = {.n_heads = heads, .nope = HEAD, .rope = ROPE, .v = HEAD,
                                .kv_lora = LORA, .softmax_scale = 0.13f, .norm_eps = 1e-6f};
    struct scratch_shape shape = {.max_rows = n, .n_heads = heads, .kv_lora = LORA, .rope = ROPE,
                                  .nope = HEAD, .v = HEAD, .max_context = context, .slots = 1,
                                  .fp8_kv = fp8};
    side_reset(&gpu, &shape);
    if (gpu.b->run_least(gpu.d, &a) == INT_MAX) return;
    struct kv_layer layer = quick_layer(n_blocks, fp8);
    int32_t *tables = malloc((size_t) n_blocks * 4);
    check(tables != NULL);
    for (int i = 0; i < n_blocks; i++) tables[i] = n_blocks - 1 - i;
    struct step_inputs in = {.blocks = side_put(&gpu, tables, (size_t) n_blocks * 4),
                             .max_blocks = n_blocks};
    free(tables);
    struct matrix *uk = calloc((size_t) heads, sizeof *uk);
    struct matrix *uv = calloc((size_t) heads, sizeof *uv);
    struct matrix one = {.dtype = DTYPE_F8_E4M3, .n = LORA, .k = HEAD};
    void *rows = noise_rows(&one);
    float *scales = noise_scales(&one);
    for (int i = 0; i < heads; i++) {
        one.n = LORA;
        one.k = HEAD;
        uk[i] = side_matrix(&gpu, &one, rows, scales);
        one.n = HEAD;
        one.k = LORA;
        uv[i] = side_matrix(&gpu, &one, rows, scales);
    }
    size_t n_q = (size_t) n * (size_t) heads;
    float *q = put_noise(n_q * Q_HEAD, 1), *out = side_take(&gpu, n_q * HEAD * sizeof *out);
    struct attention_run run = {0, pos, n};
    speed_begin();
    gpu.b->mla_run(gpu.d, &a, q, heads * Q_HEAD, Q_HEAD, uk, uv, &run, &in, &layer, out,
                   heads * HEAD);
    double s = speed_end(), seen = (double) n * pos + 0.5 * n * (n + 1.0);
    char name[96];
    snprintf(name, sizeof name, "mla_run %d heads, %d rows from %d%s", heads, n, pos,
             fp8 ? ", KV in FP8" : "");
    line_tflops(name, s, 2.0 * seen * heads * (Q_HEAD + HEAD), bar);
    free(rows);
    free(scales);
    free(uk);
    free(uv);
}

void check_attention_speed(struct result *r)
{
    side_open(&gpu, backend_cuda(), PRECISION_BF16, ARENA);
    speed_open(&gpu, r);
    for (int fp8 = 0; fp8 < 2; fp8++) {
        speed_mla(16, 64, 4096, 64, false, fp8, 0, fp8 ? 0 : 0.6);
        speed_mla(16, 128, 4096, 128, true, fp8, 0, 0);
        speed_mla(16, 8, 4096, 8, false, fp8, 0, 0);
        speed_mla(16, 1, 4096, 1, false, fp8, 0, 0);
        speed_mla(16, 1, 65536, 1, false, fp8, 0, 0);
        speed_mla(128, 64, 4096, 64, false, fp8, fp8 ? 0 : 250, 0);
        speed_mla(128, 64, 8192, 64, true, fp8, 0, 0);
        speed_mla(128, 1, 4096, 1, false, fp8, 0, 0);
        speed_mla(128, 2048, 2048, 1, false, fp8, 0, 0);
    }
    const char *peer = getenv("SDPA_TFLOPS"); // PyTorch's, of this run (tests/gpu/peers)
    double sdpa = peer != NULL ? atof(peer) : 0;
    if (peer != NULL) result_figure(r, "PyTorch's SDPA, 128 heads, 4096 rows", sdpa, "TFLOP/s", 0);
    speed_run(128, 0, 4096, false, 0.5 * sdpa);
    speed_run(128, 0, 2048, false, 0);
    speed_run(128, 2048, 2048, false, 0);
    speed_run(16, 0, 4096, false, 0);
    speed_run(16, 30720, 2048, false, 0);
    speed_run(128, 0, 256, false, 0);
    speed_run(128, 3840, 256, false, 0);
    speed_run(128, 0, 4096, true, 0);
    speed_run(16, 30720, 2048, true, 0);
    cuda_probe_hopper(gpu.d, false);
    printf("--- attention by mma.sync\n");
    for (int fp8 = 0; fp8 < 2; fp8++) {
        speed_mla(16, 64, 4096, 64, false, fp8, 0, 0);
        speed_mla(16, 128, 4096, 128, true, fp8, 0, 0);
        speed_mla(16, 8, 4096, 8, false, fp8, 0, 0);
        speed_mla(16, 1, 4096, 1, false, fp8, 0, 0);
        speed_mla(16, 1, 65536, 1, false, fp8, 0, 0);
        speed_mla(128, 64, 4096, 64, false, fp8, 0, 0);
    }
    side_close(&gpu);
}
