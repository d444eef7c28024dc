// Carving one memory region into named parts, in order, each aligned: first with no memory to learn
// the size, then for real; the two passes run the same code, so the size is exact. One thread.
#ifndef PENSTOCK_COMMON_CARVE_H
#define PENSTOCK_COMMON_CARVE_H

#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

enum { CARVE_ALIGN = 256 };

struct carve {
    char *base;    // NULL: only count
    uint64_t used; // bytes so far
    uint64_t size; // bytes there are; ignored while counting
};

// The next `bytes` bytes, CARVE_ALIGN aligned. NULL while counting. Running over the end is a bug.
static inline void *carve_take(struct carve *c, uint64_t bytes)
{
    uint64_t at = c->used;
    c->used += (bytes + CARVE_ALIGN - 1) / CARVE_ALIGN * CARVE_ALIGN;
    if (c->base == NULL) return NULL;
    check(c->used <= c->size, "carved %llu of %llu bytes", (unsigned long long) c->used,
          (unsigned long long) c->size);
    return c->base + at;
}

#endif
