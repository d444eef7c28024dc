#include "workers/rehearse_fill.h"

#include "common/packed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    NOISE_LEAST = 8 * 1024 * 1024, // bytes of each kind
    PANEL_ROWS = 16,               // that matrices are packed in multiples of
    FP8_DEVIATION = 100,           // of codes whose block has 448 as its largest
    FP8_CODES = 127,               // without sign and NaN
    SCALES_PIECE = 8192,
};

// --- noise

uint32_t rehearse_noise_bits(struct rehearse_noise *n)
{
    n->state = n->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (n->state >> 32);
}

// Where the normal distribution has the mass `share` between -x and x.
static double half_normal(double share)
{
    double low = 0, high = 8;
    for (int i = 0; i < 40; i++) {
        double middle = (low + high) / 2;
        *(erf(middle / sqrt(2)) < share ? &low : &high) = middle;
    }
    return low;
}

static double fp8_value(int code)
{
    int exponent = code >> 3, mantissa = code & 7;
    return exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
}

static uint8_t fp8_nearest(double x)
{
    int code = 0;
    while (code + 1 < FP8_CODES && fabs(fp8_value(code + 1) - x) <= fabs(fp8_value(code) - x)) {
        code++;
    }
    return (uint8_t) code;
}

static uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float normal(struct rehearse_noise *n)
{
    uint32_t bits = rehearse_noise_bits(n);
    return n->magnitudes[bits % REHEARSE_QUANTILES] * (bits >> 31 ? -1.0f : 1.0f);
}

static void draw(struct rehearse_noise *n, float deviation)
{
    uint8_t codes[REHEARSE_QUANTILES];
    for (int i = 0; i < REHEARSE_QUANTILES; i++) {
        n->magnitudes[i] = (float) half_normal((i + 0.5) / REHEARSE_QUANTILES);
        codes[i] = fp8_nearest(n->magnitudes[i] * FP8_DEVIATION);
    }
    for (size_t i = 0; i < n->bytes; i++) {
        uint32_t bits = rehearse_noise_bits(n);
        n->fp8[i] = (char) (codes[bits % REHEARSE_QUANTILES] | (bits >> 31) << 7);
    }
    for (size_t i = 0; i < n->bytes / sizeof(float); i++) n->f32[i] = normal(n) * deviation;
    for (size_t i = 0; i < n->bytes / 2; i++) {
        uint16_t half = bf16_of(normal(n) * deviation);
        memcpy(n->bf16 + 2 * i, &half, 2);
    }
}

// Room for a panel of the widest rows, whatever their type, and to begin anywhere before it.
static size_t noise_bytes(const struct model_config *c)
{
    int64_t widest = c->hidden_size, widths[] = {
        c->intermediate_size, (int64_t) c->n_heads * c->v_head_dim, c->q_lora_rank, c->kv_lora_rank,
        (int64_t) c->n_shared_experts * c->moe_intermediate_size, c->moe_intermediate_size};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        if (widths[i] > widest) widest = widths[i];
    }
    size_t panel = (size_t) widest * PANEL_ROWS * sizeof(float);
    return 2 * panel > NOISE_LEAST ? 2 * panel : NOISE_LEAST;
}

enum status rehearse_noise_create(struct rehearse_noise *n, const struct model_config *c,
                                  struct error *e)
{
    *n = (struct rehearse_noise){.bytes = noise_bytes(c), .state = 1};
    n->fp8 = malloc(n->bytes);
    n->bf16 = malloc(n->bytes);
    n->f32 = malloc(n->bytes);
    if (n->fp8 == NULL || n->bf16 == NULL || n->f32 == NULL) {
        rehearse_noise_destroy(n);
        return error_set(e, ERR_NOMEM, NULL, "no memory for random values");
    }
    draw(n, (float) (1 / sqrt(c->hidden_size)));
    return OK;
}

void rehearse_noise_destroy(struct rehearse_noise *n)
{
    free(n->fp8);
    free(n->bf16);
    free(n->f32);
    *n = (struct rehearse_noise){0};
}

// `bytes` of them from some place on, at most half of what there is.
static const char *some(struct rehearse_noise *n, const char *all, size_t bytes)
{
    check(bytes <= n->bytes / 2, "%zu bytes of noise", bytes);
    return all + rehearse_noise_bits(n) % (n->bytes / 2 / 64) * 64;
}

static const char *all_of(const struct rehearse_noise *n, enum dtype dtype)
{
    return dtype == DTYPE_F8_E4M3 ? n->fp8 : dtype == DTYPE_BF16 ? n->bf16 : (char *) n->f32;
}

void rehearse_noise_wire(struct rehearse_noise *n, enum precision p, void *wire, size_t values)
{
    for (size_t i = 0; i < values; i++) {
        float x = normal(n);
        uint16_t half = bf16_of(x);
        if (p == PRECISION_F32) memcpy((char *) wire + 4 * i, &x, 4);
        else memcpy((char *) wire + 2 * i, &half, 2);
    }
}

// --- weights

// A matrix that was packed, and those that are copied from it.
struct made {
    struct matrix_shape shape;
    int n, next;
    const void *data[REHEARSE_COPIES];
};

struct filler {
    struct weights *w;
    const struct backend *b;
    const struct measures *measures;
    struct device *d;
    struct rehearse_noise *noise;
    struct made made[REHEARSE_SHAPES_MAX];
    int n_made;
    float scales[SCALES_PIECE];
};

static bool same_shape(const struct matrix_shape *a, const struct matrix_shape *b)
{
    return a->dtype == b->dtype && a->n == b->n && a->k == b->k && a->row_phase == b->row_phase &&
           a->col_phase == b->col_phase;
}

// NULL: there is no place left for another shape.
static struct made *made_of(struct filler *f, const struct matrix_shape *shape)
{
    int i = 0;
    while (i < f->n_made && !same_shape(&f->made[i].shape, shape)) i++;
    if (i == REHEARSE_SHAPES_MAX) return NULL;
    if (i == f->n_made) f->made[f->n_made++] = (struct made){.shape = *shape};
    return &f->made[i];
}

static void pack_noise(struct filler *f, struct matrix *m)
{
    size_t row_bytes = (size_t) m->k * dtype_size(m->dtype);
    const char *all = all_of(f->noise, m->dtype);
    int most = (int) (f->noise->bytes / 2 / row_bytes) / PANEL_ROWS * PANEL_ROWS;
    check(most > 0, "a matrix of %d columns", m->k);
    for (int row = 0; row < m->n; row += most) {
        int n = m->n - row < most ? m->n - row : most;
        f->b->matrix_pack(f->d, m, row, n, some(f->noise, all, (size_t) n * row_bytes));
    }
}

static size_t blocks_of(int phase, int n)
{
    return (size_t) (phase + n + SCALE_BLOCK - 1) / SCALE_BLOCK;
}

static void fill_scales(struct filler *f, const struct matrix *m)
{
    size_t n = blocks_of(m->row_phase, m->n) * blocks_of(m->col_phase, m->k);
    float scale = (float) (1 / (FP8_DEVIATION * sqrt(m->k)));
    for (size_t i = 0; i < n && i < SCALES_PIECE; i++) f->scales[i] = scale;
    for (size_t done = 0; done < n; done += SCALES_PIECE) {
        size_t now = n - done < SCALES_PIECE ? n - done : SCALES_PIECE;
        f->b->upload(f->d, m->scales + done, f->scales, now * sizeof(float));
    }
}

static void fill_matrix(struct filler *f, struct matrix *m)
{
    struct matrix_shape shape = matrix_shape(m);
    struct made *made = made_of(f, &shape);
    if (made == NULL || made->n < REHEARSE_COPIES) {
        pack_noise(f, m);
        if (made != NULL) made->data[made->n++] = m->data;
    } else {
        f->measures->copy(f->d, m->data, made->data[made->next++ % REHEARSE_COPIES],
                          matrix_bytes(f->b, m));
    }
    if (m->scales != NULL) fill_scales(f, m);
}

static void upload_noise(struct filler *f, void *to, enum dtype dtype, size_t bytes)
{
    size_t most = f->noise->bytes / 2;
    for (size_t done = 0; done < bytes; done += most) {
        size_t now = bytes - done < most ? bytes - done : most;
        f->b->upload(f->d, (char *) to + done, some(f->noise, all_of(f->noise, dtype), now), now);
    }
}

static void upload_ones(struct filler *f, float *to, size_t n)
{
    for (size_t i = 0; i < n && i < SCALES_PIECE; i++) f->scales[i] = 1;
    for (size_t done = 0; done < n; done += SCALES_PIECE) {
        size_t now = n - done < SCALES_PIECE ? n - done : SCALES_PIECE;
        f->b->upload(f->d, to + done, f->scales, now * sizeof(float));
    }
}

static enum status fill_slice(const struct slice *s, void *arg)
{
    struct filler *f = arg;
    const float **vector = weights_vector(f->w, s);
    struct layer *layer = weights_layer(f->w, s);
    if (vector != NULL) {
        float *to = (float *) (uintptr_t) *vector;
        bool drawn = s->role == ROLE_ROUTER || s->role == ROLE_ROUTER_BIAS;
        size_t n = (size_t) (s->rows * s->cols);
        if (drawn) upload_noise(f, to, DTYPE_F32, n * sizeof(float));
        else upload_ones(f, to, n);
    } else if (s->role == ROLE_EMBED) {
        upload_noise(f, (void *) (uintptr_t) f->w->embed, f->w->embed_dtype,
                     (size_t) (s->row.n * s->cols) * dtype_size(f->w->embed_dtype));
    } else if (s->role == ROLE_KV_B) {
        for (int h = 0; h < f->w->n_heads; h++) {
            fill_matrix(f, &layer->uk[h]);
            fill_matrix(f, &layer->uv[h]);
        }
    } else {
        fill_matrix(f, weights_matrix(f->w, s));
    }
    return OK;
}

static void fill_frequencies(struct filler *f)
{
    const struct model_config *c = f->w->config;
    double frequencies[MODEL_HEAD_DIM_MAX / 2], multiplier;
    float inv_freq[MODEL_HEAD_DIM_MAX / 2];
    model_rope_frequencies(c, frequencies, &multiplier);
    for (int i = 0; i < c->qk_rope_head_dim / 2; i++) inv_freq[i] = (float) frequencies[i];
    f->w->rope_multiplier = (float) multiplier;
    f->b->upload(f->d, (float *) (uintptr_t) f->w->inv_freq, inv_freq,
                 (size_t) (c->qk_rope_head_dim / 2) * sizeof(float));
}

enum status rehearse_fill_weights(struct weights *w, const struct backend *b,
                                  const struct measures *measures, struct device *d,
                                  struct rehearse_noise *noise, struct error *e)
{
    struct filler *f = calloc(1, sizeof *f);
    if (f == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory to fill weights");
    *f = (struct filler){.w = w, .b = b, .measures = measures, .d = d, .noise = noise};
    fill_frequencies(f);
    check(layout_walk(w->config, &w->place, fill_slice, f) == OK);
    free(f);
    return b->sync(d, e);
}

// --- KV

struct kv_rows {
    int32_t *pos, *slot; // (max_rows)
    int n;
};

static enum status write_rows(struct forward *f, struct kv_rows *rows, struct error *e)
{
    const struct backend *b = f->backend;
    size_t bytes = (size_t) rows->n * sizeof *rows->pos;
    struct step_inputs in = f->inputs;
    if (rows->n == 0) return OK;
    in.pos = f->rows;
    in.slot = f->rows + rows->n;
    b->upload(f->device, in.pos, rows->pos, bytes);
    b->upload(f->device, in.slot, rows->slot, bytes);
    b->rope_angles(f->device, f->weights->inv_freq, f->weights->rope_multiplier,
                   f->config->qk_rope_head_dim, in.pos, f->cos_sin, rows->n);
    for (int i = 0; i < f->weights->place.last - f->weights->place.first; i++) {
        struct kv_layer kv = forward_kv_layer(f, i);
        b->kv_write(f->device, &f->attention, f->c, f->weights->layers[i].kv_a_norm, f->cos_sin,
                    &in, &kv, rows->n);
    }
    rows->n = 0;
    return b->sync(f->device, e);
}

enum status rehearse_fill_kv(struct forward *f, int slots, int context,
                             struct rehearse_noise *noise, struct error *e)
{
    size_t max_rows = (size_t) f->limits.max_rows;
    size_t values = max_rows * (size_t) model_kv_width(f->config), most = noise->bytes / 8;
    struct kv_rows rows = {malloc(max_rows * 4), malloc(max_rows * 4), 0};
    enum status status = OK;
    if (rows.pos == NULL || rows.slot == NULL) {
        status = error_set(e, ERR_NOMEM, NULL, "no memory for %zu rows", max_rows);
    }
    for (size_t done = 0; status == OK && done < values; done += most) {
        size_t now = values - done < most ? values - done : most;
        f->backend->upload(f->device, f->c + done, some(noise, (char *) noise->f32, now * 4),
                           now * 4);
    }
    // Where the pool is smaller than slots * context, later slots have blocks of earlier ones.
    int64_t blocks = f->limits.n_blocks, taken = 0;
    for (int slot = 0; status == OK && slot < slots && taken < blocks; slot++) {
        for (int pos = 0; status == OK && pos < context; pos++) {
            rows.pos[rows.n] = pos;
            rows.slot[rows.n++] = slot;
            if (rows.n == f->limits.max_rows) status = write_rows(f, &rows, e);
        }
        taken += f->limits.max_blocks;
    }
    if (status == OK) status = write_rows(f, &rows, e);
    free(rows.pos);
    free(rows.slot);
    return status;
}
