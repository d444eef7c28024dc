#include "kernels/sampler_penalty.h"

#include "common/limits.h"

static const uint32_t SEEN = 1u << 31; // the token occurs; the bits below count it in the output

_Static_assert(CONTEXT_MAX < 1ll << 31, "a count fits below the mark");

bool penalty_any(const struct sampling *s)
{
    return s->repetition_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0;
}

void penalty_apply(const struct sampling *s, float *l, int vocab_begin, int vocab_n, uint32_t *seen,
                   const int32_t *ids, int n, int n_prompt)
{
    for (int i = 0; i < n; i++) {
        int64_t at = (int64_t) ids[i] - vocab_begin;
        if (at < 0 || at >= vocab_n) continue;
        seen[at] = (seen[at] | SEEN) + (i >= n_prompt);
    }
    for (int i = 0; i < n; i++) {
        int64_t at = (int64_t) ids[i] - vocab_begin;
        if (at < 0 || at >= vocab_n || seen[at] == 0) continue;
        uint32_t count = seen[at] & ~SEEN;
        seen[at] = 0;
        float x = l[at] > 0 ? l[at] / s->repetition_penalty : l[at] * s->repetition_penalty;
        if (count > 0) x -= s->frequency_penalty * (float) count + s->presence_penalty;
        l[at] = x;
    }
}
