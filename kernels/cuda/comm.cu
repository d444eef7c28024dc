// The life of a group's collectives on GPUs, and which way they take.
#include "kernels/cuda/comm.cuh"

#include "kernels/cuda/comm_log.h"
#include "kernels/cuda/links.cuh"

#include <stdlib.h>

// A rank that ends waits so long for the others to be done with its memory.
static const int64_t LEAVE_MS = 10000;

static enum status watch(void *arg, int64_t waited_ms)
{
    struct cuda_comm *c = (struct cuda_comm *) arg;
    struct hub *hub = c->group->hub;
    int64_t deadline_ms = c->group->options.deadline_ms;
    if (deadline_ms > 0 && waited_ms > deadline_ms) hub_end(hub, ERR_TIMEOUT);
    return c->way != NULL && c->way->watch != NULL ? c->way->watch(c) : hub_status(hub);
}

// What is on the stream before the next sum is counted with it.
enum status cuda_keep_pace(struct cuda_comm *c)
{
    struct device *d = c->device;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    device_note(d, cudaStreamIsCapturing(d->stream, &capture), "a collective");
    if (capture != cudaStreamCaptureStatusNone) return OK;
    cudaEvent_t event = c->paces[c->n_paces % COMM_AHEAD];
    if (c->n_paces >= COMM_AHEAD) {
        device_note(d, device_wait_event(d, event), "a collective");
        enum status ended = hub_status(c->group->hub);
        if (ended != OK) return ended;
    }
    device_note(d, cudaEventRecord(event, d->stream), "a collective");
    d->barred = true;
    c->n_paces++;
    return OK;
}

static enum status make_paces(struct cuda_comm *c, struct error *e)
{
    for (int i = 0; i < COMM_AHEAD; i++) {
        cudaError_t error = cudaEventCreateWithFlags(&c->paces[i], cudaEventDisableTiming);
        if (error == cudaSuccess) continue;
        return error_set(e, ERR_IO, "device_fault", "no events on GPU %d: %s", c->device->ordinal,
                         cudaGetErrorString(error));
    }
    return OK;
}

static void drop_paces(struct cuda_comm *c)
{
    for (int i = 0; i < COMM_AHEAD; i++) {
        if (c->paces[i] != NULL) cudaEventDestroy(c->paces[i]);
        c->paces[i] = NULL;
    }
    c->n_paces = 0;
}

// --- the choice; all ranks come to the same one

static bool are_distinct(const struct cuda_group *g)
{
    for (int a = 0; a < g->options.tp; a++) {
        for (int b = 0; b < a; b++) {
            if (g->ranks[a].device->ordinal == g->ranks[b].device->ordinal) return false;
        }
    }
    return true;
}

static enum status want_distinct(const struct cuda_group *g, const char *what, struct error *e)
{
    if (g->distinct || g->options.crowded) return OK;
    return error_set(e, ERR_UNSUPPORTED, "bad_devices", "%s wants a GPU for each rank", what);
}

static enum status choose(struct cuda_comm *c, const struct cuda_way **way, struct error *e)
{
    struct cuda_group *g = c->group;
    enum comm_way wanted = g->options.way;
    enum status status = OK;
    if (c->links == LINKS_NONE) {
        return error_set(e, ERR_UNAVAILABLE, "bad_link", "data does not arrive intact between the "
                         "GPUs of this group: %s", c->found);
    }
    if (wanted == COMM_AUTO) wanted = g->distinct ? COMM_DIRECT : COMM_PEER;
    switch (wanted) {
    case COMM_NCCL:
        *way = &cuda_way_nccl;
        status = want_distinct(g, "NCCL", e);
        return status == OK ? cuda_nccl_check(e) : status;
    case COMM_DIRECT:
        *way = &cuda_way_direct;
        return want_distinct(g, "a sum without the host", e);
    default:
        *way = &cuda_way_peer;
        if (c->links == LINKS_PEER) return OK;
        return error_set(e, ERR_UNAVAILABLE, "no_peer", "the ranks' GPUs cannot use each other's "
                         "memory: %s", c->found);
    }
}

static void say(const struct cuda_comm *c)
{
    const char *links = c->links == LINKS_PEER ? "peer" : "host";
    if (c->comm.rank != 0 || c->comm.tp == 1) return;
    comm_log_way(c->comm.tp, c->way->ops.name, links, c->found);
}

// --- life

static enum status join(struct cuda_comm *c, struct error *e)
{
    struct cuda_group *g = c->group;
    enum status status = hub_meet(g->hub); // all devices are known
    if (status != OK) return status;
    status = links_check(c, e);
    if (status != OK) return status;
    const struct cuda_way *way = NULL;
    if (c->comm.rank == 0) g->distinct = are_distinct(g);
    status = hub_meet(g->hub);
    if (status != OK) return status;
    enum status chosen = choose(c, &way, e);
    status = hub_meet(g->hub); // whoever refuses ends the hub; all do so with their own words
    if (chosen != OK || status != OK) return chosen != OK ? chosen : status;
    c->way = way;
    c->comm.ops = &way->ops;
    __atomic_fetch_add(&g->n_attached, 1, __ATOMIC_SEQ_CST);
    status = hub_meet(g->hub);
    if (status == OK) status = make_paces(c, e);
    if (status == OK) status = way->open(c, e);
    if (status == OK) status = hub_meet(g->hub);
    return status;
}

enum status cuda_attach(struct comm *comm, struct device *d, void *memory, void *pinned,
                        struct error *e)
{
    struct cuda_comm *c = cuda_comm_of(comm);
    c->device = d;
    c->memory = (char *) memory;
    c->pinned = (char *) pinned;
    d->watch = watch;
    d->watch_arg = c;
    struct error why = {};
    enum status status = join(c, &why);
    if (status == OK) {
        say(c);
        return OK;
    }
    hub_end(c->group->hub, ERR_ABORTED);
    if (why.status != OK && e != NULL) *e = why;
    if (why.status == OK) error_set(e, status, NULL, "the other ranks did not open their GPUs");
    return status;
}

// Others may use this rank's events until they, too, give no more collectives, and its memory until
// their streams are through.
void cuda_detach(struct comm *comm)
{
    struct cuda_comm *c = cuda_comm_of(comm);
    struct cuda_group *g = c->group;
    if (c->device == NULL) return;
    bool attached = __atomic_load_n(&g->n_attached, __ATOMIC_SEQ_CST) == g->options.tp;
    if (attached) hub_meet(g->leaving);
    if (c->way != NULL) c->way->close(c);
    cudaStreamSynchronize(c->device->stream);
    drop_paces(c);
    if (attached) hub_meet(g->leaving);
    c->device->watch = NULL;
    c->device = NULL;
}

void cuda_abort(struct comm *c) { hub_end(cuda_comm_of(c)->group->hub, ERR_ABORTED); }

void cuda_destroy(struct comm **c)
{
    if (*c == NULL) return;
    struct cuda_group *g = cuda_comm_of(*c)->group;
    *c = NULL;
    bool last = hub_leave(g->leaving);
    if (hub_leave(g->hub) && last) free(g);
}

// --- before the ranks attach

static enum status early(void)
{
    check(false, "a collective before its rank attached");
    return ERR_STATE;
}

static enum status early_reduce(struct comm *, float *, size_t) { return early(); }
static enum status early_gather(struct comm *, const void *, void *, size_t) { return early(); }
static enum status early_broadcast(struct comm *, void *, size_t, int) { return early(); }

static const struct comm_ops early_ops = {
    .name = "none yet",
    .recordable = false,
    .attach = cuda_attach,
    .detach = cuda_detach,
    .all_reduce = early_reduce,
    .all_gather = early_gather,
    .broadcast = early_broadcast,
    .abort = cuda_abort,
    .destroy = cuda_destroy,
};

extern "C" enum status comm_cuda_create(struct comm **comms, const struct comm_cuda_options *o,
                                        struct error *e)
{
    check(o->tp >= 1 && o->tp <= TP_MAX, "tp %d", o->tp);
    struct cuda_group *g = (struct cuda_group *) calloc(1, sizeof *g);
    struct hub *hub = hub_create(o->tp, o->deadline_ms), *leaving = hub_create(o->tp, LEAVE_MS);
    if (g == NULL || hub == NULL || leaving == NULL) {
        while (hub != NULL && !hub_leave(hub)) continue;
        while (leaving != NULL && !hub_leave(leaving)) continue;
        free(g);
        return error_set(e, ERR_NOMEM, NULL, "no memory for the collectives of %d ranks", o->tp);
    }
    g->hub = hub;
    g->leaving = leaving;
    g->options = *o;
    for (int r = 0; r < o->tp; r++) {
        g->ranks[r].comm = (struct comm) {&early_ops, r, o->tp};
        g->ranks[r].group = g;
        comms[r] = &g->ranks[r].comm;
    }
    return OK;
}
