// How weights lie in device memory: row by row as in the checkpoint, so that tensor-core kernels
// and cuBLASLt read the same bytes. A row begins at its place in the grid of scales (col_phase) and
// is padded with zeros to whole blocks of SCALE_BLOCK values. FP8 data begins with a byte for each
// row that says whether there is a NaN in it: such an output is NaN whatever x is, and kernels need
// not look for it.
#ifndef PENSTOCK_KERNELS_CUDA_MATRIX_CUH
#define PENSTOCK_KERNELS_CUDA_MATRIX_CUH

#include "kernels/cuda/device.cuh"

// A matrix as kernels see it.
struct mat {
    const uint8_t *rows; // (n) rows of whole blocks
    const uint8_t *nans; // (n); NULL unless FP8
    const float *scales; // NULL unless FP8
    int n, k;
    int row_phase, col_phase; // col_phase 0 unless FP8
};

struct mats {
    struct mat at[CUDA_HEADS_MAX];
};

// Matrices of one shape that lie at equal distances, as a layer's experts do.
struct mat_row {
    struct mat first;
    size_t data_step, scales_step; // bytes
};

static inline __host__ __device__ int mat_blocks(int col_phase, int k)
{
    return (col_phase + k + SCALE_BLOCK - 1) / SCALE_BLOCK;
}

static inline __host__ __device__ struct mat mat_of_row(const struct mat_row &r, int i)
{
    struct mat m = r.first;
    m.rows += r.data_step * i;
    if (m.nans != nullptr) {
        m.nans += r.data_step * i;
        m.scales = (const float *) ((const char *) m.scales + r.scales_step * i);
    }
    return m;
}

struct mat mat_view(const struct matrix *m);

// The matrices `first`, first + step, ... (bytes apart in host memory), n of them. They must be
// alike and equally far apart.
struct mat_row mat_view_row(const struct matrix *first, size_t step, int n);

#endif
