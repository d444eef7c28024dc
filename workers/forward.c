#include "workers/forward.h"

#include "common/rank_layout.h"
#include "common/row_buckets.h"

#include <limits.h>
#include <string.h>

// The norms of the latents, q_a and kv_a, keep the default of the reference implementations,
// whatever rms_norm_eps is.
static const float LATENT_NORM_EPS = 1e-6f;

enum { SMALL_ROWS = 64 }; // of a step of any kind: its weights are what takes time

_Static_assert(sizeof(struct sampled) == RANK_SAMPLED_BYTES, "the plan counts them");

static struct rank_shape rank_shape(const struct forward *f)
{
    return (struct rank_shape){.config = f->config,
                               .place = f->weights->place,
                               .device = f->backend->kind,
                               .f32 = f->precision == PRECISION_F32,
                               .fp8_kv = f->limits.fp8_kv,
                               .slots = f->limits.slots,
                               .max_blocks = f->limits.max_blocks,
                               .n_blocks = f->limits.n_blocks,
                               .max_rows = f->limits.max_rows,
                               .max_out = f->limits.max_out};
}

// Where the inputs of a step of so many rows lie.
static void place_rows(struct forward *f, int bucket)
{
    int32_t **const arrays[RANK_ROW_ARRAYS] = {&f->inputs.ids, &f->inputs.pos, &f->inputs.slot,
                                               &f->inputs.out_rows};
    if (f->rows == NULL) return; // counting
    for (int i = 0; i < RANK_ROW_ARRAYS; i++) {
        *arrays[i] = f->rows + (size_t) i * (size_t) bucket;
    }
}

static void carve_buffers(struct forward *f, const struct rank_shape *shape, struct carve *c,
                          struct carve *host, void **sampler)
{
    void *at[N_RANK_BUFFERS];
    rank_carve(shape, c, host, at, sampler);
    f->kv_layer_bytes = rank_kv_layer_bytes(shape);
    f->kv = at[RANK_KV];
    f->rows = at[RANK_ROWS];
    f->host_rows = at[RANK_HOST_ROWS];
    f->inputs = (struct step_inputs){.blocks = at[RANK_BLOCKS],
                                     .max_blocks = f->limits.max_blocks};
    place_rows(f, f->limits.max_rows);
    f->x = at[RANK_X];
    f->h = at[RANK_H];
    f->q_a = at[RANK_Q_A];
    f->q_a_normed = at[RANK_Q_A_NORMED];
    f->q = at[RANK_Q];
    f->c = at[RANK_C];
    f->cos_sin = at[RANK_COS_SIN];
    f->q_abs = at[RANK_Q_ABS];
    f->o_lat = at[RANK_O_LAT];
    f->o_v = at[RANK_O_V];
    f->y = at[RANK_Y];
    f->y_shared = at[RANK_Y_SHARED];
    f->gate = at[RANK_GATE];
    f->up = at[RANK_UP];
    f->act = at[RANK_ACT];
    f->chosen = at[RANK_CHOSEN];
    f->expert_weight = at[RANK_EXPERT_WEIGHT];
    f->out_x = at[RANK_OUT_X];
    f->out_h = at[RANK_OUT_H];
    f->out_slot = at[RANK_OUT_SLOT];
    f->out_pos = at[RANK_OUT_POS];
    f->sampled = at[RANK_SAMPLED];
    f->logits = at[RANK_LOGITS];
    f->on_device = at[RANK_SAMPLER];
    f->comm_memory = at[RANK_COMM];
    f->comm_pinned = at[RANK_COMM_PINNED];
    if (at[RANK_SCRATCH] == NULL) return;
    struct scratch_shape scratch = rank_scratch_shape(shape);
    f->backend->set_scratch(f->device, &scratch, at[RANK_SCRATCH]);
}

// A decode step has at most a row of each slot.
static int most_recorded(const struct backend *backend, const struct comm *comm,
                         const struct step_limits *limits)
{
    if (!backend->records || comm == NULL || (comm->tp > 1 && !comm->ops->recordable)) return 0;
    return limits->slots < limits->max_rows ? limits->slots : limits->max_rows;
}

void forward_layout(struct forward *f, const struct weights *weights, const struct backend *backend,
                    struct device *device, struct comm *comm, struct comm *host_comm,
                    enum precision precision, const struct step_limits *limits,
                    struct carve *carve, struct carve *host)
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
    struct rank_shape shape = rank_shape(f);
    void *memory;
    carve_buffers(f, &shape, carve, host, &memory);
    if (memory == NULL) return;
    struct sampler_shape sampler = rank_sampler_shape(&shape);
    f->sampler = sampler_init(memory, &sampler, backend, device, f->on_device, host_comm);
}

// --- layers

// Rows [first, first + n), by latents.
static void attend_rows(struct forward *f, const struct layer *l, const struct kv_layer *kv,
                        int first, int n)
{
    const struct attention_shape *a = &f->attention;
    struct step_inputs in = f->inputs;
    size_t row = (size_t) first, n_heads = (size_t) a->n_heads;
    int heads = a->n_heads, q_head = a->nope + a->rope, latent = a->kv_lora, v = a->v;
    float *q = f->q + row * n_heads * (size_t) q_head;
    float *q_abs = f->q_abs + row * n_heads * (size_t) latent;
    float *o_lat = f->o_lat + row * n_heads * (size_t) latent;
    float *o_v = f->o_v + row * n_heads * (size_t) v;
    in.pos += first;
    in.slot += first;
    f->backend->gemm_heads(f->device, l->uk, heads, q, heads * q_head, q_head, q_abs,
                           heads * latent, latent, n);
    f->backend->mla(f->device, a, q_abs, q + a->nope, heads * q_head, q_head, &in, kv, o_lat, n);
    f->backend->gemm_heads(f->device, l->uv, heads, o_lat, heads * latent, latent, o_v, heads * v,
                           v, n);
}

// Long runs of the step one by one where the device has a way of its own for them, what is between
// them at once. `s` NULL: all n rows by latents.
static void attend(struct forward *f, const struct layer *l, const struct kv_layer *kv,
                   const struct step *s, int n)
{
    const struct backend *b = f->backend;
    const struct attention_shape *a = &f->attention;
    int least = b->run_least != NULL ? b->run_least(f->device, a) : INT_MAX;
    int first = 0, row = 0, q_head = a->nope + a->rope; // rows before `first` are done
    for (int i = 0; s != NULL && i < s->n_runs; row += s->runs[i++].n) {
        const struct step_run *r = &s->runs[i];
        if (r->n < least) continue;
        if (row > first) attend_rows(f, l, kv, first, row - first);
        struct attention_run run = {r->slot, r->pos, r->n};
        size_t heads = (size_t) row * (size_t) a->n_heads;
        b->mla_run(f->device, a, f->q + heads * (size_t) q_head, a->n_heads * q_head, q_head,
                   l->uk, l->uv, &run, &f->inputs, kv, f->o_v + heads * (size_t) a->v,
                   a->n_heads * a->v);
        first = row + r->n;
    }
    if (n > first) attend_rows(f, l, kv, first, n - first);
}

// y = attention of h.
static void attention(struct forward *f, const struct layer *l, const struct kv_layer *kv,
                      const struct step *s, int n)
{
    const struct model_config *m = f->config;
    const struct backend *b = f->backend;
    struct device *d = f->device;
    int hidden = m->hidden_size, heads = f->attention.n_heads;
    int nope = m->qk_nope_head_dim, rope = m->qk_rope_head_dim;
    int latent = m->kv_lora_rank, v = m->v_head_dim, q_head = nope + rope;

    if (m->q_lora_rank > 0) {
        b->gemm_pair(d, &l->q_a, &l->kv_a, f->h, hidden, f->q_a, m->q_lora_rank, f->c,
                     latent + rope, n);
        b->latents(d, &f->attention, f->q_a, l->q_a_norm, m->q_lora_rank, f->q_a_normed, f->c,
                   l->kv_a_norm, f->cos_sin, &f->inputs, kv, n);
        b->gemm(d, &l->q, f->q_a_normed, m->q_lora_rank, f->q, heads * q_head, n);
    } else {
        b->gemm(d, &l->kv_a, f->h, hidden, f->c, latent + rope, n);
        b->kv_write(d, &f->attention, f->c, l->kv_a_norm, f->cos_sin, &f->inputs, kv, n);
        b->gemm(d, &l->q, f->h, hidden, f->q, heads * q_head, n);
    }
    b->rope(d, f->q + nope, heads * q_head, q_head, heads, rope, f->cos_sin, n);
    attend(f, l, kv, s, n);
    b->gemm(d, &l->o, f->o_v, heads * v, f->y, hidden, n);
}

static void gated(struct forward *f, const struct layer *l, float *y, int n)
{
    const struct backend *b = f->backend;
    int hidden = f->config->hidden_size, width = l->gate.n;
    b->gemm_pair(f->device, &l->gate, &l->up, f->h, hidden, f->gate, width, f->up, width, n);
    b->swiglu(f->device, f->gate, f->up, f->act, width, n);
    b->gemm(f->device, &l->down, f->act, width, y, hidden, n);
}

// y = the shared and the routed experts of h in one; false: the device does not take them so.
static bool all_experts(struct forward *f, const struct layer *l, int n)
{
    const struct model_config *m = f->config;
    struct expert shared = {l->gate, l->up, l->down};
    return f->backend->moe_shared != NULL &&
           f->backend->moe_shared(f->device, l->experts, &shared, m->n_routed_experts,
                                  m->n_experts_per_token, f->h, f->chosen, f->expert_weight,
                                  f->inputs.pos, f->y, n);
}

// y = the FFN of h.
static void feed_forward(struct forward *f, const struct layer *l, int n)
{
    const struct model_config *m = f->config;
    const struct backend *b = f->backend;
    if (l->dense) {
        gated(f, l, f->y, n);
        return;
    }
    bool shared = m->n_shared_experts > 0;
    b->route(f->device, &l->router, f->h, f->chosen, f->expert_weight, n);
    if (shared && all_experts(f, l, n)) return;
    if (shared) {
        if (b->branch != NULL) b->branch(f->device);
        gated(f, l, f->y_shared, n);
        if (b->branch != NULL) b->resume(f->device);
    }
    b->moe(f->device, l->experts, m->n_routed_experts, m->n_experts_per_token, f->h, f->chosen,
           f->expert_weight, f->inputs.pos, f->y, n);
    if (shared) {
        if (b->branch != NULL) b->join(f->device);
        b->add(f->device, f->y, f->y_shared, (size_t) n * (size_t) m->hidden_size);
    }
}

// x += y of all ranks together, then h = x normed for what follows; `norm` NULL: nothing does.
static enum status end_part(struct forward *f, int layer, const float *norm, int n, struct error *e)
{
    const struct backend *b = f->backend;
    int hidden = f->config->hidden_size;
    size_t values = (size_t) n * (size_t) hidden;
    enum status status = f->comm->ops->all_reduce(f->comm, f->y, values);
    if (status != OK) return error_set(e, status, NULL, "all-reduce ended in layer %d", layer);
    float eps = (float) f->config->rms_norm_eps;
    if (norm == NULL) b->add(f->device, f->x, f->y, values);
    else b->add_rmsnorm(f->device, f->x, f->y, norm, eps, f->h, hidden, n);
    return OK;
}

static enum status layers(struct forward *f, const struct step *s, int n, struct error *e)
{
    int n_layers = f->weights->place.last - f->weights->place.first;
    const struct layer *l = f->weights->layers, *end = l + n_layers;
    int hidden = f->config->hidden_size;
    f->backend->rope_angles(f->device, f->weights->inv_freq, f->weights->rope_multiplier,
                            f->config->qk_rope_head_dim, f->inputs.pos, f->cos_sin, n);
    if (n_layers == 0) return OK;
    f->backend->rmsnorm(f->device, f->x, hidden, l->input_norm, (float) f->config->rms_norm_eps,
                        f->h, hidden, n);
    for (int i = 0; l < end; i++, l++) {
        struct kv_layer kv = forward_kv_layer(f, i);
        attention(f, l, &kv, s, n);
        try(end_part(f, i, l->post_norm, n, e));
        feed_forward(f, l, n);
        try(end_part(f, i, l + 1 < end ? l[1].input_norm : NULL, n, e));
    }
    return OK;
}

// What a recorded step replays (`s` NULL: none of its values), on the head from ids, else from
// activations.
static enum status body(struct forward *f, const struct step *s, int n, struct error *e)
{
    const struct weights *w = f->weights;
    if (w->place.head) {
        f->backend->embed(f->device, w->embed, w->embed_dtype, (int) w->vocab.begin,
                          (int) w->vocab.n, f->config->hidden_size, f->inputs.ids, f->x, n);
        size_t values = (size_t) n * (size_t) f->config->hidden_size;
        enum status status = f->comm->ops->all_reduce(f->comm, f->x, values);
        if (status != OK) return error_set(e, status, NULL, "all-reduce of the embedding ended");
    }
    return layers(f, s, n, e);
}

// Steps with several rows of a sequence are recorded only while they are small: the kernels of
// larger ones take longer than it takes to put them on the stream, and padding would cost.
static bool is_recorded(const struct forward *f, const struct step *s)
{
    return s->n_rows <= f->most_recorded && (s->n_rows == s->n_runs || s->n_rows <= SMALL_ROWS);
}

static enum status replay(struct forward *f, int bucket, struct error *e)
{
    enum status status = OK;
    if (f->backend->graph_begin(f->device, bucket)) {
        status = body(f, NULL, bucket, e);
        f->backend->graph_end(f->device, bucket);
    }
    if (status == OK) f->backend->graph_launch(f->device, bucket);
    return status;
}

// --- the step's ends

// Puts `n` values at array `i` of the rows, with `padding` behind them.
static void put_rows(struct forward *f, int bucket, int i, const int32_t *values, int n,
                     int32_t padding)
{
    int32_t *to = f->host_rows + (size_t) i * (size_t) bucket;
    if (n > 0) memcpy(to, values, (size_t) n * sizeof *to);
    for (int row = n; row < bucket; row++) to[row] = padding;
}

// Brings the step's rows, padded to the bucket, to the device.
static void upload_rows(struct forward *f, const struct step *s, int bucket)
{
    put_rows(f, bucket, 0, s->ids, s->n_rows, -1);
    put_rows(f, bucket, 1, s->pos, s->n_rows, -1);
    put_rows(f, bucket, 2, s->slot, s->n_rows, 0);
    put_rows(f, bucket, 3, s->out_rows, s->n_out, 0);
    place_rows(f, bucket);
    f->backend->upload(f->device, f->rows, f->host_rows,
                       RANK_ROW_ARRAYS * (size_t) bucket * sizeof *f->rows);
}

// Brings the block tables of sequences that begin with the step.
static void upload_tables(struct forward *f, const struct step *s)
{
    const struct backend *b = f->backend;
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

static void put_logits(struct forward *f, int n_out)
{
    const struct model_config *m = f->config;
    const struct backend *b = f->backend;
    b->gather(f->device, f->x, f->inputs.out_rows, m->hidden_size, f->out_x, n_out);
    b->rmsnorm(f->device, f->out_x, m->hidden_size, f->weights->final_norm,
               (float) m->rms_norm_eps, f->out_h, m->hidden_size, n_out);
    b->gemm(f->device, &f->weights->lm_head, f->out_h, m->hidden_size, f->logits,
            (int) f->weights->vocab.n, n_out);
}

bool forward_overlaps(const struct forward *f)
{
    const struct placement *place = &f->weights->place;
    return f->backend->step_end != NULL && !(place->tail && place->tp > 1);
}

void forward_ahead(struct forward *f, const struct step *s, const void *in)
{
    size_t values = (size_t) s->n_rows * (size_t) f->config->hidden_size;
    if (f->weights->place.head || f->backend->import_ahead == NULL) return;
    f->backend->import_ahead(f->device, in, values);
}

void forward_logits(struct forward *f, const struct step *s)
{
    if (f->weights->place.tail && s->n_out > 0) put_logits(f, s->n_out);
}

enum status forward_choose(struct forward *f, const struct step *s, struct error *e)
{
    if (!f->weights->place.tail) return OK;
    feed_sampler(f, s);
    if (s->n_out == 0) return OK;
    for (int i = 0; i < s->n_out; i++) {
        f->out_slot[i] = s->slot[s->out_rows[i]];
        f->out_pos[i] = s->pos[s->out_rows[i]] + 1; // of the token being chosen
    }
    return sampler_run(f->sampler, f->logits, s->n_out, f->out_slot, f->out_pos, f->sampled, e);
}

enum status forward_prepare(struct forward *f, struct error *e)
{
    struct step padding = {0};
    int buckets[ROW_BUCKETS_MAX], n;
    f->most_recorded = most_recorded(f->backend, f->comm, &f->limits); // the comm is attached
    if (!f->backend->records) return OK;
    n = row_buckets(f->limits.max_rows, buckets);
    for (int i = 0; i < n; i++) {
        upload_rows(f, &padding, buckets[i]);
        struct step_run run = {.n = buckets[i]}; // of the first slot, wherever its blocks are
        bool has_room = run.n <= f->limits.max_blocks * KV_BLOCK_ROWS;
        padding.runs = &run;
        padding.n_runs = 1;
        try(body(f, has_room ? &padding : NULL, buckets[i], e));
        try(body(f, NULL, buckets[i], e));
        if (f->weights->place.tail && buckets[i] <= f->limits.max_out) put_logits(f, buckets[i]);
    }
    // The buffers hold the rows of the largest bucket; a step has up to max_out of them.
    if (f->weights->place.tail && n > 0 && f->limits.max_out <= buckets[n - 1]) {
        put_logits(f, f->limits.max_out);
    }
    n = row_buckets(f->most_recorded, buckets);
    for (int i = 0; i < n; i++) {
        upload_rows(f, &padding, buckets[i]);
        try(replay(f, buckets[i], e));
    }
    return f->backend->sync(f->device, e);
}

enum status forward_begin(struct forward *f, const struct step *s, const void *in, void *out,
                          struct error *e)
{
    const struct weights *w = f->weights;
    int n = s->n_rows;
    size_t values = (size_t) n * (size_t) f->config->hidden_size;
    upload_tables(f, s);
    if (n > 0) {
        bool recorded = is_recorded(f, s);
        int bucket = recorded ? row_bucket(n, f->most_recorded) : n;
        upload_rows(f, s, bucket);
        if (!w->place.head) f->backend->import_act(f->device, f->x, in, values);
        try(recorded ? replay(f, bucket, e) : body(f, s, n, e));
    }
    if (!w->place.tail && out != NULL) f->backend->export_act(f->device, out, f->x, values);
    return OK;
}

enum status forward_run(struct forward *f, const struct step *s, const void *in, void *out,
                        struct error *e)
{
    try(forward_begin(f, s, in, out, e));
    forward_logits(f, s);
    try(forward_choose(f, s, e));
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
