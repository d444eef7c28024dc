// Absorbed attention by wgmma on Hopper, for KV of V3's shape: any number of heads, 64 at a
// time.
#ifndef PENSTOCK_KERNELS_CUDA_MLA_WGMMA_CUH
#define PENSTOCK_KERNELS_CUDA_MLA_WGMMA_CUH

#include "kernels/cuda/mla_mma.cuh"

// Needs d->hopper and what mla_mma_takes.
void mla_wgmma_run(struct device *d, struct mla m);

#endif
