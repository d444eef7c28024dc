// The arithmetic of the sampler: the order of the vocabulary and the mass of a logit as an integer.
// Integer masses add up to the same total in any order, so a choice is the same at any tp, with any
// instruction set and in a definition by sorting. Pure; includes nothing of the sampler.
#ifndef PENSTOCK_KERNELS_SAMPLER_MASS_H
#define PENSTOCK_KERNELS_SAMPLER_MASS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

// Mass of the largest logit. A vocabulary of 2^20 has at most 2^60.
#define MASS_ONE (1ull << 40)

// A softmax before its division: mass(l) = 2^40 * 2^t, t = (l - max) * scale.
struct softmax {
    float max;   // of all ranks; may be +inf, never -inf
    float scale; // log2(e) / temperature
};

static inline struct softmax softmax_of(float max, float temperature)
{
    return (struct softmax){max, (float) (1.4426950408889634 / (double) temperature)};
}

// The exponent of a logit's mass, at most 0, never falling as l rises. The largest has 0 even if it
// is +inf, where all finite ones have -inf.
static inline float softmax_exponent(struct softmax s, float l)
{
    float t = (l - s.max) * s.scale; // NaN for the largest if max or scale is infinite
    return t < 0 ? t : 0;
}

// 2^(30 + f) on [-1/2, 1/2] = 2^30 (1 + C1 f + ... + C5 f^5): least greatest relative error, 9e-8.
#define MASS_C0 0x1p30f
#define MASS_C1 (6.931469776e-1f * MASS_C0)
#define MASS_C2 (2.402224205e-1f * MASS_C0)
#define MASS_C3 (5.550733762e-2f * MASS_C0)
#define MASS_C4 (9.671514747e-3f * MASS_C0)
#define MASS_C5 (1.326472746e-3f * MASS_C0)
#define MASS_LEAST (-60.0f) // exponents below have mass 0 anyway

// 2^t = 2^-shift * significand / 2^30 for t in [MASS_LEAST, 0], significand in [0.7, 1.42) * 2^30.
// Only exactly rounded single operations, so that every compiler and vector width has the same
// bits.
static inline void mass_parts(float t, int32_t *significand, int32_t *shift)
{
    int32_t n = (int32_t) (t - 0.5f);
    float f = t - (float) n;
    float p = MASS_C5;
    p = p * f + MASS_C4;
    p = p * f + MASS_C3;
    p = p * f + MASS_C2;
    p = p * f + MASS_C1;
    p = p * f + MASS_C0;
    *significand = (int32_t) p;
    *shift = -n;
}

static inline uint64_t mass_join(int32_t significand, int32_t shift)
{
    return (uint64_t) (uint32_t) significand << 10 >> shift;
}

static inline uint64_t mass_at(float t)
{
    int32_t significand, shift;
    mass_parts(t > MASS_LEAST ? t : MASS_LEAST, &significand, &shift);
    return mass_join(significand, shift);
}

static inline uint64_t mass_of(struct softmax s, float l)
{
    return mass_at(softmax_exponent(s, l));
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

// The mass that top_p's prefix must reach: ceil(top_p * left) in exact arithmetic, at least 1.
static inline uint64_t top_p_mass(float top_p, uint64_t left)
{
    int exponent;
    uint64_t m = (uint64_t) ldexp(frexp((double) top_p, &exponent), 24); // top_p = m * 2^(e - 24)
    int shift = 24 - exponent;
    if (shift > 100) return 1;
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
    double distance = l == s.max ? 0.0 : (double) l - (double) s.max;
    return (float) (distance - log((double) total / (double) MASS_ONE));
}

#endif
