// The arithmetic of the sampler: the order of the vocabulary and the mass of a logit as an integer.
// Integer masses add up to the same total in any order, so a choice is the same at any tp, with any
// instruction set and in a definition by sorting. Pure; includes nothing of the sampler.
#ifndef PENSTOCK_KERNELS_SAMPLER_MASS_H
#define PENSTOCK_KERNELS_SAMPLER_MASS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// The unit of masses: that of the largest logit lies in (0.9, 1] of it.
#define MASS_ONE (1ull << 30)

// A softmax before its division: mass(l) = round(2^30 * 2^t), t = l * scale - offset, the offset
// being max * scale rounded up to eighths: any common factor of all masses is as good as another,
// and this one lets 2^t be taken apart without rounding.
struct softmax {
    float max;    // of all ranks; may be +inf, never -inf
    float scale;  // log2(e) / temperature
    float offset;
    float grid;   // MASS_GRID - offset: added, it rounds to eighths
    float least;  // logits below have mass 0 as it has
    bool plain;   // else the numbers are beyond that form, and t = (l - max) * scale
};

#define MASS_GRID (0x1.8p20f + 157)
#define MASS_LEAST (-60.0f)     // exponents below have mass 0 anyway
#define MASS_OFFSET_MAX 0x1p18f // offsets beyond leave the grid

static inline struct softmax softmax_scaled(float max, float scale)
{
    struct softmax s = {.max = max,
                        .scale = scale,
                        .offset = 0,
                        .grid = 0,
                        .least = 0,
                        .plain = false};
    double offset = ceil((double) s.max * (double) s.scale * 8) / 8;
    if (!(s.scale < INFINITY && fabs(offset) <= (double) MASS_OFFSET_MAX)) return s;
    s.plain = true;
    s.offset = (float) offset;
    s.grid = MASS_GRID - s.offset;
    s.least = (s.offset + MASS_LEAST) / s.scale;
    return s;
}

static inline float softmax_scale(float temperature)
{
    return (float) (1.4426950408889634 / (double) temperature);
}

static inline struct softmax softmax_of(float max, float temperature)
{
    return softmax_scaled(max, softmax_scale(temperature));
}

// The exponent of a logit below the largest, at most 0, never falling as l rises. The largest has 0
// even if it is +inf, where all finite ones have -inf.
static inline float softmax_exponent(struct softmax s, float l)
{
    float t = (l - s.max) * s.scale; // NaN for the largest if max or scale is infinite
    return t < 0 ? t : 0;
}

// 2^f = 1 + C1 f + C2 f^2 + C3 f^3 on [-1/16, 1/16] within 3e-8.
#define MASS_C1 6.93147181e-1f
#define MASS_C2 2.40257607e-1f
#define MASS_C3 5.55093e-2f

// The mantissa of 2^(j / 8) less the straight line from 1 to 2.
#define MASS_TABLE \
    {0, -289342, -509968, -655657, \
     -719629, -694486, -572163, -343865}

// 2^30 * 2^(eighths + f), eighths in [-2^19, 0] as MASS_GRID + eighths: shifted by 20, the number
// of eighths and MASS_GRID's 157 * 8 make the exponent of a float and the line's mantissa. Only
// exactly rounded single operations, fused as written, so that every compiler and vector width has
// the same bits.
static inline float mass_power(float on_grid, float f)
{
    static const int32_t table[8] = MASS_TABLE;
    uint32_t bits;
    float power;
    memcpy(&bits, &on_grid, sizeof bits);
    bits = (bits << 20) + (uint32_t) table[bits & 7];
    memcpy(&power, &bits, sizeof power);
    return fmaf(fmaf(fmaf(f, MASS_C3, MASS_C2), f, MASS_C1), f, 1.0f) * power;
}

// Of exponents themselves, in base 2.
static const struct softmax SOFTMAX_UNIT = {
    .max = 0, .scale = 1, .offset = 0, .grid = MASS_GRID, .least = MASS_LEAST, .plain = true};

static inline uint64_t mass_plain(struct softmax s, float l)
{
    l = l > s.least ? l : s.least;
    float on_grid = fmaf(l, s.scale, s.grid), eighths = on_grid - s.grid;
    return (uint64_t) lrintf(mass_power(on_grid, fmaf(l, s.scale, -eighths)));
}

// Whether all logits up to `l` surely have mass 0; or less than 2^30, so that four masses fit into
// 32 bits. Not asked of mass_plain, which falls by a few units as l rises past an eighth.
static inline bool mass_none(struct softmax s, float l) { return l * s.scale - s.offset < -32; }
static inline bool mass_less(struct softmax s, float l)
{
    return l * s.scale - s.offset < -0.125f;
}

static inline uint64_t mass_at(float t) { return mass_plain(SOFTMAX_UNIT, t); }

static inline uint64_t mass_of(struct softmax s, float l)
{
    return s.plain ? mass_plain(s, l) : mass_at(softmax_exponent(s, l));
}

// Keys of logits order as the logits do; -0.0 has the key of 0.0. A NaN's key lies beyond
// KEY_INFINITY or below KEY_MINUS_INFINITY.
#define KEY_INFINITY 0xff800000u
#define KEY_MINUS_INFINITY 0x007fffffu

static inline uint32_t key_of(float l)
{
    uint32_t bits;
    memcpy(&bits, &l, sizeof bits);
    bits = bits == 0x80000000u ? 0 : bits;
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

static inline float key_logit(uint32_t key)
{
    uint32_t bits = key >> 31 != 0 ? key & 0x7fffffffu : ~key;
    float l;
    memcpy(&l, &bits, sizeof l);
    return l;
}

// One token as a number: ascending is (logit descending, id ascending).
static inline uint64_t entry_of(float l, int32_t id)
{
    return (uint64_t) ~key_of(l) << 32 | (uint32_t) id;
}

#define ENTRY_NONE UINT64_MAX // after every token

static inline uint32_t entry_key(uint64_t entry) { return ~(uint32_t) (entry >> 32); }
static inline float entry_logit(uint64_t entry) { return key_logit(entry_key(entry)); }
static inline int32_t entry_id(uint64_t entry) { return (int32_t) (uint32_t) entry; }

// min_p keeps the exponents that reach this.
static inline float min_p_exponent(float min_p)
{
    return min_p > 0 ? (float) log2((double) min_p) : -INFINITY;
}

// top_p = the result * 2^-shift, exactly.
static inline uint32_t top_p_parts(float top_p, int *shift)
{
    int exponent;
    uint32_t m = (uint32_t) ldexp(frexp((double) top_p, &exponent), 24);
    *shift = 24 - exponent;
    return m;
}

#define TOP_P_SHIFT_MAX 100 // beyond, no mass there is has a product of 1

// The mass that top_p's prefix must reach: ceil(top_p * left) in exact arithmetic, at least 1.
static inline uint64_t top_p_mass(float top_p, uint64_t left)
{
    int shift;
    uint32_t m = top_p_parts(top_p, &shift);
    if (shift > TOP_P_SHIFT_MAX) return 1;
    unsigned __int128 product = (unsigned __int128) m * left;
    uint64_t need = (uint64_t) ((product + (((unsigned __int128) 1 << shift) - 1)) >> shift);
    return need > 0 ? need : 1;
}

// The draw: a number below `mass` from 64 uniform bits.
static inline uint64_t mass_draw(uint64_t random, uint64_t mass)
{
    return (uint64_t) ((unsigned __int128) random * mass >> 64);
}

// ln(mass(l) / total) for a softmax at temperature 1, without the rounding of mass(l).
static inline float mass_logprob(struct softmax s, float l, uint64_t total)
{
    double t = l == s.max ? 0.0 : ((double) l - (double) s.max) * (double) s.scale;
    if (s.plain) t = (double) l * (double) s.scale - (double) s.offset;
    return (float) ((t - log2((double) total / (double) MASS_ONE)) * 0.6931471805599453);
}

#endif
