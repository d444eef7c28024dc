#include "common/arena.h"

#include "common/limits.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 * 1024 * 1024 };

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static enum status lacking(struct error *e, uint64_t bytes, const char *what, int why)
{
    return error_set(e, ERR_NOMEM, "does_not_fit", "cannot take %llu bytes (%.2f GiB) for %s: %s",
                     (unsigned long long) bytes, (double) bytes / (double) GIB, what,
                     strerror(why));
}

// Takes the pages now, so that a lack of memory shows here and not in the middle of a step.
static bool populate(struct arena *a, uint64_t page)
{
#ifdef MADV_POPULATE_WRITE
    if (madvise(a->base, a->mapped, MADV_POPULATE_WRITE) == 0) return true;
    if (errno != EINVAL) return false; // EINVAL: a kernel before 5.14
#endif
    for (uint64_t at = 0; at < a->mapped; at += page) ((volatile char *) a->base)[at] = 0;
    return true;
}

// The pool's pages are reserved by mmap or refused by it; a container's limit on them may still
// forbid to touch them.
static bool map_pool(struct arena *a)
{
    uint64_t whole = round_up(a->bytes, HUGE_PAGE);
    void *base = mmap(NULL, whole, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (base == MAP_FAILED) return false;
    a->base = base;
    a->mapped = whole;
    if (!populate(a, HUGE_PAGE)) {
        munmap(base, whole);
        a->base = NULL;
        return false;
    }
    a->huge_bytes = whole;
    a->pages = ARENA_HUGETLB;
    return true;
}

// Aligned, and with a page behind it that nobody may touch: so the kernel keeps its account apart
// from that of the memory beside it.
static bool map_small(struct arena *a, uint64_t page)
{
    uint64_t align = a->bytes >= HUGE_PAGE ? HUGE_PAGE : page;
    uint64_t whole = round_up(a->bytes > 0 ? a->bytes : 1, align), span = whole + align + page;
    char *mapped = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return false;
    char *base = mapped + (align - (uintptr_t) mapped % align) % align;
    char *end = base + whole + page, *mapped_end = mapped + span;
    if (base > mapped) munmap(mapped, (size_t) (base - mapped));
    if (end < mapped_end) munmap(end, (size_t) (mapped_end - end));
    a->base = base;
    a->mapped = whole;
    a->pages = ARENA_SMALL;
    if (mprotect(base, whole, PROT_READ | PROT_WRITE) != 0) return false;
    madvise(base, whole, MADV_HUGEPAGE); // or small pages, where they are switched off
    return true;
}

// What the kernel says of the mapping: how much of it lies on huge pages.
static uint64_t count_huge(const struct arena *a)
{
    char line[256];
    bool inside = false;
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/self/smaps", "re");
    if (f == NULL) return 0;
    while (fgets(line, sizeof line, f) != NULL) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
            if (inside) break;
            inside = from <= (uintptr_t) a->base && (uintptr_t) a->base < to;
        } else if (inside && strncmp(line, "AnonHugePages:", 14) == 0) {
            kib = strtoull(line + 14, NULL, 10);
        }
    }
    fclose(f);
    return kib * 1024 < a->mapped ? kib * 1024 : a->mapped;
}

enum status arena_create(struct arena **arena, uint64_t bytes, const char *what, struct error *e)
{
    long size = sysconf(_SC_PAGESIZE);
    uint64_t page = size > 0 ? (uint64_t) size : 4096;
    struct arena *a = calloc(1, sizeof *a);
    *arena = NULL;
    if (a == NULL) return lacking(e, bytes, what, ENOMEM);
    a->bytes = bytes;
    a->holders = 1;
    bool pool = bytes >= HUGE_PAGE && map_pool(a);
    if (!pool && (!map_small(a, page) || !populate(a, page))) {
        int why = errno;
        arena_release(a);
        return lacking(e, bytes, what, why);
    }
    a->locked = mlock(a->base, a->mapped) == 0;
    if (!pool) a->huge_bytes = count_huge(a);
    if (!pool && a->huge_bytes > 0) a->pages = ARENA_TRANSPARENT;
    *arena = a;
    return OK;
}

void arena_hold(struct arena *a) { a->holders++; }

void arena_release(struct arena *a)
{
    if (a == NULL || --a->holders > 0) return;
    long page = a->pages == ARENA_HUGETLB ? 0 : sysconf(_SC_PAGESIZE); // the one behind it
    if (a->base != NULL) munmap(a->base, a->mapped + (uint64_t) page);
    free(a);
}

const char *arena_pages_name(enum arena_pages pages)
{
    static const char *const names[] = {
        [ARENA_SMALL] = "small", [ARENA_TRANSPARENT] = "transparent", [ARENA_HUGETLB] = "hugetlb"};
    return names[pages];
}
