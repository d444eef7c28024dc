// The CPU backend's device: one rank's threads, arena and scratch. Ops run at once, in the caller's
// thread and its team, so `sync` has nothing to wait for.
#ifndef PENSTOCK_KERNELS_CPU_DEVICE_H
#define PENSTOCK_KERNELS_CPU_DEVICE_H

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/team.h"

struct device {
    enum precision precision;
    enum isa isa;
    struct team *team;
    void *arena;
    uint64_t arena_bytes, memory_bytes;
    struct scratch_shape shape;
    // Scratch, carved by set_scratch from what scratch_bytes counted; each noun has its own part.
    void *gemm_scratch, *moe_scratch, *mla_scratch, *route_scratch;
};

// Bytes of each part for a shape and a number of threads (of gemm.c, moe.c, mla.c, route.c).
uint64_t gemm_scratch_bytes(const struct device *d, const struct scratch_shape *s);
uint64_t moe_scratch_bytes(const struct device *d, const struct scratch_shape *s);
uint64_t mla_scratch_bytes(const struct device *d, const struct scratch_shape *s);
uint64_t route_scratch_bytes(const struct device *d, const struct scratch_shape *s);

#endif
