// What a rank's sampler needs (kernels/sampler.h): the arithmetic that it and the plan share. The
// record of every slot's ids is a line of its own, since it is kept from step to step; the rest is
// scratch. Pure; any thread.
#ifndef PENSTOCK_COMMON_SAMPLER_SIZES_H
#define PENSTOCK_COMMON_SAMPLER_SIZES_H

#include "common/carve.h"
#include "common/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sampler_shape {
    int slots;
    int max_context;          // ids of the longest sequence
    int max_out;              // rows sampled at once
    int vocab_begin, vocab_n; // this rank's slice of the vocabulary
    int vocab_size;
    int tp;
    bool on_device; // logits lie where the host does not read them (kernels/sampler_ops.h)
};

enum {
    SAMPLER_BATCH_MAX = 32,       // rows that share their collectives
    SAMPLER_DEVICE_BATCH = 128,   // the same on a device
    SAMPLER_CANDIDATES_MAX = 128, // of a rank and a row
    SAMPLER_BLOCK = 128,          // ids of one maximum
    SAMPLER_CHUNK = 1024,         // ids of one sum
    SAMPLER_BINS = 256,           // of a histogram: a mass and a count each
    SAMPLER_SLACK = 4,            // lists for which choosing candidates has room
    // What a rank tells of a row in the first round, and in rounds of narrowing; 8 bytes each.
    SAMPLER_HEAD_WORDS = 1 + SAMPLER_CANDIDATES_MAX + LOGPROBS_MAX,
    SAMPLER_NARROW_WORDS = SAMPLER_BINS + SAMPLER_BINS / 2,
    SAMPLER_ROW_WORDS =
        SAMPLER_NARROW_WORDS > SAMPLER_HEAD_WORDS ? SAMPLER_NARROW_WORDS : SAMPLER_HEAD_WORDS,
    // Bytes of the sampler's own structs, at most: its state, a sequence, a row.
    SAMPLER_STATE_BYTES = 512,
    SAMPLER_SEQUENCE_BYTES = 96,
    SAMPLER_ROW_BYTES = 512,
    // Where a device's rows choose by themselves: what it keeps of a row, and of their order.
    SAMPLER_TRIALS = 4,         // draws from all tokens
    SAMPLER_PHASES = 14,        // of a row, beside its first
    SAMPLER_COUNTED_MAX = 4096, // ids of an output that are counted there
    SAMPLER_RECORD_BYTES = 1536,
    SAMPLER_QUEUE_BYTES = 4 * (4 + (SAMPLER_PHASES + 1) * SAMPLER_DEVICE_BATCH),
    // Scratch at most, for DeepSeek-V3's vocabulary and 256 rows.
    SAMPLER_SCRATCH_MAX = 8 * 1024 * 1024,
};

// A logit that penalties changed, as it was.
struct sampler_patch {
    int32_t at; // in the slice
    float l;
};

// Of SAMPLER_CHUNK logits: first what they lie between, then their mass.
union sampler_chunk {
    struct sampler_bounds {
        float least, most;
    } bounds;
    uint64_t mass;
};

struct sampler_parts {
    int batch;            // rows that share their collectives
    int n_chunks;         // of the slice
    int n_patches;        // room for one row
    void *state;
    void *sequences;      // (slots)
    int32_t *history;     // (slots, max_context)
    void *rows;           // (batch)
    struct sampler_patch *patches; // (batch, n_patches)
    float *maxima;        // (blocks of the slice)
    uint64_t *seen;       // (vocab_n) bits
    uint32_t *counts;     // (vocab_n)
    uint64_t *select;     // (SAMPLER_SLACK * SAMPLER_CANDIDATES_MAX)
    uint64_t *kept;       // (tp * SAMPLER_CANDIDATES_MAX)
    union sampler_chunk *chunks; // (batch, n_chunks)
    uint64_t *lists;      // (tp, batch * SAMPLER_HEAD_WORDS)
    uint64_t *send;       // (words of a round)
    uint64_t *receive;    // (tp, words of a round)
    float *row;           // (vocab_n) on_device: a row that the host chooses for
};

// On a device, beside the logits.
struct sampler_device_parts {
    int batch;        // rows
    uint32_t *maxima; // (batch, blocks of the slice) keys
    uint64_t *chunks; // (batch, n_chunks) masses
    uint64_t *totals; // (batch) of sums in progress
    uint32_t *done;   // (batch) their blocks that are done
    void *records;    // (batch), tp 1: SAMPLER_RECORD_BYTES each
    void *queues;     // (2), tp 1: SAMPLER_QUEUE_BYTES each
    void *bins;       // (batch), tp 1: SAMPLER_NARROW_WORDS each
};

// Lays the parts out, the record first; all NULL while counting.
void sampler_carve(struct sampler_parts *p, const struct sampler_shape *s, struct carve *c);

// The same of a device's memory; nothing unless on_device.
void sampler_device_carve(struct sampler_device_parts *p, const struct sampler_shape *s,
                          struct carve *c);

// Bytes of all parts of sampler_carve.
uint64_t sampler_bytes(const struct sampler_shape *s);

// Bytes of all parts of sampler_device_carve.
uint64_t sampler_device_bytes(const struct sampler_shape *s);

// Bytes that one rank passes to all_gather, at most.
size_t sampler_gather_max(const struct sampler_shape *s);

#endif
