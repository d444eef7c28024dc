// Collectives over NCCL: a communicator for the group, made by each rank for its device. Calls
// never block: what NCCL does in the background is waited for with the group's deadline, and an
// abort ends kernels that wait for a rank that is gone.
#include "kernels/cuda/comm.cuh"

#include "kernels/cuda/comm_log.h"
#include "kernels/cuda/nccl.cuh"

#if PENSTOCK_HAS_NCCL

extern "C" {
#include "common/clock.h"
#include "common/seal.h"
}

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static const size_t WARM_BYTES_MAX = 64ull << 20, WARM_BYTES_MIN = 1024;

struct nccl_rank {
    const struct nccl *library;
    ncclComm_t comm;
    pthread_t aborter;
    bool aborting; // the aborter runs
};

static_assert(sizeof(ncclUniqueId) == sizeof cuda_group().nccl_id, "the group has room for it");

// NCCL frees a communicator only when no recorded step refers to it, which the rank's own thread
// sees to; so that thread does not wait for the end of the abort.
static void *abort_main(void *arg)
{
    struct nccl_rank *n = (struct nccl_rank *) arg;
    n->library->abort(n->comm);
    return NULL;
}

static void start_abort(struct nccl_rank *n)
{
    if (n->comm == NULL || n->aborting) return;
    bool sealed = seal_set(false); // a thread takes of the heap; the stage is lost
    n->aborting = pthread_create(&n->aborter, NULL, abort_main, n) == 0;
    seal_set(sealed);
}

static enum status fail(struct cuda_comm *c, ncclResult_t result, const char *what)
{
    struct nccl_rank *n = c->nccl;
    comm_log_nccl(c->comm.rank, what, n->library->error_string(result),
                  n->library->last_error(n->comm));
    hub_end(c->group->hub, ERR_IO);
    start_abort(n);
    return hub_status(c->group->hub);
}

// Until NCCL has put on the stream what was asked for.
static enum status settle(struct cuda_comm *c, ncclResult_t result, const char *what)
{
    struct cuda_group *g = c->group;
    int64_t begun_ms = clock_ms();
    c->device->barred = true; // whatever NCCL puts there
    while (result == ncclInProgress) {
        int64_t deadline_ms = g->options.deadline_ms;
        if (deadline_ms > 0 && clock_ms() - begun_ms > deadline_ms) hub_end(g->hub, ERR_TIMEOUT);
        enum status ended = hub_status(g->hub);
        if (ended != OK) {
            start_abort(c->nccl);
            return ended;
        }
        sched_yield();
        ncclResult_t asked = c->nccl->library->async_error(c->nccl->comm, &result);
        if (asked != ncclSuccess) result = asked;
    }
    return result == ncclSuccess ? OK : fail(c, result, what);
}

// --- collectives

static enum status nccl_all_reduce(struct comm *comm, float *x, size_t n)
{
    struct cuda_comm *c = cuda_comm_of(comm);
    enum status ended = hub_status(c->group->hub);
    if (ended != OK || n == 0) return ended;
    ended = cuda_keep_pace(c);
    if (ended != OK) return ended;
    return settle(c, c->nccl->library->all_reduce(x, x, n, ncclFloat32, ncclSum, c->nccl->comm,
                                                  c->device->stream), "all_reduce");
}

static enum status nccl_all_gather(struct comm *comm, const void *in, void *out, size_t n)
{
    struct cuda_comm *c = cuda_comm_of(comm);
    enum status ended = hub_status(c->group->hub);
    if (ended != OK || n == 0) return ended;
    return settle(c, c->nccl->library->all_gather(in, out, n, ncclInt8, c->nccl->comm,
                                                  c->device->stream), "all_gather");
}

static enum status nccl_broadcast(struct comm *comm, void *data, size_t n, int root)
{
    struct cuda_comm *c = cuda_comm_of(comm);
    enum status ended = hub_status(c->group->hub);
    if (ended != OK || n == 0) return ended;
    return settle(c, c->nccl->library->broadcast(data, data, n, ncclInt8, root, c->nccl->comm,
                                                 c->device->stream), "broadcast");
}

// --- life

// NCCL connects ranks, and takes memory for it, at the first collective of each of its algorithms:
// all are met now, on the arena's zeros.
static enum status warm_up(struct cuda_comm *c, struct error *e)
{
    struct device *d = c->device;
    const struct cuda_group *g = c->group;
    size_t most = WARM_BYTES_MAX; // the same on all ranks, whose arenas may differ
    for (int i = 0; i < c->comm.tp; i++) most = smaller(most, g->ranks[i].device->arena_bytes);
    for (size_t bytes = WARM_BYTES_MIN; bytes <= most; bytes *= 4) {
        enum status status = nccl_all_reduce(&c->comm, (float *) d->arena, bytes / sizeof(float));
        if (status != OK) return status;
    }
    return d->arena_bytes > 0 ? cuda_sync(d, e) : OK;
}

static enum status refuse(struct cuda_comm *c, ncclResult_t result, struct error *e)
{
    const struct nccl *l = c->nccl->library;
    return error_set(e, ERR_UNAVAILABLE, "no_nccl", "NCCL between GPU %d and the others: %s (%s)",
                     c->device->ordinal, l->error_string(result), l->last_error(c->nccl->comm));
}

static enum status nccl_open(struct cuda_comm *c, struct error *e)
{
    struct cuda_group *g = c->group;
    struct nccl_rank *n = c->nccl = (struct nccl_rank *) calloc(1, sizeof *n);
    if (n == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for NCCL");
    n->library = nccl_library(e);
    if (n->library == NULL) return e->status;
    ncclResult_t result = ncclSuccess;
    if (c->comm.rank == 0) {
        if (c->links != LINKS_PEER) setenv("NCCL_P2P_DISABLE", "1", 1); // others wait meanwhile
        ncclUniqueId id;
        result = n->library->get_id(&id);
        memcpy(g->nccl_id, &id, sizeof id);
    }
    if (result != ncclSuccess) return refuse(c, result, e);
    enum status status = hub_meet(g->hub); // the id is there
    if (status != OK) return status;
    ncclUniqueId id;
    memcpy(&id, g->nccl_id, sizeof id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = g->options.blocking;
    result = n->library->init(&n->comm, g->options.tp, id, c->comm.rank, &config);
    if (result != ncclSuccess && result != ncclInProgress) return refuse(c, result, e);
    status = settle(c, result, "init");
    return status == OK ? warm_up(c, e) : status;
}

static void nccl_close(struct cuda_comm *c)
{
    struct nccl_rank *n = c->nccl;
    if (n == NULL) return;
    if (hub_status(c->group->hub) != OK) start_abort(n); // its kernels end
    cudaStreamSynchronize(c->device->stream);
    device_forget(c->device);
    start_abort(n);
    if (n->aborting) pthread_join(n->aborter, NULL);
    free(n);
    c->nccl = NULL;
}

static enum status nccl_watch(struct cuda_comm *c)
{
    struct nccl_rank *n = c->nccl;
    enum status ended = hub_status(c->group->hub);
    if (n == NULL || n->comm == NULL) return ended;
    ncclResult_t result = ncclSuccess;
    if (ended == OK) {
        ncclResult_t asked = n->library->async_error(n->comm, &result);
        if (asked != ncclSuccess) result = asked;
        if (result == ncclSuccess || result == ncclInProgress) return OK;
        return fail(c, result, "the background");
    }
    start_abort(n);
    return ended;
}

extern const struct cuda_way cuda_way_nccl = {
    .ops = {
        .name = "nccl",
        .recordable = true,
        .attach = cuda_attach,
        .detach = cuda_detach,
        .all_reduce = nccl_all_reduce,
        .all_gather = nccl_all_gather,
        .broadcast = nccl_broadcast,
        .abort = cuda_abort,
        .destroy = cuda_destroy,
    },
    .open = nccl_open,
    .close = nccl_close,
    .watch = nccl_watch,
};

#else

extern const struct cuda_way cuda_way_nccl = {}; // which cuda_nccl_check does not let anybody take

#endif
