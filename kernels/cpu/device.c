#include "kernels/cpu/device.h"

#include "common/arena.h"
#include "common/log.h"
#include "common/memory.h"
#include "kernels/cpu/life.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int) n : 1;
}

enum status cpu_memory(int n, uint64_t *bytes, struct error *e)
{
    (void) e;
    *bytes = memory_share(n);
    return OK;
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
    arena_release(d->arena);
    free(d);
    *device = NULL;
}

enum status cpu_arena(struct device *d, uint64_t bytes, void **base, struct error *e)
{
    check(d->arena == NULL, "a device has one arena");
    if (bytes > d->memory_bytes) {
        return error_set(e, ERR_NOMEM, "does_not_fit",
                         "the device needs %.2f GiB and may have %.2f GiB",
                         (double) bytes / (double) GIB, (double) d->memory_bytes / (double) GIB);
    }
    // Huge pages save the TLB misses that halve the rate of reading weights.
    try(arena_create(&d->arena, bytes, "a device", e));
    const struct arena *a = d->arena;
    log_line(LOG_INFO, "arena", log_str("of", "device"), log_int("bytes", a->bytes),
             log_str("pages", arena_pages_name(a->pages)), log_int("huge_bytes", a->huge_bytes),
             log_str("locked", a->locked ? "yes" : "no"));
    *base = a->base;
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
