// Lists of the most likely tokens: of one rank's slice, and merged over the ranks. Entries are
// those of sampler_mass.h. Pure; no allocation. Knows no sampling parameters.
#ifndef PENSTOCK_KERNELS_SAMPLER_SELECT_H
#define PENSTOCK_KERNELS_SAMPLER_SELECT_H

#include "common/limits.h"
#include "kernels/sampler_scan.h"

#include <stdbool.h>
#include <stdint.h>

// The k smallest of a (n) come first, in no order; 0 < k <= n. All ascending.
void select_first(uint64_t *a, int n, int k);
void select_sort(uint64_t *a, int n);

// A token and its mass, at most MASS_ONE, as a word that orders by id.
static inline uint64_t draw_word(int32_t id, uint64_t mass) { return (uint64_t) id << 32 | mass; }
static inline uint64_t draw_word_mass(uint64_t word) { return (uint32_t) word; }

// The id in which the draw falls, walking by ascending id; draw < their mass. Reorders a (n).
int32_t select_draw(uint64_t *a, int n, uint64_t draw);

// list (want) = the first entries of the tokens first_id + i with logits l (n), no NaN, ascending,
// then ENTRY_NONE if n < want. max: their block maxima (struct scan). scratch (SAMPLER_SLACK *
// want).
void select_top(const struct scan *scan, const float *l, int n, int32_t first_id, const float *max,
                int want, uint64_t *scratch, uint64_t *list);

// The ranks' lists as one, entry by entry.
struct merge {
    const uint64_t *lists; // rank r's at lists + r * stride
    int stride, n_ranks, n_list;
    int vocab_size, taken;
    int at[TP_MAX];
};

enum merge_result {
    MERGE_ENTRY,
    MERGE_END,     // the whole vocabulary was taken
    MERGE_UNKNOWN, // a rank's list is used up, and what it didn't send may be next
};

struct merge merge_of(const uint64_t *lists, int stride, int n_ranks, int n_list, int vocab_size);
enum merge_result merge_next(struct merge *m, uint64_t *entry);

#endif
