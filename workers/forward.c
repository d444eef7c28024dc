#include "workers/forward.h"

#include <string.h>

// The norms of the latents, q_a and kv_a, keep the default of the reference implementations,
// whatever rms_norm_eps is.
static const float LATENT_NORM_EPS = 1e-6f;

uint64_t forward_kv_block_bytes(const struct model_config *c, int n_layers, enum precision p)
{
    uint64_t value = p == PRECISION_F32 ? 4 : 2;
    return (uint64_t) n_layers * KV_BLOCK_ROWS * (uint64_t) model_kv_width(c) * value;
}

static int widest_ffn(const struct weights *w)
{
    int widest = 1;
    for (int i = 0; i < w->place.last - w->place.first; i++) {
        if (w->layers[i].gate.n > widest) widest = w->layers[i].gate.n;
    }
    return widest;
}

static void carve_buffers(struct forward *f, struct carve *c)
{
    const struct model_config *m = f->config;
    const struct weights *w = f->weights;
    uint64_t rows = (uint64_t) f->limits.max_rows, out = (uint64_t) f->limits.max_out;
    uint64_t hidden = (uint64_t) m->hidden_size, heads = (uint64_t) w->n_heads;
    uint64_t q_head = (uint64_t) (m->qk_nope_head_dim + m->qk_rope_head_dim);
    uint64_t ffn = (uint64_t) widest_ffn(w), chosen = (uint64_t) m->n_experts_per_token;
    int n_layers = w->place.last - w->place.first;

    f->kv_layer_bytes =
        (uint64_t) f->limits.n_blocks * forward_kv_block_bytes(m, 1, f->precision);
    carve_line(c, LEDGER_KV);
    f->kv = carve_take(c, f->kv_layer_bytes * (uint64_t) n_layers);
    carve_line(c, LEDGER_ACTIVATIONS);
    f->inputs.ids = carve_take(c, rows * 4);
    f->inputs.pos = carve_take(c, rows * 4);
    f->inputs.slot = carve_take(c, rows * 4);
    f->inputs.out_rows = carve_take(c, rows * 4);
    f->inputs.blocks =
        carve_take(c, (uint64_t) f->limits.slots * (uint64_t) f->limits.max_blocks * 4);
    f->inputs.max_blocks = f->limits.max_blocks;
    f->x = carve_take(c, rows * hidden * 4);
    f->h = carve_take(c, rows * hidden * 4);
    f->q_a = carve_take(c, rows * (uint64_t) m->q_lora_rank * 4);
    f->q_a_normed = carve_take(c, rows * (uint64_t) m->q_lora_rank * 4);
    f->q = carve_take(c, rows * heads * q_head * 4);
    f->c = carve_take(c, rows * (uint64_t) model_kv_width(m) * 4);
    f->cos_sin = carve_take(c, rows * (uint64_t) m->qk_rope_head_dim * 4);
    f->q_abs = carve_take(c, rows * heads * (uint64_t) m->kv_lora_rank * 4);
    f->o_lat = carve_take(c, rows * heads * (uint64_t) m->kv_lora_rank * 4);
    f->o_v = carve_take(c, rows * heads * (uint64_t) m->v_head_dim * 4);
    f->y = carve_take(c, rows * hidden * 4);
    f->y_shared = carve_take(c, rows * hidden * 4);
    f->gate = carve_take(c, rows * ffn * 4);
    f->up = carve_take(c, rows * ffn * 4);
    f->act = carve_take(c, rows * ffn * 4);
    f->chosen = carve_take(c, rows * chosen * 4);
    f->expert_weight = carve_take(c, rows * chosen * 4);
    if (!w->place.tail) return;
    f->out_x = carve_take(c, out * hidden * 4);
    f->out_h = carve_take(c, out * hidden * 4);
    f->out_slot = carve_take(c, out * 4);
    f->out_pos = carve_take(c, out * 4);
    f->sampled = carve_take(c, out * sizeof *f->sampled);
    carve_line(c, LEDGER_LOGITS);
    f->logits = carve_take(c, out * (uint64_t) w->vocab.n * 4);
}

static struct scratch_shape scratch_shape(const struct forward *f)
{
    const struct model_config *m = f->config;
    const struct weights *w = f->weights;
    return (struct scratch_shape){.max_rows = f->limits.max_rows,
                                  .max_out = f->limits.max_out,
                                  .f32 = f->precision == PRECISION_F32,
                                  .hidden = m->hidden_size,
                                  .intermediate = widest_ffn(w),
                                  .moe_intermediate = m->moe_intermediate_size / w->place.tp,
                                  .n_experts = m->n_routed_experts,
                                  .n_chosen = m->n_experts_per_token,
                                  .n_heads = w->n_heads,
                                  .kv_lora = m->kv_lora_rank,
                                  .rope = m->qk_rope_head_dim,
                                  .nope = m->qk_nope_head_dim,
                                  .v = m->v_head_dim,
                                  .q_lora = m->q_lora_rank,
                                  .vocab = (int) w->vocab.n,
                                  .max_context = f->limits.max_blocks * KV_BLOCK_ROWS,
                                  .slots = f->limits.slots,
                                  .tp = w->place.tp};
}

struct sampler_shape forward_sampler_shape(const struct model_config *m,
                                           const struct step_limits *limits, int rank, int tp)
{
    struct range vocab = layout_part(m->vocab_size, rank, tp);
    return (struct sampler_shape){.slots = limits->slots,
                                  .max_context = limits->max_blocks * KV_BLOCK_ROWS,
                                  .max_out = limits->max_out,
                                  .vocab_begin = (int) vocab.begin,
                                  .vocab_n = (int) vocab.n,
                                  .vocab_size = m->vocab_size,
                                  .tp = tp};
}

enum status forward_layout(struct forward *f, const struct weights *weights,
                           const struct backend *backend, struct device *device, struct comm *comm,
                           enum precision precision, const struct step_limits *limits,
                           struct carve *carve, struct error *e)
{
    const struct model_config *m = weights->config;
    *f = (struct forward){.config = m,
                          .weights = weights,
                          .backend = backend,
                          .device = device,
                          .comm = comm,
                          .limits = *limits,
                          .precision = precision,
                          .attention = {.n_heads = weights->n_heads,
                                        .nope = m->qk_nope_head_dim,
                                        .rope = m->qk_rope_head_dim,
                                        .v = m->v_head_dim,
                                        .kv_lora = m->kv_lora_rank,
                                        .softmax_scale = (float) model_softmax_scale(m),
                                        .norm_eps = LATENT_NORM_EPS}};
    carve_buffers(f, carve);
    struct scratch_shape shape = scratch_shape(f);
    carve_line(carve, LEDGER_SCRATCH);
    void *scratch = carve_take(carve, device_sizes(backend->kind)->scratch(&shape));
    if (scratch != NULL) backend->set_scratch(device, &shape, scratch);
    if (!weights->place.tail) return OK;
    struct sampler_shape sampler = forward_sampler_shape(m, limits, weights->place.tp_rank,
                                                         weights->place.tp);
    struct sampler_parts parts;
    void *memory = carve->base == NULL ? NULL : carve->base + carve->used;
    sampler_carve(&parts, &sampler, carve);
    if (memory != NULL) f->sampler = sampler_init(memory, &sampler, backend, device, comm);
    (void) e;
    return OK;
}

// --- layers

static void attention(struct forward *f, const struct layer *l, const struct kv_layer *kv, int n)
{
    const struct model_config *m = f->config;
    const struct backend *b = f->backend;
    struct device *d = f->device;
    int hidden = m->hidden_size, heads = f->attention.n_heads;
    int nope = m->qk_nope_head_dim, rope = m->qk_rope_head_dim;
    int latent = m->kv_lora_rank, v = m->v_head_dim, q_head = nope + rope;

    b->rmsnorm(d, f->x, hidden, l->input_norm, (float) m->rms_norm_eps, f->h, hidden, n);
    if (m->q_lora_rank > 0) {
        b->gemm(d, &l->q_a, f->h, hidden, f->q_a, m->q_lora_rank, n);
        b->rmsnorm(d, f->q_a, m->q_lora_rank, l->q_a_norm, LATENT_NORM_EPS, f->q_a_normed,
                   m->q_lora_rank, n);
        b->gemm(d, &l->q, f->q_a_normed, m->q_lora_rank, f->q, heads * q_head, n);
    } else {
        b->gemm(d, &l->q, f->h, hidden, f->q, heads * q_head, n);
    }
    b->gemm(d, &l->kv_a, f->h, hidden, f->c, latent + rope, n);
    b->rope(d, f->q + nope, heads * q_head, q_head, heads, rope, f->cos_sin, n);
    b->kv_write(d, &f->attention, f->c, l->kv_a_norm, f->cos_sin, &f->inputs, kv, n);
    b->gemm_heads(d, l->uk, heads, f->q, heads * q_head, q_head, f->q_abs, heads * latent, latent,
                  n);
    b->mla(d, &f->attention, f->q_abs, f->q + nope, heads * q_head, q_head, &f->inputs, kv,
           f->o_lat, n);
    b->gemm_heads(d, l->uv, heads, f->o_lat, heads * latent, latent, f->o_v, heads * v, v, n);
    b->gemm(d, &l->o, f->o_v, heads * v, f->y, hidden, n);
}

static void gated(struct forward *f, const struct layer *l, float *y, int n)
{
    const struct backend *b = f->backend;
    int hidden = f->config->hidden_size, width = l->gate.n;
    b->gemm(f->device, &l->gate, f->h, hidden, f->gate, width, n);
    b->gemm(f->device, &l->up, f->h, hidden, f->up, width, n);
    b->swiglu(f->device, f->gate, f->up, f->act, width, n);
    b->gemm(f->device, &l->down, f->act, width, y, hidden, n);
}

static void feed_forward(struct forward *f, const struct layer *l, int n)
{
    const struct model_config *m = f->config;
    const struct backend *b = f->backend;
    b->rmsnorm(f->device, f->x, m->hidden_size, l->post_norm, (float) m->rms_norm_eps, f->h,
               m->hidden_size, n);
    if (l->dense) {
        gated(f, l, f->y, n);
        return;
    }
    b->route(f->device, &l->router, f->h, f->chosen, f->expert_weight, n);
    b->moe(f->device, l->experts, m->n_routed_experts, m->n_experts_per_token, f->h, f->chosen,
           f->expert_weight, f->inputs.pos, f->y, n);
    if (m->n_shared_experts > 0) {
        gated(f, l, f->y_shared, n);
        b->add(f->device, f->y, f->y_shared, (size_t) n * (size_t) m->hidden_size);
    }
}

static enum status layers(struct forward *f, int n, struct error *e)
{
    size_t values = (size_t) n * (size_t) f->config->hidden_size;
    f->backend->rope_angles(f->device, f->weights->inv_freq, f->weights->rope_multiplier,
                            f->config->qk_rope_head_dim, f->inputs.pos, f->cos_sin, n);
    for (int i = 0; i < f->weights->place.last - f->weights->place.first; i++) {
        const struct layer *l = &f->weights->layers[i];
        struct kv_layer kv = {f->kv + (uint64_t) i * f->kv_layer_bytes, f->limits.n_blocks};
        attention(f, l, &kv, n);
        enum status status = f->comm->ops->all_reduce(f->comm, f->y, values);
        if (status != OK) return error_set(e, status, NULL, "all-reduce ended in layer %d", i);
        f->backend->add(f->device, f->x, f->y, values);
        feed_forward(f, l, n);
        status = f->comm->ops->all_reduce(f->comm, f->y, values);
        if (status != OK) return error_set(e, status, NULL, "all-reduce ended in layer %d", i);
        f->backend->add(f->device, f->x, f->y, values);
    }
    return OK;
}

// --- the step's ends

// Brings the step's rows and its new block tables to the device.
static void upload_inputs(struct forward *f, const struct step *s)
{
    const struct backend *b = f->backend;
    size_t rows = (size_t) s->n_rows;
    b->upload(f->device, f->inputs.ids, s->ids, rows * 4);
    b->upload(f->device, f->inputs.pos, s->pos, rows * 4);
    b->upload(f->device, f->inputs.slot, s->slot, rows * 4);
    b->upload(f->device, f->inputs.out_rows, s->out_rows, (size_t) s->n_out * 4);
    for (int i = 0; i < s->n_opens; i++) {
        const struct step_open *o = &s->opens[i];
        b->upload(f->device, f->inputs.blocks + (size_t) o->slot * (size_t) f->limits.max_blocks,
                  s->blocks + o->first_block, (size_t) o->n_blocks * 4);
    }
}

// The sampler's record of a sequence is every id that passes in ROWS, in order.
static void feed_sampler(struct forward *f, const struct step *s)
{
    for (int i = 0; i < s->n_closes; i++) sampler_close(f->sampler, s->closes[i]);
    for (int i = 0; i < s->n_opens; i++) {
        const struct step_open *o = &s->opens[i];
        sampler_open(f->sampler, o->slot, &o->sampling, o->n_prompt);
    }
    int row = 0;
    for (int i = 0; i < s->n_runs; i++) {
        const struct step_run *r = &s->runs[i];
        sampler_history(f->sampler, r->slot, r->pos, s->ids + row, r->n);
        row += r->n;
    }
}

static enum status tail(struct forward *f, const struct step *s, struct error *e)
{
    const struct model_config *m = f->config;
    const struct backend *b = f->backend;
    feed_sampler(f, s);
    if (s->n_out > 0) {
        b->gather(f->device, f->x, f->inputs.out_rows, m->hidden_size, f->out_x, s->n_out);
        b->rmsnorm(f->device, f->out_x, m->hidden_size, f->weights->final_norm,
                   (float) m->rms_norm_eps, f->out_h, m->hidden_size, s->n_out);
        b->gemm(f->device, &f->weights->lm_head, f->out_h, m->hidden_size, f->logits,
                (int) f->weights->vocab.n, s->n_out);
        for (int i = 0; i < s->n_out; i++) {
            f->out_slot[i] = s->slot[s->out_rows[i]];
            f->out_pos[i] = s->pos[s->out_rows[i]] + 1; // of the token being chosen
        }
        try(sampler_run(f->sampler, f->logits, s->n_out, f->out_slot, f->out_pos, f->sampled, e));
    }
    return OK;
}

enum status forward_run(struct forward *f, const struct step *s, const void *in, void *out,
                        struct error *e)
{
    const struct weights *w = f->weights;
    int n = s->n_rows;
    size_t values = (size_t) n * (size_t) f->config->hidden_size;
    upload_inputs(f, s);
    if (n > 0) {
        if (w->place.head) {
            f->backend->embed(f->device, w->embed, w->embed_dtype, (int) w->vocab.begin,
                              (int) w->vocab.n, f->config->hidden_size, f->inputs.ids, f->x, n);
            enum status status = f->comm->ops->all_reduce(f->comm, f->x, values);
            if (status != OK)
                return error_set(e, status, NULL, "all-reduce of the embedding ended");
        } else {
            f->backend->import_act(f->device, f->x, in, values);
        }
        try(layers(f, n, e));
    }
    if (w->place.tail) {
        try(tail(f, s, e));
    } else if (out != NULL) {
        f->backend->export_act(f->device, out, f->x, values);
    }
    return f->backend->sync(f->device, e);
}

void forward_tokens(const struct forward *f, const struct step *s, struct step_token *tokens)
{
    for (int i = 0; i < s->n_out; i++) {
        const struct sampled *c = &f->sampled[i];
        struct step_token *t = &tokens[i];
        *t = (struct step_token){.slot = f->out_slot[i],
                                 .pos = f->out_pos[i] - 1,
                                 .id = c->id,
                                 .logprob = c->logprob,
                                 .n_top = c->n_top};
        memcpy(t->top_id, c->top_id, sizeof t->top_id);
        memcpy(t->top_logprob, c->top_logprob, sizeof t->top_logprob);
    }
}

void forward_deinit(struct forward *f) { *f = (struct forward){0}; }
