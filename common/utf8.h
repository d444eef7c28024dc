// UTF-8: how far bytes are valid, and what stands for those that are not: U+FFFD, one for each
// maximal part of a character (Unicode 3.9, the practice that Rust and the browsers follow). Pure.
#ifndef PENSTOCK_COMMON_UTF8_H
#define PENSTOCK_COMMON_UTF8_H

#include "common/buffer.h"

#include <stdbool.h>
#include <stddef.h>

// Length of the longest valid UTF-8 prefix of `bytes` (n means: all valid). No surrogates, nothing
// overlong, nothing beyond U+10FFFF.
size_t utf8_valid_prefix(const void *bytes, size_t n);

// Of n >= 1 bytes that don't begin with a whole character: how many belong to the same broken one.
// *cut: all n do, and more bytes might complete it.
size_t utf8_broken(const void *bytes, size_t n, bool *cut);

// Appends n bytes with U+FFFD for what is broken. Failure sticks in `to`.
void utf8_repair(struct buffer *to, const void *bytes, size_t n);

// Appends one U+FFFD.
void utf8_replacement(struct buffer *to);

#endif
