// Collectives between ranks on GPUs of one process whose memory each can read, or on one GPU. The
// ranks meet on the host, their streams wait for each other's events, and each rank's kernel works
// on one slice of all ranks' buffers where they lie; so nothing is copied aside, and all ranks get
// the same bits. Steps that have them are not recorded.
#include "kernels/cuda/comm.cuh"

enum { SUM_THREADS = 256, SUM_BLOCKS_MAX = 512 };

struct parts {
    float *x[TP_MAX]; // (n) of each rank
};

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
static enum status meet_ready(struct cuda_comm *p, void *buffer)
{
    struct cuda_group *g = p->group;
    p->buffer = buffer;
    device_note(p->device, cudaEventRecord(p->ready, p->device->stream), "a collective");
    enum status status = hub_meet(g->hub);
    for (int r = 0; r < g->options.tp && status == OK; r++) {
        if (r == p->comm.rank) continue;
        device_note(p->device, cudaStreamWaitEvent(p->device->stream, g->ranks[r].ready, 0),
                    "a collective");
    }
    return status;
}

// All ranks are done with this rank's buffer before its stream goes on.
static enum status meet_done(struct cuda_comm *p)
{
    struct cuda_group *g = p->group;
    p->device->barred = true;
    device_note(p->device, cudaEventRecord(p->done, p->device->stream), "a collective");
    enum status status = hub_meet(g->hub);
    for (int r = 0; r < g->options.tp && status == OK; r++) {
        if (r == p->comm.rank) continue;
        device_note(p->device, cudaStreamWaitEvent(p->device->stream, g->ranks[r].done, 0),
                    "a collective");
    }
    return status;
}

// --- collectives

static enum status peer_all_reduce(struct comm *c, float *x, size_t n)
{
    struct cuda_comm *p = cuda_comm_of(c);
    struct cuda_group *g = p->group;
    enum status status = meet_ready(p, x);
    if (status != OK) return status;
    struct parts parts;
    for (int r = 0; r < c->tp; r++) parts.x[r] = (float *) g->ranks[r].buffer;
    size_t slice = (ceil_div(n, (uint64_t) c->tp) + 3) / 4 * 4;
    size_t begin = slice * (size_t) c->rank, end = smaller(begin + slice, n);
    if (begin < end) {
        uint64_t blocks = ceil_div(end - begin, SUM_THREADS * 4);
        sum_parts<<<(unsigned) smaller(blocks, SUM_BLOCKS_MAX), SUM_THREADS, 0,
                    p->device->stream>>>(parts, c->tp, begin, end);
        device_launched(p->device, "all_reduce");
    }
    return meet_done(p);
}

static enum status peer_all_gather(struct comm *c, const void *in, void *out, size_t n)
{
    struct cuda_comm *p = cuda_comm_of(c);
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
    struct cuda_comm *p = cuda_comm_of(c);
    enum status status = meet_ready(p, data);
    if (status != OK) return status;
    if (c->rank != root) {
        device_note(p->device, cudaMemcpyAsync(data, p->group->ranks[root].buffer, n,
                                               cudaMemcpyDefault, p->device->stream), "broadcast");
    }
    return meet_done(p);
}

static enum status peer_open(struct cuda_comm *c, struct error *e)
{
    cudaError_t error = cudaEventCreateWithFlags(&c->ready, cudaEventDisableTiming);
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&c->done, cudaEventDisableTiming);
    if (error == cudaSuccess) return OK;
    return error_set(e, ERR_IO, "device_fault", "no events on GPU %d: %s", c->device->ordinal,
                     cudaGetErrorString(error));
}

static void peer_close(struct cuda_comm *c)
{
    if (c->ready != NULL) cudaEventDestroy(c->ready);
    if (c->done != NULL) cudaEventDestroy(c->done);
    c->ready = c->done = NULL;
}

extern const struct cuda_way cuda_way_peer = {
    .ops = {
        .name = "peer",
        .recordable = false,
        .attach = cuda_attach,
        .detach = cuda_detach,
        .all_reduce = peer_all_reduce,
        .all_gather = peer_all_gather,
        .broadcast = peer_broadcast,
        .abort = cuda_abort,
        .destroy = cuda_destroy,
    },
    .open = peer_open,
    .close = peer_close,
    .watch = NULL,
};
