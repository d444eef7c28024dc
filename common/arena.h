// An arena: one run of memory that is taken whole at the start, so that no later page fault can
// fail: mapped on huge pages where there are some, touched, and locked where that is allowed.
// Counted references keep it while others (libzmq) may still read from it; any thread may hold and
// release. Knows nothing of what lies in it.
#ifndef PENSTOCK_COMMON_ARENA_H
#define PENSTOCK_COMMON_ARENA_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum arena_pages {
    ARENA_SMALL,       // the machine's usual ones
    ARENA_TRANSPARENT, // some or all bytes on huge pages that the kernel put together
    ARENA_HUGETLB,     // all on huge pages of the machine's pool
};

struct arena {
    char *base;          // zeroed; aligned to huge pages if it is as large as one
    uint64_t bytes;      // that were asked for
    uint64_t mapped;     // in whole pages
    uint64_t huge_bytes; // on huge pages
    enum arena_pages pages;
    bool locked;         // can't be swapped out; else RLIMIT_MEMLOCK is too low for it
    _Atomic int holders;
};

// One arena of `bytes`, with one holder. ERR_NOMEM does_not_fit says how much was wanted for `what`
// ("rank 3's device").
enum status arena_create(struct arena **arena, uint64_t bytes, const char *what, struct error *e);

void arena_hold(struct arena *a);

// Gives the memory back with the last holder; NULL is ignored.
void arena_release(struct arena *a);

// "hugetlb", "transparent", "small".
const char *arena_pages_name(enum arena_pages pages);

#endif
