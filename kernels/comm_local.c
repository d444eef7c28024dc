// Ranks that are threads of one process meet in a hub: each collective copies into the hub's
// memory, waits for all, and copies out, so that no rank ever touches another's buffers and one
// that leaves after an abort may free its own at once.
#include "kernels/comm.h"

#include "common/clock.h"
#include "common/limits.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE_BYTES = 64,
    SPINS = 100,            // a few microseconds, then a rank gives its core away
    SUM_ELEMENTS = 2048,    // of a slice at a time: stays in the first cache
    AREA_BYTES_MIN = 65536, // a broadcast of any size passes through the area in pieces
};

struct hub {
    int tp, spins;
    int64_t deadline_ms;
    size_t max_elements, max_gather, area_bytes;
    // all_reduce: parts (tp, max_elements) | sum (max_elements); else bytes, by rank.
    void *area;
    bool owned; // the area
    _Atomic int n_comms;                       // not destroyed yet; the last one frees the hub
    _Alignas(LINE_BYTES) _Atomic int ended;    // OK, or why all collectives end
    _Alignas(LINE_BYTES) _Atomic uint32_t arrived; // ranks at the present meeting
    _Alignas(LINE_BYTES) _Atomic uint32_t meeting; // counts meetings; the futex
    _Atomic uint32_t sleepers;
};

struct local {
    struct comm comm;
    struct hub *hub;
};

static inline void pause_core(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

static void hub_release(struct hub *h)
{
    atomic_fetch_add(&h->meeting, 1);
    if (atomic_load(&h->sleepers) > 0) futex(&h->meeting, FUTEX_WAKE, INT32_MAX, NULL);
}

static void hub_end(struct hub *h, enum status why)
{
    int open = OK;
    if (atomic_compare_exchange_strong(&h->ended, &open, (int) why)) hub_release(h);
}

// Blocks until the meeting after `meeting` begins; at the deadline ends everything.
static void hub_sleep(struct hub *h, uint32_t meeting)
{
    int64_t until = clock_ms() + h->deadline_ms;
    atomic_fetch_add(&h->sleepers, 1);
    while (atomic_load(&h->meeting) == meeting) {
        struct timespec left, *timeout = NULL;
        if (h->deadline_ms > 0) {
            int64_t ms = until - clock_ms();
            if (ms <= 0) {
                hub_end(h, ERR_TIMEOUT);
                break;
            }
            left = (struct timespec) {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
            timeout = &left;
        }
        futex(&h->meeting, FUTEX_WAIT, meeting, timeout);
    }
    atomic_fetch_sub(&h->sleepers, 1);
}

// Waits until all ranks are here. What each wrote before, all see afterwards.
static enum status hub_meet(struct hub *h)
{
    // In this order: an end that `ended` does not show yet changes `meeting` after it was read.
    uint32_t meeting = atomic_load(&h->meeting);
    int ended = atomic_load(&h->ended);
    if (ended != OK) return (enum status) ended;
    if (atomic_fetch_add(&h->arrived, 1) + 1 == (uint32_t) h->tp) {
        atomic_store(&h->arrived, 0);
        hub_release(h);
    } else {
        for (int i = 0; i < h->spins && atomic_load(&h->meeting) == meeting; i++) pause_core();
        if (atomic_load(&h->meeting) == meeting) hub_sleep(h, meeting);
    }
    return (enum status) atomic_load(&h->ended);
}

static struct hub *hub_of(struct comm *c) { return ((struct local *) c)->hub; }

static enum status open_status(struct hub *h) { return (enum status) atomic_load(&h->ended); }

// sum[begin, end) = the parts' sum, rank by rank.
static void sum_slice(const struct hub *h, size_t begin, size_t end)
{
    const float *parts = h->area;
    float *sum = (float *) h->area + h->max_elements * h->tp;
    for (size_t at = begin; at < end; at += SUM_ELEMENTS) {
        size_t n = end - at < SUM_ELEMENTS ? end - at : SUM_ELEMENTS;
        memcpy(sum + at, parts + at, n * sizeof *sum);
        for (int rank = 1; rank < h->tp; rank++) {
            const float *part = parts + h->max_elements * rank + at;
            for (size_t i = 0; i < n; i++) sum[at + i] += part[i];
        }
    }
}

static enum status local_all_reduce(struct comm *c, float *x, size_t n)
{
    struct hub *h = hub_of(c);
    check(n <= h->max_elements, "%zu elements, made for %zu", n, h->max_elements);
    try(open_status(h)); // after an end others may still read the area
    if (c->tp == 1) return OK;
    float *parts = h->area;
    memcpy(parts + h->max_elements * c->rank, x, n * sizeof *x);
    try(hub_meet(h));
    size_t line = LINE_BYTES / sizeof *x;
    size_t slice = ((n + c->tp - 1) / c->tp + line - 1) / line * line;
    size_t begin = slice * c->rank, end = begin + slice < n ? begin + slice : n;
    if (begin < end) sum_slice(h, begin, end);
    try(hub_meet(h));
    memcpy(x, parts + h->max_elements * h->tp, n * sizeof *x);
    return OK;
}

static enum status local_all_gather(struct comm *c, const void *in, void *out, size_t n)
{
    struct hub *h = hub_of(c);
    check(n <= h->max_gather, "%zu bytes, made for %zu", n, h->max_gather);
    try(open_status(h));
    if (c->tp == 1) {
        memcpy(out, in, n);
        return OK;
    }
    memcpy((char *) h->area + n * c->rank, in, n);
    try(hub_meet(h));
    memcpy(out, h->area, n * h->tp);
    return hub_meet(h); // nobody writes the area before all have read it
}

static enum status local_broadcast(struct comm *c, void *data, size_t n, int root)
{
    struct hub *h = hub_of(c);
    try(open_status(h));
    if (c->tp == 1) return OK;
    for (size_t at = 0; at < n; at += h->area_bytes) {
        size_t piece = n - at < h->area_bytes ? n - at : h->area_bytes;
        if (c->rank == root) memcpy(h->area, (char *) data + at, piece);
        try(hub_meet(h));
        if (c->rank != root) memcpy((char *) data + at, h->area, piece);
        try(hub_meet(h));
    }
    return OK;
}

static void local_abort(struct comm *c) { hub_end(hub_of(c), ERR_ABORTED); }

static void hub_leave(struct hub *h)
{
    if (atomic_fetch_sub(&h->n_comms, 1) > 1) return;
    if (h->owned) free(h->area);
    free(h);
}

static void local_destroy(struct comm **c)
{
    if (*c == NULL) return;
    hub_leave(hub_of(*c));
    free((struct local *) *c);
    *c = NULL;
}

static const struct comm_ops local_ops = {
    .name = "local",
    .all_reduce = local_all_reduce,
    .all_gather = local_all_gather,
    .broadcast = local_broadcast,
    .abort = local_abort,
    .destroy = local_destroy,
};

// Rounded up so that each rank's part begins at a cache line.
static size_t part_elements(size_t max_elements)
{
    size_t line = LINE_BYTES / sizeof(float);
    return (max_elements + line - 1) / line * line;
}

size_t comm_local_bytes(int tp, size_t max_elements, size_t max_gather)
{
    if (tp == 1) return 0;
    size_t parts = part_elements(max_elements) * (size_t) (tp + 1) * sizeof(float);
    size_t gather = max_gather * (size_t) tp, most = parts > gather ? parts : gather;
    if (most < AREA_BYTES_MIN) most = AREA_BYTES_MIN;
    return (most + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}

static struct hub *hub_create(int tp, size_t max_elements, size_t max_gather, int64_t deadline_ms,
                              void *area)
{
    struct hub *h = aligned_alloc(LINE_BYTES, sizeof *h);
    if (h == NULL) return NULL;
    *h = (struct hub) {.tp = tp, .n_comms = tp, .deadline_ms = deadline_ms};
    h->max_gather = max_gather;
    h->max_elements = part_elements(max_elements);
    h->spins = sysconf(_SC_NPROCESSORS_ONLN) < tp ? 0 : SPINS;
    if (tp == 1) return h;
    h->area_bytes = comm_local_bytes(tp, max_elements, max_gather);
    h->owned = area == NULL;
    h->area = h->owned ? aligned_alloc(LINE_BYTES, h->area_bytes) : area;
    if (h->area == NULL) {
        free(h);
        return NULL;
    }
    memset(h->area, 0, h->area_bytes); // its pages exist from now on
    return h;
}

enum status comm_local_create(struct comm **comms, int tp, size_t max_elements, size_t max_gather,
                              int64_t deadline_ms, void *area, struct error *e)
{
    check(tp >= 1 && tp <= TP_MAX, "tp %d", tp);
    struct hub *h = hub_create(tp, max_elements, max_gather, deadline_ms, area);
    if (h == NULL) goto no_memory;
    for (int rank = 0; rank < tp; rank++) {
        struct local *l = malloc(sizeof *l);
        if (l == NULL) {
            atomic_fetch_sub(&h->n_comms, tp - rank - 1); // the failed one still holds the hub
            hub_leave(h);
            for (int made = 0; made < rank; made++) local_destroy(&comms[made]);
            goto no_memory;
        }
        *l = (struct local) {.comm = {&local_ops, rank, tp}, .hub = h};
        comms[rank] = &l->comm;
    }
    return OK;
no_memory:
    return error_set(e, ERR_NOMEM, NULL, "no memory for the collectives of %d ranks", tp);
}
