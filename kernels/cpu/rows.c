// Ops that treat each row, or each element, by itself.
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device.h"
#include "kernels/cpu/inner.h"
#include "kernels/cpu/ops.h"

#include <math.h>
#include <string.h>

enum {
    LANES = 16,             // partial sums of a row's statistics
    PIECE_ELEMENTS = 16384, // about this many elements are worth another thread
};

static int rows_per_piece(int dim)
{
    return dim > 0 && dim < PIECE_ELEMENTS ? PIECE_ELEMENTS / dim : 1;
}

struct embed {
    const void *table; // (vocab_n, hidden)
    enum dtype dtype;
    int vocab_begin, vocab_n, hidden;
    const int32_t *ids;
    float *x;
};

static void embed_rows(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct embed *e = arg;
    for (int row = begin; row < end; row++) {
        float *to = e->x + (size_t) row * e->hidden;
        int64_t id = (int64_t) e->ids[row] - e->vocab_begin;
        if (id < 0 || id >= e->vocab_n) {
            memset(to, 0, (size_t) e->hidden * sizeof *to);
            continue;
        }
        size_t first = (size_t) id * e->hidden;
        if (e->dtype == DTYPE_F32) {
            memcpy(to, (const float *) e->table + first, (size_t) e->hidden * sizeof *to);
            continue;
        }
        const uint16_t *from = (const uint16_t *) e->table + first;
        for (int i = 0; i < e->hidden; i++) to[i] = bf16_widen(from[i]);
    }
}

void cpu_embed(struct device *d, const void *table, enum dtype dtype, int vocab_begin, int vocab_n,
               int hidden, const int32_t *ids, float *x, int n_rows)
{
    check(dtype == DTYPE_BF16 || dtype == DTYPE_F32, "an embedding of %s", dtype_name(dtype));
    struct embed e = {table, dtype, vocab_begin, vocab_n, hidden, ids, x};
    team_run(d->team, embed_rows, &e, n_rows, rows_per_piece(hidden));
}

void row_rmsnorm(const float *x, const float *weight, float eps, float *out, int dim)
{
    float lanes[LANES] = {0};
    int i = 0;
    for (; i + LANES <= dim; i += LANES) {
        for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * x[i + j];
    }
    for (int j = 0; i + j < dim; j++) lanes[j] += x[i + j] * x[i + j];
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
    }
    float scale = 1.0f / sqrtf(lanes[0] / (float) dim + eps);
    for (int j = 0; j < dim; j++) out[j] = x[j] * scale * weight[j];
}

struct rmsnorm {
    const float *x, *weight;
    int x_stride, dim;
    float eps;
    float *out;
    float *sum;       // x, where a row of `add` is added to it first
    const float *add; // NULL: none is
};

static void rmsnorm_rows(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct rmsnorm *r = arg;
    for (int row = begin; row < end; row++) {
        size_t at = (size_t) row * r->dim;
        for (int i = 0; i < r->dim && r->add != NULL; i++) r->sum[at + i] += r->add[at + i];
        row_rmsnorm(r->x + (size_t) row * r->x_stride, r->weight, r->eps,
                    r->out + (size_t) row * r->dim, r->dim);
    }
}

void cpu_rmsnorm(struct device *d, const float *x, int x_stride, const float *weight, float eps,
                 void *out, int dim, int n_rows)
{
    struct rmsnorm r = {x, weight, x_stride, dim, eps, out, NULL, NULL};
    team_run(d->team, rmsnorm_rows, &r, n_rows, rows_per_piece(dim));
}

void cpu_add_rmsnorm(struct device *d, float *x, const float *y, const float *weight, float eps,
                     void *out, int dim, int n_rows)
{
    struct rmsnorm r = {x, weight, dim, dim, eps, out, x, y};
    team_run(d->team, rmsnorm_rows, &r, n_rows, rows_per_piece(dim));
}

struct elements {
    const struct inner *inner;
    const float *a, *b;
    float *out;
    size_t n;
};

static void swiglu_piece(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct elements *e = arg;
    size_t at = (size_t) begin * PIECE_ELEMENTS, stop = (size_t) end * PIECE_ELEMENTS;
    if (stop > e->n) stop = e->n;
    e->inner->swiglu(e->a + at, e->b + at, e->out + at, stop - at);
}

static void add_piece(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct elements *e = arg;
    size_t at = (size_t) begin * PIECE_ELEMENTS, stop = (size_t) end * PIECE_ELEMENTS;
    if (stop > e->n) stop = e->n;
    for (; at < stop; at++) e->out[at] += e->b[at];
}

static int pieces(size_t n) { return (int) ((n + PIECE_ELEMENTS - 1) / PIECE_ELEMENTS); }

void cpu_swiglu(struct device *d, const float *gate, const float *up, void *out, int n, int n_rows)
{
    struct elements e = {inner_for(d->isa), gate, up, out, (size_t) n * n_rows};
    team_run(d->team, swiglu_piece, &e, pieces(e.n), 1);
}

void cpu_add(struct device *d, float *x, const float *y, size_t n)
{
    struct elements e = {.b = y, .out = x, .n = n};
    team_run(d->team, add_piece, &e, pieces(n), 1);
}

struct gather {
    const float *x;
    const int32_t *out_rows;
    int dim;
    float *out;
};

static void gather_rows(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct gather *g = arg;
    for (int i = begin; i < end; i++) {
        memcpy(g->out + (size_t) i * g->dim, g->x + (size_t) g->out_rows[i] * g->dim,
               (size_t) g->dim * sizeof *g->out);
    }
}

void cpu_gather(struct device *d, const float *x, const int32_t *out_rows, int dim, float *out,
                int n_out)
{
    struct gather g = {x, out_rows, dim, out};
    team_run(d->team, gather_rows, &g, n_out, rows_per_piece(dim));
}
