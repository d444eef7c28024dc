// The pre-split: regular expressions, one after another, cut text into the pieces that BPE merges.
// Immutable after the last splits_add; each thread has its own scratch. Knows no tokens.
#ifndef PENSTOCK_COMMON_TOKENIZER_SPLIT_H
#define PENSTOCK_COMMON_TOKENIZER_SPLIT_H

#include "common/limits.h"
#include "common/status.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdbool.h>
#include <stddef.h>

struct splits {
    pcre2_code *code[TOKENIZER_SPLITS_MAX];
    bool jit[TOKENIZER_SPLITS_MAX];
    int n;
};

struct split_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

// One more expression, in Oniguruma's syntax, behind those that are there. ERR_LIMIT; ERR_INPUT
// bad_tokenizer if it is malformed; ERR_UNSUPPORTED names what PCRE2 would read in another way.
enum status splits_add(struct splits *s, const char *pattern, size_t n, struct error *e);
void splits_deinit(struct splits *s);

enum status split_scratch_init(struct split_scratch *s, struct error *e);
void split_scratch_deinit(struct split_scratch *s);

typedef enum status split_piece(void *arg, const char *piece, size_t n, struct error *e);

// Calls `piece` for each piece of n bytes of valid UTF-8, in order; stops at its first error.
// Matches and what lies between them are pieces; the next expression sees one piece and nothing
// around it. ERR_LIMIT pattern_limit if an expression backtracks too much.
enum status splits_run(const struct splits *s, struct split_scratch *scratch, const char *text,
                       size_t n, split_piece *piece, void *arg, struct error *e);

#endif
