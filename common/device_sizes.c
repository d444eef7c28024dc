#include "common/device_sizes.h"

#include "common/cpu_sizes.h"
#include "common/limits.h"

#include <string.h>

static uint64_t cpu_scratch(const struct scratch_shape *s)
{
    struct carve count = {0};
    struct cpu_scratch parts;
    cpu_scratch_carve(&parts, s, &count);
    return count.used;
}

// --- CUDA: the plan's allowance. A backend for it puts its own formulas here.

enum {
    CUDA_MLA_SPLITS = 8, // parts of a sequence's KV that are summed apart
    CUDA_GEMM_WORKSPACE = 32 * 1024 * 1024,
};

static uint64_t cuda_matrix(const struct matrix_shape *m)
{
    return (uint64_t) m->n * (uint64_t) m->k * dtype_size(m->dtype);
}

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

// Quantised inputs with a scale each 128 values; rows sorted by expert, their activations and their
// outputs before they are summed; the router's scores; partial sums of attention.
static uint64_t cuda_scratch(const struct scratch_shape *s)
{
    uint64_t rows = (uint64_t) s->max_rows, pairs = rows * (uint64_t) s->n_chosen;
    uint64_t hidden = (uint64_t) s->hidden, heads = (uint64_t) s->n_heads;
    uint64_t widest = larger(larger(hidden, (uint64_t) s->intermediate),
                             larger((uint64_t) s->q_lora, heads * (uint64_t) s->v));
    uint64_t inputs = larger(rows, (uint64_t) s->max_out) * (widest + widest / 32);
    uint64_t moe = pairs * ((uint64_t) s->moe_intermediate * 4 + hidden * 4 + 16);
    uint64_t scores = rows * (uint64_t) s->n_experts * 4;
    uint64_t partial = rows * heads * CUDA_MLA_SPLITS * ((uint64_t) s->kv_lora + 2) * 4;
    return inputs + moe + scores + partial + CUDA_GEMM_WORKSPACE;
}

// --- the table

static const struct device_sizes kinds[N_DEVICE_KINDS] = {
    [DEVICE_CPU] = {.name = "cpu", .matrix = cpu_matrix_size, .scratch = cpu_scratch},
    // A context with all modules loaded, and NCCL's buffers for 8 ranks with cuBLASLt's handles:
    // allowances, until the device at hand was measured.
    [DEVICE_CUDA] = {.name = "cuda",
                     .matrix = cuda_matrix,
                     .scratch = cuda_scratch,
                     .context = 512 * MIB,
                     .libraries = 384 * MIB},
};

const struct device_sizes *device_sizes(enum device_kind kind) { return &kinds[kind]; }

enum device_kind device_kind_named(const char *name)
{
    int kind = 0;
    while (kind < N_DEVICE_KINDS && strcmp(kinds[kind].name, name) != 0) kind++;
    return (enum device_kind) kind;
}
