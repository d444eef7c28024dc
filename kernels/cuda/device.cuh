// The CUDA backend's device: one GPU of a rank, its stream, arena and scratch, and the pinned
// staging through which all host bytes pass. Errors of launches and copies are kept until sync.
#ifndef PENSTOCK_KERNELS_CUDA_DEVICE_CUH
#define PENSTOCK_KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/seam.cuh"

#include "kernels/cuda/ops.h"

#include <cuda_runtime.h>

enum {
    WARP = 32,
    GRAPHS_MAX = 256, // recorded buckets
    ALLOWED_MAX = 128, // kernels that need more shared memory than others
};

struct graph {
    int bucket;
    cudaGraphExec_t exec;
};

struct allowed {
    const void *kernel;
    int bytes;
};

// A way between host and device beside the stream: activations pass through the halves of a wire
// buffer in turn.
struct wire_way {
    cudaStream_t stream;
    cudaEvent_t filled[2], emptied[2]; // of each half: last time
    int half;
};

struct device {
    enum precision precision;
    int ordinal, n_sm, block_bytes; // block_bytes: shared memory that a block may have
    bool has_hopper, hopper; // code for sm_90a can run; it runs
    uint64_t memory_bytes;
    cudaStream_t stream;
    void *arena, *host;
    uint64_t arena_bytes;
    bool joined; // counted as a user of its GPU (usage.cuh)
    char *staging; // 2 * CUDA_STAGING_HALF, pinned; then 2 * CUDA_WIRE_STAGED of activations
    int half, wire_half;   // the ones to fill next
    size_t filled;         // of `half`
    cudaEvent_t copied[2], wire_copied[2]; // the half's last copy has ended
    cudaError_t fault;     // the first since the last sync
    const char *fault_op;
    // Looked at while the host waits for the stream: other ranks can keep it from ending. What is
    // not OK ends the wait, and sync tells it. NULL: none.
    enum status (*watch)(void *arg, int64_t waited_ms);
    void *watch_arg;
    enum status ended_by; // what it said
    cudaStream_t side;      // of a branch; while one is made, `stream` is this one
    cudaEvent_t begun, met; // a branch: what it sees, what `join` waits for
    bool branched;          // one is being made
    bool barred;            // the last on the stream is no kernel: none overlaps with it
    cudaStream_t beside;    // of what is apart from the steps; while it is, `stream` is this one
    bool apart;
    struct scratch_shape shape;
    struct cuda_scratch scratch;
    struct wire_way in, out;
    const void *ahead; // what the next import is of, if its `ahead_n` values came before it
    size_t ahead_n;
    cudaEvent_t computed, ended[DEVICE_STEPS]; // a step's ops; with its exports
    int64_t asked_ns; // since when the oldest step is asked whether it has passed; 0: it is not
    char *pinned;          // host memory of the caller, page-locked; NULL: none
    uint64_t pinned_bytes;
    struct allowed allowed[ALLOWED_MAX];
    int n_allowed;
    // The kernels that round rows have their share of shared memory set (gemm.cu, skinny_rows.cu).
    bool round_carved, stream_carved;
    struct graph graphs[GRAPHS_MAX];
    int n_graphs;
};

// Keeps the first fault; `op` is a literal.
void device_note(struct device *d, cudaError_t error, const char *op);

// Forgets the recorded steps.
void device_forget(struct device *d);

// Lets a kernel have so many bytes of dynamic shared memory. The driver is told once: that takes
// host memory.
void device_allow(struct device *d, const void *kernel, int bytes, const char *op);

// Until all that is on the stream is done, or the watch ends the wait.
cudaError_t device_wait(struct device *d);

// Until the event has passed, or the watch ends the wait.
cudaError_t device_wait_event(struct device *d, cudaEvent_t event);

// After each launch: a configuration that the device refused.
static inline void device_launched(struct device *d, const char *op)
{
    device_note(d, cudaGetLastError(), op);
}

static inline uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

#endif
