// The ranks of a group on GPUs of one process, and the ways in which their collectives go: each way
// is a table, and all ranks take the same one when they attach. Everything of a rank is touched by
// its own thread alone, but for what others read between two meetings.
#ifndef PENSTOCK_KERNELS_CUDA_COMM_CUH
#define PENSTOCK_KERNELS_CUDA_COMM_CUH

#include "kernels/cuda/device.cuh"

extern "C" {
#include "common/cuda_comm_sizes.h"
#include "kernels/comm.h"
#include "kernels/comm_hub.h"
}

// What the preflight found between all ranks' GPUs (links.cuh).
enum links {
    LINKS_NONE,   // no way brings data over intact
    LINKS_STAGED, // through pinned memory of the host
    LINKS_PEER,   // a GPU reads and writes another's memory
};

struct cuda_group;
struct cuda_way;
struct nccl_rank;
struct direct_rank;

enum { COMM_AHEAD = 8 }; // sums that a rank may put on its stream before it waits for the first

struct cuda_comm {
    struct comm comm;
    struct cuda_group *group;
    const struct cuda_way *way; // from attach on
    struct device *device; // from attach to detach
    void *buffer;          // of the present collective, or what else others are shown
    enum links links;      // what this rank found
    char found[160];       // and why not better
    cudaEvent_t ready, done;  // COMM_PEER: its part is there; its work on the others' is
    cudaEvent_t paces[COMM_AHEAD]; // of its last sums that were not recorded
    uint64_t n_paces;              // of all of them
    char *memory, *pinned;    // as common/cuda_comm_sizes.h has them
    struct nccl_rank *nccl;   // COMM_NCCL, and COMM_DIRECT where peers have it
    struct direct_rank *direct; // COMM_DIRECT
};

// A way of collectives. `open`: after the preflight, all ranks; what fails is told by e, and the
// caller ends the group. `close`: the stream is idle or ends by itself after hub_end; also after an
// open that failed. `watch`: device.cuh; NULL: the group's alone.
struct cuda_way {
    struct comm_ops ops;
    enum status (*open)(struct cuda_comm *c, struct error *e);
    void (*close)(struct cuda_comm *c);
    enum status (*watch)(struct cuda_comm *c);
};

struct cuda_group {
    struct hub *hub, *leaving;
    struct comm_cuda_options options;
    int n_attached;
    bool distinct; // no two ranks share a GPU
    char nccl_id[128];
    struct cuda_comm ranks[TP_MAX];
};

static inline struct cuda_comm *cuda_comm_of(struct comm *c) { return (struct cuda_comm *) c; }

// Life of any way (comm.cu).
enum status cuda_attach(struct comm *c, struct device *d, void *memory, void *pinned,
                        struct error *e);
void cuda_detach(struct comm *c);
void cuda_abort(struct comm *c);
void cuda_destroy(struct comm **c);

// Before a sum is put on the stream: waits while the rank is too far ahead of its device. So its
// launches never wait for room, where it would not see that all has ended. Not OK: it has.
enum status cuda_keep_pace(struct cuda_comm *c);

extern const struct cuda_way cuda_way_peer, cuda_way_direct;

// Collectives over NVIDIA's library; whether it is there. ERR_UNAVAILABLE no_nccl.
extern const struct cuda_way cuda_way_nccl;
enum status cuda_nccl_check(struct error *e);

#endif
