#include "workers/rehearse_comm.h"

#include <string.h>

static struct rehearse_comm *of(struct comm *c) { return (struct rehearse_comm *) c; }

static enum status all_reduce(struct comm *comm, float *x, size_t n)
{
    struct rehearse_comm *c = of(comm);
    if (comm->tp == 1) return OK;
    check(c->real != NULL || c->n_peers > 0, "a sum of what the host gathers");
    rehearse_times_mark(c->times, REHEARSE_REDUCE);
    if (c->real != NULL) return c->real->ops->all_reduce(c->real, x, n);
    for (size_t done = 0; done < n; done += c->n_peers) {
        size_t now = n - done < c->n_peers ? n - done : c->n_peers;
        c->times->real->add(c->device, x + done, c->peers, now);
    }
    return OK;
}

// The peers say what this rank says.
static enum status all_gather(struct comm *comm, const void *in, void *out, size_t n)
{
    struct rehearse_comm *c = of(comm);
    for (int i = 0; i < comm->tp; i++) {
        char *to = (char *) out + (size_t) i * n;
        if (c->host) memcpy(to, in, n);
        else c->times->measures->copy(c->device, to, in, n);
    }
    return OK;
}

static enum status broadcast(struct comm *c, void *data, size_t n, int root)
{
    (void) c;
    (void) data;
    (void) n;
    (void) root;
    return OK;
}

static const struct comm_ops *table_of(bool recordable);

// Which way the collectives take is known then.
static enum status attach(struct comm *comm, struct device *d, void *memory, void *pinned,
                          struct error *e)
{
    struct rehearse_comm *c = of(comm);
    if (c->real == NULL) return OK;
    try(c->real->ops->attach(c->real, d, memory, pinned, e));
    comm->ops = table_of(c->real->ops->recordable);
    return OK;
}

static void detach(struct comm *comm)
{
    struct rehearse_comm *c = of(comm);
    if (c->real != NULL) c->real->ops->detach(c->real);
}

static void end(struct comm *comm)
{
    struct rehearse_comm *c = of(comm);
    if (c->real != NULL) c->real->ops->abort(c->real);
}

static void leave(struct comm **c) { *c = NULL; }

#define OPS(is_recordable)                                                                        \
    {.name = "rehearsed", .recordable = is_recordable, .attach = attach, .detach = detach,        \
     .all_reduce = all_reduce, .all_gather = all_gather, .broadcast = broadcast, .abort = end,     \
     .destroy = leave}

static const struct comm_ops recordable_ops = OPS(true), other_ops = OPS(false);

static const struct comm_ops *table_of(bool recordable)
{
    return recordable ? &recordable_ops : &other_ops;
}

void rehearse_comm_init(struct rehearse_comm *c, int rank, int tp, struct rehearse_times *times,
                        struct device *device, bool host)
{
    *c = (struct rehearse_comm){.comm = {&recordable_ops, rank, tp}, .times = times,
                                .device = device, .host = host};
}

void rehearse_comm_peers(struct rehearse_comm *c, float *peers, size_t n_peers)
{
    c->peers = peers;
    c->n_peers = n_peers;
}

void rehearse_comm_real(struct rehearse_comm *c, struct comm *real) { c->real = real; }
