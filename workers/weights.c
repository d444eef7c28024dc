#include "workers/weights.h"

#include "common/packed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STAGING_BYTES = 8 * 1024 * 1024, PANEL_ROWS = 16 };

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

static struct layer *layer_of(struct weights *w, const struct slice *s)
{
    return s->layer < 0 ? NULL : &w->layers[s->layer - w->place.first];
}

// The matrix that a slice fills; NULL for vectors, the embedding, the router and kv_b.
static struct matrix *matrix_of(struct weights *w, const struct slice *s)
{
    struct layer *l = layer_of(w, s);
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

// The f32 vector that a slice fills; NULL for everything else.
static const float **vector_of(struct weights *w, const struct slice *s)
{
    struct layer *l = layer_of(w, s);
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
    const float **vector = vector_of(l->w, s);
    struct matrix *matrix = matrix_of(l->w, s);
    if (vector != NULL) {
        *vector = data;
    } else if (s->role == ROLE_EMBED) {
        l->w->embed = data;
    } else if (s->role == ROLE_KV_B) {
        struct layer *layer = layer_of(l->w, s);
        *(i % 2 == 0 ? &layer->uk[i / 2] : &layer->uv[i / 2]) = matrix_at(shape, data, scales);
    } else {
        check(matrix != NULL, "role %d has no place", (int) s->role);
        *matrix = matrix_at(shape, data, scales);
    }
}

static enum status lay_slice(const struct slice *s, void *arg)
{
    struct layouter *l = arg;
    const struct tensor *t = find(l->checkpoint, s, l->e);
    if (t == NULL) return ERR_INPUT;
    if (t->dtype == DTYPE_OTHER || (t->dtype == DTYPE_F8_E4M3 && !s->quantized)) {
        return error_set(l->e, ERR_UNSUPPORTED, "bad_checkpoint",
                         "tensor %s has a type that isn't supported here (%s)", s->name,
                         dtype_name(t->dtype));
    }
    if (s->role == ROLE_EMBED) l->w->embed_dtype = packed_type(t->dtype);
    packed_carve(l->backend->kind, l->w->config, s, t->dtype, l->carve, place_part, l);
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

// --- load: bytes

struct loader {
    struct weights *w;
    const struct checkpoint *checkpoint;
    const struct backend *backend;
    struct device *device;
    _Atomic uint64_t *loaded;
    const atomic_bool *stop;
    char *staging, *turned; // STAGING_BYTES or one panel, whichever is more
    size_t staging_bytes;
    struct error *e;
};

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t) (h & 0x8000) << 16, exponent = (h >> 10) & 0x1f,
             mantissa = h & 0x3ff;
    float magnitude;
    if (exponent == 0) {
        magnitude = (float) mantissa * 0x1p-24f;
    } else {
        uint32_t bits = (exponent == 31 ? 0xffu : exponent + 112) << 23 | mantissa << 13;
        memcpy(&magnitude, &bits, 4);
    }
    return sign ? -magnitude : magnitude;
}

// Any float type of the checkpoint to f32, n values; `to` may not overlap `from`.
static void to_f32(float *to, const void *from, enum dtype dtype, size_t n)
{
    const uint16_t *half = from;
    for (size_t i = 0; i < n; i++) {
        if (dtype == DTYPE_BF16) {
            uint32_t bits = (uint32_t) half[i] << 16;
            memcpy(&to[i], &bits, 4);
        } else if (dtype == DTYPE_F16) {
            to[i] = half_to_float(half[i]);
        } else {
            memcpy(&to[i], (const char *) from + 4 * i, 4);
        }
    }
}

static void count(struct loader *l, uint64_t bytes)
{
    if (l->loaded != NULL) atomic_fetch_add_explicit(l->loaded, bytes, memory_order_relaxed);
}

static bool stopped(const struct loader *l)
{
    return l->stop != NULL && atomic_load_explicit(l->stop, memory_order_relaxed);
}

// A rectangle of a float tensor as f32 to device memory, through the staging buffers.
static enum status load_f32(struct loader *l, const struct tensor *t, struct range row,
                            struct range col, float *to)
{
    size_t size = dtype_size(t->dtype);
    int64_t most = (int64_t) (l->staging_bytes / sizeof(float)) / (col.n > 0 ? col.n : 1);
    for (int64_t done = 0; done < row.n;) {
        int64_t n = row.n - done < most ? row.n - done : most;
        size_t values = (size_t) (n * col.n);
        try(checkpoint_read_rect(l->checkpoint, t, row.begin + done, n, col.begin, col.n,
                                 l->staging, l->e));
        to_f32((float *) (void *) l->turned, l->staging, t->dtype, values);
        l->backend->upload(l->device, to + done * col.n, l->turned, values * sizeof(float));
        try(l->backend->sync(l->device, l->e)); // the staging buffer is reused
        count(l, values * size);
        done += n;
    }
    return OK;
}

// (rows, cols) elements of `size` bytes -> (cols, rows).
static void transpose(char *to, const char *from, int64_t rows, int64_t cols, size_t size)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) {
            memcpy(to + (size_t) (c * rows + r) * size, from + (size_t) (r * cols + c) * size,
                   size);
        }
    }
}

// The block scales of a rectangle; `turn` stores them transposed (for a transposed matrix).
static enum status load_scales(struct loader *l, const struct tensor *t, struct matrix *m,
                               struct range row, struct range col, bool turn)
{
    char name[TENSOR_NAME_MAX + 16];
    snprintf(name, sizeof name, "%s_scale_inv", t->name);
    const struct tensor *s = checkpoint_find(l->checkpoint, name);
    if (s == NULL) {
        return error_set(l->e, ERR_INPUT, "bad_checkpoint",
                         "tensor %s is FP8, but its scales %s are missing", t->name, name);
    }
    int block = l->w->config->scale_block;
    int64_t want_rows = (t->shape[0] + block - 1) / block;
    int64_t want_cols = (t->shape[1] + block - 1) / block;
    if (s->n_dims != 2 || s->shape[0] != want_rows || s->shape[1] != want_cols ||
        (s->dtype != DTYPE_F32 && s->dtype != DTYPE_BF16)) {
        return error_set(l->e, ERR_INPUT, "bad_checkpoint",
                         "scales %s must be f32 [%lld, %lld]", name, (long long) want_rows,
                         (long long) want_cols);
    }
    struct range blocks = layout_blocks(row, block), across = layout_blocks(col, block);
    if (!turn) return load_f32(l, s, blocks, across, m->scales);
    size_t n = (size_t) (blocks.n * across.n);
    float *flat = malloc(n * 2 * sizeof(float));
    if (flat == NULL) return error_set(l->e, ERR_NOMEM, NULL, "no memory for %zu scales", n);
    enum status status = checkpoint_read_rect(l->checkpoint, s, blocks.begin, blocks.n,
                                              across.begin, across.n, l->staging, l->e);
    if (status == OK) {
        to_f32(flat, l->staging, s->dtype, n);
        transpose((char *) (flat + n), (char *) flat, blocks.n, across.n, sizeof(float));
        l->backend->upload(l->device, m->scales, flat + n, n * sizeof(float));
        status = l->backend->sync(l->device, l->e);
    }
    free(flat);
    return status;
}

// A matrix in panels of whole 16-row tiles.
static enum status load_matrix(struct loader *l, const struct tensor *t, struct matrix *m,
                               struct range row, struct range col)
{
    size_t size = dtype_size(t->dtype);
    size_t row_bytes = (size_t) col.n * (t->dtype == DTYPE_F16 ? 4 : size);
    int64_t most = (int64_t) (l->staging_bytes / (row_bytes * PANEL_ROWS)) * PANEL_ROWS;
    for (int64_t done = 0; done < row.n;) {
        if (stopped(l)) return error_set(l->e, ERR_ABORTED, NULL, "loading was stopped");
        int64_t n = row.n - done < most ? row.n - done : most;
        try(checkpoint_read_rect(l->checkpoint, t, row.begin + done, n, col.begin, col.n,
                                 l->staging, l->e));
        const void *rows = l->staging;
        if (t->dtype == DTYPE_F16) {
            to_f32((float *) (void *) l->turned, l->staging, t->dtype, (size_t) (n * col.n));
            rows = l->turned;
        }
        l->backend->matrix_pack(l->device, m, (int) done, (int) n, rows);
        count(l, (uint64_t) (n * col.n) * size);
        done += n;
    }
    if (m->dtype == DTYPE_F8_E4M3) try(load_scales(l, t, m, row, col, false));
    return OK;
}

// W_UK of one head, turned from (nope, kv_lora) to (kv_lora, nope).
static enum status load_turned(struct loader *l, const struct tensor *t, struct matrix *m,
                               struct range row, struct range col)
{
    size_t size = dtype_size(t->dtype), values = (size_t) (row.n * col.n);
    try(checkpoint_read_rect(l->checkpoint, t, row.begin, row.n, col.begin, col.n, l->staging,
                             l->e));
    if (t->dtype == DTYPE_F16) {
        to_f32((float *) (void *) l->turned, l->staging, t->dtype, values);
        memcpy(l->staging, l->turned, values * sizeof(float));
        size = sizeof(float);
    }
    transpose(l->turned, l->staging, row.n, col.n, size);
    l->backend->matrix_pack(l->device, m, 0, m->n, l->turned);
    count(l, values * dtype_size(t->dtype));
    if (m->dtype == DTYPE_F8_E4M3) try(load_scales(l, t, m, row, col, true));
    return OK;
}

static enum status load_kv_b(struct loader *l, const struct tensor *t, const struct slice *s)
{
    const struct model_config *c = l->w->config;
    struct layer *layer = layer_of(l->w, s);
    struct range latent = {0, c->kv_lora_rank};
    for (int h = 0; h < l->w->n_heads; h++) {
        int64_t row = s->row.begin + (int64_t) h * (c->qk_nope_head_dim + c->v_head_dim);
        try(load_turned(l, t, &layer->uk[h], (struct range){row, c->qk_nope_head_dim}, latent));
        try(load_matrix(l, t, &layer->uv[h],
                        (struct range){row + c->qk_nope_head_dim, c->v_head_dim}, latent));
    }
    return OK;
}

static enum status load_embed(struct loader *l, const struct tensor *t, const struct slice *s)
{
    if (l->w->embed_dtype == DTYPE_F32) {
        return load_f32(l, t, s->row, s->col, (float *) (uintptr_t) l->w->embed);
    }
    uint64_t row_bytes = (uint64_t) s->cols * 2;
    uint64_t most = l->staging_bytes / row_bytes;
    for (uint64_t done = 0; done < (uint64_t) s->row.n;) {
        uint64_t n = (uint64_t) s->row.n - done < most ? (uint64_t) s->row.n - done : most;
        uint64_t at = ((uint64_t) s->row.begin + done) * row_bytes;
        try(checkpoint_read(l->checkpoint, t, at, l->staging, n * row_bytes, l->e));
        l->backend->upload(l->device, (char *) (uintptr_t) l->w->embed + done * row_bytes,
                           l->staging, n * row_bytes);
        try(l->backend->sync(l->device, l->e));
        count(l, n * row_bytes);
        done += n;
    }
    return OK;
}

static enum status load_slice(const struct slice *s, void *arg)
{
    struct loader *l = arg;
    if (stopped(l)) return error_set(l->e, ERR_ABORTED, NULL, "loading was stopped");
    const struct tensor *t = find(l->checkpoint, s, l->e);
    if (t == NULL) return ERR_INPUT;
    const float **vector = vector_of(l->w, s);
    enum status status;
    if (vector != NULL) {
        struct range row = {0, s->rows}, col = {0, s->cols};
        status = load_f32(l, t, row, col, (float *) (uintptr_t) *vector);
    } else if (s->role == ROLE_EMBED) {
        status = load_embed(l, t, s);
    } else if (s->role == ROLE_KV_B) {
        status = load_kv_b(l, t, s);
    } else {
        status = load_matrix(l, t, matrix_of(l->w, s), s->row, s->col);
    }
    if (status == OK) status = l->backend->sync(l->device, l->e);
    return status;
}

// The largest row panel, or W_UK of a head, must fit in the staging buffer.
static enum status measure_staging(const struct slice *s, void *arg)
{
    struct loader *l = arg;
    const struct model_config *c = l->w->config;
    size_t need = (size_t) s->cols * PANEL_ROWS * sizeof(float);
    size_t turned = (size_t) c->qk_nope_head_dim * (size_t) c->kv_lora_rank * sizeof(float);
    if (need > l->staging_bytes) l->staging_bytes = need;
    if (turned > l->staging_bytes) l->staging_bytes = turned;
    return OK;
}

enum status weights_load(struct weights *w, const struct checkpoint *checkpoint,
                         const struct backend *backend, struct device *device,
                         _Atomic uint64_t *loaded, const atomic_bool *stop, struct error *e)
{
    const struct model_config *c = w->config;
    struct loader l = {.w = w,
                       .checkpoint = checkpoint,
                       .backend = backend,
                       .device = device,
                       .loaded = loaded,
                       .stop = stop,
                       .staging_bytes = STAGING_BYTES,
                       .e = e};
    try(layout_walk(c, &w->place, measure_staging, &l));
    l.staging = malloc(2 * l.staging_bytes);
    if (l.staging == NULL) {
        return error_set(e, ERR_NOMEM, NULL, "no memory for a staging buffer of %zu bytes",
                         l.staging_bytes);
    }
    l.turned = l.staging + l.staging_bytes;

    double frequencies[MODEL_HEAD_DIM_MAX / 2], multiplier;
    float *inv_freq = (float *) (void *) l.staging;
    model_rope_frequencies(c, frequencies, &multiplier);
    for (int i = 0; i < c->qk_rope_head_dim / 2; i++) inv_freq[i] = (float) frequencies[i];
    w->rope_multiplier = (float) multiplier;
    backend->upload(device, (float *) (uintptr_t) w->inv_freq, inv_freq,
                    (size_t) (c->qk_rope_head_dim / 2) * sizeof(float));
    enum status status = backend->sync(device, e);
    if (status == OK) status = layout_walk(c, &w->place, load_slice, &l);
    free(l.staging);
    return status;
}

void weights_deinit(struct weights *w)
{
    free(w->layers);
    free(w->tables);
    *w = (struct weights){0};
}
