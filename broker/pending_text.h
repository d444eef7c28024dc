// The text of a streaming attempt that Redis is not known to have published. Pure; one owner. What
// does not fit, or leaves a gap, is not kept: the head says all of it again after HELLO, and the
// result has the whole.
#ifndef PENSTOCK_BROKER_PENDING_TEXT_H
#define PENSTOCK_BROKER_PENDING_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pending_text {
    uint64_t offset; // of its first byte in the whole text: what is published
    char *bytes;
    size_t n, room;
};

// Takes what of the n bytes at `offset` is not here yet; *total counts the bytes of all, at most
// STREAM_PENDING_MAX. False: there was more, and it could not be taken.
bool pending_text_add(struct pending_text *t, uint64_t offset, const char *bytes, size_t n,
                      size_t *total);

// So much of the whole text is published. False: that is no more than was known before.
bool pending_text_shown(struct pending_text *t, uint64_t shown, size_t *total);

void pending_text_free(struct pending_text *t, size_t *total);

#endif
