// How weights lie in a CPU device and what scratch its kernels need (kernels/cpu/gemm.h says why):
// the arithmetic that kernels/cpu and the plan share. Pure; any thread.
#ifndef PENSTOCK_COMMON_CPU_SIZES_H
#define PENSTOCK_COMMON_CPU_SIZES_H

#include "common/carve.h"
#include "common/device_sizes.h"
#include "common/limits.h"
#include "common/model_config.h"

enum {
    CPU_PANEL = 64,                  // outputs that are packed together
    CPU_PACK_ROWS = 16,              // outputs that share 16 bits of NaN marks
    CPU_GEMM_ROWS = 256,             // rows at a time
    CPU_HEAD_ROWS = 32,              // rows of all heads for which there is room in any case
    CPU_TILE_FLOATS = SCALE_BLOCK * 32, // widened weights
    CPU_MOE_ROWS = 512,              // rows that are sorted by expert at a time
};

// Values of k in a dword: 4 (FP8), 2 (bf16) or 1 (f32).
int cpu_group_values(enum dtype dtype);

int cpu_panels(int n);

// Bytes of one panel; of the NaN marks of an FP8 matrix, before its panels; of both together.
uint64_t cpu_panel_bytes(const struct matrix_shape *m);
uint64_t cpu_nan_bytes(const struct matrix_shape *m);
uint64_t cpu_matrix_size(const struct matrix_shape *m);

// Floats of a row of k inputs in whole blocks, at any phase.
uint64_t cpu_row_floats(int k);

// The parts of a device's scratch. Each thread has its own room, and a device at most
// DEVICE_THREADS_MAX threads: there is room for all of them on every machine.
struct cpu_scratch {
    // matrix products
    uint64_t room_floats;  // of a thread: CPU_TILE_FLOATS, then outputs of two panels
    float *rooms;          // (DEVICE_THREADS_MAX, room_floats)
    uint64_t input_floats;
    float *input;          // (input_floats)
    // routed experts; pairs: most_rows * n_chosen
    int most_rows;         // sorted at a time
    float *moe_input;      // (most_rows) rows of hidden
    float *moe_act;        // (pairs, moe_intermediate)
    float *moe_act_input;  // (pairs) rows of moe_intermediate
    int n_outputs;         // one a panel, or one a thread, whichever is less
    float *moe_outputs;    // (n_outputs, pairs, CPU_PANEL)
    int32_t *moe_pair_row; // (pairs)
    int32_t *moe_pair_of;  // (most_rows, n_chosen)
    int32_t *moe_first;    // (n_experts + 1)
    int32_t *moe_busy;     // (n_experts)
    // attention, router
    float *mla_tiles;      // (DEVICE_THREADS_MAX, KV_BLOCK_ROWS, kv_lora + rope); NULL: KV is f32
    float *route_scores;   // (max_rows, n_experts)
};

// Lays the parts out; all NULL while counting.
void cpu_scratch_carve(struct cpu_scratch *to, const struct scratch_shape *s, struct carve *c);

#endif
