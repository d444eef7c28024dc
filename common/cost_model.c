#include "common/cost_model.h"

#include "common/kv_block.h"
#include "common/layout.h"
#include "common/limits.h"

#include <math.h>

// --- the model, once

static void add_slice(struct cost_matrices *m, const struct model_config *c, const struct slice *s,
                      int shared_by)
{
    m->bytes += (double) layout_slice_bytes(c, s) / shared_by;
    m->elements += (double) (s->row.n * s->col.n) / shared_by;
}

struct counting {
    struct cost_model *model;
    const struct model_config *config;
};

static enum status count_slice(const struct slice *s, void *arg)
{
    const struct counting *n = arg;
    struct cost_model *m = n->model;
    switch (s->role) {
    case ROLE_EMBED: break; // a row of it for each row of the step: nothing beside the rest
    case ROLE_FINAL_NORM:
    case ROLE_LM_HEAD: add_slice(&m->tail, n->config, s, 1); break;
    case ROLE_GATE:
    case ROLE_UP:
    case ROLE_DOWN: add_slice(&m->dense, n->config, s, 1); break;
    case ROLE_EXPERT_GATE:
    case ROLE_EXPERT_UP:
    case ROLE_EXPERT_DOWN: add_slice(&m->expert, n->config, s, m->n_experts); break;
    case ROLE_ROUTER:
    case ROLE_ROUTER_BIAS:
    case ROLE_SHARED_GATE:
    case ROLE_SHARED_UP:
    case ROLE_SHARED_DOWN: add_slice(&m->shared, n->config, s, 1); break;
    default: add_slice(&m->attention, n->config, s, 1); break;
    }
    return OK;
}

// Rank 0 has the larger part wherever a cut is uneven.
static void count(struct cost_model *m, const struct model_config *c, int first, int last,
                  bool tail)
{
    struct counting n = {m, c};
    struct placement place = {.first = first, .last = last, .tail = tail, .tp = m->form.tp};
    check(layout_walk(c, &place, count_slice, &n) == OK);
}

static double kv_row_bytes(const struct model_config *c, const struct cost_form *form)
{
    uint64_t block = kv_block_bytes(c->kv_lora_rank, c->qk_rope_head_dim, form->f32, form->fp8_kv);
    return (double) block / KV_BLOCK_ROWS;
}

void cost_model_init(struct cost_model *m, const struct model_config *c,
                     const struct cost_form *form)
{
    double heads = (double) c->n_heads / form->tp;
    *m = (struct cost_model){
        .form = *form, .n_layers = c->n_layers, .n_dense = c->n_dense_layers,
        .n_experts = c->n_routed_experts, .experts_per_token = c->n_experts_per_token,
        .hidden = c->hidden_size, .value_bytes = form->f32 ? 4 : 2,
        .kv_row_bytes = kv_row_bytes(c, form), .fp8 = c->fp8,
        .attention_flops = 2 * heads * (2.0 * c->kv_lora_rank + c->qk_rope_head_dim)};
    bool has_dense = c->n_dense_layers > 0, has_experts = c->n_dense_layers < c->n_layers;
    if (has_dense) count(m, c, 0, 1, false);
    if (has_experts) {
        m->attention = (struct cost_matrices){0};
        count(m, c, c->n_layers - 1, c->n_layers, false);
    }
    count(m, c, 0, 0, true);
}

// --- a step

void cost_step_add(struct cost_step *s, int pos, int n, int out)
{
    double last = (double) pos + n;
    s->rows += n;
    s->context += n * (double) pos + n * ((double) n + 1) / 2;
    s->kv_rows += last;
    s->out += out;
}

double cost_experts_touched(int experts, int per_token, double rows)
{
    if (experts == 0) return 0;
    return experts * (1 - pow(1 - (double) per_token / experts, rows));
}

static double larger(double a, double b) { return a > b ? a : b; }

static double gemm_rate(const struct cost_model *m, const struct device_rates *r)
{
    if (m->fp8 && m->form.fp8_gemm) return r->fp8_gemm;
    return m->form.f32 ? r->f32_gemm : r->bf16_gemm;
}

// `bytes` are read once, and so many elements meet an input each.
static void add_gemm(struct stage_cost *c, double bytes, double elements, double read, double gemm)
{
    c->weight_bytes += bytes;
    c->gemm_flops += 2 * elements;
    c->read_seconds += bytes / read;
    c->gemm_seconds += 2 * elements / gemm;
    c->weight_seconds += larger(bytes / read, 2 * elements / gemm);
}

static void add_matrices(struct stage_cost *c, const struct cost_matrices *m, double layers,
                         double rows, double read, double gemm)
{
    add_gemm(c, layers * m->bytes, layers * rows * m->elements, read, gemm);
}

static void add_attention(struct stage_cost *c, const struct cost_model *m, double layers,
                          const struct device_rates *r, const struct cost_step *s)
{
    c->kv_bytes = layers * s->kv_rows * m->kv_row_bytes / m->form.kv_ranks;
    c->attention_flops = layers * s->context * m->attention_flops;
    c->attention_seconds = larger(c->kv_bytes / r->read, c->attention_flops / r->attention);
}

static double reduces(const struct cost_model *m, const struct plan_stage *stage,
                      const struct device_rates *r, const struct cost_step *s)
{
    if (m->form.tp == 1) return 0;
    double n = 2.0 * (stage->last - stage->first) + stage->head;
    return n * (r->reduce_s + s->rows * m->hidden * m->value_bytes / r->reduce);
}

struct stage_cost cost_stage(const struct cost_model *m, const struct plan_stage *stage,
                             const struct device_rates *r, const struct cost_step *s)
{
    double layers = stage->last - stage->first, gemm = gemm_rate(m, r);
    int first = stage->first < m->n_dense ? stage->first : m->n_dense;
    int last = stage->last < m->n_dense ? stage->last : m->n_dense;
    double dense = last - first, moe = layers - dense;
    double touched = cost_experts_touched(m->n_experts, m->experts_per_token, s->rows);
    struct stage_cost c = {0};
    add_matrices(&c, &m->attention, layers, s->rows, r->read, gemm);
    add_matrices(&c, &m->dense, dense, s->rows, r->read, gemm);
    add_matrices(&c, &m->shared, moe, s->rows, r->read, gemm);
    add_gemm(&c, moe * touched * m->expert.bytes,
             moe * s->rows * m->experts_per_token * m->expert.elements, r->read, gemm);
    // The vocabulary is read only for a step that has logits; it is never FP8.
    if (stage->tail && s->out > 0) {
        add_matrices(&c, &m->tail, 1, s->out, r->read, m->form.f32 ? r->f32_gemm : r->bf16_gemm);
    }
    add_attention(&c, m, layers, r, s);
    c.reduce_seconds = reduces(m, stage, r, s);
    c.fixed_seconds = r->step_s + layers * r->layer_s;
    c.seconds = c.weight_seconds + c.attention_seconds + c.reduce_seconds + c.fixed_seconds;
    return c;
}

double cost_link(const struct cost_model *m, const struct device_rates *r,
                 const struct cost_step *s)
{
    return r->link_s + s->rows * m->hidden * m->value_bytes / r->link;
}
