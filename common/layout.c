#include "common/layout.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct range layout_part(int64_t n, int rank, int tp)
{
    int64_t each = n / tp, more = n % tp; // the first `more` ranks take one more
    int64_t before = rank < more ? rank : more;
    return (struct range){rank * each + before, each + (rank < more)};
}

struct range layout_blocks(struct range r, int block)
{
    if (r.n == 0) return (struct range){r.begin / block, 0};
    int64_t first = r.begin / block, last = (r.begin + r.n - 1) / block;
    return (struct range){first, last - first + 1};
}

enum status layout_check_tp(const struct model_config *c, int tp, struct error *e)
{
    if (tp < 1 || tp > TP_MAX) {
        return error_set(e, ERR_INPUT, "bad_tp", "tp %d is not from 1 to %d", tp, TP_MAX);
    }
    if (c->n_heads % tp != 0) {
        return error_set(e, ERR_INPUT, "bad_tp", "tp %d does not divide the %d attention heads", tp,
                         c->n_heads);
    }
    if (c->moe_intermediate_size % tp != 0) {
        return error_set(e, ERR_INPUT, "bad_tp", "tp %d does not divide moe_intermediate_size %d",
                         tp, c->moe_intermediate_size);
    }
    if (tp > c->vocab_size || (c->n_dense_layers > 0 && tp > c->intermediate_size)) {
        return error_set(e, ERR_INPUT, "bad_tp",
                         "tp %d is more than the vocabulary or the dense intermediate size has",
                         tp);
    }
    return OK;
}

struct placement layout_whole(const struct model_config *c)
{
    return (struct placement){0, c->n_layers, true, true, 0, 1};
}

// --- the walk

// Roles of which a rank takes whole heads: how many rows (or columns) a head has.
static int per_head(const struct model_config *c, enum role role)
{
    switch (role) {
    case ROLE_Q:
    case ROLE_Q_B: return c->qk_nope_head_dim + c->qk_rope_head_dim;
    case ROLE_KV_B: return c->qk_nope_head_dim + c->v_head_dim;
    case ROLE_O: return c->v_head_dim;
    default: return 1;
    }
}

void layout_cut(const struct model_config *c, struct slice *s, int tp_rank, int tp)
{
    s->row = (struct range){0, s->rows};
    s->col = (struct range){0, s->cols};
    if (s->cut == CUT_NONE) return;
    struct range *cut = s->cut == CUT_ROWS ? &s->row : &s->col;
    int unit = per_head(c, s->role);
    struct range part = layout_part(cut->n / unit, tp_rank, tp);
    *cut = (struct range){part.begin * unit, part.n * unit};
}

struct walk {
    const struct model_config *config;
    const struct placement *place;
    layout_visit *visit;
    void *arg;
};

enum kind { PLAIN, QUANTIZED }; // whether an FP8 checkpoint has it quantised

// A tensor of a layer, or with `layer` -1 outside of layers.
__attribute__((format(printf, 9, 10))) static enum status
put(const struct walk *w, enum role role, int layer, int expert, int64_t rows, int64_t cols,
    enum cut cut, enum kind kind, const char *format, ...)
{
    struct slice s = {.role = role,
                      .layer = layer,
                      .expert = expert,
                      .rows = rows,
                      .cols = cols,
                      .cut = cut,
                      .quantized = kind == QUANTIZED && w->config->fp8};
    int n = layer < 0 ? 0 : snprintf(s.name, sizeof s.name, "model.layers.%d.", layer);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(s.name + n, sizeof s.name - (size_t) n, format, arguments);
    va_end(arguments);
    layout_cut(w->config, &s, w->place->tp_rank, w->place->tp);
    return w->visit(&s, w->arg);
}

static enum status walk_attention(const struct walk *w, int layer)
{
    const struct model_config *c = w->config;
    int64_t hidden = c->hidden_size, heads = c->n_heads, latent = c->kv_lora_rank;
    int64_t q_rows = heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    if (c->q_lora_rank > 0) {
        try(put(w, ROLE_Q_A, layer, -1, c->q_lora_rank, hidden, CUT_NONE, QUANTIZED,
                "self_attn.q_a_proj.weight"));
        try(put(w, ROLE_Q_A_NORM, layer, -1, c->q_lora_rank, 1, CUT_NONE, PLAIN,
                "self_attn.q_a_layernorm.weight"));
        try(put(w, ROLE_Q_B, layer, -1, q_rows, c->q_lora_rank, CUT_ROWS, QUANTIZED,
                "self_attn.q_b_proj.weight"));
    } else {
        try(put(w, ROLE_Q, layer, -1, q_rows, hidden, CUT_ROWS, QUANTIZED,
                "self_attn.q_proj.weight"));
    }
    try(put(w, ROLE_KV_A, layer, -1, model_kv_width(c), hidden, CUT_NONE, QUANTIZED,
            "self_attn.kv_a_proj_with_mqa.weight"));
    try(put(w, ROLE_KV_A_NORM, layer, -1, latent, 1, CUT_NONE, PLAIN,
            "self_attn.kv_a_layernorm.weight"));
    try(put(w, ROLE_KV_B, layer, -1, heads * (c->qk_nope_head_dim + c->v_head_dim), latent,
            CUT_ROWS, QUANTIZED, "self_attn.kv_b_proj.weight"));
    return put(w, ROLE_O, layer, -1, hidden, heads * c->v_head_dim, CUT_COLS, QUANTIZED,
               "self_attn.o_proj.weight");
}

// Gate, up and down of one gated FFN; `first` is the role of its gate, up and down follow it.
static enum status walk_gated(const struct walk *w, enum role first, int layer, int expert,
                              int64_t width, const char *prefix)
{
    int64_t hidden = w->config->hidden_size;
    try(put(w, first, layer, expert, width, hidden, CUT_ROWS, QUANTIZED, "%s.gate_proj.weight",
            prefix));
    try(put(w, first + 1, layer, expert, width, hidden, CUT_ROWS, QUANTIZED, "%s.up_proj.weight",
            prefix));
    return put(w, first + 2, layer, expert, hidden, width, CUT_COLS, QUANTIZED,
               "%s.down_proj.weight", prefix);
}

static enum status walk_experts(const struct walk *w, int layer)
{
    const struct model_config *c = w->config;
    try(put(w, ROLE_ROUTER, layer, -1, c->n_routed_experts, c->hidden_size, CUT_NONE, PLAIN,
            "mlp.gate.weight"));
    try(put(w, ROLE_ROUTER_BIAS, layer, -1, c->n_routed_experts, 1, CUT_NONE, PLAIN,
            "mlp.gate.e_score_correction_bias"));
    for (int i = 0; i < c->n_routed_experts; i++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "mlp.experts.%d", i);
        try(walk_gated(w, ROLE_EXPERT_GATE, layer, i, c->moe_intermediate_size, prefix));
    }
    if (c->n_shared_experts == 0) return OK;
    return walk_gated(w, ROLE_SHARED_GATE, layer, -1,
                      (int64_t) c->n_shared_experts * c->moe_intermediate_size,
                      "mlp.shared_experts");
}

static enum status walk_layer(const struct walk *w, int layer)
{
    const struct model_config *c = w->config;
    try(put(w, ROLE_INPUT_NORM, layer, -1, c->hidden_size, 1, CUT_NONE, PLAIN,
            "input_layernorm.weight"));
    try(walk_attention(w, layer));
    try(put(w, ROLE_POST_NORM, layer, -1, c->hidden_size, 1, CUT_NONE, PLAIN,
            "post_attention_layernorm.weight"));
    if (layer >= c->n_dense_layers) return walk_experts(w, layer);
    return walk_gated(w, ROLE_GATE, layer, -1, c->intermediate_size, "mlp");
}

enum status layout_walk(const struct model_config *c, const struct placement *p,
                        layout_visit *visit, void *arg)
{
    struct walk w = {c, p, visit, arg};
    if (p->head) {
        try(put(&w, ROLE_EMBED, -1, -1, c->vocab_size, c->hidden_size, CUT_ROWS, PLAIN,
                "model.embed_tokens.weight"));
    }
    for (int layer = p->first; layer < p->last; layer++) try(walk_layer(&w, layer));
    if (!p->tail) return OK;
    try(put(&w, ROLE_FINAL_NORM, -1, -1, c->hidden_size, 1, CUT_NONE, PLAIN, "model.norm.weight"));
    return put(&w, ROLE_LM_HEAD, -1, -1, c->vocab_size, c->hidden_size, CUT_ROWS, PLAIN,
               "lm_head.weight");
}

enum status layout_walk_mtp(const struct model_config *c, const struct placement *p, int layer,
                            bool copies, layout_visit *visit, void *arg)
{
    struct walk w = {c, p, visit, arg};
    int64_t hidden = c->hidden_size;
    if (copies) {
        try(put(&w, ROLE_EMBED, layer, -1, c->vocab_size, hidden, CUT_ROWS, PLAIN,
                "embed_tokens.weight"));
    }
    try(put(&w, ROLE_MTP_TOKEN_NORM, layer, -1, hidden, 1, CUT_NONE, PLAIN, "enorm.weight"));
    try(put(&w, ROLE_MTP_HIDDEN_NORM, layer, -1, hidden, 1, CUT_NONE, PLAIN, "hnorm.weight"));
    try(put(&w, ROLE_MTP_PROJECTION, layer, -1, hidden, 2 * hidden, CUT_COLS, PLAIN,
            "eh_proj.weight"));
    try(walk_layer(&w, layer));
    try(put(&w, ROLE_MTP_FINAL_NORM, layer, -1, hidden, 1, CUT_NONE, PLAIN,
            "shared_head.norm.weight"));
    if (!copies) return OK;
    return put(&w, ROLE_LM_HEAD, layer, -1, c->vocab_size, hidden, CUT_ROWS, PLAIN,
               "shared_head.head.weight");
}

bool layout_is_vector(const struct slice *s)
{
    switch (s->role) {
    case ROLE_FINAL_NORM:
    case ROLE_INPUT_NORM:
    case ROLE_POST_NORM:
    case ROLE_Q_A_NORM:
    case ROLE_KV_A_NORM:
    case ROLE_ROUTER:
    case ROLE_ROUTER_BIAS:
    case ROLE_MTP_TOKEN_NORM:
    case ROLE_MTP_HIDDEN_NORM:
    case ROLE_MTP_FINAL_NORM: return true;
    default: return false;
    }
}

// --- bytes

enum dtype layout_implied_type(const struct model_config *c, const struct slice *s)
{
    if (s->quantized) return DTYPE_F8_E4M3;
    return s->role == ROLE_ROUTER_BIAS ? DTYPE_F32 : c->plain_type;
}

uint64_t layout_slice_bytes_as(const struct model_config *c, const struct slice *s,
                               enum dtype dtype)
{
    uint64_t bytes = (uint64_t) (s->row.n * s->col.n) * dtype_size(dtype);
    if (dtype != DTYPE_F8_E4M3) return bytes;
    return bytes + (uint64_t) (layout_blocks(s->row, c->scale_block).n *
                               layout_blocks(s->col, c->scale_block).n) *
                       sizeof(float);
}

uint64_t layout_slice_bytes(const struct model_config *c, const struct slice *s)
{
    return layout_slice_bytes_as(c, s, layout_implied_type(c, s));
}

// --- config against checkpoint

struct check {
    const struct model_config *config;
    const struct checkpoint *checkpoint;
    bool *used; // (tensors of the checkpoint)
    const struct tensor *expert[2]; // the layer's first: gate, down
    struct error *e;
};

static void print_shape(char *to, size_t n, const int64_t *shape, int n_dims)
{
    size_t at = (size_t) snprintf(to, n, "[");
    for (int i = 0; i < n_dims && at < n; i++) {
        at += (size_t) snprintf(to + at, n - at, "%s%lld", i > 0 ? ", " : "", (long long) shape[i]);
    }
    if (at < n) snprintf(to + at, n - at, "]");
}

static enum status check_shape(const struct tensor *t, const int64_t *shape, int n_dims,
                               struct error *e)
{
    if (t->n_dims == n_dims && memcmp(t->shape, shape, (size_t) n_dims * sizeof *shape) == 0) {
        return OK;
    }
    char has[96], implied[96];
    print_shape(has, sizeof has, t->shape, t->n_dims);
    print_shape(implied, sizeof implied, shape, n_dims);
    return error_set(e, ERR_INPUT, "bad_checkpoint", "%s has shape %s, config.json implies %s",
                     t->name, has, implied);
}

static enum status missing(const char *name, const char *why, struct error *e)
{
    return error_set(e, ERR_INPUT, "bad_checkpoint", "tensor %s is missing: %s", name, why);
}

static enum status check_scales(struct check *k, const struct slice *s)
{
    char name[TENSOR_NAME_MAX + 16];
    snprintf(name, sizeof name, "%s_scale_inv", s->name);
    const struct tensor *t = checkpoint_find(k->checkpoint, name);
    if (t == NULL) return missing(name, "an FP8 matrix needs its block scales", k->e);
    int block = k->config->scale_block;
    int64_t shape[2] = {(s->rows + block - 1) / block, (s->cols + block - 1) / block};
    if (t->dtype != DTYPE_F32) {
        return error_set(k->e, ERR_UNSUPPORTED, "bad_checkpoint",
                         "%s is %s; block scales must be F32", name, dtype_name(t->dtype));
    }
    k->used[t->index] = true;
    return check_shape(t, shape, 2, k->e);
}

// One kernel serves all experts of a layer: gate and up of each have one type, and down has one.
static enum status check_expert(struct check *k, const struct slice *s, const struct tensor *t)
{
    const struct tensor **first = &k->expert[s->role == ROLE_EXPERT_DOWN];
    if (s->expert == 0 && s->role != ROLE_EXPERT_UP) *first = t;
    if (t->dtype == (*first)->dtype) return OK;
    return error_set(k->e, ERR_UNSUPPORTED, "bad_checkpoint",
                     "%s is %s, but %s is %s: the experts of a layer must have one type", t->name,
                     dtype_name(t->dtype), (*first)->name, dtype_name((*first)->dtype));
}

static enum status check_slice(const struct slice *s, void *arg)
{
    struct check *k = arg;
    const struct tensor *t = checkpoint_find(k->checkpoint, s->name);
    if (t == NULL) return missing(s->name, "config.json implies it", k->e);
    bool vector = s->cols == 1 && s->cut == CUT_NONE && s->role != ROLE_ROUTER;
    int64_t shape[2] = {s->rows, s->cols};
    try(check_shape(t, shape, vector ? 1 : 2, k->e));
    k->used[t->index] = true;
    if (s->expert >= 0) try(check_expert(k, s, t));
    if (t->dtype == DTYPE_F8_E4M3 && s->quantized) return check_scales(k, s);
    if (t->dtype == DTYPE_OTHER || t->dtype == DTYPE_F8_E4M3) {
        return error_set(k->e, ERR_UNSUPPORTED, "bad_checkpoint", "%s is %s, expected %s", s->name,
                         dtype_name(t->dtype),
                         s->quantized ? "F8_E4M3, BF16, F16 or F32" : "BF16, F16 or F32");
    }
    return OK;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

// Whether the tensor belongs to a layer of multi-token prediction. The layer's own eh_proj says so,
// since some configs do not count those layers.
static bool is_mtp(const struct check *k, const char *name)
{
    static const char PREFIX[] = "model.layers.";
    if (strncmp(name, PREFIX, sizeof PREFIX - 1) != 0) return false;
    char *end, eh_proj[TENSOR_NAME_MAX];
    long layer = strtol(name + sizeof PREFIX - 1, &end, 10);
    if (*end != '.' || layer < k->config->n_layers) return false;
    snprintf(eh_proj, sizeof eh_proj, "%s%ld.eh_proj.weight", PREFIX, layer);
    return checkpoint_find(k->checkpoint, eh_proj) != NULL;
}

// The first tensor that nothing in the config accounts for: a model computed without it would be
// another one.
static enum status check_unused(const struct check *k)
{
    for (int i = 0; i < checkpoint_n_tensors(k->checkpoint); i++) {
        const char *name = checkpoint_tensor(k->checkpoint, i)->name;
        if (k->used[i] || ends_with(name, "rotary_emb.inv_freq") || is_mtp(k, name)) continue;
        return error_set(k->e, ERR_INPUT, "bad_checkpoint",
                         "the checkpoint holds %s, which nothing in config.json implies", name);
    }
    return OK;
}

enum status layout_check_checkpoint(const struct model_config *c,
                                    const struct checkpoint *checkpoint, struct error *e)
{
    struct placement whole = layout_whole(c);
    struct check k = {.config = c, .checkpoint = checkpoint, .e = e};
    k.used = calloc((size_t) checkpoint_n_tensors(checkpoint) + 1, sizeof *k.used);
    if (k.used == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory to check the checkpoint");
    enum status status = layout_walk(c, &whole, check_slice, &k);
    if (status == OK) status = check_unused(&k);
    free(k.used);
    return status;
}
