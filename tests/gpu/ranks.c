#include "tests/gpu/ranks.h"

#include <math.h>

static const struct backend *b(void) { return backend_cuda(); }

static void *rank_main(void *arg)
{
    struct rank_thread *r = arg;
    struct device_options options = {.precision = PRECISION_BF16,
                                     .index = r->comm->rank % r->what->n_gpus};
    void *base = NULL;
    r->status = b()->open(&r->device, &options, &r->error);
    check(r->status == OK, "%s", r->error.text);
    const struct device_sizes *sizes = device_sizes(DEVICE_CUDA);
    uint64_t bytes = r->what->arena_bytes + sizes->comm(r->comm->tp);
    r->status = b()->arena(r->device, bytes, &base, &r->error);
    check(r->status == OK, "%s", r->error.text);
    void *pinned = NULL;
    r->status = b()->host_memory(r->device, sizes->comm_pinned(r->comm->tp), &pinned, &r->error);
    check(r->status == OK, "%s", r->error.text);
    r->arena = (char *) base + sizes->comm(r->comm->tp);
    uint64_t before = 0, after = 0;
    if (r->comm->rank == 0) b()->memory(1, &before, NULL);
    r->status = r->comm->ops->attach(r->comm, r->device, base, pinned, &r->error);
    if (r->comm->rank == 0) b()->memory(1, &after, NULL);
    r->attach_bytes = before - after;
    if (r->status == OK) r->body(r);
    r->comm->ops->detach(r->comm);
    b()->close(&r->device);
    return NULL;
}

void ranks_run(struct rank_thread *ranks, const struct ranks_case *what,
               void (*body)(struct rank_thread *r))
{
    struct comm *comms[TP_MAX];
    struct error e = {0};
    int tp = what->comm.tp;
    check(comm_cuda_create(comms, &what->comm, &e) == OK, "%s", e.text);
    for (int i = 0; i < tp; i++) {
        ranks[i] = (struct rank_thread){.what = what, .comm = comms[i], .body = body};
        int failed = pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]);
        check(failed == 0);
    }
    for (int i = 0; i < tp; i++) pthread_join(ranks[i].thread, NULL);
    for (int i = 0; i < tp; i++) comms[i]->ops->destroy(&comms[i]);
}

double ranks_wrong(const struct rank_thread *ranks, int tp)
{
    double worst = 0;
    for (int i = 0; i < tp; i++) {
        if (ranks[i].status != OK) return INFINITY;
        worst = fmax(worst, isnan(ranks[i].wrong) ? INFINITY : ranks[i].wrong);
    }
    return worst;
}

bool ranks_agree(const struct rank_thread *ranks, int tp)
{
    for (int i = 1; i < tp; i++) {
        if (ranks[i].hash != ranks[0].hash) return false;
    }
    return true;
}

int ranks_gpus(void)
{
    uint64_t bytes;
    int n = 0;
    while (n < TP_MAX && b()->memory(n + 1, &bytes, NULL) == OK) n++;
    return n;
}
