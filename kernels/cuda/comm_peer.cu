#include "kernels/cuda/comm_peer.cuh"

#include "kernels/cuda/device.cuh"

extern "C" {
#include "kernels/comm_hub.h"
}

#include <stdlib.h>

enum { SUM_THREADS = 256, SUM_BLOCKS_MAX = 512 };

// A rank that ends waits so long for the others to be done with its memory.
static const int64_t LEAVE_MS = 10000;

struct peer {
    struct comm comm;
    struct peer_group *group;
    struct device *device;
    cudaEvent_t ready, done; // its part is there; its work on the others' is
    void *buffer;            // of the present collective: others read it between the meetings
};

struct peer_group {
    struct hub *hub, *leaving;
    int tp, n_attached;
    int64_t deadline_ms;
    struct peer ranks[TP_MAX];
};

struct parts {
    float *x[TP_MAX]; // (n) of each rank
};

static struct peer *peer_of(struct comm *c) { return (struct peer *) c; }

// --- kernels

// x[r][i] of all r = sum over r of x[r][i], for elements [begin, end), of which begin is a multiple
// of 4.
static __global__ void sum_parts(struct parts p, int tp, size_t begin, size_t end)
{
    size_t step = (size_t) gridDim.x * SUM_THREADS * 4;
    for (size_t i = begin + ((size_t) blockIdx.x * SUM_THREADS + threadIdx.x) * 4; i < end;
         i += step) {
        if (i + 4 <= end) {
            float4 sum = *(const float4 *) (p.x[0] + i);
            for (int r = 1; r < tp; r++) {
                float4 part = *(const float4 *) (p.x[r] + i);
                sum.x += part.x;
                sum.y += part.y;
                sum.z += part.z;
                sum.w += part.w;
            }
            for (int r = 0; r < tp; r++) *(float4 *) (p.x[r] + i) = sum;
        } else {
            for (size_t j = i; j < end; j++) {
                float sum = p.x[0][j];
                for (int r = 1; r < tp; r++) sum += p.x[r][j];
                for (int r = 0; r < tp; r++) p.x[r][j] = sum;
            }
        }
    }
}

// --- meetings

// All ranks' buffers are complete for what this rank's stream does next.
static enum status meet_ready(struct peer *p, void *buffer)
{
    struct peer_group *g = p->group;
    p->buffer = buffer;
    device_note(p->device, cudaEventRecord(p->ready, p->device->stream), "a collective");
    enum status status = hub_meet(g->hub);
    for (int r = 0; r < g->tp && status == OK; r++) {
        if (r == p->comm.rank) continue;
        device_note(p->device, cudaStreamWaitEvent(p->device->stream, g->ranks[r].ready, 0),
                    "a collective");
    }
    return status;
}

// All ranks are done with this rank's buffer before its stream goes on.
static enum status meet_done(struct peer *p)
{
    struct peer_group *g = p->group;
    device_note(p->device, cudaEventRecord(p->done, p->device->stream), "a collective");
    enum status status = hub_meet(g->hub);
    for (int r = 0; r < g->tp && status == OK; r++) {
        if (r == p->comm.rank) continue;
        device_note(p->device, cudaStreamWaitEvent(p->device->stream, g->ranks[r].done, 0),
                    "a collective");
    }
    return status;
}

// --- collectives

static enum status peer_all_reduce(struct comm *c, float *x, size_t n)
{
    struct peer *p = peer_of(c);
    struct peer_group *g = p->group;
    enum status status = meet_ready(p, x);
    if (status != OK) return status;
    struct parts parts;
    for (int r = 0; r < g->tp; r++) parts.x[r] = (float *) g->ranks[r].buffer;
    size_t slice = (ceil_div(n, (uint64_t) g->tp) + 3) / 4 * 4;
    size_t begin = slice * (size_t) c->rank, end = smaller(begin + slice, n);
    if (begin < end) {
        uint64_t blocks = ceil_div(end - begin, SUM_THREADS * 4);
        sum_parts<<<(unsigned) smaller(blocks, SUM_BLOCKS_MAX), SUM_THREADS, 0,
                    p->device->stream>>>(parts, g->tp, begin, end);
        device_launched(p->device, "all_reduce");
    }
    return meet_done(p);
}

static enum status peer_all_gather(struct comm *c, const void *in, void *out, size_t n)
{
    struct peer *p = peer_of(c);
    enum status status = meet_ready(p, (void *) in);
    if (status != OK) return status;
    for (int r = 0; r < c->tp; r++) {
        device_note(p->device, cudaMemcpyAsync((char *) out + n * (size_t) r,
                                               p->group->ranks[r].buffer, n, cudaMemcpyDefault,
                                               p->device->stream), "all_gather");
    }
    return meet_done(p);
}

static enum status peer_broadcast(struct comm *c, void *data, size_t n, int root)
{
    struct peer *p = peer_of(c);
    enum status status = meet_ready(p, data);
    if (status != OK) return status;
    if (c->rank != root) {
        device_note(p->device, cudaMemcpyAsync(data, p->group->ranks[root].buffer, n,
                                               cudaMemcpyDefault, p->device->stream), "broadcast");
    }
    return meet_done(p);
}

static void peer_abort(struct comm *c) { hub_end(peer_of(c)->group->hub, ERR_ABORTED); }

// --- life

static enum status watch(void *arg, int64_t waited_ms)
{
    struct peer_group *g = ((struct peer *) arg)->group;
    if (g->deadline_ms > 0 && waited_ms > g->deadline_ms) hub_end(g->hub, ERR_TIMEOUT);
    return hub_status(g->hub);
}

// The rank's GPU may read and write the memory of all others'.
static enum status open_peers(struct peer *p, struct error *e)
{
    int mine = p->device->ordinal;
    for (int r = 0; r < p->group->tp; r++) {
        int theirs = p->group->ranks[r].device->ordinal, can = 0;
        if (theirs == mine) continue;
        cudaError_t error = cudaDeviceCanAccessPeer(&can, mine, theirs);
        if (error == cudaSuccess && can) error = cudaDeviceEnablePeerAccess(theirs, 0);
        if (error == cudaErrorPeerAccessAlreadyEnabled) error = cudaSuccess;
        cudaGetLastError();
        if (can && error == cudaSuccess) continue;
        return error_set(e, ERR_UNAVAILABLE, "no_peer", "GPU %d cannot read GPU %d's memory: %s",
                         mine, theirs, can ? cudaGetErrorString(error) : "the system says no");
    }
    return OK;
}

static enum status peer_attach(struct comm *c, struct device *d, struct error *e)
{
    struct peer *p = peer_of(c);
    struct peer_group *g = p->group;
    p->device = d;
    cudaError_t error = cudaEventCreateWithFlags(&p->ready, cudaEventDisableTiming);
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&p->done, cudaEventDisableTiming);
    if (error != cudaSuccess) {
        hub_end(g->hub, ERR_ABORTED);
        return error_set(e, ERR_IO, "device_fault", "no events on GPU %d: %s", d->ordinal,
                         cudaGetErrorString(error));
    }
    d->watch = watch;
    d->watch_arg = p;
    enum status status = hub_meet(g->hub); // all devices are known
    if (status == OK) {
        status = open_peers(p, e);
        if (status != OK) {
            hub_end(g->hub, ERR_ABORTED);
            return status;
        }
        __atomic_fetch_add(&g->n_attached, 1, __ATOMIC_SEQ_CST);
        status = hub_meet(g->hub);
    }
    if (status == OK) return OK;
    return error_set(e, status, NULL, "the other ranks did not open their GPUs");
}

// Others may be reading this rank's memory until their streams are through.
static void peer_detach(struct comm *c)
{
    struct peer *p = peer_of(c);
    struct peer_group *g = p->group;
    if (p->device == NULL) return;
    cudaStreamSynchronize(p->device->stream);
    if (__atomic_load_n(&g->n_attached, __ATOMIC_SEQ_CST) == g->tp) hub_meet(g->leaving);
    p->device->watch = NULL;
    if (p->ready != NULL) cudaEventDestroy(p->ready);
    if (p->done != NULL) cudaEventDestroy(p->done);
    p->device = NULL;
}

static void peer_destroy(struct comm **c)
{
    if (*c == NULL) return;
    struct peer_group *g = peer_of(*c)->group;
    *c = NULL;
    bool last = hub_leave(g->leaving);
    if (hub_leave(g->hub) && last) free(g);
}

static const struct comm_ops peer_ops = {
    .name = "peer",
    .recordable = false,
    .attach = peer_attach,
    .detach = peer_detach,
    .all_reduce = peer_all_reduce,
    .all_gather = peer_all_gather,
    .broadcast = peer_broadcast,
    .abort = peer_abort,
    .destroy = peer_destroy,
};

enum status comm_peer_create(struct comm **comms, const struct comm_cuda_options *o,
                             struct error *e)
{
    struct peer_group *g = (struct peer_group *) calloc(1, sizeof *g);
    struct hub *hub = hub_create(o->tp, o->deadline_ms), *leaving = hub_create(o->tp, LEAVE_MS);
    if (g == NULL || hub == NULL || leaving == NULL) {
        while (hub != NULL && !hub_leave(hub)) continue;
        while (leaving != NULL && !hub_leave(leaving)) continue;
        free(g);
        return error_set(e, ERR_NOMEM, NULL, "no memory for the collectives of %d ranks", o->tp);
    }
    g->hub = hub;
    g->leaving = leaving;
    g->tp = o->tp;
    g->deadline_ms = o->deadline_ms;
    for (int r = 0; r < o->tp; r++) {
        g->ranks[r].comm = (struct comm) {&peer_ops, r, o->tp};
        g->ranks[r].group = g;
        comms[r] = &g->ranks[r].comm;
    }
    return OK;
}
