// What things take on a device, by kind of device: the one source of these sizes, for the plan,
// which knows no device, and for the kernels, which lie above this folder. Pure; any thread.
// A new kind of device adds a row to the table in device_sizes.c.
#ifndef PENSTOCK_COMMON_DEVICE_SIZES_H
#define PENSTOCK_COMMON_DEVICE_SIZES_H

#include "common/checkpoint.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum device_kind { DEVICE_CPU, DEVICE_CUDA, N_DEVICE_KINDS };

// A weight matrix of a rank, y = x W^T.
struct matrix_shape {
    enum dtype dtype;         // DTYPE_F8_E4M3 with block scales, DTYPE_BF16 or DTYPE_F32
    int n, k;                 // outputs, inputs
    int row_phase, col_phase; // of its first element inside a block of scales
};

// Everything from which a device's scratch follows. The number of its threads and its instruction
// set are not among it: a plan holds on any machine.
struct scratch_shape {
    int max_rows; // token budget of a step
    int max_out;  // rows with logits
    bool f32;     // exact mode
    bool fp8_kv;  // KV is in FP8
    int hidden, intermediate, moe_intermediate; // widest of this rank
    int n_experts, n_chosen;
    int n_heads, kv_lora, rope, nope, v; // of this rank
    int q_lora;
    int vocab;    // of this rank
    int max_context, slots, tp;
};

struct device_sizes {
    const char *name; // as --device has it
    // Bytes of the packed matrix, without its scales.
    uint64_t (*matrix)(const struct matrix_shape *m);
    uint64_t (*scratch)(const struct scratch_shape *s);
    // What a process takes of a device beside its arena: the driver, and the vendor's libraries.
    uint64_t context, libraries;
    // Of a rank's device, and of the host's memory that it pins, for collectives of tp ranks in the
    // device's memory.
    uint64_t (*comm)(int tp);
    uint64_t (*comm_pinned)(int tp);
    uint64_t pinned; // host memory through which an open device copies
    bool host_reads; // the host reads and writes the device's memory
};

const struct device_sizes *device_sizes(enum device_kind kind);

// N_DEVICE_KINDS if there is none of that name.
enum device_kind device_kind_named(const char *name);

#endif
