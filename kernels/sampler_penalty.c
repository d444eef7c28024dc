#include "kernels/sampler_penalty.h"

bool penalty_any(const struct sampling *s)
{
    return s->repetition_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0;
}

// The tokens that occur, each once: `at`, and as `l` whether it occurs in the output. From the end,
// so that the first seen of a token tells. No branch on that: it could not be predicted.
static int distinct(int vocab_begin, int vocab_n, const int32_t *ids, int n, int n_prompt,
                    uint64_t *seen, struct sampler_patch *patches)
{
    int count = 0;
    for (int i = n - 1; i >= 0; i--) {
        int64_t at = (int64_t) ids[i] - vocab_begin;
        if (at < 0 || at >= vocab_n) continue;
        uint64_t word = seen[at / 64];
        patches[count] = (struct sampler_patch){(int32_t) at, i >= n_prompt ? 1 : 0};
        count += !(word >> at % 64 & 1);
        seen[at / 64] = word | 1ull << at % 64;
    }
    for (int i = 0; i < count; i++) seen[patches[i].at / 64] = 0;
    return count;
}

int penalty_apply(const struct sampling *s, float *l, int vocab_begin, int vocab_n,
                  const int32_t *ids, int n, int n_prompt, const struct penalty_marks *marks,
                  float *max, struct sampler_patch *patches)
{
    bool counted = s->frequency_penalty != 0;
    for (int i = n_prompt; i < n && counted; i++) {
        int64_t at = (int64_t) ids[i] - vocab_begin;
        if (at >= 0 && at < vocab_n) marks->counts[at]++;
    }
    int n_patches = distinct(vocab_begin, vocab_n, ids, n, n_prompt, marks->seen, patches);
    // By 1 a logit stays as it is; a branch on its sign would cost more than the rest.
    const float r = s->repetition_penalty, divisor[2] = {1, r}, factor[2] = {r, 1};
    for (int i = 0; i < n_patches; i++) {
        int at = patches[i].at;
        bool output = patches[i].l > 0, up = l[at] > 0;
        float less = s->presence_penalty, x = l[at] / divisor[up] * factor[up];
        if (counted) {
            less = s->frequency_penalty * (float) marks->counts[at] + s->presence_penalty;
            marks->counts[at] = 0;
        }
        x = output ? x - less : x;
        float *most = &max[at / SAMPLER_BLOCK];
        *most = x > *most ? x : *most;
        patches[i].l = l[at];
        l[at] = x;
    }
    return n_patches;
}

void penalty_swap(float *l, struct sampler_patch *patches, int n)
{
    for (int i = 0; i < n; i++) {
        float other = l[patches[i].at];
        l[patches[i].at] = patches[i].l;
        patches[i].l = other;
    }
}
