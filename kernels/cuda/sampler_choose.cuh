// Rows that choose by themselves (sampler_choose of kernels/sampler_ops.h): where one rank has the
// whole vocabulary, one kernel goes from logits to tokens. What a row's parameters ask for is cut
// into phases, a phase into parts, which blocks take as they come; the block that ends a phase
// decides what follows.
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_CHOOSE_CUH
#define PENSTOCK_KERNELS_CUDA_SAMPLER_CHOOSE_CUH

#include "kernels/cuda/device.cuh"

#include "kernels/cuda/sampler.h"

void sampler_choose_on(struct device *d, const struct sampler_view *v,
                       const struct sampler_wish *wishes, int n, unsigned turn,
                       struct sampler_choice *choices);

#endif
