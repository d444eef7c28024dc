// Long texts as chunks that a model can take: cut behind paragraphs, else sentences, else words,
// else characters, each chunk at most so many tokens, consecutive ones overlapping. Pure; any
// thread, with a scratch of its own. Knows no jobs and no prompts: who asks counts what a chunk
// takes where it will stand.
#ifndef PENSTOCK_COMMON_SPLIT_H
#define PENSTOCK_COMMON_SPLIT_H

#include "common/status.h"
#include "common/tokenizer.h"

#include <stddef.h>

struct split_chunk {
    size_t begin, end; // bytes
};

struct split_chunks {
    struct split_chunk *at; // (n), owned
    int n, capacity;
};

void split_chunks_deinit(struct split_chunks *c);

// Tokens that a chunk takes where it will stand. An error ends the splitting.
typedef enum status split_count(void *arg, const char *text, size_t n, int *n_tokens,
                                struct error *e);

struct split_options {
    const struct tokenizer *tokenizer;
    struct tokenizer_scratch *scratch;
    int chunk_tokens;   // at most, as `count` counts; at least 1
    int overlap_tokens; // about so many of the end of a chunk begin the next one; 0: none
    int most;           // chunks that `to` may have
    split_count *count;
    void *arg;
};

// Appends the chunks of a text of n >= 1 bytes, in order: the first begins with it, the last ends
// with it, none begins behind the end of the one before it, and of each at least half is new. Cuts
// lie between characters. Takes time in proportion to n. ERR_INPUT bad_utf8; ERR_INPUT bad_chunk: a
// single character does not fit; ERR_LIMIT too_many_chunks; ERR_NOMEM; errors of `count`.
enum status split_text(struct split_chunks *to, const struct split_options *o, const char *text,
                       size_t n, struct error *e);

// --- the bounds, for tests

enum split_bound { SPLIT_NONE, SPLIT_CHARACTER, SPLIT_WORD, SPLIT_SENTENCE, SPLIT_PARAGRAPH };

// What kind of bound lies before byte `at` of a text, 0 < at < n.
enum split_bound split_bound_at(const char *text, size_t n, size_t at);

#endif
