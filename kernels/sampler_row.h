// One row's way through sampler_run: what its parameters ask for, and the decisions once the ranks'
// numbers are known. Every rank decides alike. Pure; no collectives, no memory of its own.
#ifndef PENSTOCK_KERNELS_SAMPLER_ROW_H
#define PENSTOCK_KERNELS_SAMPLER_ROW_H

#include "common/sampling.h"
#include "kernels/sampler.h"
#include "kernels/sampler_mass.h"
#include "kernels/sampler_narrow.h"
#include "kernels/sampler_select.h"

enum { CANDIDATES_MAX = SAMPLER_CANDIDATES_MAX }; // of a rank and a row

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
    bool total;     // needs the mass of all logits before it can decide
    bool raw_total; // needs it of the raw logits
};

struct rule rule_of(const struct sampling *s, int vocab_size);

enum row_stage {
    ROW_TOTAL,  // waits for the total mass, then list
    ROW_NARROW, // looks for the cut-off
    ROW_KEPT,   // kept set known as a cut-off; waits for its mass on each rank
    ROW_DRAWN,  // the draw is known; `owner` finds the token
    ROW_CHOSEN, // id is known
};

struct row {
    const struct rule *rule;
    const float *logits, *raw; // this rank's; the same without penalties
    uint64_t random;
    enum row_stage stage;
    struct softmax softmax, raw_softmax;
    uint64_t raw_total;
    struct narrow narrow;
    // The kept set: logits beyond `above` and the first `ties` of this rank equal to it, if their
    // exponents reach `least`.
    float above, least;
    uint64_t ties;
    int owner;     // rank of the chosen token, known from ROW_DRAWN
    uint64_t draw; // in its kept mass
    int32_t id;
    float raw_logit;
    int n_top;
    uint64_t top[LOGPROBS_MAX];
};

// After the lists came: greedy and short top_k end here. lists and raw_lists (n_ranks, n) entries,
// `stride` apart; kept: room for n_ranks * CANDIDATES_MAX entries. False: no token is possible.
bool row_decide_lists(struct row *row, const uint64_t *lists, const uint64_t *raw_lists, int stride,
                      int n_ranks, int vocab_size, uint64_t *kept);

// After the total mass came, in ROW_TOTAL: from the lists, or on to narrowing.
void row_decide_total(struct row *row, uint64_t total, const uint64_t *lists, int stride,
                      int n_ranks, int vocab_size, uint64_t *kept);

// After a round of narrowing, in ROW_NARROW.
void row_decide_narrow(struct row *row, const void *histograms, size_t stride, int n_ranks,
                       int rank);

// After the kept mass of each rank came, in ROW_KEPT: mass (n_ranks), `stride` words apart.
void row_decide_kept(struct row *row, const uint64_t *mass, int stride, int n_ranks);

#endif
