#include "common/device_sizes.h"

#include "common/cpu_sizes.h"
#include "common/cuda_comm_sizes.h"
#include "common/cuda_sizes.h"
#include "common/limits.h"

#include <string.h>

static uint64_t cpu_scratch(const struct scratch_shape *s)
{
    struct carve count = {0};
    struct cpu_scratch parts;
    cpu_scratch_carve(&parts, s, &count);
    return count.used;
}

static uint64_t cuda_scratch(const struct scratch_shape *s)
{
    struct carve count = {0};
    struct cuda_scratch parts;
    cuda_scratch_carve(&parts, s, &count);
    return count.used;
}

static uint64_t cuda_comm(int tp) { return cuda_comm_device(tp).bytes; }

static uint64_t cuda_pinned(int tp) { return cuda_comm_pinned(tp).bytes; }

static uint64_t none(int tp)
{
    (void) tp;
    return 0;
}

// --- the table

static const struct device_sizes kinds[N_DEVICE_KINDS] = {
    [DEVICE_CPU] = {.name = "cpu",
                    .matrix = cpu_matrix_size,
                    .scratch = cpu_scratch,
                    .comm = none,
                    .comm_pinned = none,
                    .host_reads = true},
    // A context with all modules loaded, and NCCL's buffers for 8 ranks with cuBLASLt's handles:
    // allowances, until the device at hand was measured.
    [DEVICE_CUDA] = {.name = "cuda",
                     .matrix = cuda_matrix_size,
                     .scratch = cuda_scratch,
                     .comm = cuda_comm,
                     .comm_pinned = cuda_pinned,
                     .context = 512 * MIB,
                     .libraries = 384 * MIB,
                     .pinned = 2 * CUDA_STAGING_HALF + 2 * CUDA_WIRE_STAGED},
};

const struct device_sizes *device_sizes(enum device_kind kind) { return &kinds[kind]; }

enum device_kind device_kind_named(const char *name)
{
    int kind = 0;
    while (kind < N_DEVICE_KINDS && strcmp(kinds[kind].name, name) != 0) kind++;
    return (enum device_kind) kind;
}
