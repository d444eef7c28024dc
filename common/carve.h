// Carving one memory region into named parts, in order, each aligned: first with no memory to learn
// the size, then for real; the two passes run the same code, so the size is exact. Each part is
// accounted to a line of the ledger. One thread.
#ifndef PENSTOCK_COMMON_CARVE_H
#define PENSTOCK_COMMON_CARVE_H

#include "common/ledger.h"
#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

enum { CARVE_ALIGN = 256 };

struct carve {
    char *base;    // NULL: only count
    uint64_t used; // bytes so far
    uint64_t size; // bytes there are; ignored while counting
    enum ledger_line line; // of what is taken next
    struct ledger ledger;  // of what was taken; its total is `used`
};

static inline uint64_t carve_aligned(uint64_t bytes)
{
    return (bytes + CARVE_ALIGN - 1) / CARVE_ALIGN * CARVE_ALIGN;
}

// What is taken from here on belongs to this line.
static inline void carve_line(struct carve *c, enum ledger_line line) { c->line = line; }

// The next `bytes` bytes, CARVE_ALIGN aligned. NULL while counting. Running over the end is a bug.
static inline void *carve_take(struct carve *c, uint64_t bytes)
{
    uint64_t at = c->used, taken = carve_aligned(bytes);
    c->used += taken;
    c->ledger.bytes[c->line] += taken;
    if (c->base == NULL) return NULL;
    check(c->used <= c->size, "carved %llu of %llu bytes", (unsigned long long) c->used,
          (unsigned long long) c->size);
    return c->base + at;
}

// Accounts bytes of one line to another: a part that belongs to two.
static inline void carve_move(struct carve *c, enum ledger_line from, enum ledger_line to,
                              uint64_t bytes)
{
    check(c->ledger.bytes[from] >= bytes, "%s has %llu bytes", ledger_name(from),
          (unsigned long long) c->ledger.bytes[from]);
    c->ledger.bytes[from] -= bytes;
    c->ledger.bytes[to] += bytes;
}

#endif
