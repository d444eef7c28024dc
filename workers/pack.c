#include "workers/pack.h"

#include <math.h>
#include <string.h>

enum { SCRATCH_LEAST = 256 * 1024 };

size_t pack_scratch_bytes(const struct model_config *c)
{
    int64_t widest = c->hidden_size > c->intermediate_size ? c->hidden_size : c->intermediate_size;
    int64_t heads = c->n_heads, sizes[] = {
        SCRATCH_LEAST,
        widest * LOAD_PANEL_ROWS * 4,
        heads * c->v_head_dim * LOAD_PANEL_ROWS * 4,
        (int64_t) c->n_shared_experts * c->moe_intermediate_size * LOAD_PANEL_ROWS * 4,
        c->q_lora_rank * (int64_t) LOAD_PANEL_ROWS * 4,
        c->moe_intermediate_size * (int64_t) LOAD_PANEL_ROWS * 4,
        2 * (int64_t) c->qk_nope_head_dim * c->kv_lora_rank * 4, // W_UK of a head, twice
        (int64_t) c->kv_lora_rank * LOAD_PANEL_ROWS * 4,
    };
    int64_t most = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i] > most) most = sizes[i];
    }
    return (size_t) most;
}

// --- values

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

// Any float type of the checkpoint to f32, n values; `from` need not be aligned, and may not
// overlap `to`.
static void to_f32(float *to, const char *from, enum dtype dtype, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        if (dtype == DTYPE_F32) {
            memcpy(&to[i], from + 4 * i, 4);
            continue;
        }
        memcpy(&half, from + 2 * i, 2);
        if (dtype == DTYPE_BF16) {
            uint32_t bits = (uint32_t) half << 16;
            memcpy(&to[i], &bits, 4);
        } else {
            to[i] = half_to_float(half);
        }
    }
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

static enum status check_values(const struct tensor *t, const float *x, size_t n, bool scales,
                                struct error *e)
{
    bool good = true;
    for (size_t i = 0; i < n; i++) good &= isfinite(x[i]) && !(scales && x[i] < 0);
    if (good) return OK;
    return error_set(e, ERR_INPUT, "bad_checkpoint", "tensor %s holds %s: the file is damaged, or "
                     "was written wrongly", t->name,
                     scales ? "a scale that is negative or not finite"
                            : "a value that is not finite");
}

// --- rectangles

// Rows [begin, begin + n) of the whole tensor that the piece has of `want`; n 0: none.
static struct range meet(const struct load_piece *p, struct range want)
{
    int64_t begin = p->row0 > want.begin ? p->row0 : want.begin;
    int64_t end = p->row0 + p->n_rows;
    if (want.begin + want.n < end) end = want.begin + want.n;
    return (struct range){begin, end > begin ? end - begin : 0};
}

static int64_t columns(const struct tensor *t) { return t->n_dims > 1 ? t->shape[1] : 1; }

// The first byte of row `row` at column `col`.
static const char *at(const struct load_piece *p, int64_t row, int64_t col)
{
    const struct tensor *t = p->part->tensor;
    return p->bytes + (size_t) ((row - p->row0) * columns(t) + col) * dtype_size(t->dtype);
}

// Copies rows x columns tightly.
static void cut(char *to, const struct load_piece *p, struct range rows, struct range cols)
{
    size_t bytes = (size_t) cols.n * dtype_size(p->part->tensor->dtype);
    for (int64_t i = 0; i < rows.n; i++) {
        memcpy(to + (size_t) i * bytes, at(p, rows.begin + i, cols.begin), bytes);
    }
}

// A rectangle of floats as f32 to device memory: to (want rows, cols.n).
static enum status take_f32(struct packer *p, const struct load_piece *piece, struct range want,
                            struct range cols, float *to, struct error *e)
{
    const struct tensor *t = piece->part->tensor;
    struct range rows = meet(piece, want);
    float *flat = (float *) (void *) p->scratch;
    int64_t most = (int64_t) (p->scratch_bytes / sizeof(float)); // values at once
    for (int64_t i = 0; i < rows.n; i++) {
        for (int64_t done = 0; done < cols.n; done += most) {
            int64_t n = cols.n - done < most ? cols.n - done : most;
            // Narrow rows that lie one behind the other are taken together.
            int64_t n_rows = n == columns(t) ? most / n : 1;
            if (n_rows > rows.n - i) n_rows = rows.n - i;
            size_t values = (size_t) (n * n_rows);
            to_f32(flat, at(piece, rows.begin + i, cols.begin + done), t->dtype, values);
            try(check_values(t, flat, values, piece->part->scales, e));
            p->backend->upload(p->device, to + (rows.begin - want.begin + i) * cols.n + done, flat,
                               values * sizeof(float));
            i += n_rows - 1;
        }
    }
    return OK;
}

// --- matrices

// Rows of the slice into the matrix's panels; straight from the piece where they lie as they must.
static void take_matrix(struct packer *p, const struct load_piece *piece, struct matrix *m,
                        struct range want, struct range cols)
{
    const struct tensor *t = piece->part->tensor;
    struct range rows = meet(piece, want);
    int first = (int) (rows.begin - want.begin);
    bool convert = t->dtype == DTYPE_F16;
    if (rows.n == 0) return;
    if (cols.n == columns(t) && !convert) {
        p->backend->matrix_pack(p->device, m, first, (int) rows.n, at(piece, rows.begin, 0));
        return;
    }
    size_t row_bytes = (size_t) cols.n * (convert ? 4 : dtype_size(t->dtype));
    int64_t most = (int64_t) (p->scratch_bytes / row_bytes) / LOAD_PANEL_ROWS * LOAD_PANEL_ROWS;
    for (int64_t done = 0; done < rows.n;) {
        int64_t n = rows.n - done < most ? rows.n - done : most;
        struct range some = {rows.begin + done, n};
        if (!convert) cut(p->scratch, piece, some, cols);
        for (int64_t i = 0; convert && i < n; i++) {
            to_f32((float *) (void *) (p->scratch + (size_t) i * row_bytes),
                   at(piece, some.begin + i, cols.begin), t->dtype, (size_t) cols.n);
        }
        p->backend->matrix_pack(p->device, m, first + (int) done, (int) n, p->scratch);
        done += n;
    }
}

// W_UK of one head, turned from (nope, kv_lora) to (kv_lora, nope).
static void take_turned(struct packer *p, const struct load_piece *piece, struct matrix *m,
                        struct range want)
{
    const struct tensor *t = piece->part->tensor;
    struct range rows = meet(piece, want);
    int64_t cols = columns(t);
    size_t values = (size_t) (rows.n * cols), size = dtype_size(t->dtype);
    if (rows.n == 0) return;
    check(rows.n == want.n, "half a head of %s", t->name);
    const char *from = at(piece, rows.begin, 0);
    if (t->dtype == DTYPE_F16) {
        char *flat = p->scratch + p->scratch_bytes / 2;
        to_f32((float *) (void *) flat, from, t->dtype, values);
        from = flat;
        size = sizeof(float);
    }
    transpose(p->scratch, from, rows.n, cols, size);
    p->backend->matrix_pack(p->device, m, 0, m->n, p->scratch);
}

static struct range blocks(const struct packer *p, struct range r)
{
    return layout_blocks(r, p->weights->config->scale_block);
}

// The scales of W_UK, turned as it is.
static enum status turn_scales(struct packer *p, const struct load_piece *piece, struct matrix *m,
                               struct range rows, struct range cols, struct error *e)
{
    const struct tensor *t = piece->part->tensor;
    size_t n = (size_t) (rows.n * cols.n);
    float *flat = (float *) (void *) p->scratch, *turned = flat + n;
    check(2 * n * sizeof(float) <= p->scratch_bytes, "%zu scales", n);
    for (int64_t i = 0; i < rows.n; i++) {
        to_f32(flat + i * cols.n, at(piece, rows.begin + i, cols.begin), t->dtype,
               (size_t) cols.n);
    }
    try(check_values(t, flat, n, true, e));
    transpose((char *) turned, (char *) flat, rows.n, cols.n, sizeof(float));
    p->backend->upload(p->device, m->scales, turned, n * sizeof(float));
    return OK;
}

static enum status take_kv_b(struct packer *p, const struct load_piece *piece,
                             const struct slice *s, struct error *e)
{
    const struct model_config *c = p->weights->config;
    struct layer *layer = weights_layer(p->weights, s);
    struct range latent = {0, c->kv_lora_rank};
    for (int h = 0; h < p->weights->n_heads; h++) {
        int64_t row = s->row.begin + (int64_t) h * (c->qk_nope_head_dim + c->v_head_dim);
        struct range uk = {row, c->qk_nope_head_dim};
        struct range uv = {row + c->qk_nope_head_dim, c->v_head_dim};
        if (piece->part->scales) {
            try(turn_scales(p, piece, &layer->uk[h], blocks(p, uk), blocks(p, latent), e));
            try(take_f32(p, piece, blocks(p, uv), blocks(p, latent), layer->uv[h].scales, e));
        } else {
            take_turned(p, piece, &layer->uk[h], uk);
            take_matrix(p, piece, &layer->uv[h], uv, latent);
        }
    }
    return OK;
}

static enum status take_embed(struct packer *p, const struct load_piece *piece,
                              const struct slice *s, struct error *e)
{
    if (p->weights->embed_dtype == DTYPE_F32) {
        return take_f32(p, piece, s->row, s->col, (float *) (uintptr_t) p->weights->embed, e);
    }
    struct range rows = meet(piece, s->row);
    size_t row_bytes = (size_t) s->cols * 2;
    if (rows.n == 0) return OK;
    p->backend->upload(p->device, (char *) (uintptr_t) p->weights->embed +
                                      (size_t) (rows.begin - s->row.begin) * row_bytes,
                       at(piece, rows.begin, 0), (size_t) rows.n * row_bytes);
    return OK;
}

enum status pack_piece(struct packer *p, const struct load_piece *piece, struct error *e)
{
    struct slice s = piece->part->slice;
    layout_cut(p->weights->config, &s, p->weights->place.tp_rank, p->weights->place.tp);
    const float **vector = weights_vector(p->weights, &s);
    struct matrix *matrix = weights_matrix(p->weights, &s);
    if (vector != NULL) {
        return take_f32(p, piece, (struct range){0, s.rows}, (struct range){0, s.cols},
                        (float *) (uintptr_t) *vector, e);
    }
    if (s.role == ROLE_EMBED) return take_embed(p, piece, &s, e);
    if (s.role == ROLE_KV_B) return take_kv_b(p, piece, &s, e);
    if (!piece->part->scales) {
        take_matrix(p, piece, matrix, s.row, s.col);
        return OK;
    }
    return take_f32(p, piece, blocks(p, s.row), blocks(p, s.col), matrix->scales, e);
}

enum status pack_constants(struct packer *p, struct error *e)
{
    const struct model_config *c = p->weights->config;
    double frequencies[MODEL_HEAD_DIM_MAX / 2], multiplier;
    float inv_freq[MODEL_HEAD_DIM_MAX / 2];
    model_rope_frequencies(c, frequencies, &multiplier);
    for (int i = 0; i < c->qk_rope_head_dim / 2; i++) inv_freq[i] = (float) frequencies[i];
    p->weights->rope_multiplier = (float) multiplier;
    p->backend->upload(p->device, (float *) (uintptr_t) p->weights->inv_freq, inv_freq,
                       (size_t) (c->qk_rope_head_dim / 2) * sizeof(float));
    return p->backend->sync(p->device, e);
}
