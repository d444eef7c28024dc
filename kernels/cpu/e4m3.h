// e4m3 as its 8 bits: widening, rounding to nearest even, and the scales of KV in FP8
// (common/kv_block.h). Any thread.
#ifndef PENSTOCK_KERNELS_CPU_E4M3_H
#define PENSTOCK_KERNELS_CPU_E4M3_H

#include "common/kv_block.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float e4m3_widen(uint8_t code)
{
    uint32_t bits = (uint32_t) (code & 0x7f) << 20 | (uint32_t) (code & 0x80) << 24;
    float value;
    memcpy(&value, &bits, 4);
    return (code & 0x7f) == 0x7f ? NAN : value * 0x1p120f;
}

// What lies beyond 448 becomes 448; NaN stays NaN.
static inline uint8_t e4m3_round(float value)
{
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 24 & 0x80;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return 0x7f;
    if (bits >= 0x43e00000) return (uint8_t) (sign | 0x7e); // 448
    if (bits < 0x3c800000) {                                // 2^-6: multiples of 2^-9
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0x1p14f;
        memcpy(&bits, &magnitude, 4);
        return (uint8_t) (sign | (bits & 0xf));
    }
    bits += 0x7ffff + (bits >> 20 & 1);
    return (uint8_t) (sign | ((bits >> 20) - (120 << 3)));
}

// The scale of n values: the least power of two with which they are in e4m3's range, at most
// KV_SCALE_MOST; NaN if one is no finite number.
static inline float kv_scale(const float *x, int n)
{
    uint32_t most = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    if (most >= 0x7f800000) return NAN;
    float largest;
    memcpy(&largest, &most, 4);
    if (largest < 1e-30f) largest = 1e-30f;
    if (largest > 448.0f * KV_SCALE_MOST) return KV_SCALE_MOST;
    largest /= 448.0f;
    memcpy(&most, &largest, 4);
    most = (most + 0x7fffff) & 0xff800000u;
    memcpy(&largest, &most, 4);
    return largest;
}

#endif
