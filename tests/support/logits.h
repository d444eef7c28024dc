// Logits of every awkward kind, from one seeded generator: for the tests of the sampler.
#ifndef PENSTOCK_TESTS_SUPPORT_LOGITS_H
#define PENSTOCK_TESTS_SUPPORT_LOGITS_H

#include "common/sampling.h"

#include <math.h>
#include <stdint.h>

static uint64_t random_state = 1;

static inline uint64_t next_random(void) { return sampling_random(0xda7a, random_state++); }
static inline double uniform(void) { return (double) (next_random() >> 11) / 9007199254740992.0; }
static inline float normal(void)
{
    return (float) (sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform()));
}

enum shape_of_logits {
    NORMAL,      // standard deviation 2, flat for a language model
    PEAKED,      // a few tokens have nearly all mass
    ROUNDED,     // to 1/4: ties everywhere
    ALL_EQUAL,
    TWO_LEVELS,
    HUGE,        // +-1e38
    MOSTLY_MINUS_INF,
    SINGLE_FINITE,
    PLUS_INF,    // some +inf, some -inf
    DENORMAL,
    ZEROS,       // 0.0 and -0.0
    ASCENDING,
    DESCENDING,
    N_SHAPES,
};

static inline float logit_of(enum shape_of_logits shape, int i, int n)
{
    switch (shape) {
    case NORMAL: return 2 * normal();
    case PEAKED: return i % 977 == 5 ? 18 + 2 * normal() : 2 * normal();
    case ROUNDED: return roundf(8 * normal()) / 4;
    case ALL_EQUAL: return -3.5f;
    case TWO_LEVELS: return i % 3 == 1 ? 1.25f : 1.0f;
    case HUGE: return (float) ((2 * uniform() - 1) * 1e38);
    case MOSTLY_MINUS_INF: return uniform() < 0.002 || i == n / 2 ? normal() : -INFINITY;
    case SINGLE_FINITE: return i == n * 2 / 3 ? -1e30f : -INFINITY;
    case PLUS_INF: return i % 50 == 3 || i == n / 2 ? INFINITY : i % 7 == 0 ? -INFINITY : normal();
    case DENORMAL: return (float) (1e-41 * (double) normal());
    case ZEROS: return next_random() % 2 == 0 ? 0.0f : -0.0f;
    case ASCENDING: return (float) i * 20 / (float) n;
    case DESCENDING: return (float) -i * 20 / (float) n;
    default: return 0;
    }
}

#endif
