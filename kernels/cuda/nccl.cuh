// NVIDIA's collectives library, found when a group wants it: a program that has been built with its
// header starts without it and says so. Loaded once for the process; any thread.
#ifndef PENSTOCK_KERNELS_CUDA_NCCL_CUH
#define PENSTOCK_KERNELS_CUDA_NCCL_CUH

#include "kernels/cuda/seam.cuh"

#if PENSTOCK_HAS_NCCL

#include <nccl.h>

struct nccl {
    decltype(&ncclGetVersion) get_version;
    decltype(&ncclGetUniqueId) get_id;
    decltype(&ncclCommInitRankConfig) init;
    decltype(&ncclCommGetAsyncError) async_error;
    decltype(&ncclCommAbort) abort;
    decltype(&ncclAllReduce) all_reduce;
    decltype(&ncclAllGather) all_gather;
    decltype(&ncclBroadcast) broadcast;
    decltype(&ncclGetErrorString) error_string;
    decltype(&ncclGetLastError) last_error;
};

// The library's functions. NULL and ERR_UNAVAILABLE no_nccl where it is not, or is too old.
const struct nccl *nccl_library(struct error *e);

#endif

#endif
