// A random weight matrix with its values in double beside the packed one, for tests of matrix
// products; and a CPU device with scratch for them.
#ifndef PENSTOCK_TESTS_MATRIX_CASE_H
#define PENSTOCK_TESTS_MATRIX_CASE_H

#include "kernels/backend.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t noise_seed = 1;

// Uniform in [-1, 1).
static inline float noise(void)
{
    noise_seed = noise_seed * 6364136223846793005u + 1442695040888963407u;
    return (float) (int32_t) (noise_seed >> 32) * 0x1p-31f;
}

static inline double e4m3_value(uint8_t code)
{
    int e = code >> 3 & 15, m = code & 7;
    double value = e == 0 ? m * 0x1p-9 : (8 + m) * ldexp(1, e - 10);
    if (e == 15 && m == 7) value = NAN;
    return code & 0x80 ? -value : value;
}

struct matrix_case {
    struct matrix m;
    void *rows;     // (n, k) in m.dtype
    double *values; // (n, k) with scales applied
};

// Puts `code` (m.dtype's bits) at (row, column) of the unpacked rows and of the values.
static inline void matrix_case_set(struct matrix_case *c, int row, int column, uint32_t code)
{
    size_t at = (size_t) row * c->m.k + column;
    switch (c->m.dtype) {
    case DTYPE_F8_E4M3: {
        int blocks = (c->m.col_phase + c->m.k + 127) / 128;
        int block = (c->m.row_phase + row) / 128 * blocks + (c->m.col_phase + column) / 128;
        ((uint8_t *) c->rows)[at] = (uint8_t) code;
        c->values[at] = e4m3_value((uint8_t) code) * c->m.scales[block];
        break;
    }
    case DTYPE_BF16:
        ((uint16_t *) c->rows)[at] = (uint16_t) code;
        c->values[at] = bf16_widen((uint16_t) code);
        break;
    default: {
        float value;
        memcpy(&value, &code, 4);
        ((float *) c->rows)[at] = value;
        c->values[at] = value;
    }
    }
}

// Bits of a random value, now and then a very small one.
static inline uint32_t matrix_case_code(enum dtype dtype)
{
    float value = noise() * (noise() > 0.9f ? 0.01f : 1.0f);
    uint32_t bits = (uint32_t) (noise_seed >> 40);
    if (dtype == DTYPE_F8_E4M3) return (bits & 0x7f) == 0x7f ? 0x38 : bits & 0xff;
    if (dtype == DTYPE_BF16) return bf16_round(value);
    memcpy(&bits, &value, 4);
    return bits;
}

static inline void matrix_case_pack(struct matrix_case *c, struct device *d)
{
    size_t row_bytes = (size_t) c->m.k * dtype_size(c->m.dtype);
    for (int row = 0; row < c->m.n; row += 32) { // in parts, as the loader does
        int n = c->m.n - row < 32 ? c->m.n - row : 32;
        backend_cpu()->matrix_pack(d, &c->m, row, n, (char *) c->rows + (size_t) row * row_bytes);
    }
}

static inline void matrix_case_init(struct matrix_case *c, struct device *d, enum dtype dtype,
                                    int n, int k, int row_phase, int col_phase)
{
    *c = (struct matrix_case) {.m = {.dtype = dtype, .n = n, .k = k, .row_phase = row_phase,
                                     .col_phase = col_phase}};
    size_t blocks = (size_t) ((row_phase + n + 127) / 128) * (size_t) ((col_phase + k + 127) / 128);
    if (dtype == DTYPE_F8_E4M3) {
        c->m.scales = malloc(blocks * sizeof(float));
        for (size_t i = 0; i < blocks; i++) c->m.scales[i] = 0.001f * (1.5f + noise());
    }
    c->rows = malloc((size_t) n * k * dtype_size(dtype));
    c->values = malloc((size_t) n * k * sizeof *c->values);
    for (int row = 0; row < n; row++) {
        for (int i = 0; i < k; i++) matrix_case_set(c, row, i, matrix_case_code(dtype));
    }
    uint64_t bytes = matrix_bytes(backend_cpu(), &c->m);
    c->m.data = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(c->m.data, 0xff, bytes); // what pack leaves out shows
    matrix_case_pack(c, d);
}

static inline void matrix_case_deinit(struct matrix_case *c)
{
    free(c->m.data);
    free(c->m.scales);
    free(c->rows);
    free(c->values);
}

// A device of this instruction set with scratch for `shape`. Freed by device_case_close.
static inline struct device *device_case_open(enum isa isa, enum precision precision,
                                              int n_threads, const struct scratch_shape *shape)
{
    const struct backend *b = backend_cpu();
    struct device_options options = {.precision = precision, .n_threads = n_threads};
    struct device *d;
    struct error e = {0};
    void *base;
    check(b->open(&d, &options, &e) == OK, "%s", e.text);
    d->isa = isa;
    struct scratch_shape s = *shape;
    s.f32 = precision == PRECISION_F32;
    uint64_t bytes = device_sizes(b->kind)->scratch(&s);
    check(b->arena(d, bytes, &base, &e) == OK, "%s", e.text);
    memset(base, 0xff, bytes); // NaN: nothing may rely on zeros
    b->set_scratch(d, &s, base);
    return d;
}

#endif
