// What a tokenizer is made of; for the files tokenizer*.c alone.
#ifndef PENSTOCK_COMMON_TOKENIZER_PARTS_H
#define PENSTOCK_COMMON_TOKENIZER_PARTS_H

#include "common/tokenizer.h"
#include "common/tokenizer_added.h"
#include "common/tokenizer_bpe.h"
#include "common/tokenizer_split.h"
#include "common/tokenizer_vocab.h"

// Added tokens whose "normalized" is false are found first, the others in what is left.
enum { ADDED_FIRST, ADDED_SECOND, ADDED_SETS };

struct tokenizer {
    struct vocab vocab;
    struct added added[ADDED_SETS];
    struct splits splits;
    struct bpe bpe;
    bool whole_first; // "ignore_merges": a piece that is a token is that token
};

// Fills a zeroed tokenizer from the text of tokenizer.json; what it got before an error is for
// tokenizer_destroy to give back. Errors as tokenizer_load.
enum status tokenizer_parse(struct tokenizer *t, const char *json, size_t n, struct error *e);

#endif
