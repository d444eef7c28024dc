// What the ids of a byte-level vocabulary stand for, as bytes, and the way from bytes to the id.
// Immutable after the last vocab_put; any thread. Knows neither merges nor files.
#ifndef PENSTOCK_COMMON_TOKENIZER_VOCAB_H
#define PENSTOCK_COMMON_TOKENIZER_VOCAB_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vocab_token {
    uint32_t at, n; // its bytes in vocab.bytes
    bool known;     // false: no token has this id
    bool special;   // decoders may leave it out
    bool raw;       // not in the byte-level alphabet: neither merges nor vocab_find know it
};

struct vocab {
    int n_ids;                  // 1 + the largest
    struct vocab_token *tokens; // (n_ids)
    char *bytes;                // of all tokens
    size_t n_bytes, bytes_capacity;
    size_t longest; // bytes of the longest token
    int32_t *slots; // (mask + 1) ids by the hash of their bytes, -1: empty
    uint32_t mask;
};

// Room for ids below n_ids whose texts take text_bytes in all. ERR_NOMEM.
enum status vocab_init(struct vocab *v, int n_ids, size_t text_bytes, struct error *e);
void vocab_deinit(struct vocab *v);

// Gives a free id its token, written in the byte-level alphabet; a text that has another character
// stands for itself, as the tokenizers library decodes it.
void vocab_put(struct vocab *v, int32_t id, const char *text, size_t n, bool special);

// Makes vocab_find find what was put so far; called once. ERR_NOMEM.
enum status vocab_index(struct vocab *v, struct error *e);

// The id of exactly these bytes among what vocab_index saw, -1 if there is none.
int32_t vocab_find(const struct vocab *v, const void *bytes, size_t n);

// Byte-level text (GPT-2's one character a byte) to bytes, at most n; returns how many, or -1 if a
// character is not of that alphabet. `to` may be `text`.
int64_t byte_level_decode(const char *text, size_t n, char *to);

#endif
