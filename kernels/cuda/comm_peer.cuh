// Collectives between ranks on GPUs of one process whose memory each can read, or on one GPU. The
// ranks meet on the host, their streams wait for each other's events, and each rank's kernel works
// on one slice of all ranks' buffers where they lie; so nothing is copied aside, and all ranks get
// the same bits. Steps that have them are not recorded.
#ifndef PENSTOCK_KERNELS_CUDA_COMM_PEER_CUH
#define PENSTOCK_KERNELS_CUDA_COMM_PEER_CUH

#include "kernels/cuda/seam.cuh"

extern "C" {
#include "kernels/comm.h"
}

enum status comm_peer_create(struct comm **comms, const struct comm_cuda_options *o,
                             struct error *e);

#endif
