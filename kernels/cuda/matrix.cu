#include "kernels/cuda/matrix.cuh"

#include "kernels/cuda/staging.cuh"

// A NaN of e4m3 has all bits but the sign.
static uint8_t has_nan(const uint8_t *row, int k)
{
    uint8_t found = 0;
    for (int i = 0; i < k; i++) found |= (uint8_t) ((row[i] & 0x7f) == 0x7f);
    return found;
}

void cuda_matrix_pack(struct device *d, struct matrix *m, int row0, int n_rows, const void *rows)
{
    check(row0 >= 0 && row0 + n_rows <= m->n, "rows [%d, %d) of %d", row0, row0 + n_rows, m->n);
    struct matrix_shape shape = matrix_shape(m);
    size_t pitch = cuda_pitch(&shape), row_bytes = (size_t) m->k * dtype_size(m->dtype);
    size_t before = (size_t) cuda_phase(&shape) * dtype_size(m->dtype);
    int most = (int) (CUDA_STAGING_HALF / (pitch + 1));
    check(most >= 1, "a row of %zu bytes is beyond the staging", pitch);
    const uint8_t *from = (const uint8_t *) rows;
    d->barred = true; // products read weights before they wait for kernels
    for (int done = 0; done < n_rows;) {
        int n = n_rows - done < most ? n_rows - done : most;
        size_t flags = m->dtype == DTYPE_F8_E4M3 ? (size_t) n : 0;
        uint8_t *staged = (uint8_t *) staging_take(d, flags + (size_t) n * pitch);
        for (int i = 0; i < n; i++) {
            uint8_t *to = staged + (size_t) i * pitch;
            memset(to, 0, before);
            memcpy(to + before, from, row_bytes);
            memset(to + before + row_bytes, 0, pitch - before - row_bytes);
            if (flags > 0) staged[(size_t) n * pitch + i] = has_nan(from, m->k);
            from += row_bytes;
        }
        uint8_t *data = (uint8_t *) m->data, *first = data + cuda_nan_bytes(&shape);
        device_note(d, cudaMemcpyAsync(first + (size_t) (row0 + done) * pitch, staged,
                                       (size_t) n * pitch, cudaMemcpyHostToDevice, d->stream),
                    "matrix_pack");
        if (flags > 0) {
            device_note(d, cudaMemcpyAsync(data + row0 + done, staged + (size_t) n * pitch, flags,
                                           cudaMemcpyHostToDevice, d->stream), "matrix_pack");
        }
        done += n;
    }
}

struct mat mat_view(const struct matrix *m)
{
    struct mat v = {};
    struct matrix_shape shape = matrix_shape(m);
    bool fp8 = m->dtype == DTYPE_F8_E4M3;
    v.rows = (const uint8_t *) m->data + cuda_nan_bytes(&shape);
    v.nans = fp8 ? (const uint8_t *) m->data : NULL;
    v.scales = fp8 ? m->scales : NULL;
    v.n = m->n;
    v.k = m->k;
    v.row_phase = fp8 ? m->row_phase : 0;
    v.col_phase = cuda_phase(&shape);
    return v;
}

struct mat_row mat_view_row(const struct matrix *first, size_t step, int n)
{
    struct mat_row r = {mat_view(first), 0, 0};
    const struct matrix *before = first;
    for (int i = 1; i < n; i++) {
        const struct matrix *m = (const struct matrix *) ((const char *) first + step * i);
        size_t data = (size_t) ((const char *) m->data - (const char *) before->data), scales = 0;
        if (first->scales != NULL) scales = (size_t) (m->scales - before->scales) * sizeof(float);
        check(m->dtype == first->dtype && m->n == first->n && m->k == first->k &&
              m->row_phase == first->row_phase && m->col_phase == first->col_phase,
              "matrix %d is not like the first", i);
        if (i == 1) {
            r.data_step = data;
            r.scales_step = scales;
        }
        check(data == r.data_step && scales == r.scales_step, "matrix %d is not in its place", i);
        before = m;
    }
    return r;
}
