// What ranks that have a GPU each hold for their sums (kernels/cuda/comm_direct.cu and
// comm_coarse.cu): the arithmetic that kernels/cuda and the plan share. Pure; any thread.
#ifndef PENSTOCK_COMMON_CUDA_COMM_SIZES_H
#define PENSTOCK_COMMON_CUDA_COMM_SIZES_H

#include <stdint.h>

enum {
    CUDA_COMM_FLOATS = 64 * 1024, // of a sum that goes without NCCL
    CUDA_COMM_BLOCK = 512,        // of them, a block of threads
    CUDA_COMM_COUNTERS = CUDA_COMM_FLOATS / CUDA_COMM_BLOCK, // at most, of blocks
    CUDA_COARSE_BLOCKS = 128,     // of threads, which wait for the other ranks': all run at once
    CUDA_COARSE_PIECE = 4096,     // values that a block writes for another rank
    CUDA_COARSE_SCALED = 64,      // values with one scale
    CUDA_COARSE_PACKET = CUDA_COARSE_PIECE + 2 * CUDA_COARSE_PIECE / CUDA_COARSE_SCALED,
};

// Bytes of a slot, which has a flag beside each value.
uint64_t cuda_comm_slot(void);

// Of a rank's device: counters of blocks, a kind of sum after the other; two slots for every rank.
// 0 with one rank.
struct cuda_comm_device {
    uint64_t direct, shared, coarse; // counters: where they begin
    uint64_t slots;
    uint64_t bytes;
};

struct cuda_comm_device cuda_comm_device(int tp);

// Of the host's memory that a rank pins: the word that lets kernels go; two slots of its own; a
// slot for the others' shares and one for its sums; pieces of coarse sums. 0 with one rank.
struct cuda_comm_pinned {
    uint64_t ended, slots, shares, sums, coarse;
    uint64_t bytes;
};

struct cuda_comm_pinned cuda_comm_pinned(int tp);

#endif
