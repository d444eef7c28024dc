#include "common/layout.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct range layout_part(int64_t n, int rank, int tp)
{
    int64_t each = n / tp, larger = n % tp;
    int64_t begin = each * rank + (rank < larger ? rank : larger);
    return (struct range){begin, each + (rank < larger)};
}

struct range layout_blocks(struct range r, int block)
{
    int64_t first = r.begin / block;
    return (struct range){first, (r.begin + r.n + block - 1) / block - first};
}

enum status layout_check_tp(const struct model_config *c, int tp, struct error *e)
{
    if (tp < 1 || tp > TP_MAX) {
        return error_set(e, ERR_INPUT, "bad_tp", "tp is %d; it must be from 1 to %d", tp, TP_MAX);
    }
    if (c->n_heads % tp != 0) {
        return error_set(e, ERR_INPUT, "bad_tp", "tp %d does not divide the model's %d heads", tp,
                         c->n_heads);
    }
    if (c->n_dense_layers < c->n_layers && c->moe_intermediate_size % tp != 0) {
        return error_set(e, ERR_INPUT, "bad_tp", "tp %d does not divide moe_intermediate_size %d",
                         tp, c->moe_intermediate_size);
    }
    return OK;
}

struct walk {
    const struct model_config *c;
    const struct placement *p;
    layout_visit *visit;
    void *arg;
};

static struct range all(int64_t n) { return (struct range){0, n}; }

// A cut along heads or experts keeps whole units of `unit` rows (or columns) together.
static struct range part(const struct walk *w, int64_t n, int64_t unit)
{
    struct range r = layout_part(n / unit, w->p->tp_rank, w->p->tp);
    return (struct range){r.begin * unit, r.n * unit};
}

static enum status visit(const struct walk *w, struct slice *s, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static enum status visit(const struct walk *w, struct slice *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(s->name, sizeof s->name, format, args);
    va_end(args);
    return w->visit(s, w->arg);
}

static struct slice vector(enum role role, int layer, int64_t n)
{
    return (struct slice){.role = role, .layer = layer, .expert = -1, .rows = n, .cols = 1,
                          .cut = CUT_NONE, .row = all(n), .col = all(1)};
}

// A matrix, cut in units of `unit` along the cut dimension.
static struct slice matrix(const struct walk *w, enum role role, int layer, int64_t rows,
                           int64_t cols, enum cut cut, int64_t unit, bool quantized)
{
    return (struct slice){.role = role,
                          .layer = layer,
                          .expert = -1,
                          .rows = rows,
                          .cols = cols,
                          .cut = cut,
                          .row = cut == CUT_ROWS ? part(w, rows, unit) : all(rows),
                          .col = cut == CUT_COLS ? part(w, cols, unit) : all(cols),
                          .quantized = quantized && w->c->fp8};
}

static enum status walk_attention(const struct walk *w, int l)
{
    const struct model_config *c = w->c;
    int64_t hidden = c->hidden_size, heads = c->n_heads;
    int64_t q_head = c->qk_nope_head_dim + c->qk_rope_head_dim;
    int64_t kv_head = c->qk_nope_head_dim + c->v_head_dim;
    struct slice s;
    if (c->q_lora_rank > 0) {
        s = matrix(w, ROLE_Q_A, l, c->q_lora_rank, hidden, CUT_NONE, 1, true);
        try(visit(w, &s, "model.layers.%d.self_attn.q_a_proj.weight", l));
        s = vector(ROLE_Q_A_NORM, l, c->q_lora_rank);
        try(visit(w, &s, "model.layers.%d.self_attn.q_a_layernorm.weight", l));
        s = matrix(w, ROLE_Q_B, l, heads * q_head, c->q_lora_rank, CUT_ROWS, q_head, true);
        try(visit(w, &s, "model.layers.%d.self_attn.q_b_proj.weight", l));
    } else {
        s = matrix(w, ROLE_Q, l, heads * q_head, hidden, CUT_ROWS, q_head, true);
        try(visit(w, &s, "model.layers.%d.self_attn.q_proj.weight", l));
    }
    s = matrix(w, ROLE_KV_A, l, model_kv_width(c), hidden, CUT_NONE, 1, true);
    try(visit(w, &s, "model.layers.%d.self_attn.kv_a_proj_with_mqa.weight", l));
    s = vector(ROLE_KV_A_NORM, l, c->kv_lora_rank);
    try(visit(w, &s, "model.layers.%d.self_attn.kv_a_layernorm.weight", l));
    s = matrix(w, ROLE_KV_B, l, heads * kv_head, c->kv_lora_rank, CUT_ROWS, kv_head, true);
    try(visit(w, &s, "model.layers.%d.self_attn.kv_b_proj.weight", l));
    s = matrix(w, ROLE_O, l, hidden, heads * c->v_head_dim, CUT_COLS, c->v_head_dim, true);
    return visit(w, &s, "model.layers.%d.self_attn.o_proj.weight", l);
}

// The three matrices of one gated FFN; `prefix` names it inside the layer.
static enum status walk_gated(const struct walk *w, int l, int expert, const enum role roles[3],
                              const char *prefix, int64_t width)
{
    static const char *const names[3] = {"gate_proj", "up_proj", "down_proj"};
    for (int i = 0; i < 3; i++) {
        int64_t hidden = w->c->hidden_size;
        struct slice s = i < 2 ? matrix(w, roles[i], l, width, hidden, CUT_ROWS, 1, true)
                               : matrix(w, roles[i], l, hidden, width, CUT_COLS, 1, true);
        s.expert = expert;
        try(visit(w, &s, "model.layers.%d.mlp.%s%s.weight", l, prefix, names[i]));
    }
    return OK;
}

static enum status walk_ffn(const struct walk *w, int l)
{
    static const enum role dense[] = {ROLE_GATE, ROLE_UP, ROLE_DOWN};
    static const enum role routed[] = {ROLE_EXPERT_GATE, ROLE_EXPERT_UP, ROLE_EXPERT_DOWN};
    static const enum role shared[] = {ROLE_SHARED_GATE, ROLE_SHARED_UP, ROLE_SHARED_DOWN};
    const struct model_config *c = w->c;
    if (l < c->n_dense_layers) return walk_gated(w, l, -1, dense, "", c->intermediate_size);
    struct slice s = matrix(w, ROLE_ROUTER, l, c->n_routed_experts, c->hidden_size, CUT_NONE, 1,
                            false);
    try(visit(w, &s, "model.layers.%d.mlp.gate.weight", l));
    s = vector(ROLE_ROUTER_BIAS, l, c->n_routed_experts);
    try(visit(w, &s, "model.layers.%d.mlp.gate.e_score_correction_bias", l));
    for (int x = 0; x < c->n_routed_experts; x++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "experts.%d.", x);
        try(walk_gated(w, l, x, routed, prefix, c->moe_intermediate_size));
    }
    if (c->n_shared_experts == 0) return OK;
    return walk_gated(w, l, -1, shared, "shared_experts.",
                      (int64_t) c->n_shared_experts * c->moe_intermediate_size);
}

enum status layout_walk(const struct model_config *c, const struct placement *p,
                        layout_visit *visitor, void *arg)
{
    struct walk w = {c, p, visitor, arg};
    struct slice s;
    if (p->head) {
        s = matrix(&w, ROLE_EMBED, -1, c->vocab_size, c->hidden_size, CUT_ROWS, 1, false);
        try(visit(&w, &s, "model.embed_tokens.weight"));
    }
    for (int l = p->first; l < p->last; l++) {
        s = vector(ROLE_INPUT_NORM, l, c->hidden_size);
        try(visit(&w, &s, "model.layers.%d.input_layernorm.weight", l));
        try(walk_attention(&w, l));
        s = vector(ROLE_POST_NORM, l, c->hidden_size);
        try(visit(&w, &s, "model.layers.%d.post_attention_layernorm.weight", l));
        try(walk_ffn(&w, l));
    }
    if (!p->tail) return OK;
    s = vector(ROLE_FINAL_NORM, -1, c->hidden_size);
    try(visit(&w, &s, "model.norm.weight"));
    s = matrix(&w, ROLE_LM_HEAD, -1, c->vocab_size, c->hidden_size, CUT_ROWS, 1, false);
    return visit(&w, &s, "lm_head.weight");
}

uint64_t layout_slice_bytes(const struct model_config *c, const struct slice *s)
{
    uint64_t elements = (uint64_t) s->row.n * (uint64_t) s->col.n;
    if (!s->quantized) return elements * (s->role == ROLE_ROUTER_BIAS ? 4 : 2);
    struct range rows = layout_blocks(s->row, c->scale_block);
    struct range cols = layout_blocks(s->col, c->scale_block);
    return elements + (uint64_t) rows.n * (uint64_t) cols.n * 4;
}
