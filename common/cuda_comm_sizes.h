// What ranks that have a GPU each hold for their sums (kernels/cuda/comm_direct.cu and
// comm_shares.cu): the arithmetic that kernels/cuda and the plan share. Pure; any thread.
#ifndef PENSTOCK_COMMON_CUDA_COMM_SIZES_H
#define PENSTOCK_COMMON_CUDA_COMM_SIZES_H

#include <stdint.h>

enum {
    CUDA_COMM_WORD = 16,   // bytes, that arrive together with their flag
    CUDA_COMM_BLOCK = 768, // values that a block of threads adds, three a word
    CUDA_COMM_BLOCKS = 86, // of them, at most
    CUDA_COMM_FLOATS = CUDA_COMM_BLOCK * CUDA_COMM_BLOCKS, // of a sum in one step
    CUDA_SHARES_TILE = 256,          // words of a share that a block has at a time
    CUDA_SHARES_BLOCKS = 32,         // of threads; they wait for other ranks', so all run at once
    CUDA_SHARES_WORDS = 256 * 1024,  // of all shares of a sum; larger ones go in pieces
};

// Bytes of a slot, which has the words of a sum in one step.
uint64_t cuda_comm_slot(void);

// Words from one rank's share to the next one's: whole tiles.
uint64_t cuda_shares_pitch(int tp);

// Of a rank's device: counters of blocks, then two slots for every rank; counters of blocks of sums
// in shares. 0 with one rank.
struct cuda_comm_device {
    uint64_t counters, slots, shares; // where they begin
    uint64_t bytes;
};

struct cuda_comm_device cuda_comm_device(int tp);

// Of the host's memory that a rank pins: the word that lets kernels go; two slots of its own; for
// sums in shares what it has of every rank's, and the sum of its own. 0 with one rank.
struct cuda_comm_pinned {
    uint64_t ended, slots, shares;
    uint64_t bytes;
};

struct cuda_comm_pinned cuda_comm_pinned(int tp);

#endif
