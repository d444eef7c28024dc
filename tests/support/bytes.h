// Bytes for tests of parsers: hex text, msgpack written as JSON, and seeded damage. Failures end
// the program: a test's own input is never wrong.
#ifndef PENSTOCK_TESTS_SUPPORT_BYTES_H
#define PENSTOCK_TESTS_SUPPORT_BYTES_H

#include "common/buffer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Appends the bytes of hex text; blanks are passed over.
void bytes_hex(struct buffer *to, const char *hex);

// The bytes as lower-case hex, which the caller frees.
char *bytes_to_hex(const void *bytes, size_t n);

// Appends JSON text as msgpack: integers in their shortest form, reals as 64-bit floats. Single
// quotes stand for double ones, so that C strings stay readable.
void bytes_json(struct buffer *to, const char *json);

// A file's bytes with a zero byte behind them, which the caller frees; n may be NULL.
char *bytes_file(const char *path, size_t *n);

// A copy that ends where its allocation ends, so that AddressSanitizer sees every read beyond it.
uint8_t *bytes_copy(const void *bytes, size_t n);

// A seeded sequence of random numbers; *state is the seed.
uint32_t bytes_random(uint64_t *state);

// Damages the n bytes in a few places (changed, removed, doubled and inserted bytes, cut ends) and
// returns how many there are now, at most `room`.
size_t bytes_damage(uint8_t *bytes, size_t n, size_t room, uint64_t *state);

#endif
