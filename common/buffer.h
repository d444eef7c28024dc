// A growing run of bytes with a hard cap: what the codecs write into. Failure sticks: after the
// first write that did not fit, later ones do nothing, so that an encoder checks once, at the end.
// The owner of the buffer only; knows nothing of what is written.
#ifndef PENSTOCK_COMMON_BUFFER_H
#define PENSTOCK_COMMON_BUFFER_H

#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

struct buffer {
    uint8_t *data; // NULL while nothing was written
    size_t n;      // bytes written
    size_t capacity;
    size_t most;   // never grows beyond
    enum status status; // OK, ERR_LIMIT (would exceed `most`) or ERR_NOMEM
};

// An empty buffer that may hold `most` bytes. No allocation.
void buffer_init(struct buffer *b, size_t most);

// Gives the memory back; the buffer is empty and may be used again.
void buffer_deinit(struct buffer *b);

// Forgets content and failure, keeps the memory.
void buffer_clear(struct buffer *b);

// Appends n bytes. All or nothing; returns b->status.
enum status buffer_append(struct buffer *b, const void *bytes, size_t n);

// b->status as an error that names `what` was too large (ERR_LIMIT too_large, ERR_NOMEM no_memory).
enum status buffer_check(const struct buffer *b, const char *what, struct error *e);

#endif
