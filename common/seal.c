// Defines malloc and its kin for the whole program, libraries included, on top of glibc's own.
// They lie in this file so that whoever links seal_set is watched.
#undef _FILE_OFFSET_BITS // mmap and mmap64 are two names here
#include "common/seal.h"

#include "common/handover.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SEAL_OFF 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(PENSTOCK_TSAN) || !defined(__GLIBC__)
#define SEAL_OFF 1
#endif

static _Thread_local bool sealed;
static _Atomic uint64_t n_broken;
static _Atomic(const void *) first_broken;

bool seal_set(bool to)
{
    bool was = sealed;
    sealed = to;
    return was;
}

struct seal_counts seal_counts(void)
{
    return (struct seal_counts){
#ifndef SEAL_OFF
        .watched = true,
#ifdef PENSTOCK_SEAL_FATAL
        .fatal = true,
#endif
#endif
        .broken = atomic_load(&n_broken),
        .first = atomic_load(&first_broken)};
}

#ifndef SEAL_OFF

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

static void count_call(const void *caller)
{
    const void *none = NULL;
    atomic_fetch_add_explicit(&n_broken, 1, memory_order_relaxed);
    atomic_compare_exchange_strong(&first_broken, &none, caller);
#ifdef PENSTOCK_SEAL_FATAL
    static const char text[] = "penstock: bug: a sealed thread called the heap\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void) ignored;
    abort();
#endif
}

#define watch() (sealed ? count_call(__builtin_return_address(0)) : (void) 0)

void *malloc(size_t n)
{
    watch();
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    watch();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    watch();
    return __libc_realloc(p, n);
}

void free(void *p)
{
    if (p == NULL) return; // no call of the heap: what was never taken
    watch();
    __libc_free(p);
}

void *memalign(size_t align, size_t n);
void *memalign(size_t align, size_t n)
{
    watch();
    return __libc_memalign(align, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    watch();
    return __libc_memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n)
{
    watch();
    if (align % sizeof(void *) != 0 || (align & (align - 1)) != 0 || align == 0) return EINVAL;
    void *got = __libc_memalign(align, n);
    if (got == NULL) return ENOMEM;
    *p = got;
    return 0;
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset)
{
    watch();
    return (void *) syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t n, int protection, int flags, int fd, off64_t offset)
{
    watch();
    return (void *) syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

#endif
