// How weights lie in a GPU's memory and what scratch its kernels need (kernels/cuda/matrix.cuh says
// why): the arithmetic that kernels/cuda and the plan share. Pure; any thread.
#ifndef PENSTOCK_COMMON_CUDA_SIZES_H
#define PENSTOCK_COMMON_CUDA_SIZES_H

#include "common/carve.h"
#include "common/device_sizes.h"
#include "common/limits.h"
#include "common/model_config.h"

enum {
    CUDA_STAGING_HALF = 8 * 1024 * 1024, // bytes of pinned memory; a device has two of them
    CUDA_WIRE_STAGED = 2 * 1024 * 1024,  // the same for activations alone
    CUDA_WIRE_LEAST = 2 * 1024 * 1024,   // bytes of half a way between host and device
    CUDA_WIRE_MOST = 16 * 1024 * 1024,
    CUDA_HEADS_MAX = 64,         // matrices of one launch
    CUDA_SPLIT_BLOCKS = 384,     // at most, of a product whose inputs are split
    CUDA_TILE_FLOATS = 128 * 64, // of a block of such a product
    CUDA_COUNTERS = 16384,       // of blocks that finish a tile together
    CUDA_TILE_PAIRS = 8,         // pairs of an expert in the smallest tile of the work list
    CUDA_EXACT_ROWS = 64,        // rows for which the exact way of the experts has room in any case
    CUDA_MLA_FEW_HEADS = 16,     // heads of a block of attention, and how many blocks may leave
    CUDA_MLA_FEW_PARTS = 264,    // parts of a row's KV
    CUDA_MLA_MANY_HEADS = 64,
    CUDA_MLA_MANY_PARTS = 132,
    CUDA_MLA_BLOCKS = 132,       // of Hopper's attention at once: twice as many leave parts
    CUDA_MLA_CUT_ROWS = 512,     // rows of a step whose KV is cut there
    CUDA_MLA_LORA = 512,         // the shape that tensor cores take
    CUDA_MLA_ROPE = 64,
    CUDA_MLA_PART = CUDA_MLA_LORA + 2, // floats of a head's part: sums, maximum, mass
    CUDA_MLA_HEAD = 128,         // values of a key without rope and of a value, where expanded
    CUDA_MLA_KEYS = 128,         // tokens of a tile of those
    CUDA_EXPANDED_BYTES = 128 * 1024 * 1024, // of keys and values at once, if one head's fit
};

// Where a matrix begins on the grid of k: only FP8 has scales to line up with.
int cuda_phase(const struct matrix_shape *m);

// Bytes from one row to the next; of the NaN marks of an FP8 matrix, before its rows; of all.
uint64_t cuda_pitch(const struct matrix_shape *m);
uint64_t cuda_nan_bytes(const struct matrix_shape *m);
uint64_t cuda_matrix_size(const struct matrix_shape *m);

// Values of a row of activations for any matrix of k inputs, whatever its phase: whole blocks.
uint64_t cuda_input_pitch(int k);

// Heads whose keys and values of so many tokens are expanded at once.
int cuda_expanded_heads(int n_heads, int context);

// Bytes of a head's keys and values; of its two weights, widened.
uint64_t cuda_expanded_head(int context);
uint64_t cuda_widened_head(void);

// Columns of the experts' output that are made at once for so many pairs of a row and an expert.
int cuda_moe_panel(int hidden, uint64_t pairs);

// Tiles of `pairs` pairs of n_experts experts, at most, with so many pairs in a tile.
uint64_t cuda_moe_tiles(int n_experts, uint64_t pairs, int tile);

struct cuda_tile {
    int32_t expert, pair, n; // pairs [pair, pair + n)
};

// pairs: max_rows * n_chosen
struct cuda_moe_scratch {
    char *input;       // (max_rows) rows of hidden in bf16
    char *act;         // (pairs) rows of moe_intermediate in bf16; or gate and up in f32
    uint64_t act_bytes, outputs_bytes;
    float *outputs;    // (pairs, cuda_moe_panel) of any step, outputs_bytes
    int32_t *pair_row; // (pairs) by expert, then by row
    int32_t *pair_of;  // (rows, n_chosen) -> pair; -1: padding
    struct cuda_tile *tiles;
    int32_t *n_tiles;
};

// Attention of many rows of a sequence (kernels/cuda/mla_run.cuh); lies where the experts' scratch
// does, which is not in use then.
struct cuda_run_scratch {
    char *weights;  // (heads) of cuda_widened_head
    char *expanded; // (cuda_expanded_heads) of cuda_expanded_head
    char *kv;       // KV in FP8: a sequence's, in bf16
};

struct cuda_scratch {
    char *wire;        // 4 of wire_bytes: activations in wire form, two on each way
    uint64_t wire_bytes;
    char *input;       // a matrix product's rows in bf16
    uint64_t input_bytes;
    float *partial;    // sums of split products
    int32_t *counters; // (CUDA_COUNTERS) zeros between launches
    struct cuda_moe_scratch moe;
    struct cuda_run_scratch run;
    float *mla;        // parts of attention
    float *scores;     // (max_rows, n_experts) of the router
};

// Lays the parts out; all NULL while counting.
void cuda_scratch_carve(struct cuda_scratch *to, const struct scratch_shape *s, struct carve *c);

#endif
