// Inner loops of the non-matrix ops, built once per instruction set from inner_body.h: one thread,
// no allocation. Each fixes the order in which it adds, whatever the number of rows it is given;
// between instruction sets the last bits may differ.
#ifndef PENSTOCK_KERNELS_CPU_INNER_H
#define PENSTOCK_KERNELS_CPU_INNER_H

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

enum { ATTEND_HEADS_MAX = 16 }; // of one call: a KV block is read once for all of them

// One row's attention over its sequence, for some of its heads.
struct attend {
    const struct attention_shape *shape;
    enum precision precision;  // of the pool, unless it is FP8
    const float *q_abs;        // (n_heads, kv_lora)
    const float *q_pe;         // (n_heads, rope), heads q_pe_stride apart
    int q_pe_stride, n_heads;  // n_heads <= ATTEND_HEADS_MAX
    const struct kv_layer *kv;
    const int32_t *blocks;     // of the sequence
    int n_rows;                // of KV: the row's position + 1
    float *tile;               // (KV_BLOCK_ROWS, kv_lora + rope): a widened block; unused for f32
    float *out;                // (n_heads, kv_lora)
};

struct inner {
    // out[i][j] = a_i . b_j over k values; rows of a, b and out are so many elements apart.
    void (*dots)(const float *a, size_t a_stride, int n_a, const float *b, size_t b_stride, int n_b,
                 int k, float *out, size_t out_stride);
    // out (n) = silu(gate) * up
    void (*swiglu)(const float *gate, const float *up, float *out, size_t n);
    void (*attend)(const struct attend *t);
};

extern const struct inner inner_portable, inner_avx2, inner_avx512;

const struct inner *inner_for(enum isa isa);

#endif
