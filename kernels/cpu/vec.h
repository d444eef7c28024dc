// A vector of floats as wide as the file is compiled for: 16 (AVX-512), 8 (AVX2 with FMA) or 4 (any
// CPU). + - * / are the compiler's own on such types; the rest is here. Only for *_body.h files.
#ifndef PENSTOCK_KERNELS_CPU_VEC_H
#define PENSTOCK_KERNELS_CPU_VEC_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)

enum { VEC_WIDTH = 16 };
typedef __m512 vec;
typedef uint32_t vec_bits __attribute__((vector_size(64)));
typedef int32_t vec_mask __attribute__((vector_size(64)));
typedef int16_t vec_shorts __attribute__((vector_size(64)));

static inline vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
static inline vec vec_all(float x) { return _mm512_set1_ps(x); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }

// The first n values, zeros behind them; 0 <= n <= VEC_WIDTH.
static inline vec vec_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps((__mmask16) ((1u << n) - 1), p);
}

static inline void vec_store_n(float *p, vec v, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16) ((1u << n) - 1), v);
}

static inline vec vec_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (const void *) p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Bytes, each in a lane of its own.
static inline vec_bits vec_load_bytes(const uint8_t *p)
{
    return (vec_bits) _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) (const void *) p));
}

static inline float vec_sum(vec v)
{
    __m256 eight = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
    __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
    four = four + _mm_movehl_ps(four, four);
    return _mm_cvtss_f32(four) + _mm_cvtss_f32(_mm_movehdup_ps(four));
}

static inline float vec_most(vec v) { return _mm512_reduce_max_ps(v); }

// most[i] = the largest of v[i]'s: pairs of vectors become one, half the lanes for each.
static inline void vec_most_of_8(const vec v[8], float most[8])
{
    vec w[4], x[2];
    for (int i = 0; i < 4; i++) {
        vec a = v[i], b = v[i + 4];
        w[i] = vec_max(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int i = 0; i < 2; i++) {
        vec a = w[i], b = w[i + 2];
        x[i] = vec_max(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    vec y = vec_max(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    y = vec_max(y, _mm512_shuffle_ps(y, y, 0x4e));
    // A quarter of y has 0 and 1 of, in turn, v[0..1], v[4..5], v[2..3], v[6..7].
    __m512i order = _mm512_setr_epi32(0, 1, 8, 9, 4, 5, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(most, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, y)));
}

// Bit i: lane i of a is not below b's.
static inline uint32_t vec_reaches(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

// to (VEC_WIDTH) begins with the lanes of v that are not below `floor`; returns how many.
static inline int vec_store_reaching(float *to, vec v, vec floor)
{
    __mmask16 reaches = _mm512_cmp_ps_mask(v, floor, _CMP_GE_OQ);
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(reaches, v));
    return __builtin_popcount(reaches);
}

// The nearest integers to v, ties to even, in the lanes in which a is above b, else 0.
static inline vec_bits vec_round_above(vec v, vec a, vec b)
{
    return (vec_bits) _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), v);
}

// The lanes in which nothing was NaN so far.
typedef __mmask16 vec_good;
static inline vec_good vec_all_good(void) { return 0xffff; }
static inline vec_good vec_good_and(vec_good g, vec a, vec b)
{
    return _mm512_mask_cmp_ps_mask(g, a, b, _CMP_ORD_Q);
}
static inline bool vec_is_good(vec_good g) { return g == 0xffff; }

// table[i % 8] for each lane; nearest integers, ties to even.
static inline vec_bits vec_table(const int32_t table[8])
{
    __m256i eight = _mm256_loadu_si256((const __m256i *) (const void *) table);
    return (vec_bits) _mm512_broadcast_i32x8(eight);
}

static inline vec_bits vec_look_up(vec_bits table, vec_bits i)
{
    return (vec_bits) _mm512_permutexvar_epi32((__m512i) i, (__m512i) table);
}

static inline vec_bits vec_round(vec v) { return (vec_bits) _mm512_cvtps_epi32(v); }

#elif defined(__AVX2__)

enum { VEC_WIDTH = 8 };
typedef __m256 vec;
typedef uint32_t vec_bits __attribute__((vector_size(32)));
typedef int32_t vec_mask __attribute__((vector_size(32)));
typedef int16_t vec_shorts __attribute__((vector_size(32)));

static inline vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
static inline vec vec_all(float x) { return _mm256_set1_ps(x); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }

static inline __m256i vec_first(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vec vec_load_n(const float *p, int n) { return _mm256_maskload_ps(p, vec_first(n)); }

static inline void vec_store_n(float *p, vec v, int n) { _mm256_maskstore_ps(p, vec_first(n), v); }

static inline vec vec_load_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) (const void *) p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

static inline vec_bits vec_load_bytes(const uint8_t *p)
{
    return (vec_bits) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) (const void *) p));
}

static inline float vec_sum(vec v)
{
    __m128 four = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
    four = four + _mm_movehl_ps(four, four);
    return _mm_cvtss_f32(four) + _mm_cvtss_f32(_mm_movehdup_ps(four));
}

static inline float vec_most(vec v)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

static inline void vec_most_of_8(const vec v[8], float most[8])
{
    vec w[4];
    for (int i = 0; i < 4; i++) {
        vec a = v[i], b = v[i + 4];
        w[i] = vec_max(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    vec x = vec_max(_mm256_unpacklo_ps(w[0], w[1]), _mm256_unpackhi_ps(w[0], w[1]));
    vec y = vec_max(_mm256_unpacklo_ps(w[2], w[3]), _mm256_unpackhi_ps(w[2], w[3]));
    vec z = vec_max(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xee));
    _mm256_storeu_ps(most, z);
}

static inline uint32_t vec_reaches(vec a, vec b)
{
    return (uint32_t) _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}

static inline int vec_store_reaching(float *to, vec v, vec floor)
{
    uint32_t reaches = vec_reaches(v, floor);
    int count = 0;
    for (int i = 0; i < VEC_WIDTH; i++) {
        to[count] = v[i];
        count += reaches >> i & 1;
    }
    return count;
}

static inline vec_bits vec_round_above(vec v, vec a, vec b)
{
    return (vec_bits) _mm256_cvtps_epi32(v) & (vec_bits) _mm256_cmp_ps(a, b, _CMP_GT_OQ);
}

typedef __m256 vec_good;
static inline vec_good vec_all_good(void) { return _mm256_castsi256_ps(_mm256_set1_epi32(-1)); }
static inline vec_good vec_good_and(vec_good g, vec a, vec b)
{
    return _mm256_and_ps(g, _mm256_cmp_ps(a, b, _CMP_ORD_Q));
}
static inline bool vec_is_good(vec_good g) { return _mm256_movemask_ps(g) == 0xff; }

static inline vec_bits vec_table(const int32_t table[8])
{
    return (vec_bits) _mm256_loadu_si256((const __m256i *) (const void *) table);
}

static inline vec_bits vec_look_up(vec_bits table, vec_bits i)
{
    return (vec_bits) _mm256_permutevar8x32_epi32((__m256i) table, (__m256i) i);
}

static inline vec_bits vec_round(vec v) { return (vec_bits) _mm256_cvtps_epi32(v); }

#else

enum { VEC_WIDTH = 4 };
typedef float vec __attribute__((vector_size(16)));
typedef uint32_t vec_bits __attribute__((vector_size(16)));
typedef int32_t vec_mask __attribute__((vector_size(16)));
typedef int16_t vec_shorts __attribute__((vector_size(16)));

static inline vec vec_load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vec_store(float *p, vec v) { memcpy(p, &v, sizeof v); }
static inline vec vec_all(float x) { return (vec) {x, x, x, x}; }
// Not fused: without the instruction a fused product is a slow call.
static inline vec vec_fma(vec a, vec b, vec c) { return a * b + c; }

static inline vec vec_max(vec a, vec b)
{
    vec_mask above = a > b;
    return (vec) ((above & (vec_mask) a) | (~above & (vec_mask) b));
}

static inline vec vec_load_n(const float *p, int n)
{
    vec v = {0};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
}

static inline void vec_store_n(float *p, vec v, int n)
{
    for (int i = 0; i < n; i++) p[i] = v[i];
}

static inline vec vec_load_bf16(const uint16_t *p)
{
    return (vec) (vec_bits) {(uint32_t) p[0] << 16, (uint32_t) p[1] << 16, (uint32_t) p[2] << 16,
                             (uint32_t) p[3] << 16};
}

static inline vec_bits vec_load_bytes(const uint8_t *p)
{
    return (vec_bits) {p[0], p[1], p[2], p[3]};
}

static inline float vec_sum(vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

#endif

// e4m3 with its bits moved to where f32 has them: 2^-120 of the value, subnormals included.
static inline vec vec_moved_e4m3(const uint8_t *p)
{
    vec_bits code = vec_load_bytes(p);
    return (vec) ((code & 0x7f) << 20 | (code & 0x80) << 24);
}

static inline vec_bits vec_all_bits(uint32_t x) { return (vec_bits) {0} + x; }
static inline vec vec_zero(void) { return vec_all(0.0f); }

static inline vec vec_select(vec_mask mask, vec yes, vec no)
{
    return (vec) ((mask & (vec_mask) yes) | (~mask & (vec_mask) no));
}

// exp, within 2 ulp where neither result nor argument is beyond float's normal range: 0 below -87,
// exp(88.37) above that. NaN stays NaN. x = n ln 2 + r; Taylor's series of exp(r) to r^7, then n
// into the exponent. `round` makes the sum's last bits the integer n.
static inline vec vec_exp(vec x)
{
    const vec round = vec_all(0x1.8p23f), lowest = vec_all(-87.0f), highest = vec_all(88.37f);
    vec a = vec_select(x > highest, highest, x);
    vec t = vec_fma(a, vec_all(0x1.715476p0f), round);
    vec n = t - round;
    vec r = vec_fma(n, vec_all(-0x1.62e4p-1f), a); // ln 2 in two parts; n times the first is exact
    r = vec_fma(n, vec_all(-1.4286068203e-6f), r);
    vec sum = vec_all(1.0f / 5040);
    sum = vec_fma(sum, r, vec_all(1.0f / 720));
    sum = vec_fma(sum, r, vec_all(1.0f / 120));
    sum = vec_fma(sum, r, vec_all(1.0f / 24));
    sum = vec_fma(sum, r, vec_all(1.0f / 6));
    sum = vec_fma(sum, r, vec_all(0.5f));
    sum = vec_fma(sum, r, vec_all(1.0f));
    sum = vec_fma(sum, r, vec_all(1.0f));
    vec_bits scaled = (vec_bits) sum + ((vec_bits) t << 23);
    vec result = (vec) (~(vec_bits) (x < lowest) & scaled);
    return vec_select(x == x, result, x);
}

#endif
