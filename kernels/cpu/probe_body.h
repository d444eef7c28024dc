// The probes of probe.h over vec.h. A file that includes this defines PROBE, the name of its table,
// and PROBE_PAIRS where vdpbf16ps is to be measured.
#include "kernels/cpu/probe.h"
#include "kernels/cpu/vec.h"

enum { CHAINS = 12, PAGE = 4096 };

#ifdef PROBE_PAIRS
#define ARITHMETIC "dpbf16"
enum { FLOPS = 4 };
static inline vec multiply_add(vec a, vec b, vec c)
{
    return _mm512_dpbf16_ps(c, (__m512bh) a, (__m512bh) b);
}
#else
#define ARITHMETIC "f32 FMA"
enum { FLOPS = 2 };
static inline vec multiply_add(vec a, vec b, vec c) { return vec_fma(a, b, c); }
#endif

static void multiply(int64_t rounds)
{
    vec sums[CHAINS], a = vec_all(0.999f), b = vec_all(0.001f);
    _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) sums[i] = vec_all((float) i);
    for (int64_t at = 0; at < rounds; at++) {
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {
            sums[i] = multiply_add(a, b, sums[i]);
        }
        __asm__ volatile("" : "+x"(a), "+x"(b)); // not a constant: no round is left out
    }
    for (int i = 1; i < CHAINS; i++) sums[0] = sums[0] + sums[i];
    volatile float keep = vec_sum(sums[0]);
    (void) keep;
}

static void read_all(const void *data, size_t n)
{
    const char *from = data;
    vec_bits sums[4] = {0};
    for (size_t at = 0; at + PAGE <= n; at += PAGE) {
        for (int i = 0; i < PAGE; i += 4 * VEC_WIDTH * 4) {
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
                const char *p = from + at + i + j * VEC_WIDTH * 4;
                sums[j] += (vec_bits) vec_load((const float *) (const void *) p);
            }
        }
    }
    volatile uint32_t keep = (sums[0] + sums[1] + sums[2] + sums[3])[0];
    (void) keep;
}

const struct probe PROBE = {
    .arithmetic = ARITHMETIC,
    .flops_a_round = (double) (CHAINS * VEC_WIDTH * FLOPS),
    .multiply = multiply,
    .read = read_all,
};
