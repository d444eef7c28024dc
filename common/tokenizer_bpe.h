// Byte-pair encoding of one piece of text: its bytes as ids, merged pair by pair, the lowest rank
// first and the leftmost of equal ones. struct bpe is immutable after bpe_merge's last call; each
// thread has its own scratch.
#ifndef PENSTOCK_COMMON_TOKENIZER_BPE_H
#define PENSTOCK_COMMON_TOKENIZER_BPE_H

#include "common/status.h"
#include "common/tokenizer.h"
#include "common/tokenizer_vocab.h"

#define BPE_MERGES_MAX (1 << 22)

struct bpe_pair;

struct bpe {
    const struct vocab *vocab; // borrowed
    int32_t byte_ids[256];     // -1: the vocabulary has no such byte
    struct bpe_pair *pairs;    // (1 << bits) by hash
    uint64_t *filter;          // bits by hash: clear where no pair is
    int bits;
    int n_merges, merges_capacity;
    size_t window;             // bytes that are merged at once
};

struct bpe_symbol;

struct bpe_scratch {
    int32_t *ids;               // (capacity)
    struct bpe_symbol *symbols; // (capacity)
    uint64_t *heap;             // (2 * capacity)
    size_t capacity;
};

// Of an indexed vocabulary; room for n_merges. ERR_INPUT bad_tokenizer if a byte that occurs in
// UTF-8 has no token, ERR_NOMEM.
enum status bpe_init(struct bpe *b, const struct vocab *vocab, int n_merges, struct error *e);
void bpe_deinit(struct bpe *b);

// The next merge in the order of ranks.
void bpe_merge(struct bpe *b, int32_t left, int32_t right, int32_t merged);

void bpe_scratch_deinit(struct bpe_scratch *s);

// Appends the ids of n bytes. Time and memory don't depend on how the piece is made: see
// bpe.window. ERR_LIMIT too_long, ERR_NOMEM.
enum status bpe_encode(const struct bpe *b, struct bpe_scratch *s, const uint8_t *piece, size_t n,
                       struct token_ids *to, struct error *e);

#endif
