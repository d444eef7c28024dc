// Sums between ranks whose values travel as 8 bits with scales, over pinned memory of the host: for
// steps with many rows where GPUs cannot use each other's memory.
#ifndef PENSTOCK_KERNELS_CUDA_COMM_COARSE_CUH
#define PENSTOCK_KERNELS_CUDA_COMM_COARSE_CUH

#include "kernels/cuda/comm.cuh"

// x (n) f32, at 16 bytes, = about the sum over ranks, the same bits on all; within recorded steps,
// too. On the rank's stream; all ranks call with the same n.
void coarse_add(struct cuda_comm *c, float *x, size_t n);

#endif
