// Chooses the next token of each sequence from logits that stay sharded over the ranks: no sort
// over the vocabulary and no copy of it, only candidates travel. One struct sampler per rank,
// inside the rank's arena, used by its thread; every rank ends with the same choice. Knows no steps
// and no sockets.
//
// The definition it equals (exactly, on every input): penalties on the raw logits (repetition over
// prompt and output: l > 0 ? l / r : l * r; then l -= frequency * count + presence * (count > 0),
// over output), greedy if temperature is 0; else l / temperature, softmax, then top_k, top_p, min_p
// in this order over the ids sorted by (logit descending, id ascending), each applied to what the
// one before left, top_p keeping the shortest prefix whose mass reaches top_p of the mass left;
// then the draw. In detail (sampler_mass.h): a mass is an integer in proportion to exp(l /
// temperature), about 2^30 for the largest logit (so 0 below e^-21.5 of that), of one deterministic
// exponential, so that sums depend on no order; 0.0 and -0.0 are equal; -inf is never chosen, and
// if there is +inf only its tokens can be; top_p reaches ceil(top_p * mass left); min_p keeps
// (l - max) / temperature >= ln(min_p), as base-2 floats. A draw among tokens is floor(random *
// their mass / 2^64), walked by ascending id. With top_p and no top_k the first kept one of 4 draws
// among all tokens is taken, draw k = 0.. with sampling_random(random, k); if none of these is
// kept, and with other parameters, a draw among the kept ones with `random` itself. Both have the
// same distribution; the first needs no cut-off, only whether one token is kept. Slices of the
// vocabulary lie in rank order.
#ifndef PENSTOCK_KERNELS_SAMPLER_H
#define PENSTOCK_KERNELS_SAMPLER_H

#include "common/sampler_sizes.h"
#include "common/sampling.h"
#include "kernels/backend.h"
#include "kernels/comm.h"

#include <stddef.h>
#include <stdint.h>

struct sampler;

// One chosen token; logprob is 0 unless asked for. Log-probabilities are of the raw logits' softmax
// (before penalties and temperature), natural logarithm.
struct sampled {
    int32_t id;
    float logprob;
    int32_t n_top; // 0 unless the sequence asked for alternatives
    int32_t top_id[LOGPROBS_MAX]; // by (logit descending, id ascending)
    float top_logprob[LOGPROBS_MAX];
};

// Builds the sampler inside `memory` (sampler_bytes), which the device reaches if the logits lie on
// it; then on_device (sampler_device_bytes) is memory of the device. Owns nothing; no deinit.
struct sampler *sampler_init(void *memory, const struct sampler_shape *s,
                             const struct backend *backend, struct device *device,
                             void *on_device, struct comm *comm);

// A sequence takes a slot; forgets what the slot had. n_prompt: ids below this index are prompt.
void sampler_open(struct sampler *s, int slot, const struct sampling *sampling, int n_prompt);

// Ids at indices [pos, pos + n) of the slot's sequence. Writing an index again is allowed.
void sampler_history(struct sampler *s, int slot, int pos, const int32_t *ids, int n);

void sampler_close(struct sampler *s, int slot);

// Chooses for n_out rows: logits (n_out, vocab_n) f32 of this rank, which penalties change while it
// runs and which are as before when it returns, but for a rank that is alone, on a device: there
// penalties stay. slot[i]'s sequence has pos[i] ids (all written by sampler_history) and draws the
// token of index pos[i] with sampling_random(seed, pos[i]). The same call on every rank. A NaN, or
// a row of nothing but -inf: ERR_STATE bad_logits on every rank. Other errors: the collectives'.
enum status sampler_run(struct sampler *s, float *logits, int n_out, const int32_t *slot,
                        const int32_t *pos, struct sampled *out, struct error *e);

// Since sampler_init: rows chosen; tokens that were drawn from beyond the lists of candidates and
// tested by a sum over the vocabulary; rows whose cut-off beyond the lists had to be searched.
struct sampler_counts {
    uint64_t rows, tests, fallbacks;
    uint64_t hosted; // rows of a device's logits that the host chose for
};

struct sampler_counts sampler_counts(const struct sampler *s);

#endif
