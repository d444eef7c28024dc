// One row's way through sampler_run: what its parameters ask for, and the decisions once the ranks'
// numbers are known. Every rank decides alike. Pure; no collectives, no memory of its own.
#ifndef PENSTOCK_KERNELS_SAMPLER_ROW_H
#define PENSTOCK_KERNELS_SAMPLER_ROW_H

#include "common/sampling.h"
#include "kernels/sampler.h"
#include "kernels/sampler_mass.h"
#include "kernels/sampler_narrow.h"
#include "kernels/sampler_ops.h"
#include "kernels/sampler_select.h"
#include "kernels/sampler_slice.h"

enum {
    CANDIDATES_MAX = SAMPLER_CANDIDATES_MAX, // of a rank and a row
    NUCLEUS_LIST = 32,                       // as many of these for top_p and min_p
    TRIALS_MAX = SAMPLER_TRIALS,             // draws from all tokens
};

// What a sequence's parameters mean for the rounds; fixed when it is opened.
struct rule {
    struct sampling sampling;
    bool penalties;
    bool greedy;
    int top_k;      // 0: off
    bool top_p;
    float least;    // min_p_exponent
    int n_list;     // candidates that a rank sends
    int n_raw_list; // and of the raw logits, if these differ; 0: none
    bool total;     // needs the mass of all tokens before it can decide
    bool raw_total; // needs it of the raw logits
};

struct rule rule_of(const struct sampling *s, int vocab_size);

// What a row with that rule asks of a device that has the whole vocabulary, but for its `pos` and
// `row` and, with penalties, its ids. False: it has to be left to the host.
bool rule_wish(const struct rule *r, struct sampler_wish *w);

enum row_stage {
    ROW_TOTAL,  // waits for the mass of all tokens on each rank
    ROW_TRIAL,  // the draw among all is known; its `owner` finds the token
    ROW_TEST,   // waits for the mass before that token
    ROW_NARROW, // looks for the cut-off
    ROW_KEPT,   // kept set known as a cut-off; waits for its mass on each rank
    ROW_DRAWN,  // the draw among the kept is known; its `owner` finds the token
    ROW_CHOSEN, // id is known
    ROW_HOSTED, // of a device's batch: is left to the host, which begins it anew
};

// The ranks' lists of one row's best tokens; those of rank r `stride` words on.
struct row_lists {
    const uint64_t *lists, *raw_lists;
    int stride, n_ranks, vocab_size;
};

// A draw once the rank in whose mass it falls is known.
struct draw {
    uint64_t left; // in the owner's mass
    int owner;
};

struct row {
    const struct rule *rule;
    float *logits; // this rank's
    int slot, n_ids; // of its sequence
    bool penalised;  // the logits have their penalties, and keep them
    struct row_lists lists;
    float least; // no logit of this rank's is below
    bool summed; // the chunks have masses in place of bounds
    uint64_t random;
    enum row_stage stage;
    struct softmax softmax, raw_softmax;
    uint64_t total, raw_total, need; // mass of all; mass that top_p's prefix must reach
    int n_patches;                   // logits that penalties changed and that are not yet restored
    // The order's tokens up to `sure` are kept; if `closed`, no others.
    uint64_t sure;
    bool closed;
    int trial;
    struct draw trials[TRIALS_MAX], draw;
    struct narrow narrow;
    float floor;  // of the search on this rank: the cut-off is not below
    int n_picked; // logits that reach it; 0: not picked yet
    struct kept kept;
    int32_t id; // chosen, or the trial's
    float logit, raw_logit; // its
    int n_top;
    uint64_t top[LOGPROBS_MAX];
};

// After `lists` was filled: greedy and short top_k end here. kept: room for n_ranks *
// CANDIDATES_MAX entries. False: no token is possible.
bool row_decide_lists(struct row *row, uint64_t *kept);

// Words of a row in the first round: enum sampler_head, the list, the raw list.
int row_head_words(const struct row *row);

// Whether the second round has its masses.
bool row_needs_mass(const struct row *row);

// Whether the sum over the raw logits follows from the one made for the draw, or is the only one.
bool row_raw_is_same(const struct row *row);

// After the mass of all tokens on each rank came, in ROW_TOTAL: mass (n_ranks), `stride` words
// apart.
void row_decide_total(struct row *row, const uint64_t *mass, int stride);

// After the token of the trial came, in ROW_TRIAL.
void row_decide_trial(struct row *row, int32_t id, float logit, uint64_t *kept);

// After the mass before the trial's token came, in ROW_TEST.
void row_decide_test(struct row *row, uint64_t before);

// After a round of narrowing, in ROW_NARROW.
void row_decide_narrow(struct row *row, const void *histograms, size_t stride, int rank);

// After the kept mass of each rank came, in ROW_KEPT: mass (n_ranks), `stride` words apart.
void row_decide_kept(struct row *row, const uint64_t *mass, int stride);

#endif
