// The CPU backend's device: one rank's threads, arena and scratch. Ops run at once, in the caller's
// thread and its team, so `sync` has nothing to wait for.
#ifndef PENSTOCK_KERNELS_CPU_DEVICE_H
#define PENSTOCK_KERNELS_CPU_DEVICE_H

#include "common/cpu_sizes.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/team.h"

struct device {
    enum precision precision;
    enum isa isa;
    struct team *team;
    struct arena *arena;
    uint64_t memory_bytes;
    struct scratch_shape shape;
    struct cpu_scratch scratch; // laid out by set_scratch; each noun has its own parts
};

#endif
