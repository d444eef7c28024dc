#include "kernels/sampler_penalty.h"

bool penalty_any(const struct sampling *s)
{
    return s->repetition_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0;
}

// A logit by which a repetition penalty divides or multiplies; by 1 it stays as it is, and a branch
// on its sign would cost more than the rest.
static inline float repeated(float l, const float divisor[2], const float factor[2])
{
    bool up = l > 0;
    return l / divisor[up] * factor[up];
}

static void count_ids(const struct record_slice *slice, const int32_t *ids, int n, uint32_t *counts)
{
    for (int i = 0; i < n; i++) {
        uint32_t at = (uint32_t) record_id(ids[i]) - (uint32_t) slice->vocab_begin;
        if (at < (uint32_t) slice->vocab_n) counts[at]++;
    }
}

int penalty_apply(const struct sampling *s, float *l, const struct record_slice *slice,
                  const int32_t *ids, int n, int n_prompt, uint32_t *counts,
                  struct sampler_patch *patches)
{
    const float r = s->repetition_penalty, divisor[2] = {1, r}, factor[2] = {r, 1};
    int n_output = n > n_prompt ? n - n_prompt : 0, n_patches = 0;
    // An id that occurs in both has its last occurrence in the output.
    if (r != 1) n_patches = record_places(ids, n - n_output, slice, patches);
    for (int i = 0; i < n_patches; i++) {
        float *x = &l[patches[i].at];
        patches[i].l = *x;
        *x = repeated(*x, divisor, factor);
    }
    const int32_t *output = ids + (n - n_output);
    bool counted = s->frequency_penalty != 0;
    if (counted) count_ids(slice, output, n_output, counts);
    int i = n_patches;
    n_patches += record_places(output, n_output, slice, patches + i);
    for (; i < n_patches; i++) {
        int at = patches[i].at;
        float less = s->presence_penalty;
        if (counted) {
            less = s->frequency_penalty * (float) counts[at] + s->presence_penalty;
            counts[at] = 0;
        }
        patches[i].l = l[at];
        l[at] = repeated(l[at], divisor, factor) - less;
    }
    return n_patches;
}

void penalty_undo(float *l, const struct sampler_patch *patches, int n)
{
    for (int i = 0; i < n; i++) l[patches[i].at] = patches[i].l;
}

void penalty_swap(float *l, struct sampler_patch *patches, int n)
{
    for (int i = 0; i < n; i++) {
        float other = l[patches[i].at];
        l[patches[i].at] = patches[i].l;
        patches[i].l = other;
    }
}
