// The work list of the routed experts: pairs of a row and an expert that it chose, sorted by expert
// on the device, and tiles of them.
#ifndef PENSTOCK_KERNELS_CUDA_MOE_LIST_CUH
#define PENSTOCK_KERNELS_CUDA_MOE_LIST_CUH

#include "kernels/cuda/device.cuh"

struct moe_list {
    const int32_t *chosen, *pos; // (n_rows, n_chosen), (n_rows)
    int n_rows, n_chosen, n_experts, tokens; // tokens: pairs of a tile
    struct cuda_moe_scratch room; // pair_row, pair_of, tiles and n_tiles are made
};

void moe_list_make(struct device *d, const struct moe_list &list);

#endif
