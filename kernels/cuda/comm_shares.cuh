// Sums over pinned memory of the host in which each rank adds one share: for sums that take longer
// to bring over than to wait for. Used by comm_direct.cu; on the rank's stream, also within
// recorded steps.
#ifndef PENSTOCK_KERNELS_CUDA_COMM_SHARES_CUH
#define PENSTOCK_KERNELS_CUDA_COMM_SHARES_CUH

#include "kernels/cuda/comm.cuh"

// x (n) f32 = sum over ranks, in rank order, the same bits on all. `coarse`: values travel as 8
// bits, which gives an error of about 0.6%. All ranks call with the same n.
void shares_add(struct cuda_comm *c, float *x, size_t n, bool coarse);

#endif
