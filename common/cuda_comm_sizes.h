// What ranks that have a GPU each hold for their sums (kernels/cuda/comm_direct.cu): the arithmetic
// that kernels/cuda and the plan share. Pure; any thread.
#ifndef PENSTOCK_COMMON_CUDA_COMM_SIZES_H
#define PENSTOCK_COMMON_CUDA_COMM_SIZES_H

#include <stdint.h>

enum {
    CUDA_COMM_FLOATS = 64 * 1024, // of a sum that goes without NCCL
    CUDA_COMM_BLOCK = 512,        // of them, a block of threads
    CUDA_COMM_COUNTERS = CUDA_COMM_FLOATS / CUDA_COMM_BLOCK, // at most, of blocks
};

// Bytes of a slot, which has a flag beside each value.
uint64_t cuda_comm_slot(void);

// Of a rank's device: counters of blocks, then two slots for every rank. 0 with one rank.
struct cuda_comm_device {
    uint64_t counters, slots; // where they begin
    uint64_t bytes;
};

struct cuda_comm_device cuda_comm_device(int tp);

// Of the host's memory that a rank pins: the word that lets kernels go, then two slots of its own.
// 0 with one rank.
struct cuda_comm_pinned {
    uint64_t ended, slots;
    uint64_t bytes;
};

struct cuda_comm_pinned cuda_comm_pinned(int tp);

#endif
