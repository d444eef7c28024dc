#include "broker/pending_text.h"

#include "common/limits.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST = 256 };

bool pending_text_add(struct pending_text *t, uint64_t offset, const char *bytes, size_t n,
                      size_t *total)
{
    uint64_t end = t->offset + t->n;
    if (offset > end) return n == 0;
    if (offset + n <= end) return true;
    size_t known = (size_t) (end - offset), more = n - known;
    if (*total + more > (size_t) STREAM_PENDING_MAX) return false;
    if (t->n + more > t->room) {
        size_t room = t->n + more > 2 * t->room ? t->n + more : 2 * t->room;
        if (room < FIRST) room = FIRST;
        char *grown = realloc(t->bytes, room);
        if (grown == NULL) return false;
        t->bytes = grown;
        t->room = room;
    }
    memcpy(t->bytes + t->n, bytes + known, more);
    t->n += more;
    *total += more;
    return true;
}

bool pending_text_shown(struct pending_text *t, uint64_t shown, size_t *total)
{
    bool more = shown > t->offset;
    // What Redis lost, or has of an earlier attempt, lies outside.
    bool inside = shown >= t->offset && shown - t->offset < t->n;
    size_t kept = inside ? t->n - (size_t) (shown - t->offset) : 0;
    if (kept > 0) memmove(t->bytes, t->bytes + (t->n - kept), kept);
    *total -= t->n - kept;
    t->n = kept;
    t->offset = shown;
    if (kept == 0) { // what one outage took is not held until the job ends
        free(t->bytes);
        t->bytes = NULL;
        t->room = 0;
    }
    return more;
}

void pending_text_free(struct pending_text *t, size_t *total)
{
    *total -= t->n;
    free(t->bytes);
    *t = (struct pending_text){0};
}
