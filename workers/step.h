// A step: one batch of rows on its way through the pipeline, and its form on the wire between
// stages and back to the head. Plain memory of fixed size, reused for every step; no heap, no
// sockets.
//
// The header frame: struct step_header, then opens, blocks, runs, closes, ids, little-endian. A
// step is self-contained: rows carry their ids, and a slot's block list travels once, in its OPEN.
#ifndef PENSTOCK_WORKERS_STEP_H
#define PENSTOCK_WORKERS_STEP_H

#include "common/limits.h"
#include "common/sampling.h"
#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

enum { LINK_TOKEN_BYTES = 16 };

// Which generation of which pipeline a frame belongs to; anything else is dropped and counted.
struct link_id {
    uint64_t pipeline, epoch;
    uint8_t token[LINK_TOKEN_BYTES];
};

// What all steps of an epoch are bounded by; the same on every stage.
struct step_limits {
    int max_rows;    // token budget
    int slots;
    int max_blocks;  // KV blocks of the longest sequence
    int n_blocks;    // KV blocks of the pool
    bool fp8_kv;     // KV is in FP8
    int max_out;     // rows with logits in one step
    int vocab_size;
    bool score;      // logits travel back with the tokens (`penstock score`)
};

// A slot's sequence begins with this step.
struct step_open {
    int32_t slot;
    int32_t n_blocks;    // of its block list
    int32_t first_block; // index of the list in step->blocks
    int32_t n_prompt;    // ids of the prompt (penalties tell prompt from output)
    struct sampling sampling;
};

enum { RUN_NO_LOGITS, RUN_LAST_ROW, RUN_ALL_ROWS };

// Consecutive rows of one slot.
struct step_run {
    int32_t slot;
    int32_t pos;    // of the first row in its sequence
    int32_t n;      // rows
    int32_t logits; // RUN_...
};

struct step {
    uint64_t number; // 1, 2, 3, ... within the epoch
    int n_opens, n_blocks, n_runs, n_closes, n_rows, n_out;
    struct step_open *opens; // (slots)
    int32_t *blocks;         // (slots * max_blocks) of all opens
    struct step_run *runs;   // (slots)
    int32_t *closes;         // (slots) slots whose sequence ended before this step's opens
    int32_t *ids;            // (max_rows) of the runs, in order
    // Derived by step_expand: what the devices read.
    int32_t *pos, *slot;     // (max_rows)
    int32_t *out_rows;       // (max_out) rows with logits, ascending
};

// One chosen token, as it travels back to the head.
struct step_token {
    int32_t slot, pos; // pos: of the row that it follows
    int32_t id;
    float logprob;
    int32_t n_top;
    int32_t top_id[LOGPROBS_MAX];
    float top_logprob[LOGPROBS_MAX];
};

// Bytes of a step's arrays, and carving them out of `memory`.
size_t step_bytes(const struct step_limits *l);
void step_init(struct step *s, const struct step_limits *l, void *memory);

// Empties the step.
void step_reset(struct step *s, uint64_t number);

// Fills pos, slot, out_rows, n_out from the runs.
void step_expand(struct step *s);

// A header frame or a token frame travels as it is, or with zeros behind it up to a power of two of
// STEP_FRAME_UNIT bytes: what is sent of a standing message (standing.h).
enum { STEP_FRAME_UNIT = 64 };
size_t step_frame_padded(size_t n);

// Most bytes a header frame or a token frame can have, without zeros behind it.
size_t step_frame_max(const struct step_limits *l);
size_t step_tokens_frame_max(const struct step_limits *l);

// Writes the header frame into `to` (step_frame_max bytes); returns its size.
size_t step_encode(const struct step *s, const struct link_id *link, void *to);

// Checks and reads a header frame. ERR_STATE stale if it is of another link, ERR_INPUT bad_step or
// bad_sampling if it breaks a bound; the step is empty then. Ends with step_expand.
enum status step_decode(struct step *s, const struct step_limits *l, const struct link_id *link,
                        const void *frame, size_t n, struct error *e);

// Follows the slots over the steps of an epoch, in their order: what one frame alone cannot tell.
// open_rows (slots), zero at the start, holds the rows that fit the blocks of each open slot.
// ERR_INPUT bad_step if rows are of a slot that isn't open or reach beyond its blocks, or if an
// open slot is opened again: then the epoch must end.
enum status step_follow(int32_t *open_rows, const struct step *s, struct error *e);

// The frame that carries chosen tokens back: `tokens` (n). Sizes and errors as above; `number` is
// the step's.
size_t step_tokens_encode(const struct step_token *tokens, int n, uint64_t number,
                          const struct link_id *link, void *to);
enum status step_tokens_decode(struct step_token *tokens, int *n, uint64_t *number,
                               const struct step_limits *l, const struct link_id *link,
                               const void *frame, size_t size, struct error *e);

#endif
