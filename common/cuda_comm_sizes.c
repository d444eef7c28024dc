#include "common/cuda_comm_sizes.h"

#include "common/carve.h"

uint64_t cuda_comm_slot(void) { return (uint64_t) CUDA_COMM_FLOATS / 3 * CUDA_COMM_WORD; }

uint64_t cuda_shares_pitch(int tp)
{
    return CUDA_SHARES_WORDS / (uint64_t) tp / CUDA_SHARES_TILE * CUDA_SHARES_TILE;
}

// The place of n bytes after *end, which moves.
static uint64_t place(uint64_t *end, uint64_t n)
{
    uint64_t at = *end;
    *end += carve_aligned(n);
    return at;
}

struct cuda_comm_device cuda_comm_device(int tp)
{
    struct cuda_comm_device d = {0};
    if (tp == 1) return d;
    d.counters = place(&d.bytes, CUDA_COMM_BLOCKS * sizeof(uint32_t));
    d.slots = place(&d.bytes, 2 * (uint64_t) tp * cuda_comm_slot());
    d.shares = place(&d.bytes, CUDA_SHARES_BLOCKS * sizeof(uint32_t));
    return d;
}

struct cuda_comm_pinned cuda_comm_pinned(int tp)
{
    struct cuda_comm_pinned p = {0};
    if (tp == 1) return p;
    p.ended = place(&p.bytes, sizeof(uint32_t));
    p.slots = place(&p.bytes, 2 * cuda_comm_slot());
    p.shares = place(&p.bytes, (uint64_t) (tp + 1) * cuda_shares_pitch(tp) * CUDA_COMM_WORD);
    return p;
}
