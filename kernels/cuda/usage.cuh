// What this process has taken of each GPU beside its arenas. The driver tells what is free of a
// GPU, not who has the rest: so it is asked before and after this process does something, and NVML,
// which needs no context, before there is one. Any thread.
#ifndef PENSTOCK_KERNELS_CUDA_USAGE_CUH
#define PENSTOCK_KERNELS_CUDA_USAGE_CUH

#include "kernels/cuda/device.cuh"

// Makes GPU `ordinal` the thread's, with this process' context, which is measured the first time.
cudaError_t usage_context(int ordinal, uint64_t *context);

// An open device counts as a user of its GPU, then its arena.
void usage_join(struct device *d);
void usage_arena(struct device *d);
void usage_leave(struct device *d); // before the arena is freed

#endif
