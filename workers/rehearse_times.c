#include "workers/rehearse_times.h"

#include <stdlib.h>

enum { MARKS_LAYER = 40, MARKS_STEP = 256 };

static const double HOLD_LAYER_S = 250e-6; // the host takes less to give a layer's ops

static _Thread_local struct rehearse_times *own;

static const char *const names[REHEARSE_OPS] = {
    "inputs", "import", "norm", "q_a", "q", "kv_a", "rope", "kv_write", "absorb", "mla", "unabsorb",
    "o", "reduce", "add", "route", "moe", "ffn", "head", "outputs",
};

const char *rehearse_op_name(enum rehearse_op op) { return names[op]; }

enum { LAYERS_BEGIN, LAYERS_END }; // marks where ops have none

// The first op of the layers, and the first behind them.
static void mark_layers(struct rehearse_times *t, enum rehearse_op op)
{
    bool before = op == REHEARSE_INPUTS || op == REHEARSE_IMPORT, behind = op == REHEARSE_OUTPUTS;
    if (t->n == LAYERS_BEGIN && !before && !behind) t->measures->mark(t->marks, t->n++);
    else if (t->n == LAYERS_END && behind) t->measures->mark(t->marks, t->n++);
}

void rehearse_times_mark(struct rehearse_times *t, enum rehearse_op op)
{
    if (!t->on) mark_layers(t, op);
    if (!t->on || t->n == t->max) return;
    t->ops[t->n] = (uint8_t) op;
    t->measures->mark(t->marks, t->n++);
}

static const struct backend *at(enum rehearse_op op)
{
    rehearse_times_mark(own, op);
    return own->real;
}

// --- which op a matrix is of

static enum rehearse_op op_of(const struct matrix *m)
{
    const struct weights *w = own->weights;
    if (m == &w->lm_head) return REHEARSE_HEAD;
    for (int i = 0; i < w->place.last - w->place.first; i++) {
        const struct layer *l = &w->layers[i];
        if (m == &l->q_a) return REHEARSE_Q_A;
        if (m == &l->q) return REHEARSE_Q;
        if (m == &l->kv_a) return REHEARSE_KV_A;
        if (m == &l->o) return REHEARSE_O;
        if (m == l->uk) return REHEARSE_ABSORB;
        if (m == l->uv) return REHEARSE_UNABSORB;
    }
    return REHEARSE_FFN;
}

// --- the ops

static void upload(struct device *d, void *to, const void *from, size_t n)
{
    at(REHEARSE_INPUTS)->upload(d, to, from, n);
}

static void download(struct device *d, void *to, const void *from, size_t n)
{
    at(REHEARSE_OUTPUTS)->download(d, to, from, n);
}

static void embed(struct device *d, const void *table, enum dtype dtype, int vocab_begin,
                  int vocab_n, int hidden, const int32_t *ids, float *x, int n_rows)
{
    at(REHEARSE_IMPORT)->embed(d, table, dtype, vocab_begin, vocab_n, hidden, ids, x, n_rows);
}

static void rmsnorm(struct device *d, const float *x, int x_stride, const float *weight, float eps,
                    void *out, int dim, int n_rows)
{
    at(REHEARSE_NORM)->rmsnorm(d, x, x_stride, weight, eps, out, dim, n_rows);
}

static void add_rmsnorm(struct device *d, float *x, const float *y, const float *weight, float eps,
                        void *out, int dim, int n_rows)
{
    at(REHEARSE_NORM)->add_rmsnorm(d, x, y, weight, eps, out, dim, n_rows);
}

static void gemm(struct device *d, const struct matrix *w, const void *x, int x_stride, float *out,
                 int out_stride, int n_rows)
{
    at(op_of(w))->gemm(d, w, x, x_stride, out, out_stride, n_rows);
}

static void gemm_heads(struct device *d, const struct matrix *w, int n_heads, const float *x,
                       int x_stride, int x_head_stride, float *out, int out_stride,
                       int out_head_stride, int n_rows)
{
    at(op_of(w))->gemm_heads(d, w, n_heads, x, x_stride, x_head_stride, out, out_stride,
                             out_head_stride, n_rows);
}

static void rope_angles(struct device *d, const float *inv_freq, float multiplier, int rope,
                        const int32_t *pos, float *cos_sin, int n_rows)
{
    at(REHEARSE_ROPE)->rope_angles(d, inv_freq, multiplier, rope, pos, cos_sin, n_rows);
}

static void rotate(struct device *d, float *x, int x_stride, int x_head_stride, int n_heads,
                   int rope, const float *cos_sin, int n_rows)
{
    at(REHEARSE_ROPE)->rope(d, x, x_stride, x_head_stride, n_heads, rope, cos_sin, n_rows);
}

static void kv_write(struct device *d, const struct attention_shape *a, const float *c,
                     const float *norm, const float *cos_sin, const struct step_inputs *in,
                     const struct kv_layer *kv, int n_rows)
{
    at(REHEARSE_KV_WRITE)->kv_write(d, a, c, norm, cos_sin, in, kv, n_rows);
}

static void mla(struct device *d, const struct attention_shape *a, const float *q_abs,
                const float *q_pe, int q_stride, int q_head_stride, const struct step_inputs *in,
                const struct kv_layer *kv, float *out, int n_rows)
{
    at(REHEARSE_MLA)->mla(d, a, q_abs, q_pe, q_stride, q_head_stride, in, kv, out, n_rows);
}

static void mla_run(struct device *d, const struct attention_shape *a, const float *q, int q_stride,
                    int q_head_stride, const struct matrix *uk, const struct matrix *uv,
                    const struct attention_run *run, const struct step_inputs *in,
                    const struct kv_layer *kv, float *out, int out_stride)
{
    at(REHEARSE_MLA)->mla_run(d, a, q, q_stride, q_head_stride, uk, uv, run, in, kv, out,
                              out_stride);
}

static void route(struct device *d, const struct router *r, const void *x, int32_t *chosen,
                  float *weights, int n_rows)
{
    at(REHEARSE_ROUTE)->route(d, r, x, chosen, weights, n_rows);
}

static void moe(struct device *d, const struct expert *experts, int n_experts, int n_chosen,
                const void *x, const int32_t *chosen, const float *weights, const int32_t *pos,
                float *out, int n_rows)
{
    at(REHEARSE_MOE)->moe(d, experts, n_experts, n_chosen, x, chosen, weights, pos, out, n_rows);
}

static void swiglu(struct device *d, const float *gate, const float *up, void *out, int n,
                   int n_rows)
{
    at(REHEARSE_FFN)->swiglu(d, gate, up, out, n, n_rows);
}

static void add(struct device *d, float *x, const float *y, size_t n)
{
    at(REHEARSE_ADD)->add(d, x, y, n);
}

static void import_act(struct device *d, float *x, const void *wire, size_t n)
{
    at(REHEARSE_IMPORT)->import_act(d, x, wire, n);
}

static void export_act(struct device *d, void *wire, const float *x, size_t n)
{
    at(REHEARSE_OUTPUTS)->export_act(d, wire, x, n);
}

static void gather(struct device *d, const float *x, const int32_t *out_rows, int dim, float *out,
                   int n_out)
{
    at(REHEARSE_HEAD)->gather(d, x, out_rows, dim, out, n_out);
}

// A step whose ops are marked is not recorded. What is recorded has no marks.
static bool graph_begin(struct device *d, int bucket)
{
    bool begun = own->on || own->real->graph_begin(d, bucket);
    if (begun && !own->on) own->n = LAYERS_END + 1;
    return begun;
}

static void graph_end(struct device *d, int bucket)
{
    if (own->on) return;
    own->real->graph_end(d, bucket);
    own->n = LAYERS_BEGIN;
}

static void graph_launch(struct device *d, int bucket)
{
    if (own->on) return;
    mark_layers(own, REHEARSE_NORM);
    own->real->graph_launch(d, bucket);
}

// Ops that are timed one by one run one by one: no branches, and by their parts.

static void gemm_pair(struct device *d, const struct matrix *w, const struct matrix *second,
                      const void *x, int x_stride, float *out, int out_stride, float *second_out,
                      int second_stride, int n_rows)
{
    if (!own->on) {
        own->real->gemm_pair(d, w, second, x, x_stride, out, out_stride, second_out, second_stride,
                             n_rows);
        return;
    }
    gemm(d, w, x, x_stride, out, out_stride, n_rows);
    gemm(d, second, x, x_stride, second_out, second_stride, n_rows);
}

static void latents(struct device *d, const struct attention_shape *a, const float *q_a,
                    const float *q_norm, int q_lora, void *q_out, const float *c,
                    const float *norm, const float *cos_sin, const struct step_inputs *in,
                    const struct kv_layer *kv, int n_rows)
{
    if (!own->on) {
        own->real->latents(d, a, q_a, q_norm, q_lora, q_out, c, norm, cos_sin, in, kv, n_rows);
        return;
    }
    rmsnorm(d, q_a, q_lora, q_norm, a->norm_eps, q_out, q_lora, n_rows);
    kv_write(d, a, c, norm, cos_sin, in, kv, n_rows);
}

static bool moe_shared(struct device *d, const struct expert *experts, const struct expert *shared,
                       int n_experts, int n_chosen, const void *x, const int32_t *chosen,
                       const float *weights, const int32_t *pos, float *out, int n_rows)
{
    return !own->on && own->real->moe_shared(d, experts, shared, n_experts, n_chosen, x, chosen,
                                             weights, pos, out, n_rows);
}

static void branch(struct device *d)
{
    if (!own->on) own->real->branch(d);
}

static void resume(struct device *d)
{
    if (!own->on) own->real->resume(d);
}

static void join(struct device *d)
{
    if (!own->on) own->real->join(d);
}

static void set_table(struct rehearse_times *t)
{
    struct backend *b = &t->table;
    *b = *t->real;
    b->upload = upload;
    b->download = download;
    b->graph_begin = graph_begin;
    b->graph_end = graph_end;
    b->graph_launch = graph_launch;
    if (t->real->branch != NULL) {
        b->branch = branch;
        b->resume = resume;
        b->join = join;
    }
    b->embed = embed;
    b->rmsnorm = rmsnorm;
    b->add_rmsnorm = add_rmsnorm;
    b->gemm = gemm;
    b->gemm_pair = gemm_pair;
    b->gemm_heads = gemm_heads;
    b->rope_angles = rope_angles;
    b->rope = rotate;
    b->kv_write = kv_write;
    b->latents = latents;
    b->mla = mla;
    if (b->mla_run != NULL) b->mla_run = mla_run;
    b->route = route;
    b->moe = moe;
    if (b->moe_shared != NULL) b->moe_shared = moe_shared;
    b->swiglu = swiglu;
    b->add = add;
    b->import_act = import_act;
    b->export_act = export_act;
    b->gather = gather;
}

// --- life

enum status rehearse_times_create(struct rehearse_times *t, const struct backend *real,
                                  const struct measures *measures, struct device *device,
                                  const struct weights *weights, int n_layers, struct error *e)
{
    *t = (struct rehearse_times){.real = real, .measures = measures, .weights = weights,
                                 .device = device, .n = LAYERS_END + 1,
                                 .max = n_layers * MARKS_LAYER + MARKS_STEP};
    set_table(t);
    own = t;
    t->ops = malloc((size_t) t->max);
    if (t->ops == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for %d marks", t->max);
    return measures->marks_create(&t->marks, device, t->max + 1, e);
}

void rehearse_times_destroy(struct rehearse_times *t)
{
    if (t->marks != NULL) t->measures->marks_destroy(&t->marks);
    free(t->ops);
    if (own == t) own = NULL;
    *t = (struct rehearse_times){0};
}

void rehearse_times_begin(struct rehearse_times *t)
{
    int layers = t->weights->place.last - t->weights->place.first;
    t->n = 0;
    t->on = true;
    t->measures->hold(t->device, (layers + 1) * HOLD_LAYER_S);
}

void rehearse_times_end(struct rehearse_times *t, double to[REHEARSE_OPS])
{
    struct error e = {0};
    t->on = false;
    t->measures->mark(t->marks, t->n);
    int n = t->n;
    t->n = LAYERS_END + 1;
    if (t->real->sync(t->device, &e) != OK) return; // the next step tells
    for (int i = 0; i < n; i++) to[t->ops[i]] += t->measures->between(t->marks, i, i + 1);
}

void rehearse_times_layers_begin(struct rehearse_times *t) { t->n = LAYERS_BEGIN; }

double rehearse_times_layers(struct rehearse_times *t)
{
    struct error e = {0};
    int n = t->n;
    if (n == LAYERS_END) t->measures->mark(t->marks, LAYERS_END);
    t->n = LAYERS_END + 1;
    if (n == LAYERS_BEGIN || t->real->sync(t->device, &e) != OK) return 0;
    return t->measures->between(t->marks, LAYERS_BEGIN, LAYERS_END);
}
