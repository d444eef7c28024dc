// What a sampler asks of a device whose memory the host does not read: numbers of many rows at
// once, which go to words of the host. They equal what the scans of the host give
// (sampler_slice.h, sampler_select.h) bit by bit. Ops are asynchronous on the device's stream; the
// words are there after sync. Knows no sampling parameters and no other rank.
#ifndef PENSTOCK_KERNELS_SAMPLER_OPS_H
#define PENSTOCK_KERNELS_SAMPLER_OPS_H

#include "common/limits.h"
#include "common/sampler_sizes.h"
#include "kernels/sampler_mass.h"

#include <stdbool.h>
#include <stdint.h>

struct device;

// The logits of a batch on this rank, and memory of the device for what is kept of them from one
// op to the next (sampler_device_carve), whatever was in it before `heads`.
struct sampler_view {
    float *logits; // (SAMPLER_DEVICE_BATCH, vocab_n), rows one behind the other
    int vocab_begin, vocab_n;
    struct sampler_device_parts parts;
};

// What the first of a row's words says, and a choice.
enum sampler_head {
    HEAD_GOOD,
    HEAD_NAN,
    HEAD_HOST, // too many equal logits: the host has to choose for the row
    HEAD_NONE, // no token is possible: of a choice only
};

// --- rounds, between which ranks meet

// The first round: of row i a word of enum sampler_head and want[i] entries, ascending
// (select_top), from word to[i] on. want[i] == 0: neither.
struct sampler_heads {
    int32_t n;
    int32_t want[SAMPLER_DEVICE_BATCH], to[SAMPLER_DEVICE_BATCH];
};

// The mass of the logits of `row` that are above `above`, and of those equal to it at indices below
// `at`; -INFINITY and 0: of all. Or the token in which `draw` falls among those above, after a sum
// of the same that was kept: its id + 1 in the upper half, its logit's bits in the lower. The
// result goes to word `to`.
struct sampler_job {
    int32_t row, to;
    struct softmax softmax;
    float above;
    int32_t at;
    uint64_t draw;
};

struct sampler_jobs {
    int32_t n;
    struct sampler_job job[SAMPLER_DEVICE_BATCH];
};

// --- rows that choose by themselves, where one rank has the whole vocabulary

// What a row asks for: the parameters of its rule (sampler_row.h).
struct sampler_wish {
    uint64_t seed, pos; // of sampling_random
    const int32_t *ids; // (n_ids) of a row with penalties: sampler_record.h, host memory that the
                        // device reaches
    int32_t row;        // of the view
    int32_t n_list;     // of the best tokens, at most SAMPLER_CANDIDATES_MAX
    int32_t top_k;      // at most n_list or beyond SAMPLER_CANDIDATES_MAX; 0: off
    int32_t n_top;      // of the best tokens that are told, at most n_list
    float scale;        // log2(e) / temperature; 0: greedy
    float raw_scale;    // the same of log-probabilities; 0: none are wanted
    float least;        // min_p_exponent
    uint32_t top_p;     // top_p_parts; 0: off
    int32_t top_p_shift;
    int32_t n_ids;      // 0: no penalties
    int32_t n_prompt;   // of these, the first ones that are prompt
    float repetition, presence, frequency; // frequency: 0, or at most SAMPLER_COUNTED_MAX of output
};

struct sampler_choice {
    int32_t head; // enum sampler_head; the rest is defined for HEAD_GOOD alone
    int32_t id;
    float logit, most; // its, and the largest
    int32_t n_tests;   // trials that took a sum
    int32_t searched;  // 1: the cut-off was searched
    uint64_t raw_total; // mass of all in the softmax of raw_scale; 0 without one
    uint64_t top[LOGPROBS_MAX]; // (n_top) entries, ENTRY_NONE beyond the vocabulary
};

struct sampler_ops {
    void (*heads)(struct device *d, const struct sampler_view *v, const struct sampler_heads *h,
                  uint64_t *words);
    // kept: the chunks' masses are for walks; at most one job a row then.
    void (*masses)(struct device *d, const struct sampler_view *v, const struct sampler_jobs *j,
                   bool kept, uint64_t *words);
    void (*walks)(struct device *d, const struct sampler_view *v, const struct sampler_jobs *j,
                  uint64_t *words);
    // wishes (n) and choices (n): words of the host, n <= SAMPLER_DEVICE_BATCH; what sampler_run
    // chooses for rows of the whole vocabulary. Penalties stay in the logits. turn: calls before,
    // 0: the first with the view's parts.
    void (*choose)(struct device *d, const struct sampler_view *v,
                   const struct sampler_wish *wishes, int n, unsigned turn,
                   struct sampler_choice *choices);
};

#endif
