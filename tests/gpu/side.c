#include "tests/gpu/side.h"

#include "kernels/cpu/bf16.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void must(enum status status, const struct error *e) { check(status == OK, "%s", e->text); }

void side_open(struct side *s, const struct backend *b, enum precision p, uint64_t bytes)
{
    struct device_options options = {.precision = p};
    struct error e = {0};
    void *base;
    *s = (struct side){.b = b, .precision = p};
    must(b->open(&s->d, &options, &e), &e);
    must(b->arena(s->d, bytes, &base, &e), &e);
    s->arena = (struct carve){.base = base, .size = bytes};
}

void side_close(struct side *s) { s->b->close(&s->d); }

void side_reset(struct side *s, const struct scratch_shape *shape)
{
    s->arena.used = 0;
    struct scratch_shape all = *shape;
    all.f32 = s->precision == PRECISION_F32;
    s->b->set_scratch(s->d, &all, side_take(s, device_sizes(s->b->kind)->scratch(&all)));
    side_sync(s);
}

void *side_take(struct side *s, size_t bytes) { return carve_take(&s->arena, bytes); }

void *side_put(struct side *s, const void *from, size_t bytes)
{
    void *to = side_take(s, bytes);
    s->b->upload(s->d, to, from, bytes);
    return to;
}

void side_get(struct side *s, void *to, const void *from, size_t bytes)
{
    side_sync(s);
    s->b->download(s->d, to, from, bytes);
}

void side_sync(struct side *s)
{
    struct error e = {0};
    must(s->b->sync(s->d, &e), &e);
}

struct matrix side_matrix(struct side *s, const struct matrix *shape, const void *rows,
                          const float *scales)
{
    struct matrix m = *shape;
    m.data = side_take(s, matrix_bytes(s->b, &m));
    size_t row_bytes = (size_t) m.k * dtype_size(m.dtype);
    for (int row = 0; row < m.n; row += 512) {
        int n = m.n - row < 512 ? m.n - row : 512;
        s->b->matrix_pack(s->d, &m, row, n, (const char *) rows + (size_t) row * row_bytes);
    }
    if (scales == NULL) return m;
    size_t blocks = (size_t) ((m.row_phase + m.n + SCALE_BLOCK - 1) / SCALE_BLOCK) *
                    (size_t) ((m.col_phase + m.k + SCALE_BLOCK - 1) / SCALE_BLOCK);
    m.scales = side_put(s, scales, blocks * sizeof(float));
    return m;
}

static uint64_t seed = 1;

uint32_t noise_bits(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t) (seed >> 32);
}

float noise(void) { return (float) (int32_t) noise_bits() * 0x1p-31f; }

float *noises(size_t n, float scale)
{
    float *x = malloc(n * sizeof *x);
    check(x != NULL);
    for (size_t i = 0; i < n; i++) x[i] = noise() * scale;
    return x;
}

void *noise_rows(const struct matrix *m)
{
    size_t n = (size_t) m->n * (size_t) m->k;
    char *rows = malloc(n * dtype_size(m->dtype));
    check(rows != NULL);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = noise_bits() >> 8;
        float value = (float) (int32_t) (bits << 8) * 0x1p-31f;
        uint8_t code = (bits & 0x7f) == 0x7f ? 0x38 : (uint8_t) bits;
        uint16_t half = bf16_round(value);
        switch (m->dtype) {
        case DTYPE_F8_E4M3: rows[i] = (char) code; break;
        case DTYPE_BF16: memcpy(rows + 2 * i, &half, 2); break;
        default: memcpy(rows + 4 * i, &value, 4); break;
        }
    }
    return rows;
}

float *noise_scales(const struct matrix *m)
{
    if (m->dtype != DTYPE_F8_E4M3) return NULL;
    size_t blocks = (size_t) ((m->row_phase + m->n + SCALE_BLOCK - 1) / SCALE_BLOCK) *
                    (size_t) ((m->col_phase + m->k + SCALE_BLOCK - 1) / SCALE_BLOCK);
    float *scales = malloc(blocks * sizeof *scales);
    check(scales != NULL);
    for (size_t i = 0; i < blocks; i++) scales[i] = 0.001f * (1.5f + noise());
    return scales;
}

static float round_to_e4m3(float value)
{
    float size = fabsf(value);
    if (size >= 448) return copysignf(448, value);
    int exponent;
    frexpf(size, &exponent); // size < 2^exponent
    float step = ldexpf(1, (exponent < -5 ? -5 : exponent) - 4); // 4 bits, or below 2^-6 fewer
    return rintf(value / step) * step;
}

void round_to_fp8(float *x, int k, int phase)
{
    for (int first = -phase; first < k; first += SCALE_BLOCK) {
        int begin = first > 0 ? first : 0, end = first + SCALE_BLOCK < k ? first + SCALE_BLOCK : k;
        float largest = 1e-30f;
        for (int i = begin; i < end; i++) largest = fmaxf(largest, fabsf(x[i]));
        int exponent; // of the smallest power of two that is enough
        float share = frexpf(largest / 448, &exponent);
        float scale = ldexpf(1, share > 0.5f ? exponent : exponent - 1);
        for (int i = begin; i < end; i++) x[i] = round_to_e4m3(x[i] / scale) * scale;
    }
}

double difference(const float *a, const float *b, size_t n)
{
    double off = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(a[i]) && isnan(b[i])) continue;
        double d = (double) a[i] - (double) b[i];
        off += d * d;
        all += (double) b[i] * (double) b[i];
    }
    if (isnan(off)) return INFINITY;
    return all > 0 ? sqrt(off / all) : off > 0 ? INFINITY : 0;
}
