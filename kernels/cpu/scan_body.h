// The body of kernels/sampler_scan.h, compiled once per instruction set by scan_<isa>.c, which defines
// SCAN_TABLE and SCAN_LANES. The exponential is mass_parts() of sampler_mass.h in vectors, operation
// by operation; the rest are integer loops that compilers turn into vectors themselves.
#include "kernels/sampler_scan.h"

enum { PIECE = 256 }; // elements between the float half and the 64-bit half of a loop

typedef float floats __attribute__((vector_size(4 * SCAN_LANES)));
typedef int32_t ints __attribute__((vector_size(4 * SCAN_LANES)));

static inline floats splat(float x) { return (floats){0} + x; }

// Signed keys: the bits of a float with the order of integers; -0.0 is just below 0.0.
static inline int32_t signed_key(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

static bool scan_maxima(const float *l, int n, float *max)
{
    int32_t all_most = INT32_MIN, all_least = INT32_MAX;
    for (int begin = 0; begin < n; begin += SCAN_BLOCK) {
        int32_t bits[SCAN_BLOCK], most = INT32_MIN, least = INT32_MAX;
        int width = n - begin < SCAN_BLOCK ? n - begin : SCAN_BLOCK;
        memcpy(bits, l + begin, (size_t) width * sizeof *bits);
        for (int i = width; i < SCAN_BLOCK; i++) bits[i] = bits[0];
        for (int i = 0; i < SCAN_BLOCK; i++) {
            int32_t k = signed_key(bits[i]);
            most = k > most ? k : most;
            least = k < least ? k : least;
        }
        int32_t back = signed_key(most);
        memcpy(&max[begin / SCAN_BLOCK], &back, sizeof back);
        all_most = most > all_most ? most : all_most;
        all_least = least < all_least ? least : all_least;
    }
    return all_most <= 0x7f800000 && all_least >= signed_key((int32_t) 0xff800000u);
}

// mass_parts(softmax_exponent(s, x)), with significand 0 where the logit isn't kept.
static inline void parts(const float *x, struct softmax s, float above, float least,
                         int32_t *significand, int32_t *shift)
{
    floats l;
    memcpy(&l, x, sizeof l);
    floats t = (l - splat(s.max)) * splat(s.scale);
    t = (floats) ((ints) t & (ints) (t < splat(0)));
    ints kept = (ints) (l > splat(above)) & (ints) (t >= splat(least));
    ints within = (ints) (t > splat(MASS_LEAST));
    t = (floats) (((ints) t & within) | ((ints) splat(MASS_LEAST) & ~within));
    ints n = __builtin_convertvector(t - splat(0.5f), ints);
    floats f = t - __builtin_convertvector(n, floats);
    floats p = splat(MASS_C6);
    p = p * f + splat(MASS_C5);
    p = p * f + splat(MASS_C4);
    p = p * f + splat(MASS_C3);
    p = p * f + splat(MASS_C2);
    p = p * f + splat(MASS_C1);
    p = p * f + splat(1.0f);
    ints q = __builtin_convertvector(p * splat(1073741824.0f), ints) & kept;
    n = -n;
    memcpy(significand, &q, sizeof q);
    memcpy(shift, &n, sizeof n);
}

// One piece of a loop: l (n) with what lies beyond n filled by -inf, which has no mass.
static inline void piece_parts(const float *l, int n, struct softmax s, float above, float least,
                               int32_t *significand, int32_t *shift)
{
    float padded[PIECE];
    if (n < PIECE) {
        memcpy(padded, l, (size_t) n * sizeof *l);
        for (int i = n; i < PIECE; i++) padded[i] = -INFINITY;
        l = padded;
    }
    for (int i = 0; i < PIECE; i += SCAN_LANES) {
        parts(l + i, s, above, least, significand + i, shift + i);
    }
}

static uint64_t scan_mass(const float *l, int n, struct softmax s, float above, float least)
{
    int32_t significand[PIECE], shift[PIECE];
    uint64_t sum = 0;
    for (int begin = 0; begin < n; begin += PIECE) {
        int width = n - begin < PIECE ? n - begin : PIECE;
        piece_parts(l + begin, width, s, above, least, significand, shift);
        for (int i = 0; i < PIECE; i++) sum += mass_join(significand[i], shift[i]);
    }
    return sum;
}

static void scan_list(const float *l, int n, struct softmax s, uint32_t *key, uint64_t *mass)
{
    int32_t significand[PIECE], shift[PIECE];
    for (int begin = 0; begin < n; begin += PIECE) {
        int width = n - begin < PIECE ? n - begin : PIECE;
        piece_parts(l + begin, width, s, -INFINITY, -INFINITY, significand, shift);
        for (int i = 0; i < width; i++) mass[begin + i] = mass_join(significand[i], shift[i]);
        for (int i = 0; i < width; i++) key[begin + i] = key_of(l[begin + i]);
    }
}

const struct scan SCAN_TABLE = {scan_maxima, scan_mass, scan_list};
