#include "kernels/cpu/device.h"

#include "common/memory.h"
#include "kernels/cpu/life.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 * 1024 * 1024 };

static int cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int) n : 1;
}

enum status cpu_open(struct device **device, const struct device_options *options, struct error *e)
{
    struct device *d = calloc(1, sizeof *d);
    if (d == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a device");
    d->precision = options->precision;
    d->isa = isa_best();
    d->memory_bytes = options->memory_bytes > 0 ? options->memory_bytes : memory_available();
    int n_threads = options->n_threads > 0 ? options->n_threads : cores();
    if (n_threads > DEVICE_THREADS_MAX) n_threads = DEVICE_THREADS_MAX;
    enum status status = team_create(&d->team, n_threads, e);
    if (status != OK) cpu_close(&d);
    *device = d;
    return status;
}

void cpu_close(struct device **device)
{
    struct device *d = *device;
    if (d == NULL) return;
    team_destroy(&d->team);
    if (d->arena != NULL) munmap(d->arena, d->arena_bytes);
    free(d);
    *device = NULL;
}

// Takes the pages now, so that a lack of memory shows here and not in the middle of a step.
static bool populate(void *base, uint64_t bytes)
{
#ifdef MADV_POPULATE_WRITE
    if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0) return true;
    if (errno != EINVAL) return false; // EINVAL: a kernel before 5.14
#endif
    long page = sysconf(_SC_PAGESIZE);
    for (uint64_t at = 0; at < bytes; at += (uint64_t) page) ((volatile char *) base)[at] = 0;
    return true;
}

enum status cpu_arena(struct device *d, uint64_t bytes, void **base, struct error *e)
{
    check(d->arena == NULL, "a device has one arena");
    if (bytes > d->memory_bytes) {
        return error_set(e, ERR_NOMEM, "does_not_fit",
                         "the device needs %.2f GiB and may have %.2f GiB",
                         (double) bytes / (double) GIB, (double) d->memory_bytes / (double) GIB);
    }
    // Aligned to huge pages, which save the TLB misses that halve the rate of reading weights.
    uint64_t whole = (bytes / HUGE_PAGE + 1) * HUGE_PAGE;
    char *mapped = mmap(NULL, whole + HUGE_PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        return error_set(e, ERR_NOMEM, "does_not_fit", "cannot map %.2f GiB: %s",
                         (double) whole / (double) GIB, strerror(errno));
    }
    size_t before = (HUGE_PAGE - (uintptr_t) mapped % HUGE_PAGE) % HUGE_PAGE;
    if (before > 0) munmap(mapped, before);
    munmap(mapped + before + whole, HUGE_PAGE - before);
    d->arena = mapped + before;
    d->arena_bytes = whole;
    madvise(d->arena, whole, MADV_HUGEPAGE); // or small pages, where they are switched off
    if (!populate(d->arena, bytes > 0 ? bytes : 1)) {
        int why = errno;
        munmap(d->arena, whole);
        d->arena = NULL;
        return error_set(e, ERR_NOMEM, "does_not_fit", "cannot take %.2f GiB: %s",
                         (double) bytes / (double) GIB, strerror(why));
    }
    *base = d->arena;
    return OK;
}

void cpu_set_scratch(struct device *d, const struct scratch_shape *s, void *scratch)
{
    check(s->f32 == (d->precision == PRECISION_F32), "scratch of another precision");
    struct carve c = {.base = scratch, .size = device_sizes(DEVICE_CPU)->scratch(s)};
    d->shape = *s;
    cpu_scratch_carve(&d->scratch, s, &c);
}

void cpu_upload(struct device *d, void *to, const void *from, size_t n)
{
    (void) d;
    if (n > 0) memcpy(to, from, n);
}

void cpu_download(struct device *d, void *to, const void *from, size_t n)
{
    cpu_upload(d, to, from, n);
}

enum status cpu_sync(struct device *d, struct error *e)
{
    (void) d;
    (void) e;
    return OK;
}

bool cpu_graph_begin(struct device *d, int bucket)
{
    (void) d;
    (void) bucket;
    return true;
}

void cpu_graph_end(struct device *d, int bucket)
{
    (void) d;
    (void) bucket;
}
