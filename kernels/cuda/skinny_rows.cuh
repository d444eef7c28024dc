// Rows of a product with few of them as its tensor cores read them: bf16, in the order in which
// threads hold the bytes of a weights' row that they load from shared memory.
//
// In a block's 128 inputs, place step * 16 + high * 8 + t * 2 + low has input t * 32 + step * 4 +
// low * 2 + high: what thread t of a row holds of its 32 bytes of weights for the step-th
// instruction, even bytes in the first of its registers, odd ones in the second.
#ifndef PENSTOCK_KERNELS_CUDA_SKINNY_ROWS_CUH
#define PENSTOCK_KERNELS_CUDA_SKINNY_ROWS_CUH

#include "kernels/cuda/gemm.cuh"

// Whether inputs may be read four at a time.
bool skinny_rows_by_vectors(const struct gemm_rows *r);

// to (n_rows, cuda_input_pitch(k)) = the rows of one head, in a kernel behind which a product may
// begin early. `blocks`: of 128 inputs, from the rows' phase on. Faults are noted.
void skinny_rows_stream(struct device *d, const struct gemm_rows *r, int blocks, void *to);

// Inputs [k, k + 4) of a row; zeros where there are none. VECTORS: all four are there, or none, and
// lie on a boundary of 16 bytes. From the second level cache: who reads may have begun before they
// were written.
template <bool VECTORS>
static __device__ __forceinline__ float4 four_inputs(const float *row, int k, int n)
{
    if constexpr (VECTORS) {
        return k >= 0 && k < n ? __ldcg((const float4 *) (row + k)) : float4 {};
    } else {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = k + i >= 0 && k + i < n ? __ldcg(row + k + i) : 0.0f;
        return make_float4(v[0], v[1], v[2], v[3]);
    }
}

#endif
