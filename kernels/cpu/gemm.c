// Packing weights, and matrix products cut into panels over the team.
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

// --- packed weights

static int phase_of(const struct matrix *w) { return w->dtype == DTYPE_F8_E4M3 ? w->col_phase : 0; }

static uint64_t panel_bytes(const struct matrix *w)
{
    struct matrix_shape shape = matrix_shape(w);
    return cpu_panel_bytes(&shape);
}

static uint64_t nan_bytes(const struct matrix *w)
{
    struct matrix_shape shape = matrix_shape(w);
    return cpu_nan_bytes(&shape);
}

struct pack {
    struct matrix *m;
    int row0, n_rows;
    const char *rows;
};

// The dword of row `row` that begins at value `at` of the slice: values outside it are zero.
static uint32_t pack_group(const struct matrix *m, const char *row, int at)
{
    static const int order[4] = {0, 2, 1, 3};
    int group = cpu_group_values(m->dtype), size = 4 / group;
    uint32_t dword = 0;
    for (int i = 0; i < group; i++) {
        if (at + i < 0 || at + i >= m->k) continue;
        uint32_t value = 0; // of `size` bytes, little end first on every CPU
        memcpy(&value, row + (size_t) (at + i) * size, (size_t) size);
        dword |= value << 8 * (group == 4 ? order[i] : size * i);
    }
    return dword;
}

// A NaN of e4m3 has all bits but the sign.
static bool has_nan(const uint8_t *row, int k)
{
    bool found = false;
    for (int i = 0; i < k; i++) found |= (row[i] & 0x7f) == 0x7f;
    return found;
}

// Items are tiles of PACK_ROWS outputs, so that whole cache lines are written.
static void pack_tiles(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct pack *p = arg;
    const struct matrix *m = p->m;
    int phase = phase_of(m), group = cpu_group_values(m->dtype);
    size_t row_bytes = (size_t) m->k * dtype_size(m->dtype);
    for (int tile = begin; tile < end; tile++) {
        int row = p->row0 + tile * PACK_ROWS;
        const char *from = p->rows + (size_t) tile * PACK_ROWS * row_bytes;
        int n = p->n_rows - tile * PACK_ROWS < PACK_ROWS ? p->n_rows - tile * PACK_ROWS : PACK_ROWS;
        char *to = (char *) m->data + nan_bytes(m) + (size_t) (row / PANEL) * panel_bytes(m);
        for (int k = phase / group * group; k < phase + m->k; k += group, to += GROUP_BYTES) {
            uint32_t dwords[PACK_ROWS] = {0};
            for (int i = 0; i < n; i++) {
                dwords[i] = pack_group(m, from + (size_t) i * row_bytes, k - phase);
            }
            memcpy(to + (size_t) (row % PANEL) * 4, dwords, sizeof dwords);
        }
        if (m->dtype != DTYPE_F8_E4M3) continue;
        uint16_t bits = 0;
        for (int i = 0; i < n; i++) {
            bits |=
                (uint16_t) (has_nan((const uint8_t *) from + (size_t) i * row_bytes, m->k) << i);
        }
        memcpy((uint16_t *) m->data + row / PACK_ROWS, &bits, sizeof bits);
    }
}

// Zeros the tiles that no row reaches, so that the last panel is whole.
static void pack_rest(struct matrix *m)
{
    int first = (m->n + PACK_ROWS - 1) / PACK_ROWS * PACK_ROWS;
    for (int row = first; row < cpu_panels(m->n) * PANEL; row += PACK_ROWS) {
        char *to = (char *) m->data + nan_bytes(m) + (size_t) (row / PANEL) * panel_bytes(m);
        for (uint64_t at = (uint64_t) (row % PANEL) * 4; at < panel_bytes(m); at += GROUP_BYTES) {
            memset(to + at, 0, (size_t) PACK_ROWS * 4);
        }
        if (m->dtype == DTYPE_F8_E4M3) ((uint16_t *) m->data)[row / PACK_ROWS] = 0;
    }
}

void cpu_matrix_pack(struct device *d, struct matrix *m, int row0, int n_rows, const void *rows)
{
    check(row0 % PACK_ROWS == 0 && row0 + n_rows <= m->n, "rows [%d, %d) of %d", row0,
          row0 + n_rows, m->n);
    check(n_rows % PACK_ROWS == 0 || row0 + n_rows == m->n, "%d rows", n_rows);
    struct pack p = {m, row0, n_rows, rows};
    team_run(d->team, pack_tiles, &p, (n_rows + PACK_ROWS - 1) / PACK_ROWS, 1);
    if (row0 + n_rows == m->n) pack_rest(m);
}

// --- where products work

int gemm_blocks(const struct matrix *w)
{
    return (phase_of(w) + w->k + SCALE_BLOCK - 1) / SCALE_BLOCK;
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
    int phase = phase_of(w);
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
    int phase = phase_of(w);
    struct gemm_panel p = {
        .dtype = w->dtype,
        .groups = (const char *) w->data + nan_bytes(w) + (size_t) panel * panel_bytes(w),
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
