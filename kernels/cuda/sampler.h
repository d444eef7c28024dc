// The sampler's ops of the CUDA backend (kernels/sampler_ops.h).
#ifndef PENSTOCK_KERNELS_CUDA_SAMPLER_H
#define PENSTOCK_KERNELS_CUDA_SAMPLER_H

#ifdef __cplusplus
#define _Static_assert static_assert
extern "C" {
#endif
#include "kernels/sampler_ops.h"

extern const struct sampler_ops cuda_sampler;

#ifdef __cplusplus
}
#undef _Static_assert
#endif

#endif
