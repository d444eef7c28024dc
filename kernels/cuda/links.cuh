// Whether data arrives intact between the GPUs of a group's ranks: some systems that allow one GPU
// to read another's memory give it zeros. Every rank reads from and writes to each other's memory,
// in pieces of several sizes, and looks at what came; where that fails, through pinned memory.
#ifndef PENSTOCK_KERNELS_CUDA_LINKS_CUH
#define PENSTOCK_KERNELS_CUDA_LINKS_CUH

#include "kernels/cuda/comm.cuh"

// Called by all ranks while nothing is in their arenas; sets c->links and c->found of each. Arenas
// are zeros again when it returns. Errors: the hub's, and faults of the device.
enum status links_check(struct cuda_comm *c, struct error *e);

#endif
