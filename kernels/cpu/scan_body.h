// The body of kernels/sampler_scan.h, compiled once per instruction set by scan_<isa>.c, which
// defines SCAN_TABLE. With vectors that can fuse, masses of a vector of logits have the bits of
// mass_of(); without, mass_of() is called.
#include "kernels/cpu/vec.h"
#include "kernels/sampler_scan.h"

#if defined(__AVX2__)

enum { PAIR = 2 * VEC_WIDTH, QUAD = 4 * VEC_WIDTH, CHUNK_BLOCKS = SCAN_CHUNK / SCAN_BLOCK };

_Static_assert(CHUNK_BLOCKS == 8, "vec_most_of_8 has the maxima of a chunk");

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

// The masses of l as floats, before they are rounded; `low`: some may be below w->least.
static inline vec wide_power(const struct wide *w, vec l, bool low)
{
    if (low) l = vec_max(l, w->least);
    vec on_grid = vec_fma(l, w->scale, w->grid);
    vec f = vec_fma(l, w->scale, w->grid - on_grid);
    vec power = vec_fma(f, vec_all(MASS_C3), vec_all(MASS_C2));
    power = vec_fma(vec_fma(power, f, vec_all(MASS_C1)), f, vec_all(1.0f));
    vec_bits bits = ((vec_bits) on_grid << 20) + vec_look_up(w->table, (vec_bits) on_grid);
    return power * (vec) bits;
}

static inline vec_bits wide_mass(const struct wide *w, vec l, bool low)
{
    return vec_round(wide_power(w, l, low));
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

static inline void prefetch(const float *l, int n)
{
    for (int i = 0; i < n; i += 16) __builtin_prefetch(l + i, 0, 3);
}

// The n % QUAD last logits are left to the caller. Two masses, at most 2^30 each, fit a lane
// together, and four where all are less: `lesser`.
static inline uint64_t sum_quads(const float *l, int n, const struct wide *w, bool low, bool lesser,
                                 const float *ahead)
{
    struct total t = {{0}, {0}};
    for (int i = 0; i + QUAD <= n; i += QUAD) {
        if (ahead != NULL) prefetch(ahead + i, QUAD);
        vec_bits a = wide_mass(w, vec_load(l + i), low) +
                     wide_mass(w, vec_load(l + i + VEC_WIDTH), low);
        vec_bits b = wide_mass(w, vec_load(l + i + 2 * VEC_WIDTH), low) +
                     wide_mass(w, vec_load(l + i + 3 * VEC_WIDTH), low);
        if (lesser) {
            total_add(&t, a + b);
        } else {
            total_add(&t, a);
            total_add(&t, b);
        }
    }
    return total_sum(&t);
}

static uint64_t vec_sum_masses(const float *l, int n, struct softmax s, struct sampler_bounds b,
                               const float *ahead)
{
    struct wide w = wide_of(s);
    if (b.least >= s.least && mass_less(s, b.most)) {
        return sum_quads(l, n, &w, false, true, ahead);
    }
    return sum_quads(l, n, &w, true, false, ahead);
}

// The n % PAIR last logits are left to the caller, here and below.
static inline uint64_t sum_pairs_above(const float *l, int n, const struct wide *w, bool low,
                                       float above)
{
    struct total t = {{0}, {0}};
    vec than = vec_all(above);
    for (int i = 0; i + PAIR <= n; i += PAIR) {
        vec a = vec_load(l + i), b = vec_load(l + i + VEC_WIDTH);
        total_add(&t, vec_round_above(wide_power(w, a, low), a, than) +
                          vec_round_above(wide_power(w, b, low), b, than));
    }
    return total_sum(&t);
}

static uint64_t vec_sum_above(const float *l, int n, struct softmax s, struct sampler_bounds b,
                              float above)
{
    struct wide w = wide_of(s);
    return b.least >= s.least ? sum_pairs_above(l, n, &w, false, above)
                              : sum_pairs_above(l, n, &w, true, above);
}

static void vec_list(const float *l, int n, struct softmax s, uint64_t *mass)
{
    struct wide w = wide_of(s);
    for (int i = 0; i < n - n % PAIR; i += VEC_WIDTH) {
        vec_bits m = wide_mass(&w, vec_load(l + i), true);
        for (int j = 0; j < VEC_WIDTH; j++) mass[i + j] = m[j];
    }
}

// The largest of each of n <= CHUNK_BLOCKS blocks, the bounds of all; whether none is NaN.
static inline bool vec_blocks(const float *l, int n, float most[CHUNK_BLOCKS],
                              struct sampler_bounds *bounds)
{
    vec tops[CHUNK_BLOCKS], top = vec_all(-INFINITY);
    vec low[2] = {vec_all(INFINITY), vec_all(INFINITY)};
    vec_good good[2] = {vec_all_good(), vec_all_good()};
    for (int b = 0; b < n; b++, l += SCAN_BLOCK) {
        vec high[2] = {vec_all(-INFINITY), vec_all(-INFINITY)};
        for (int i = 0; i < SCAN_BLOCK; i += QUAD) {
            for (int j = 0; j < 2; j++) {
                vec x = vec_load(l + i + j * PAIR), y = vec_load(l + i + j * PAIR + VEC_WIDTH);
                good[j] = vec_good_and(good[j], x, y);
                high[j] = vec_max(high[j], vec_max(x, y));
                low[j] = vec_min(low[j], vec_min(x, y));
            }
        }
        tops[b] = vec_max(high[0], high[1]);
        top = vec_max(top, tops[b]);
    }
    for (int b = n; b < CHUNK_BLOCKS; b++) tops[b] = top;
    vec_most_of_8(tops, most);
    bounds->least = -vec_most(-vec_min(low[0], low[1]));
    bounds->most = vec_most(top);
    return vec_is_good(good[0]) && vec_is_good(good[1]);
}

// Takes the blocks of n <= SCAN_CHUNK logits that are whole; returns how many logits these are.
static inline int vec_bounds(const float *l, int n, float *max, struct sampler_bounds *bounds,
                             bool *good)
{
    float most[CHUNK_BLOCKS];
    if (n == SCAN_CHUNK) {
        *good = vec_blocks(l, CHUNK_BLOCKS, max, bounds);
        return n;
    }
    n /= SCAN_BLOCK;
    if (n > 0) *good = vec_blocks(l, n, most, bounds);
    for (int b = 0; b < n; b++) max[b] = most[b];
    return n * SCAN_BLOCK;
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

static bool scan_maxima(const float *l, int n, float *max, union sampler_chunk *chunk)
{
    bool good = true;
    for (int begin = 0; begin < n; begin += SCAN_CHUNK) {
        int i = begin, end = n - begin < SCAN_CHUNK ? n : begin + SCAN_CHUNK;
        struct sampler_bounds b = {INFINITY, -INFINITY};
#if defined(__AVX2__)
        bool all = true;
        i += vec_bounds(l + i, end - i, &max[i / SCAN_BLOCK], &b, &all);
        good &= all;
#endif
        for (float *most = NULL; i < end; i++) {
            if (i % SCAN_BLOCK == 0) *(most = &max[i / SCAN_BLOCK]) = l[i];
            good &= l[i] == l[i];
            *most = l[i] > *most ? l[i] : *most;
            b.least = l[i] < b.least ? l[i] : b.least;
            b.most = *most > b.most ? *most : b.most;
        }
        chunk[begin / SCAN_CHUNK].bounds = b;
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

static int scan_pick(const float *l, int n, float floor, float *picked)
{
    int count = 0, i = 0;
#if defined(__AVX2__)
    _Static_assert((int) VEC_WIDTH <= (int) SCAN_SLACK, "a whole vector is stored");
    for (; i + VEC_WIDTH <= n; i += VEC_WIDTH) {
        count += vec_store_reaching(picked + count, vec_load(l + i), vec_all(floor));
    }
#endif
    for (; i < n; i++) {
        picked[count] = l[i];
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

static uint64_t scan_sum(const float *l, int n, struct softmax s, struct sampler_bounds bounds,
                         const float *ahead)
{
    float t[SCAN_CHUNK];
    uint64_t sum = 0;
    int i = 0;
    if (s.plain && (bounds.least == bounds.most || mass_none(s, bounds.most))) {
        return (uint64_t) n * mass_plain(s, bounds.most); // nothing to hide a prefetch behind
    }
    if (!s.plain) bounds = BOUNDS_NONE;
    s = plain_of(s, &l, n, t);
#if defined(__AVX2__)
    sum = vec_sum_masses(l, n, s, bounds, ahead);
    i = n - n % QUAD;
#else
    (void) ahead;
#endif
    for (; i < n; i++) sum += mass_plain(s, l[i]);
    return sum;
}

static uint64_t scan_sum_above(const float *l, int n, struct softmax s,
                               struct sampler_bounds bounds, float above)
{
    float t[SCAN_CHUNK];
    uint64_t sum = 0;
    int i = 0;
    if (bounds.most <= above) return 0;
    if (!s.plain) {
        for (; i < n; i++) t[i] = l[i] > above ? softmax_exponent(s, l[i]) : -INFINITY;
        return scan_sum(t, n, SOFTMAX_UNIT, BOUNDS_NONE, NULL);
    }
#if defined(__AVX2__)
    sum = vec_sum_above(l, n, s, bounds, above);
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
                               .pick = scan_pick,
                                .bins = scan_bins,
                                .list = scan_list,
                                .sum = scan_sum,
                                .sum_above = scan_sum_above};
