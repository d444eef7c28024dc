// Sums of few values between ranks that have a GPU each, within recorded steps and without the
// host: every rank writes its values where all others read them, in words with a flag that counts
// the sums (comm_words.cuh), and adds what it finds, in rank order. Where GPUs use each other's
// memory, words are written into all others' slots and waited for in the rank's own memory; else
// they are written once into pinned memory of the host, which all read.
//
// There are two slots, for even and odd sums: who writes the next sum but one has got all parts of
// the next one, so all others have read this one. A block of threads always writes the whole of its
// part of a slot, so that no flag is older than two sums.
//
// Larger sums are NCCL's where GPUs use each other's memory and it is there, and go in pieces where
// not. Over the host they go in shares (comm_shares.cu), which is faster than NCCL at any size and
// spares the hundreds of MiB that it takes of each GPU.
#include "kernels/cuda/comm_shares.cuh"
#include "kernels/cuda/comm_words.cuh"

#include <stdlib.h>

enum {
    DIRECT_THREADS = CUDA_COMM_BLOCK / word_exact::VALUES, // a word each
    // Over the host sums go in shares from so many values on that a rank would read more in one
    // step: what it takes to bring them is more than what it takes to wait once more.
    SHARES_LEAST = 20 * 1024,
};

struct direct_args {
    float *x; // (n)
    size_t n;
    uint32_t *counters;         // of a block: sums so far
    const volatile uint32_t *ended;
    size_t half;                // words from the even slot to the odd one, for who writes or reads
    uint4 *to[TP_MAX];          // (n_to) this rank's slots, wherever others read them
    const uint4 *from[TP_MAX];  // the slot of each rank
    int tp, rank, n_to;
};

struct direct_rank {
    struct direct_args args;
    volatile uint32_t *ended; // the host's word that lets kernels go
};

// --- the kernel

template <int N>
static __global__ void __launch_bounds__(DIRECT_THREADS)
    add_direct(const __grid_constant__ struct direct_args a)
{
    enum { VALUES = word_exact::VALUES };
    uint32_t flag = a.counters[blockIdx.x] + 1;
    __syncthreads(); // before it is counted
    size_t word = (size_t) blockIdx.x * DIRECT_THREADS + threadIdx.x, at = VALUES * word;
    float own[VALUES], sum[VALUES] = {};
#pragma unroll
    for (int k = 0; k < VALUES; k++) own[k] = at + k < a.n ? a.x[at + k] : 0;
    uint4 mine = word_exact::pack(own, flag);
    if (flag & 1) word += a.half;
    for (int k = 0; k < a.n_to; k++) word_write(a.to[k] + word, mine);
    for (int first = 0; first < a.tp; first += N) {
        uint4 w[N] = {};
        words_wait<N>(a.from, a.tp, a.rank, a.ended, first, word, flag, w);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float part[VALUES];
            if (first + i >= a.tp) break;
            word_exact::unpack(first + i == a.rank ? mine : w[i], part);
#pragma unroll
            for (int k = 0; k < VALUES; k++) sum[k] = first + i == 0 ? part[k] : sum[k] + part[k];
        }
    }
#pragma unroll
    for (int k = 0; k < VALUES; k++) {
        if (at + k < a.n) a.x[at + k] = sum[k];
    }
    if (threadIdx.x == 0) a.counters[blockIdx.x] = flag;
}

static void add_piece(struct cuda_comm *c, float *x, size_t n)
{
    struct direct_args a = c->direct->args;
    unsigned blocks = (unsigned) ceil_div(n, CUDA_COMM_BLOCK);
    a.x = x;
    a.n = n;
    if (a.tp <= 2) add_direct<2><<<blocks, DIRECT_THREADS, 0, c->device->stream>>>(a);
    else if (a.tp <= 4) add_direct<4><<<blocks, DIRECT_THREADS, 0, c->device->stream>>>(a);
    else add_direct<8><<<blocks, DIRECT_THREADS, 0, c->device->stream>>>(a);
    device_launched(c->device, "all_reduce");
}

// --- collectives

// Whether a sum over the host goes in shares.
static bool in_shares(const struct cuda_comm *c, size_t n)
{
    size_t tp = (size_t) c->comm.tp;
    return n > CUDA_COMM_FLOATS || (tp - 1) * (tp - 2) * n >= tp * SHARES_LEAST;
}

static enum status direct_all_reduce(struct comm *comm, float *x, size_t n)
{
    struct cuda_comm *c = cuda_comm_of(comm);
    enum status ended = hub_status(c->group->hub);
    if (ended != OK || comm->tp == 1) return ended;
    if (n > CUDA_COMM_FLOATS && c->nccl != NULL) return cuda_way_nccl.ops.all_reduce(comm, x, n);
    ended = cuda_keep_pace(c);
    if (ended != OK) return ended;
    size_t coarse_least = c->group->options.coarse_least;
    bool coarse = coarse_least > 0 && n >= coarse_least;
    if (c->links != LINKS_PEER && (coarse || in_shares(c, n))) {
        shares_add(c, x, n, coarse);
        return OK;
    }
    for (size_t at = 0; at < n; at += CUDA_COMM_FLOATS) {
        add_piece(c, x + at, smaller(n - at, CUDA_COMM_FLOATS));
    }
    return OK;
}

static enum status direct_all_gather(struct comm *comm, const void *in, void *out, size_t n)
{
    struct cuda_comm *c = cuda_comm_of(comm);
    if (c->nccl != NULL) return cuda_way_nccl.ops.all_gather(comm, in, out, n);
    return cuda_way_peer.ops.all_gather(comm, in, out, n);
}

static enum status direct_broadcast(struct comm *comm, void *data, size_t n, int root)
{
    struct cuda_comm *c = cuda_comm_of(comm);
    if (c->nccl != NULL) return cuda_way_nccl.ops.broadcast(comm, data, n, root);
    return cuda_way_peer.ops.broadcast(comm, data, n, root);
}

// --- life

// Others are written to beginning with the next rank, so that not all write to one.
static void find_slots(struct cuda_comm *c, struct direct_args *a)
{
    struct cuda_group *g = c->group;
    struct cuda_comm_device device = cuda_comm_device(a->tp);
    struct cuda_comm_pinned pinned = cuda_comm_pinned(a->tp);
    size_t slot = cuda_comm_slot() / sizeof(uint4);
    bool peer = c->links == LINKS_PEER;
    a->half = peer ? (size_t) a->tp * slot : slot;
    for (int i = 0; i < a->tp; i++) {
        int r = (a->rank + i) % a->tp;
        const struct cuda_comm *other = &g->ranks[r];
        uint4 *theirs = (uint4 *) (peer ? other->memory + device.slots
                                        : other->pinned + pinned.slots);
        a->from[r] = peer ? (uint4 *) (c->memory + device.slots) + (size_t) r * slot : theirs;
        if (peer && i > 0) a->to[a->n_to++] = theirs + (size_t) a->rank * slot;
        if (!peer && i == 0) a->to[a->n_to++] = theirs;
    }
}

static enum status direct_open(struct cuda_comm *c, struct error *e)
{
    struct error why = {};
    bool peer = c->links == LINKS_PEER;
    if (peer && !c->group->options.without_nccl && cuda_nccl_check(&why) == OK) {
        enum status status = cuda_way_nccl.open(c, e);
        if (status != OK) return status;
    }
    enum status status = cuda_way_peer.open(c, e); // its gathers
    if (status != OK) return status;
    struct direct_rank *d = c->direct = (struct direct_rank *) calloc(1, sizeof *d);
    if (d == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a rank's collectives");
    int tp = c->comm.tp;
    d->ended = (volatile uint32_t *) (c->pinned + cuda_comm_pinned(tp).ended);
    d->args.counters = (uint32_t *) (c->memory + cuda_comm_device(tp).counters);
    d->args.ended = d->ended;
    d->args.tp = tp;
    d->args.rank = c->comm.rank;
    if (tp > 1) find_slots(c, &d->args);
    return OK;
}

static enum status direct_watch(struct cuda_comm *c)
{
    enum status ended = c->nccl != NULL ? cuda_way_nccl.watch(c) : hub_status(c->group->hub);
    if (ended != OK && c->direct != NULL && c->comm.tp > 1) *c->direct->ended = 1;
    return ended;
}

static void direct_close(struct cuda_comm *c)
{
    direct_watch(c);
    if (c->nccl != NULL) cuda_way_nccl.close(c);
    cudaStreamSynchronize(c->device->stream);
    cuda_way_peer.close(c);
    free(c->direct);
    c->direct = NULL;
}

extern const struct cuda_way cuda_way_direct = {
    .ops = {
        .name = "direct",
        .recordable = true,
        .attach = cuda_attach,
        .detach = cuda_detach,
        .all_reduce = direct_all_reduce,
        .all_gather = direct_all_gather,
        .broadcast = direct_broadcast,
        .abort = cuda_abort,
        .destroy = cuda_destroy,
    },
    .open = direct_open,
    .close = direct_close,
    .watch = direct_watch,
};
