// Oniguruma's regular expressions, as tokenizer.json has them, in PCRE2's words. Pure. Knows no
// more of the syntax than what the two libraries read alike, and where they part.
#ifndef PENSTOCK_COMMON_TOKENIZER_PATTERN_H
#define PENSTOCK_COMMON_TOKENIZER_PATTERN_H

#include "common/buffer.h"

#include <stddef.h>

// Appends the PCRE2 form of a pattern to `to`. ERR_UNSUPPORTED unsupported_tokenizer names a
// construct that would mean something else there; ERR_LIMIT, ERR_NOMEM.
enum status pattern_translate(struct buffer *to, const char *pattern, size_t n, struct error *e);

#endif
