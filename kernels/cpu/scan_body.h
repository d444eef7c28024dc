// The body of kernels/sampler_scan.h, compiled once per instruction set by scan_<isa>.c, which
// defines SCAN_TABLE. Plain loops in the forms that compilers turn into vectors without changing a
// bit of the result: no branch, integer reductions, and arrays between a loop's float half and its
// 64-bit half.
#include "kernels/sampler_scan.h"

enum { PIECE = 256 }; // elements between the two halves

// Signed keys: the bits of a float with the order of integers; -0.0 is just below 0.0.
static inline int32_t signed_key(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

struct range {
    int32_t most, least;
};

static inline struct range range_of(const float *l, int n, struct range r)
{
    for (int i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &l[i], sizeof bits);
        int32_t k = signed_key(bits);
        r.most = k > r.most ? k : r.most;
        r.least = k < r.least ? k : r.least;
    }
    return r;
}

static bool scan_maxima(const float *l, int n, float *max)
{
    int32_t most = INT32_MIN, least = INT32_MAX;
    for (int begin = 0; begin < n; begin += SCAN_BLOCK) {
        struct range r = {INT32_MIN, INT32_MAX};
        // A constant count lets the compiler unroll all of it.
        r = n - begin >= SCAN_BLOCK ? range_of(l + begin, SCAN_BLOCK, r)
                                    : range_of(l + begin, n - begin, r);
        int32_t bits = signed_key(r.most);
        memcpy(&max[begin / SCAN_BLOCK], &bits, sizeof bits);
        most = r.most > most ? r.most : most;
        least = r.least < least ? r.least : least;
    }
    return most <= 0x7f800000 && least >= signed_key((int32_t) 0xff800000u);
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

// Infinities among a softmax' numbers make NaNs, which only softmax_exponent() minds.
static bool is_finite(struct softmax s) { return s.max < INFINITY && s.scale < INFINITY; }

// The exponent of a finite softmax, at least MASS_LEAST: it is at most 0, so that the bits order
// the other way round.
static inline float bounded(float t)
{
    const uint32_t least = 0xc2700000u; // MASS_LEAST's bits
    uint32_t bits;
    memcpy(&bits, &t, sizeof bits);
    bits = bits < least ? bits : least;
    memcpy(&t, &bits, sizeof bits);
    return t;
}

static inline void piece_parts(const float *restrict l, int n, struct softmax s,
                               int32_t *restrict significand, int32_t *restrict shift)
{
    for (int i = 0; i < n; i++) {
        mass_parts(bounded((l[i] - s.max) * s.scale), &significand[i], &shift[i]);
    }
}

static void scan_list(const float *l, int n, struct softmax s, uint64_t *mass)
{
    int32_t significand[PIECE], shift[PIECE];
    for (int i = 0; i < n && !is_finite(s); i++) mass[i] = mass_of(s, l[i]);
    for (int begin = 0; begin < n && is_finite(s); begin += PIECE) {
        int width = n - begin < PIECE ? n - begin : PIECE;
        piece_parts(l + begin, width, s, significand, shift);
        for (int i = 0; i < width; i++) mass[begin + i] = mass_join(significand[i], shift[i]);
    }
}

static uint64_t scan_sum(const float *l, int n, struct softmax s)
{
    int32_t significand[PIECE], shift[PIECE];
    uint64_t sum = 0;
    for (int i = 0; i < n && !is_finite(s); i++) sum += mass_of(s, l[i]);
    for (int begin = 0; begin < n && is_finite(s); begin += PIECE) {
        int width = n - begin < PIECE ? n - begin : PIECE;
        piece_parts(l + begin, width, s, significand, shift);
        for (int i = 0; i < width; i++) sum += mass_join(significand[i], shift[i]);
    }
    return sum;
}

static bool is_kept(struct softmax s, float l, float above, float least)
{
    return l > above && softmax_exponent(s, l) >= least;
}

static uint64_t scan_sum_kept(const float *l, int n, struct softmax s, float above, float least)
{
    int32_t significand[PIECE], shift[PIECE];
    uint64_t sum = 0;
    for (int i = 0; i < n && !is_finite(s); i++) {
        sum += is_kept(s, l[i], above, least) ? mass_of(s, l[i]) : 0;
    }
    for (int begin = 0; begin < n && is_finite(s); begin += PIECE) {
        int width = n - begin < PIECE ? n - begin : PIECE;
        piece_parts(l + begin, width, s, significand, shift);
        for (int i = 0; i < width; i++) {
            float x = l[begin + i];
            significand[i] &= -(int32_t) ((x > above) & ((x - s.max) * s.scale >= least));
        }
        for (int i = 0; i < width; i++) sum += mass_join(significand[i], shift[i]);
    }
    return sum;
}

const struct scan SCAN_TABLE = {scan_maxima, scan_bins, scan_list, scan_sum, scan_sum_kept};
