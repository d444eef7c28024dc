// e4m3 to bf16 in registers, two at a time and exactly: exponent and mantissa are moved to where
// bf16 has them, which is the value times 2^-120; a product with a power of two makes up for it.
#ifndef PENSTOCK_KERNELS_CUDA_E4M3_CUH
#define PENSTOCK_KERNELS_CUDA_E4M3_CUH

#include <cuda_bf16.h>

#include <stdint.h>
#include <string.h>

enum { E4M3_UP = 0x7b807b80 }; // two bf16 of 2^120

static __device__ __forceinline__ uint32_t bf16_pair_times(uint32_t bits, uint32_t factor)
{
    __nv_bfloat162 value, by;
    memcpy(&value, &bits, 4);
    memcpy(&by, &factor, 4);
    value = __hmul2(value, by);
    memcpy(&bits, &value, 4);
    return bits;
}

// Two bf16, times `factor` (two bf16) and 2^-120, from the two e4m3 that `select` (of __byte_perm)
// puts in the upper bytes of the halves.
static __device__ __forceinline__ uint32_t e4m3_pair(uint32_t codes, uint32_t select,
                                                     uint32_t factor)
{
    uint32_t high = __byte_perm(codes, 0, select);
    return bf16_pair_times(((high >> 4) & 0x07f007f0u) | (high & 0x80008000u), factor);
}

#endif
