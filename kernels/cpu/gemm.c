// Matrix products cut into panels over the team.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/device.h"

#include <string.h>

enum {
    PACK_ROWS = CPU_PACK_ROWS,
    // Multiply-adds that are worth another thread.
    PIECE_PRODUCTS = 128 * 1024,
};

const struct gemm_inner *gemm_inner_for(enum isa isa, enum precision precision, enum dtype dtype)
{
    switch (isa) {
    case ISA_AVX2:
        return &gemm_avx2;
    case ISA_AVX512BF16:
        if (precision == PRECISION_BF16 && dtype != DTYPE_F32) return &gemm_avx512bf16;
        return &gemm_avx512;
    case ISA_AVX512:
        return &gemm_avx512;
    case ISA_PORTABLE:
    case N_ISA:
        break;
    }
    return &gemm_portable;
}

static const struct gemm_inner *inner_of(const struct device *d, const struct matrix *w)
{
    return gemm_inner_for(d->isa, d->precision, w->dtype);
}

// --- where products work

int gemm_blocks(const struct matrix *w)
{
    return (gemm_phase(w) + w->k + SCALE_BLOCK - 1) / SCALE_BLOCK;
}

struct gemm_room gemm_room(const struct device *d, int thread)
{
    const struct cpu_scratch *s = &d->scratch;
    check(s->rooms != NULL, "no scratch");
    float *base = s->rooms + (size_t) thread * s->room_floats;
    float *out = base + TILE_FLOATS;
    return (struct gemm_room) {base, {out, out + (s->room_floats - TILE_FLOATS) / 2}};
}

// --- activations

static void prepare_row(const struct device *d, const struct matrix *w, const float *x,
                        struct gemm_input input, int row)
{
    int phase = gemm_phase(w);
    float factor = w->dtype == DTYPE_F8_E4M3 ? GEMM_F8_FACTOR : 1.0f;
    inner_of(d, w)->prepare(x, phase, phase + w->k, d->precision, factor, input, row);
}

struct prepare {
    const struct device *d;
    const struct matrix *w;
    const float *x;
    int x_stride;
    struct gemm_input input;
};

static void prepare_rows(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct prepare *p = arg;
    for (int row = begin; row < end; row++) {
        prepare_row(p->d, p->w, p->x + (size_t) row * p->x_stride, p->input, row);
    }
}

static int grain_of(uint64_t products)
{
    return products >= PIECE_PRODUCTS ? 1 : (int) (PIECE_PRODUCTS / (products + 1)) + 1;
}

void gemm_prepare(struct device *d, const struct matrix *w, const float *x, int x_stride,
                  int n_rows, struct gemm_input input)
{
    struct prepare p = {d, w, x, x_stride, input};
    team_run(d->team, prepare_rows, &p, n_rows, grain_of((uint64_t) w->k * 4));
}

// --- products

void gemm_run_panel(const struct device *d, const struct matrix *w, int panel,
                    struct gemm_input input, const int32_t *rows, int n_rows, float *tile,
                    float *out)
{
    int phase = gemm_phase(w);
    struct gemm_panel p = {
        .dtype = w->dtype,
        .groups = (const char *) w->data + gemm_nan_bytes(w) + (size_t) panel * gemm_panel_bytes(w),
        .begin = phase,
        .end = phase + w->k,
        .split = PANEL,
        .input = input,
        .rows = rows,
        .n_rows = n_rows,
        .tile = tile,
        .out = out,
    };
    if (w->dtype != DTYPE_F8_E4M3) {
        inner_of(d, w)->panel(&p);
        return;
    }
    int first = w->row_phase + panel * PANEL, last = w->row_phase + w->n - 1;
    if (last > first + PANEL - 1) last = first + PANEL - 1;
    size_t blocks = (size_t) gemm_blocks(w);
    p.scales[0] = w->scales + (size_t) (first / SCALE_BLOCK) * blocks;
    p.scales[1] = w->scales + (size_t) (last / SCALE_BLOCK) * blocks;
    if (last / SCALE_BLOCK > first / SCALE_BLOCK) p.split = SCALE_BLOCK - first % SCALE_BLOCK;
    inner_of(d, w)->panel(&p);

    uint64_t nans;
    memcpy(&nans, (const uint16_t *) w->data + (size_t) panel * (PANEL / PACK_ROWS), sizeof nans);
    for (int i = 0; nans != 0 && i < PANEL; i++) {
        for (int row = 0; (nans >> i & 1) && row < n_rows; row++) {
            out[(size_t) row * PANEL + i] = __builtin_nanf("");
        }
    }
}

struct gemm {
    struct device *d;
    const struct matrix *w; // (n_heads)
    int n_heads, panels;    // panels of a head
    const float *x;         // heads x_head_stride apart
    size_t x_stride, x_head_stride;
    float *out;
    size_t out_stride, out_head_stride;
    int n_rows;
    float *input; // heads head_floats apart
    size_t head_floats;
};

static struct gemm_input head_input(const struct gemm *g, int head)
{
    return (struct gemm_input) {g->input + (size_t) head * g->head_floats, g->n_rows};
}

static void prepare_items(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct gemm *g = arg;
    for (int item = begin; item < end; item++) {
        int head = item / g->n_rows, row = item % g->n_rows;
        prepare_row(g->d, &g->w[head],
                    g->x + (size_t) row * g->x_stride + (size_t) head * g->x_head_stride,
                    head_input(g, head), row);
    }
}

static void multiply_items(void *arg, int begin, int end, int thread)
{
    const struct gemm *g = arg;
    struct gemm_room room = gemm_room(g->d, thread);
    for (int item = begin; item < end; item++) {
        int head = item / g->panels, panel = item % g->panels;
        const struct matrix *w = &g->w[head];
        gemm_run_panel(g->d, w, panel, head_input(g, head), NULL, g->n_rows, room.tile,
                       room.out[0]);
        int n = w->n - panel * PANEL < PANEL ? w->n - panel * PANEL : PANEL;
        float *to = g->out + (size_t) head * g->out_head_stride + (size_t) panel * PANEL;
        for (int row = 0; row < g->n_rows; row++) {
            memcpy(to + (size_t) row * g->out_stride, room.out[0] + (size_t) row * PANEL,
                   (size_t) n * sizeof *to);
        }
    }
}

// As many rows at a time as the input area holds.
static void run(struct gemm *g, int n_rows)
{
    int k = g->w->k;
    uint64_t row_floats = cpu_row_floats(k);
    uint64_t most = g->d->scratch.input_floats / ((uint64_t) g->n_heads * row_floats);
    check(most >= 1, "k %d of %d heads is beyond the scratch", k, g->n_heads);
    uint64_t room_rows = (g->d->scratch.room_floats - TILE_FLOATS) / (2 * PANEL);
    if (most > room_rows) most = room_rows;
    g->input = g->d->scratch.input;
    g->panels = cpu_panels(g->w->n);
    for (int left = n_rows; left > 0; left -= g->n_rows) {
        g->n_rows = (uint64_t) left < most ? left : (int) most;
        g->head_floats = (size_t) row_floats * g->n_rows;
        uint64_t row_products = (uint64_t) PANEL * (uint64_t) k;
        team_run(g->d->team, prepare_items, g, g->n_heads * g->n_rows, grain_of((uint64_t) k * 4));
        team_run(g->d->team, multiply_items, g, g->n_heads * g->panels,
                 grain_of(row_products * (uint64_t) g->n_rows));
        g->x += g->x_stride * g->n_rows;
        g->out += g->out_stride * g->n_rows;
    }
}

void cpu_gemm(struct device *d, const struct matrix *w, const void *x, int x_stride, float *out,
              int out_stride, int n_rows)
{
    cpu_gemm_heads(d, w, 1, x, x_stride, 0, out, out_stride, 0, n_rows);
}

void cpu_gemm_heads(struct device *d, const struct matrix *w, int n_heads, const float *x,
                    int x_stride, int x_head_stride, float *out, int out_stride,
                    int out_head_stride, int n_rows)
{
    if (n_heads == 0) return;
    struct gemm g = {
        .d = d,
        .w = w,
        .n_heads = n_heads,
        .x = x,
        .x_stride = (size_t) x_stride,
        .x_head_stride = (size_t) x_head_stride,
        .out = out,
        .out_stride = (size_t) out_stride,
        .out_head_stride = (size_t) out_head_stride,
    };
    run(&g, n_rows);
}

void cpu_gemm_pair(struct device *d, const struct matrix *w, const struct matrix *second,
                   const void *x, int x_stride, float *out, int out_stride, float *second_out,
                   int second_stride, int n_rows)
{
    cpu_gemm(d, w, x, x_stride, out, out_stride, n_rows);
    cpu_gemm(d, second, x, x_stride, second_out, second_stride, n_rows);
}
