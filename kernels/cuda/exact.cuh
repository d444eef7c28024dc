// The inner part of the exact matrix products, in f32 without tensor cores: every output is one
// chain of multiply-adds along each block of 128 inputs, and one along the blocks, as on the CPU;
// so a row's result never depends on its neighbours. 64 outputs and 16 rows a block.
#ifndef PENSTOCK_KERNELS_CUDA_EXACT_CUH
#define PENSTOCK_KERNELS_CUDA_EXACT_CUH

#include "kernels/cuda/matrix.cuh"

#include <cuda_bf16.h>

enum { EXACT_THREADS = 256, EXACT_N = 64, EXACT_ROWS = 16, EXACT_K = 32 };

static __device__ __forceinline__ float weight_at(const uint8_t *row, enum dtype dtype, int at)
{
    if (dtype == DTYPE_F32) return ((const float *) row)[at];
    if (dtype == DTYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *) row)[at]);
    uint32_t code = row[at];
    float magnitude = __uint_as_float((code & 0x7f) << 20) * 0x1p120f;
    return code & 0x80 ? -magnitude : magnitude;
}

// out[4] = the sums of this thread's row and its 4 outputs. x (rows of f32, x_stride apart), `rows`
// the row of x of each of the tile's EXACT_ROWS rows, in shared memory. `round`: x enters as bf16.
static __device__ void exact_tile(const struct mat &m, enum dtype dtype, int size, int n0,
                                  const float *x, size_t x_stride, const int32_t *rows, bool round,
                                  float (&out)[4])
{
    __shared__ float w[EXACT_K][EXACT_N + 4];
    __shared__ float in[EXACT_ROWS][EXACT_K + 1];
    int thread = threadIdx.x, row = thread / 16, at = thread % 16 * 4;
    int blocks = mat_blocks(m.col_phase, m.k), mine = n0 + thread / 4;
    if (mine >= m.n) mine = m.n - 1;
    const uint8_t *from = m.rows + (size_t) mine * blocks * SCALE_BLOCK * size;
    for (int i = 0; i < 4; i++) out[i] = 0;
    for (int block = 0; block < blocks; block++) {
        float sums[4] = {};
        for (int k0 = block * SCALE_BLOCK; k0 < (block + 1) * SCALE_BLOCK; k0 += EXACT_K) {
            __syncthreads();
            for (int i = 0; i < 8; i++) {
                int k = thread % 4 * 8 + i;
                w[k][thread / 4] = weight_at(from, dtype, k0 + k);
            }
            for (int i = thread; i < EXACT_ROWS * EXACT_K; i += EXACT_THREADS) {
                int k = k0 + i % EXACT_K - m.col_phase;
                float value = 0;
                if (k >= 0 && k < m.k) value = x[(size_t) rows[i / EXACT_K] * x_stride + k];
                if (round) value = __bfloat162float(__float2bfloat16_rn(value));
                in[i / EXACT_K][i % EXACT_K] = value;
            }
            __syncthreads();
            for (int k = 0; k < EXACT_K; k++) {
                for (int i = 0; i < 4; i++) sums[i] = fmaf(w[k][at + i], in[row][k], sums[i]);
            }
        }
        for (int i = 0; i < 4; i++) {
            float scale = 1.0f;
            if (m.scales != nullptr) {
                int n = n0 + at + i < m.n ? n0 + at + i : m.n - 1;
                scale = m.scales[(size_t) ((m.row_phase + n) / SCALE_BLOCK) * blocks + block];
            }
            out[i] = fmaf(sums[i], scale, out[i]);
        }
    }
    for (int i = 0; m.nans != nullptr && i < 4; i++) {
        if (n0 + at + i < m.n && m.nans[n0 + at + i]) out[i] = NAN;
    }
}

#endif
