// The routed experts' products with rows in FP8: for steps in which an expert has many pairs.
#ifndef PENSTOCK_KERNELS_CUDA_FP8_MOE_CUH
#define PENSTOCK_KERNELS_CUDA_FP8_MOE_CUH

#include "kernels/cuda/fp8.cuh"

enum { FP8_MOE_PAIRS = 128 }; // of a tile of the work list

// act (pairs) = silu(gate x) * up x, quantised, in the blocks of down's inputs: the phase of gate's
// rows is that of down's columns. x: a row each that was routed.
void fp8_gate_up(struct device *d, const struct mat_row *gate, const struct mat_row *up,
                 int n_experts, const struct cuda_moe_scratch *room, const struct fp8_rows *x,
                 const struct fp8_rows *act);

// room->outputs (pairs, panel) = outputs [n0, n0 + panel) of down; n0 a multiple of SCALE_BLOCK,
// down's rows at phase 0.
void fp8_down(struct device *d, const struct mat_row *down, int n_experts,
              const struct cuda_moe_scratch *room, const struct fp8_rows *act, int n0, int panel);

#endif
