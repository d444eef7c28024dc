// The device seam and what it includes, as C++ reads them: for the sources of kernels/cuda only.
#ifndef PENSTOCK_KERNELS_CUDA_SEAM_CUH
#define PENSTOCK_KERNELS_CUDA_SEAM_CUH

#define _Static_assert static_assert
#define _Noreturn [[noreturn]]
extern "C" {
#include "common/cuda_sizes.h"
#include "common/kv_block.h"
#include "kernels/backend.h"
}
#undef _Static_assert
#undef _Noreturn
#undef try // C++ has a word of its own

#endif
