// Byte-level BPE from a tokenizer.json as DeepSeek publishes it: text to ids and back. Immutable
// after load; any thread, each with scratch of its own for encoding. Knows no chats and no streams.
#ifndef PENSTOCK_COMMON_TOKENIZER_H
#define PENSTOCK_COMMON_TOKENIZER_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;
struct tokenizer_scratch; // PCRE2 match data, BPE's working memory: one per encoding thread

// Reads tokenizer.json: patterns, merges, added tokens and their ids come from the file. `path` is
// the file, or a directory that holds one. ERR_IO (no_tokenizer if there is no such file);
// ERR_INPUT bad_tokenizer and ERR_UNSUPPORTED name the part of the file.
enum status tokenizer_load(struct tokenizer **t, const char *path, struct error *e);
void tokenizer_destroy(struct tokenizer **t);

enum status tokenizer_scratch_create(struct tokenizer_scratch **s, const struct tokenizer *t,
                                     struct error *e);
void tokenizer_scratch_destroy(struct tokenizer_scratch **s);

// A growing list of ids.
struct token_ids {
    int32_t *ids; // (n), owned
    int n, capacity;
    int most; // append refuses beyond (ERR_LIMIT); 0: INT_MAX
};

void token_ids_deinit(struct token_ids *to);

// Appends n ids. ERR_LIMIT too_long, ERR_NOMEM; all or nothing.
enum status token_ids_append(struct token_ids *to, const int32_t *ids, int n, struct error *e);

// Appends the ids of n bytes of text, without BOS. `special`: special strings in the text become
// their ids; else they are ordinary text. Invalid UTF-8 is ERR_INPUT bad_utf8 with the byte offset.
// ERR_LIMIT too_long when `to` may not grow, ERR_NOMEM. After an error `to` holds what came before
// this call.
enum status tokenizer_encode(const struct tokenizer *t, struct tokenizer_scratch *s,
                             const char *text, size_t n, bool special, struct token_ids *to,
                             struct error *e);

// 1 + the largest id. Ids without a token (holes) have no bytes.
int tokenizer_n_ids(const struct tokenizer *t);

// The bytes that a token stands for (may cut UTF-8 characters); *n = 0 and NULL for an unknown id.
// *special: an added token that decoders may leave out.
const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *n, bool *special);

// The id of exactly this special string, -1 if there is none.
int32_t tokenizer_special(const struct tokenizer *t, const char *text, size_t n);

#endif
