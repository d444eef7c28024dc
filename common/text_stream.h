// The text of one sequence as its tokens are chosen: bytes to UTF-8, stop strings, and how much of
// it may be shown already. One owner. Rebuilt from the tokens when a sequence resumes: the same
// tokens give the same text.
#ifndef PENSTOCK_COMMON_TEXT_STREAM_H
#define PENSTOCK_COMMON_TEXT_STREAM_H

#include "common/buffer.h"
#include "common/limits.h"
#include "common/tokenizer.h"

struct text_stream {
    const struct tokenizer *tokenizer; // borrowed; NULL: there is no text, only ids
    struct buffer text;   // valid UTF-8
    size_t ready;         // bytes that no later token can change: no beginning of a stop string
    char part[4];         // a character that is not whole yet, not in `text`
    size_t part_bytes;
    int n_stops;
    char stops[STOP_STRINGS_MAX][STOP_STRING_BYTES_MAX];
    size_t stop_bytes[STOP_STRINGS_MAX];
    bool stopped;         // a stop string was found: the text ends before it
};

// Copies the stop strings (n_stops <= STOP_STRINGS_MAX, each 1..STOP_STRING_BYTES_MAX bytes of
// UTF-8).
void text_stream_init(struct text_stream *s, const struct tokenizer *t, const char *const *stops,
                      const size_t *stop_bytes, int n_stops);
void text_stream_deinit(struct text_stream *s);

// Appends one token; special tokens have no text. Invalid bytes become U+FFFD as they are
// recognised. True in s->stopped if a stop string is complete (of several, the one that is complete
// first; of those that end together, the longest); then `text` ends before it and nothing more may
// be appended. ERR_LIMIT beyond WIRE_BODY_MAX bytes of text, ERR_NOMEM.
enum status text_stream_token(struct text_stream *s, int32_t id, struct error *e);

// No token comes any more: what is held back becomes ready, an incomplete character U+FFFD.
enum status text_stream_finish(struct text_stream *s, struct error *e);

#endif
