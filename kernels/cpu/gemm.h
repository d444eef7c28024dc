// Matrix products of the CPU backend: how weights are packed, and the inner loops that are built
// once per instruction set from gemm_body.h. Weights are immutable once packed; any thread may
// read.
//
// A matrix is cut into panels of PANEL outputs. In a panel, a group is what PANEL dwords hold: the
// next 4 (FP8), 2 (bf16) or 1 (f32) values along k of each output, so that a vector of dwords is a
// vector of outputs, and a panel is read from front to back:
//   FP8  bytes 0..3 of a dword are k, k+2, k+1, k+3: what the decoders want
//   bf16 k in the lower half, k + 1 in the upper
// k counts from the column of scales where the slice begins (col_phase), rounded down to a group;
// what a group has before or behind the slice is zero. FP8 data begins with 16 bits for each 16
// outputs that tell which of them have a NaN among their weights: such an output is NaN whatever x
// is, and the loops need not look for it.
//
// Every output is one chain of multiply-adds along each block of SCALE_BLOCK k, and one along the
// blocks, whatever the number of rows: so a row's result never depends on its neighbours.
#ifndef PENSTOCK_KERNELS_CPU_GEMM_H
#define PENSTOCK_KERNELS_CPU_GEMM_H

#include "common/cpu_sizes.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

enum {
    PANEL = CPU_PANEL,
    GROUP_BYTES = PANEL * 4,
    GEMM_ROWS = CPU_GEMM_ROWS, // at most, of one call of `panel`
    TILE_FLOATS = CPU_TILE_FLOATS,
};

// Activations as the loops read them: (blocks, rows, SCALE_BLOCK) on the grid of k above, zeros
// outside the slice; f32 values, or bf16 in the same order where `step` is 2.
struct gemm_input {
    float *data;
    int rows;
};

struct gemm_panel {
    enum dtype dtype;
    const char *groups;     // the panel's
    int begin, end;         // k of the slice on the grid
    const float *scales[2]; // (blocks) of the panel's outputs below and from `split` on; or NULL
    int split;
    struct gemm_input input;
    const int32_t *rows;    // (n_rows) of the input; NULL: 0, 1, ...
    int n_rows;             // <= GEMM_ROWS
    float *tile;            // (TILE_FLOATS): widened weights
    float *out;             // (n_rows, PANEL)
};

struct gemm_inner {
    int step; // values of k in one multiply-add
    // Row `row` of `input`, whose values [begin, end) of the grid are x; rounded to bf16 if asked,
    // times `factor`.
    void (*prepare)(const float *x, int begin, int end, enum precision precision, float factor,
                    struct gemm_input input, int row);
    void (*panel)(const struct gemm_panel *p);
};

extern const struct gemm_inner gemm_portable, gemm_avx2, gemm_avx512, gemm_avx512bf16;

const struct gemm_inner *gemm_inner_for(enum isa isa, enum precision precision, enum dtype dtype);

// Decoded e4m3 is 2^-120 of its value (its bits, moved to where f32 has them); so as not to lose
// small products, activations for FP8 are multiplied by this first and scales make up for both.
#define GEMM_F8_FACTOR 0x1p60f

// --- gemm_pack.c: where in a packed matrix things lie
// Where the slice begins on the grid of k: only FP8 has scales to line up with.
int gemm_phase(const struct matrix *w);
uint64_t gemm_panel_bytes(const struct matrix *w);
// The NaN bits of an FP8 matrix, before its panels.
uint64_t gemm_nan_bytes(const struct matrix *w);

// --- gemm.c, for moe.c too
// Where a thread works: the loops' tile, and outputs of two panels.
struct gemm_room {
    float *tile;
    float *out[2]; // (GEMM_ROWS or the most rows of a step, PANEL)
};

struct gemm_room gemm_room(const struct device *d, int thread);

// Blocks that the input of a matrix has.
int gemm_blocks(const struct matrix *w);

// Rows [0, n_rows) of x (n_rows, k), x_stride apart, become the input of `w`; on the team.
void gemm_prepare(struct device *d, const struct matrix *w, const float *x, int x_stride,
                  int n_rows, struct gemm_input input);

// out (n_rows, PANEL) = some rows of the input times the outputs of one panel. In the calling
// thread.
void gemm_run_panel(const struct device *d, const struct matrix *w, int panel,
                    struct gemm_input input, const int32_t *rows, int n_rows, float *tile,
                    float *out);

// --- ops; contracts in kernels/backend.h
void cpu_matrix_pack(struct device *d, struct matrix *m, int row0, int n_rows, const void *rows);
void cpu_gemm(struct device *d, const struct matrix *w, const void *x, int x_stride, float *out,
              int out_stride, int n_rows);
void cpu_gemm_heads(struct device *d, const struct matrix *w, int n_heads, const float *x,
                    int x_stride, int x_head_stride, float *out, int out_stride,
                    int out_head_stride, int n_rows);
void cpu_gemm_pair(struct device *d, const struct matrix *w, const struct matrix *second,
                   const void *x, int x_stride, float *out, int out_stride, float *second_out,
                   int second_stride, int n_rows);
void cpu_moe(struct device *d, const struct expert *experts, int n_experts, int n_chosen,
             const void *x, const int32_t *chosen, const float *weights, const int32_t *pos,
             float *out, int n_rows);

#endif
