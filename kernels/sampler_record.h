// The ids of one sequence as penalties want them: of the occurrences of an id, all but the last are
// marked when they are written, so that a step meets each id once without looking for the others.
// Pure; no allocation. Knows no slots.
#ifndef PENSTOCK_KERNELS_SAMPLER_RECORD_H
#define PENSTOCK_KERNELS_SAMPLER_RECORD_H

#include "common/sampler_sizes.h"

#include <stdint.h>

// This rank's slice of the vocabulary; ids outside may be marked or not.
struct record_slice {
    int vocab_begin, vocab_n;
    uint64_t *seen; // (ceil(vocab_n / 64)) a bit a token, all zeros before and after
};

// Set in an id that occurs again at a higher index.
#define RECORD_AGAIN 0x80000000u

static inline int32_t record_id(int32_t id) { return (int32_t) ((uint32_t) id & ~RECORD_AGAIN); }

// Marks ids (n), whatever marks they had.
void record_mark(int32_t *ids, int n, const struct record_slice *s);

// One more after ids (n), which are marked; there is room for it.
void record_append(int32_t *ids, int n, int32_t id);

// patch (n + 1): `at` = where the unmarked ids (n) lie in the slice, of those that do; returns how
// many.
int record_places(const int32_t *ids, int n, const struct record_slice *s,
                  struct sampler_patch *patch);

#endif
