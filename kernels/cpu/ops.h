// The CPU backend's ops that are not matrix products; contracts in kernels/backend.h. They run at
// once, on the device's team, from its rank's thread. Every row is reduced in one fixed order, so a
// row's result depends neither on its neighbours nor on the number of threads.
#ifndef PENSTOCK_KERNELS_CPU_OPS_H
#define PENSTOCK_KERNELS_CPU_OPS_H

#include "kernels/backend.h"
#include "kernels/cpu/wire_form.h"

// --- rows.c
void cpu_embed(struct device *d, const void *table, enum dtype dtype, int vocab_begin, int vocab_n,
               int hidden, const int32_t *ids, float *x, int n_rows);
void cpu_rmsnorm(struct device *d, const float *x, int x_stride, const float *weight, float eps,
                 void *out, int dim, int n_rows);
void cpu_add_rmsnorm(struct device *d, float *x, const float *y, const float *weight, float eps,
                     void *out, int dim, int n_rows);
void cpu_swiglu(struct device *d, const float *gate, const float *up, void *out, int n, int n_rows);
void cpu_add(struct device *d, float *x, const float *y, size_t n);
void cpu_gather(struct device *d, const float *x, const int32_t *out_rows, int dim, float *out,
                int n_out);
// out (dim) = x * rsqrt(mean(x^2) + eps) * weight: one row, in the calling thread.
void row_rmsnorm(const float *x, const float *weight, float eps, float *out, int dim);

// --- rope.c
void cpu_rope_angles(struct device *d, const float *inv_freq, float multiplier, int rope,
                     const int32_t *pos, float *cos_sin, int n_rows);
void cpu_rope(struct device *d, float *x, int x_stride, int x_head_stride, int n_heads, int rope,
              const float *cos_sin, int n_rows);
// out (rope) = the pairs of x turned by cos_sin (rope/2, 2); out may be x.
void row_rope(const float *x, const float *cos_sin, float *out, int rope);

// --- kv.c
void cpu_kv_write(struct device *d, const struct attention_shape *a, const float *c,
                  const float *norm, const float *cos_sin, const struct step_inputs *in,
                  const struct kv_layer *kv, int n_rows);
void cpu_latents(struct device *d, const struct attention_shape *a, const float *q_a,
                 const float *q_norm, int q_lora, void *q_out, const float *c, const float *norm,
                 const float *cos_sin, const struct step_inputs *in, const struct kv_layer *kv,
                 int n_rows);

// --- mla.c
void cpu_mla(struct device *d, const struct attention_shape *a, const float *q_abs,
             const float *q_pe, int q_stride, int q_head_stride, const struct step_inputs *in,
             const struct kv_layer *kv, float *out, int n_rows);

// --- route.c
void cpu_route(struct device *d, const struct router *r, const void *x, int32_t *chosen,
               float *weights, int n_rows);

#endif
