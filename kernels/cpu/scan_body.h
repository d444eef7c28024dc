// The body of kernels/sampler_scan.h, compiled once per instruction set by scan_<isa>.c, which
// defines SCAN_TABLE. With vectors that can fuse, masses of a vector of logits have the bits of
// mass_of(); without, mass_of() is called.
#include "kernels/cpu/vec.h"
#include "kernels/sampler_scan.h"

#if defined(__AVX2__)

enum { PAIR = 2 * VEC_WIDTH };

typedef uint64_t vec_words __attribute__((vector_size(4 * VEC_WIDTH)));

// A plain softmax in every lane.
struct wide {
    vec scale, grid, least;
    vec_bits table;
};

static inline struct wide wide_of(struct softmax s)
{
    static const int32_t table[8] = MASS_TABLE;
    return (struct wide){vec_all(s.scale), vec_all(s.grid), vec_all(s.least), vec_table(table)};
}

static inline vec_bits wide_mass(const struct wide *w, vec l)
{
    l = vec_max(l, w->least);
    vec on_grid = vec_fma(l, w->scale, w->grid);
    vec f = vec_fma(l, w->scale, w->grid - on_grid);
    vec power = vec_fma(f, vec_all(MASS_C3), vec_all(MASS_C2));
    power = vec_fma(vec_fma(power, f, vec_all(MASS_C1)), f, vec_all(1.0f));
    vec_bits bits = ((vec_bits) on_grid << 20) + vec_look_up(w->table, (vec_bits) on_grid);
    return vec_round(power * (vec) bits);
}

// Sums of 32-bit lanes: all modulo 2^64 of each two lanes as one word, and their upper halves.
struct total {
    vec_words all, high;
};

static inline void total_add(struct total *t, vec_bits m)
{
    t->all += (vec_words) m;
    t->high += (vec_words) m >> 32;
}

static inline uint64_t total_sum(const struct total *t)
{
    uint64_t sum = 0;
    for (int i = 0; i < VEC_WIDTH / 2; i++) sum += t->all[i] - (t->high[i] << 32) + t->high[i];
    return sum;
}

static inline void prefetch_pair(const float *l)
{
    for (int i = 0; i < PAIR; i += 16) __builtin_prefetch(l + i, 0, 3);
}

// The n % PAIR last logits are left to the caller, here and below.
static uint64_t vec_sum_masses(const float *l, int n, struct softmax s, const float *ahead)
{
    struct wide w = wide_of(s);
    struct total t = {{0}, {0}};
    for (int i = 0; i + PAIR <= n; i += PAIR) {
        if (ahead != NULL) prefetch_pair(ahead + i);
        // Two masses, at most 2^30 each, fit a lane together.
        total_add(&t, wide_mass(&w, vec_load(l + i)) + wide_mass(&w, vec_load(l + i + VEC_WIDTH)));
    }
    return total_sum(&t);
}

static uint64_t vec_sum_above(const float *l, int n, struct softmax s, float above)
{
    struct wide w = wide_of(s);
    struct total t = {{0}, {0}};
    vec than = vec_all(above);
    for (int i = 0; i + PAIR <= n; i += PAIR) {
        vec a = vec_load(l + i), b = vec_load(l + i + VEC_WIDTH);
        total_add(&t, vec_bits_above(wide_mass(&w, a), a, than) +
                          vec_bits_above(wide_mass(&w, b), b, than));
    }
    return total_sum(&t);
}

static void vec_list(const float *l, int n, struct softmax s, uint64_t *mass)
{
    struct wide w = wide_of(s);
    for (int i = 0; i < n - n % PAIR; i += VEC_WIDTH) {
        vec_bits m = wide_mass(&w, vec_load(l + i));
        for (int j = 0; j < VEC_WIDTH; j++) mass[i + j] = m[j];
    }
}

// The largest of SCAN_BLOCK logits, and whether none is NaN.
static inline bool vec_block(const float *l, float *max)
{
    vec a = vec_load(l), b = vec_load(l + VEC_WIDTH);
    vec_nan nan = vec_has_nan(a, b);
    for (int i = PAIR; i < SCAN_BLOCK; i += PAIR) {
        vec c = vec_load(l + i), d = vec_load(l + i + VEC_WIDTH);
        nan = vec_nan_or(nan, vec_has_nan(c, d));
        a = vec_max(a, c);
        b = vec_max(b, d);
    }
    *max = vec_most(vec_max(a, b));
    return !vec_nan_any(nan);
}

static int vec_reach(const float *l, int n, float floor, int32_t *index)
{
    int count = 0;
    for (int i = 0; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
        uint32_t bits = vec_reaches(vec_load(l + i), vec_all(floor));
        for (; bits != 0; bits &= bits - 1) index[count++] = i + __builtin_ctz(bits);
    }
    return count;
}

#endif

static inline bool block_max(const float *l, int n, float *max)
{
#if defined(__AVX2__)
    if (n == SCAN_BLOCK) return vec_block(l, max);
#endif
    bool good = true;
    *max = l[0];
    for (int i = 0; i < n; i++) {
        good &= l[i] == l[i];
        *max = l[i] > *max ? l[i] : *max;
    }
    return good;
}

static bool scan_maxima(const float *l, int n, float *max)
{
    bool good = true;
    for (int begin = 0; begin < n; begin += SCAN_BLOCK) {
        int width = n - begin < SCAN_BLOCK ? n - begin : SCAN_BLOCK;
        good &= block_max(l + begin, width, &max[begin / SCAN_BLOCK]);
    }
    return good;
}

static int scan_reach(const float *l, int n, float floor, int32_t *index)
{
    int count = 0, i = 0;
#if defined(__AVX2__)
    count = vec_reach(l, n, floor, index);
    i = n - n % VEC_WIDTH;
#endif
    for (; i < n; i++) {
        index[count] = i;
        count += l[i] >= floor;
    }
    return count;
}

// A softmax that is not plain becomes one over its exponents t (n).
static struct softmax plain_of(struct softmax s, const float **l, int n, float *t)
{
    if (s.plain) return s;
    for (int i = 0; i < n; i++) t[i] = softmax_exponent(s, (*l)[i]);
    *l = t;
    return SOFTMAX_UNIT;
}

static uint64_t scan_sum(const float *l, int n, struct softmax s, const float *ahead)
{
    float t[SCAN_CHUNK];
    uint64_t sum = 0;
    int i = 0;
    s = plain_of(s, &l, n, t);
#if defined(__AVX2__)
    sum = vec_sum_masses(l, n, s, ahead);
    i = n - n % PAIR;
#else
    (void) ahead;
#endif
    for (; i < n; i++) sum += mass_plain(s, l[i]);
    return sum;
}

static uint64_t scan_sum_above(const float *l, int n, struct softmax s, float above)
{
    float t[SCAN_CHUNK];
    uint64_t sum = 0;
    int i = 0;
    if (!s.plain) {
        for (; i < n; i++) t[i] = l[i] > above ? softmax_exponent(s, l[i]) : -INFINITY;
        return scan_sum(t, n, SOFTMAX_UNIT, NULL);
    }
#if defined(__AVX2__)
    sum = vec_sum_above(l, n, s, above);
    i = n - n % PAIR;
#endif
    for (; i < n; i++) sum += l[i] > above ? mass_plain(s, l[i]) : 0;
    return sum;
}

static void scan_list(const float *l, int n, struct softmax s, uint64_t *mass)
{
    float t[SCAN_CHUNK];
    int i = 0;
    s = plain_of(s, &l, n, t);
#if defined(__AVX2__)
    vec_list(l, n, s, mass);
    i = n - n % PAIR;
#endif
    for (; i < n; i++) mass[i] = mass_plain(s, l[i]);
}

static bool scan_bins(const float *restrict l, int n, int known, uint32_t prefix,
                      uint16_t *restrict bin)
{
    int rest = 32 - known - SCAN_BITS;
    uint32_t any = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &l[i], sizeof bits);
        bits = bits == 0x80000000u ? 0 : bits;
        uint32_t key = bits ^ ((uint32_t) ((int32_t) bits >> 31) | 0x80000000u);
        uint32_t next = key >> rest, out = 0u - ((next >> SCAN_BITS) != prefix);
        any |= ~out;
        bin[i] = (uint16_t) ((out & SCAN_BINS) | (~out & (next % SCAN_BINS)));
    }
    return any != 0;
}

const struct scan SCAN_TABLE = {.maxima = scan_maxima,
                                .reach = scan_reach,
                                .bins = scan_bins,
                                .list = scan_list,
                                .sum = scan_sum,
                                .sum_above = scan_sum_above};
