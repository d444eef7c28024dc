#include "kernels/cuda/links.cuh"

#include "kernels/cuda/ops.h"

#include <stdio.h>
#include <string.h>

// Bytes of the pieces: less than a page, more than one, and large enough for a copy engine.
static const uint32_t SIZES[] = {1020, 65552, 2 * 1024 * 1024};

enum {
    N_SIZES = sizeof SIZES / sizeof *SIZES,
    PIECE_MAX = 2 * 1024 * 1024,
    LINK_THREADS = 256,
    POISON = 0xa5,
};

// How a piece comes to a rank.
enum passage {
    PASSAGE_READ,  // its kernel reads the other's memory
    PASSAGE_COPY,  // a copy between the devices
    PASSAGE_WRITE, // the other's kernel writes here
    PASSAGE_HOST,  // over the other's pinned memory
    N_PASSAGES
};

static const char *const PASSAGE_NAMES[] = {"reads", "copies", "writes", "copies through the host"};

static __device__ uint32_t pattern(uint32_t seed, uint32_t i)
{
    uint32_t x = (seed * 0x9e3779b9u) ^ (i * 0x85ebca6bu);
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    return x ^ (x >> 12);
}

static __global__ void fill(uint32_t *to, uint32_t n, uint32_t seed)
{
    uint32_t i = blockIdx.x * LINK_THREADS + threadIdx.x;
    if (i < n) to[i] = pattern(seed, i);
}

static __global__ void move(uint32_t *to, const uint32_t *from, uint32_t n)
{
    uint32_t i = blockIdx.x * LINK_THREADS + threadIdx.x;
    if (i < n) to[i] = from[i];
}

static __global__ void compare(const uint32_t *have, uint32_t n, uint32_t seed, uint32_t *wrong)
{
    uint32_t i = blockIdx.x * LINK_THREADS + threadIdx.x;
    if (i < n && have[i] != pattern(seed, i)) atomicAdd(wrong, 1u);
}

// The head of a rank's arena while it is checked: what it gives | what it gets | words that differ.
struct place {
    uint32_t *source, *landing, *wrong;
};

static struct place place_of(const struct device *d)
{
    char *base = (char *) d->arena;
    return (struct place) {(uint32_t *) base, (uint32_t *) (base + PIECE_MAX),
                           (uint32_t *) (base + 2 * PIECE_MAX)};
}

static const uint64_t PLACE_BYTES = 2 * PIECE_MAX + 256;

static uint32_t seed_of(int rank, int size) { return (uint32_t) (rank * N_SIZES + size + 1); }

static unsigned blocks_of(uint32_t n) { return (n + LINK_THREADS - 1) / LINK_THREADS; }

// One piece of each rank to the rank `step` after it, in this way. *wrong: words of this rank's
// that are not as they were sent.
static enum status pass(struct cuda_comm *c, enum passage way, int step, int size, uint32_t *wrong,
                        struct error *e)
{
    struct cuda_group *g = c->group;
    struct device *d = c->device;
    int tp = g->options.tp, rank = c->comm.rank;
    int from = (rank + tp - step) % tp, to = (rank + step) % tp;
    uint32_t bytes = SIZES[size], n = bytes / 4;
    struct place mine = place_of(d), theirs = place_of(g->ranks[from].device);
    struct place next = place_of(g->ranks[to].device);
    cudaStream_t s = d->stream;
    fill<<<blocks_of(n), LINK_THREADS, 0, s>>>(mine.source, n, seed_of(rank, size));
    device_note(d, cudaMemsetAsync(mine.landing, POISON, PIECE_MAX, s), "the preflight");
    device_note(d, cudaMemsetAsync(mine.wrong, 0, 4, s), "the preflight");
    if (way == PASSAGE_HOST) {
        device_note(d, cudaMemcpyAsync(d->staging, mine.source, bytes, cudaMemcpyDeviceToHost, s),
                    "the preflight");
    }
    enum status status = cuda_sync(d, e);
    if (status == OK) status = hub_meet(g->hub); // all sources and landings are ready
    if (status != OK) return status;
    switch (way) {
    case PASSAGE_READ:
        move<<<blocks_of(n), LINK_THREADS, 0, s>>>(mine.landing, theirs.source, n);
        break;
    case PASSAGE_COPY:
        device_note(d, cudaMemcpyAsync(mine.landing, theirs.source, bytes, cudaMemcpyDefault, s),
                    "the preflight");
        break;
    case PASSAGE_WRITE:
        move<<<blocks_of(n), LINK_THREADS, 0, s>>>(next.landing, mine.source, n);
        break;
    default:
        device_note(d, cudaMemcpyAsync(mine.landing, g->ranks[from].device->staging, bytes,
                                       cudaMemcpyHostToDevice, s), "the preflight");
    }
    device_launched(d, "the preflight");
    status = cuda_sync(d, e);
    if (status == OK) status = hub_meet(g->hub); // all landings are written
    if (status != OK) return status;
    if (g->options.damaged == rank + 1 && way != PASSAGE_HOST) {
        device_note(d, cudaMemsetAsync(mine.landing, 0, 1, s), "the preflight");
    }
    compare<<<blocks_of(n), LINK_THREADS, 0, s>>>(mine.landing, n, seed_of(from, size),
                                                  mine.wrong);
    device_launched(d, "the preflight");
    cuda_download(d, wrong, mine.wrong, sizeof *wrong);
    return cuda_sync(d, e);
}

// Whether this rank gets all pieces of all others in the passages [first, last).
static enum status pass_all(struct cuda_comm *c, int first, int last, bool *intact, struct error *e)
{
    int tp = c->group->options.tp;
    *intact = true;
    for (int way = first; way < last; way++) {
        for (int i = 0; i < (tp - 1) * N_SIZES; i++) {
            uint32_t wrong = 0;
            int step = 1 + i / N_SIZES, size = i % N_SIZES;
            int from = (c->comm.rank + tp - step) % tp;
            enum status status = pass(c, (enum passage) way, step, size, &wrong, e);
            if (status != OK) return status;
            if (wrong == 0 || !*intact) continue;
            *intact = false;
            snprintf(c->found, sizeof c->found,
                     "%s from GPU %d to GPU %d: %u of %u words are not what was sent",
                     PASSAGE_NAMES[way], c->group->ranks[from].device->ordinal,
                     c->device->ordinal, wrong, SIZES[size] / 4);
        }
    }
    return OK;
}

// The rank's GPU may read and write the memory of all others'.
static bool open_peers(struct cuda_comm *c)
{
    int mine = c->device->ordinal;
    if (c->group->options.staged) {
        snprintf(c->found, sizeof c->found, "asked to do without");
        return false;
    }
    for (int r = 0; r < c->group->options.tp; r++) {
        int theirs = c->group->ranks[r].device->ordinal, can = 0;
        if (theirs == mine) continue;
        cudaError_t error = cudaDeviceCanAccessPeer(&can, mine, theirs);
        if (error == cudaSuccess && can) error = cudaDeviceEnablePeerAccess(theirs, 0);
        if (error == cudaErrorPeerAccessAlreadyEnabled) error = cudaSuccess;
        cudaGetLastError();
        if (can && error == cudaSuccess) continue;
        snprintf(c->found, sizeof c->found, "GPU %d cannot read the memory of GPU %d: %s", mine,
                 theirs, can ? cudaGetErrorString(error) : "the system does not allow it");
        return false;
    }
    return true;
}

// The least that any rank found, and why.
static enum status agree(struct cuda_comm *c, enum links mine, enum links *all)
{
    struct cuda_group *g = c->group;
    c->links = mine;
    enum status status = hub_meet(g->hub);
    *all = mine;
    char found[sizeof c->found];
    memcpy(found, c->found, sizeof found);
    for (int r = 0; r < g->options.tp; r++) {
        if (g->ranks[r].links >= *all) continue;
        *all = g->ranks[r].links;
        memcpy(found, g->ranks[r].found, sizeof found);
    }
    if (status == OK) status = hub_meet(g->hub); // all have looked
    memcpy(c->found, found, sizeof found);
    return status;
}

enum status links_check(struct cuda_comm *c, struct error *e)
{
    struct device *d = c->device;
    enum links all;
    bool intact;
    c->links = LINKS_PEER;
    if (c->group->options.tp == 1) return OK;
    if (d->arena_bytes < PLACE_BYTES) { // a rank of no size has nothing to bring over
        return error_set(e, ERR_NOMEM, "does_not_fit", "the check of the links between ranks needs "
                         "%llu bytes of the device", (unsigned long long) PLACE_BYTES);
    }
    enum status status = agree(c, open_peers(c) ? LINKS_PEER : LINKS_STAGED, &all);
    if (status == OK && all == LINKS_PEER) {
        status = pass_all(c, PASSAGE_READ, PASSAGE_HOST, &intact, e);
        if (status == OK) status = agree(c, intact ? LINKS_PEER : LINKS_STAGED, &all);
    }
    if (status == OK && all != LINKS_PEER) {
        status = pass_all(c, PASSAGE_HOST, N_PASSAGES, &intact, e);
        if (status == OK) status = agree(c, intact ? LINKS_STAGED : LINKS_NONE, &all);
    }
    if (status != OK) return status;
    c->links = all;
    device_note(d, cudaMemsetAsync(d->arena, 0, PLACE_BYTES, d->stream), "the preflight");
    return cuda_sync(d, e);
}
