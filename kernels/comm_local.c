// Ranks that are threads of one process meet in a hub: each collective copies into the hub's
// memory, waits for all, and copies out, so that no rank ever touches another's buffers and one
// that leaves after an abort may free its own at once.
#include "kernels/comm.h"

#include "common/limits.h"
#include "kernels/comm_hub.h"

#include <stdlib.h>
#include <string.h>

enum {
    LINE_BYTES = 64,
    SUM_ELEMENTS = 2048,    // of a slice at a time: stays in the first cache
    AREA_BYTES_MIN = 65536, // a broadcast of any size passes through the area in pieces
};

struct shared {
    struct hub *hub; // the last comm that leaves it frees all
    int tp;
    size_t max_elements, max_gather, area_bytes;
    // all_reduce: parts (tp, max_elements) | sum (max_elements); else bytes, by rank.
    void *area;
    bool owned; // the area
};

struct local {
    struct comm comm;
    struct shared *shared;
};

static struct shared *shared_of(struct comm *c) { return ((struct local *) c)->shared; }

// sum[begin, end) = the parts' sum, rank by rank.
static void sum_slice(const struct shared *h, size_t begin, size_t end)
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
    struct shared *h = shared_of(c);
    check(c->tp == 1 || n <= h->max_elements, "%zu elements, made for %zu", n, h->max_elements);
    try(hub_status(h->hub)); // after an end others may still read the area
    if (c->tp == 1) return OK;
    float *parts = h->area;
    memcpy(parts + h->max_elements * c->rank, x, n * sizeof *x);
    try(hub_meet(h->hub));
    size_t line = LINE_BYTES / sizeof *x;
    size_t slice = ((n + c->tp - 1) / c->tp + line - 1) / line * line;
    size_t begin = slice * c->rank, end = begin + slice < n ? begin + slice : n;
    if (begin < end) sum_slice(h, begin, end);
    try(hub_meet(h->hub));
    memcpy(x, parts + h->max_elements * h->tp, n * sizeof *x);
    return OK;
}

static enum status local_all_gather(struct comm *c, const void *in, void *out, size_t n)
{
    struct shared *h = shared_of(c);
    check(n <= h->max_gather, "%zu bytes, made for %zu", n, h->max_gather);
    try(hub_status(h->hub));
    if (c->tp == 1) {
        memcpy(out, in, n);
        return OK;
    }
    memcpy((char *) h->area + n * c->rank, in, n);
    try(hub_meet(h->hub));
    memcpy(out, h->area, n * h->tp);
    return hub_meet(h->hub); // nobody writes the area before all have read it
}

static enum status local_broadcast(struct comm *c, void *data, size_t n, int root)
{
    struct shared *h = shared_of(c);
    try(hub_status(h->hub));
    if (c->tp == 1) return OK;
    for (size_t at = 0; at < n; at += h->area_bytes) {
        size_t piece = n - at < h->area_bytes ? n - at : h->area_bytes;
        if (c->rank == root) memcpy(h->area, (char *) data + at, piece);
        try(hub_meet(h->hub));
        if (c->rank != root) memcpy((char *) data + at, h->area, piece);
        try(hub_meet(h->hub));
    }
    return OK;
}

static enum status local_attach(struct comm *c, struct device *d, void *memory, void *pinned,
                                struct error *e)
{
    (void) c;
    (void) d;
    (void) memory;
    (void) pinned;
    (void) e;
    return OK;
}

static void local_detach(struct comm *c) { (void) c; }

static void local_abort(struct comm *c) { hub_end(shared_of(c)->hub, ERR_ABORTED); }

static void leave(struct shared *h)
{
    if (!hub_leave(h->hub)) return;
    if (h->owned) free(h->area);
    free(h);
}

static void local_destroy(struct comm **c)
{
    if (*c == NULL) return;
    leave(shared_of(*c));
    free((struct local *) *c);
    *c = NULL;
}

static const struct comm_ops local_ops = {
    .name = "local",
    .recordable = true, // devices of the host run steps at once, and one rank does nothing
    .attach = local_attach,
    .detach = local_detach,
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

static struct shared *shared_create(int tp, size_t max_elements, size_t max_gather,
                                    int64_t deadline_ms, void *area)
{
    struct shared *h = malloc(sizeof *h);
    if (h == NULL) return NULL;
    *h = (struct shared) {.hub = hub_create(tp, deadline_ms), .tp = tp, .max_gather = max_gather};
    h->max_elements = part_elements(max_elements);
    if (tp == 1 && h->hub != NULL) return h;
    h->area_bytes = comm_local_bytes(tp, max_elements, max_gather);
    h->owned = area == NULL;
    h->area = h->owned ? aligned_alloc(LINE_BYTES, h->area_bytes) : area;
    if (h->hub == NULL || h->area == NULL) {
        if (h->owned) free(h->area);
        while (h->hub != NULL && !hub_leave(h->hub)) continue;
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
    struct shared *h = shared_create(tp, max_elements, max_gather, deadline_ms, area);
    if (h == NULL) goto no_memory;
    for (int rank = 0; rank < tp; rank++) {
        struct local *l = malloc(sizeof *l);
        if (l == NULL) {
            for (int left = rank; left < tp; left++) leave(h);
            for (int made = 0; made < rank; made++) local_destroy(&comms[made]);
            goto no_memory;
        }
        *l = (struct local) {.comm = {&local_ops, rank, tp}, .shared = h};
        comms[rank] = &l->comm;
    }
    return OK;
no_memory:
    return error_set(e, ERR_NOMEM, NULL, "no memory for the collectives of %d ranks", tp);
}
