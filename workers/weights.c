#include "workers/weights.h"

#include "common/packed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// --- layout: shapes, then addresses

struct layouter {
    struct weights *w;
    const struct checkpoint *checkpoint;
    const struct backend *backend;
    struct carve *carve;
    struct error *e;
};

static const struct tensor *find(const struct checkpoint *c, const struct slice *s, struct error *e)
{
    const struct tensor *t = checkpoint_find(c, s->name);
    if (t == NULL) {
        error_set(e, ERR_INPUT, "bad_checkpoint", "tensor %s is missing from the checkpoint",
                  s->name);
        return NULL;
    }
    int64_t rows = t->n_dims > 0 ? t->shape[0] : 1;
    int64_t cols = t->n_dims > 1 ? t->shape[1] : 1;
    if (t->n_dims > 2 || rows != s->rows || cols != s->cols) {
        error_set(e, ERR_INPUT, "bad_checkpoint",
                  "tensor %s has shape [%lld, %lld], but config.json makes it [%lld, %lld]",
                  s->name, (long long) rows, (long long) cols, (long long) s->rows,
                  (long long) s->cols);
        return NULL;
    }
    return t;
}

struct layer *weights_layer(struct weights *w, const struct slice *s)
{
    return s->layer < 0 ? NULL : &w->layers[s->layer - w->place.first];
}

struct matrix *weights_matrix(struct weights *w, const struct slice *s)
{
    struct layer *l = weights_layer(w, s);
    switch (s->role) {
    case ROLE_LM_HEAD: return &w->lm_head;
    case ROLE_Q:
    case ROLE_Q_B: return &l->q;
    case ROLE_Q_A: return &l->q_a;
    case ROLE_KV_A: return &l->kv_a;
    case ROLE_O: return &l->o;
    case ROLE_GATE:
    case ROLE_SHARED_GATE: return &l->gate;
    case ROLE_UP:
    case ROLE_SHARED_UP: return &l->up;
    case ROLE_DOWN:
    case ROLE_SHARED_DOWN: return &l->down;
    case ROLE_EXPERT_GATE: return &l->experts[s->expert].gate;
    case ROLE_EXPERT_UP: return &l->experts[s->expert].up;
    case ROLE_EXPERT_DOWN: return &l->experts[s->expert].down;
    default: return NULL;
    }
}

const float **weights_vector(struct weights *w, const struct slice *s)
{
    struct layer *l = weights_layer(w, s);
    switch (s->role) {
    case ROLE_FINAL_NORM: return &w->final_norm;
    case ROLE_INPUT_NORM: return &l->input_norm;
    case ROLE_POST_NORM: return &l->post_norm;
    case ROLE_Q_A_NORM: return &l->q_a_norm;
    case ROLE_KV_A_NORM: return &l->kv_a_norm;
    case ROLE_ROUTER: return &l->router.weight;
    case ROLE_ROUTER_BIAS: return &l->router.bias;
    default: return NULL;
    }
}

static struct matrix matrix_at(const struct matrix_shape *shape, void *data, float *scales)
{
    return (struct matrix){.dtype = shape->dtype,
                           .n = shape->n,
                           .k = shape->k,
                           .row_phase = shape->row_phase,
                           .col_phase = shape->col_phase,
                           .data = data,
                           .scales = scales};
}

// Where a part of a slice lies: in the field that stands for it.
static void place_part(void *arg, const struct slice *s, int i, const struct matrix_shape *shape,
                       void *data, float *scales)
{
    struct layouter *l = arg;
    const float **vector = weights_vector(l->w, s);
    struct matrix *matrix = weights_matrix(l->w, s);
    if (vector != NULL) {
        *vector = data;
    } else if (s->role == ROLE_EMBED) {
        l->w->embed = data;
    } else if (s->role == ROLE_KV_B) {
        struct layer *layer = weights_layer(l->w, s);
        *(i % 2 == 0 ? &layer->uk[i / 2] : &layer->uv[i / 2]) = matrix_at(shape, data, scales);
    } else {
        check(matrix != NULL, "role %d has no place", (int) s->role);
        *matrix = matrix_at(shape, data, scales);
    }
}

static enum status lay_slice(const struct slice *s, void *arg)
{
    struct layouter *l = arg;
    enum dtype type = layout_implied_type(l->w->config, s);
    if (l->checkpoint != NULL) {
        const struct tensor *t = find(l->checkpoint, s, l->e);
        if (t == NULL) return ERR_INPUT;
        type = t->dtype;
    }
    if (type == DTYPE_OTHER || (type == DTYPE_F8_E4M3 && !s->quantized)) {
        return error_set(l->e, ERR_UNSUPPORTED, "bad_checkpoint",
                         "tensor %s has a type that isn't supported here (%s)", s->name,
                         dtype_name(type));
    }
    if (s->role == ROLE_EMBED) l->w->embed_dtype = packed_type(type);
    packed_carve(l->backend->kind, l->w->config, s, type, l->carve, place_part, l);
    return OK;
}

static enum status create_tables(struct weights *w, struct error *e)
{
    const struct model_config *c = w->config;
    size_t n = (size_t) (w->place.last - w->place.first);
    size_t heads = (size_t) w->n_heads, experts = (size_t) c->n_routed_experts;
    w->layers = calloc(n > 0 ? n : 1, sizeof *w->layers);
    size_t bytes = n * (2 * heads * sizeof(struct matrix) + experts * sizeof(struct expert));
    w->tables = calloc(1, bytes > 0 ? bytes : 1);
    if (w->layers == NULL || w->tables == NULL) {
        weights_deinit(w);
        return error_set(e, ERR_NOMEM, NULL, "no memory for the tables of %zu layers", n);
    }
    struct matrix *matrices = w->tables;
    struct expert *expert_table = (struct expert *) (matrices + n * 2 * heads);
    for (size_t i = 0; i < n; i++) {
        struct layer *l = &w->layers[i];
        l->uk = matrices + i * 2 * heads;
        l->uv = l->uk + heads;
        l->dense = w->place.first + (int) i < c->n_dense_layers;
        l->experts = l->dense ? NULL : expert_table + i * experts;
        l->router = (struct router){.n_experts = c->n_routed_experts,
                                    .hidden = c->hidden_size,
                                    .n_groups = c->n_expert_groups,
                                    .n_groups_kept = c->n_groups_per_token,
                                    .n_chosen = c->n_experts_per_token,
                                    .normalize = c->norm_topk_prob,
                                    .scaling = (float) c->routed_scaling_factor};
    }
    return OK;
}

enum status weights_layout(struct weights *w, const struct model_config *config,
                           const struct placement *place, const struct checkpoint *checkpoint,
                           const struct backend *backend, struct carve *carve, struct error *e)
{
    if (w->layers == NULL) {
        *w = (struct weights){.config = config,
                              .place = *place,
                              .n_heads = config->n_heads / place->tp,
                              .vocab = layout_part(config->vocab_size, place->tp_rank, place->tp)};
        try(create_tables(w, e));
    }
    struct layouter l = {w, checkpoint, backend, carve, e};
    w->inv_freq = packed_carve_frequencies(config, carve);
    return layout_walk(config, place, lay_slice, &l);
}

void weights_deinit(struct weights *w)
{
    free(w->layers);
    free(w->tables);
    *w = (struct weights){0};
}
