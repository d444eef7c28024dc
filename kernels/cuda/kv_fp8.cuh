// KV in FP8 (common/kv_block.h): its scales, and e4m3 to bf16 in registers, exactly, since scales
// are powers of two.
#ifndef PENSTOCK_KERNELS_CUDA_KV_FP8_CUH
#define PENSTOCK_KERNELS_CUDA_KV_FP8_CUH

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/e4m3.cuh"

#include <cuda_bf16.h>

// V3's shape, which tensor cores take.
enum {
    KV8_SCALES = CUDA_MLA_LORA / KV_SCALE_VALUES, // of a row
    KV8_ROPE_AT = KV_BLOCK_ROWS * CUDA_MLA_LORA,  // bytes, in a block
    KV8_SCALES_AT = KV8_ROPE_AT + KV_BLOCK_ROWS * CUDA_MLA_ROPE * 2,
    KV8_BLOCK = KV8_SCALES_AT + KV_BLOCK_ROWS * KV8_SCALES * 4,
};

// The scale of values whose largest magnitude has these bits, and what they are multiplied with.
static __device__ __forceinline__ float kv_scale(uint32_t most, float *factor)
{
    float largest = fminf(fmaxf(__uint_as_float(most), 1e-30f), 448.0f * KV_SCALE_MOST);
    uint32_t bits = (__float_as_uint(largest / 448.0f) + 0x7fffffu) & 0xff800000u; // rounded up
    *factor = __uint_as_float(0x7f000000u - bits);
    return most < 0x7f800000u ? __uint_as_float(bits) : NAN;
}

// e4m3 with bits moved to where f32 has them, times 2^120; its NaN is 480: scales tell.
static __device__ __forceinline__ float e4m3_widen(uint32_t code)
{
    float magnitude = __uint_as_float((code & 0x7f) << 20) * 0x1p120f;
    return code & 0x80 ? -magnitude : magnitude;
}

// A scale as both halves of a factor for e4m3_widen_8: bf16, times 2^120.
static __device__ __forceinline__ uint32_t e4m3_factor(float scale)
{
    uint32_t bits = __float_as_uint(scale * 0x1p120f);
    return __byte_perm(bits, bits, 0x3232);
}

static __device__ __forceinline__ uint4 e4m3_widen_8(uint2 codes, uint32_t factor)
{
    return make_uint4(e4m3_pair(codes.x, 0x1404, factor), e4m3_pair(codes.x, 0x3424, factor),
                      e4m3_pair(codes.y, 0x1404, factor), e4m3_pair(codes.y, 0x3424, factor));
}

#endif
