// Bytes put where the device can copy them from: for ops that bring host bytes themselves.
#ifndef PENSTOCK_KERNELS_CUDA_STAGING_CUH
#define PENSTOCK_KERNELS_CUDA_STAGING_CUH

#include "kernels/cuda/device.cuh"

// Room for n <= CUDA_STAGING_HALF bytes in the half that is being filled; waits for the other half
// where this one is full. The bytes stay until the copies that the caller puts on the stream next
// have ended.
char *staging_take(struct device *d, size_t n);

#endif
