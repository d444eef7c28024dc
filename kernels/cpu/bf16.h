// bf16 as its 16 bits: widening, and rounding to nearest even. Any thread.
#ifndef PENSTOCK_KERNELS_CPU_BF16_H
#define PENSTOCK_KERNELS_CPU_BF16_H

#include <stdint.h>
#include <string.h>

static inline float bf16_widen(uint16_t half)
{
    uint32_t bits = (uint32_t) half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t bf16_round(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t) (bits >> 16 | 0x40); // NaN stays NaN
    return (uint16_t) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
