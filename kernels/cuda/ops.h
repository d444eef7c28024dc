// The ops of the CUDA backend; contracts in kernels/backend.h. Each puts its kernels on the
// device's stream and returns; called by the device's rank thread.
#ifndef PENSTOCK_KERNELS_CUDA_OPS_H
#define PENSTOCK_KERNELS_CUDA_OPS_H

#ifndef __cplusplus
#include "kernels/backend.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

// --- device.cu
enum status cuda_memory(int n, uint64_t *bytes, struct error *e);
enum status cuda_open(struct device **device, const struct device_options *options,
                      struct error *e);
void cuda_close(struct device **device);
enum status cuda_arena(struct device *d, uint64_t bytes, void **base, struct error *e);
enum status cuda_host_memory(struct device *d, uint64_t bytes, void **base, struct error *e);
enum status cuda_pin(struct device *d, void *memory, uint64_t bytes, struct error *e);
void cuda_set_scratch(struct device *d, const struct scratch_shape *s, void *scratch);
enum status cuda_sync(struct device *d, struct error *e);
void cuda_step_end(struct device *d, int i);
bool cuda_step_passed(struct device *d, int i);
enum status cuda_step_wait(struct device *d, int i, struct error *e);
void cuda_apart(struct device *d, bool on);
bool cuda_graph_begin(struct device *d, int bucket);
void cuda_graph_end(struct device *d, int bucket);
void cuda_graph_launch(struct device *d, int bucket);
void cuda_branch(struct device *d);
void cuda_resume(struct device *d);
void cuda_join(struct device *d);

// --- usage.cu
void cuda_usage(struct device *d, struct device_usage *usage);

// --- copy.cu
void cuda_upload(struct device *d, void *to, const void *from, size_t n);
void cuda_download(struct device *d, void *to, const void *from, size_t n);
void cuda_import_act(struct device *d, float *x, const void *wire, size_t n);
void cuda_import_ahead(struct device *d, const void *wire, size_t n);
void cuda_export_act(struct device *d, void *wire, const float *x, size_t n);

// --- matrix.cu
void cuda_matrix_pack(struct device *d, struct matrix *m, int row0, int n_rows, const void *rows);

// --- gemm.cu
void cuda_gemm(struct device *d, const struct matrix *w, const void *x, int x_stride, float *out,
               int out_stride, int n_rows);
void cuda_gemm_heads(struct device *d, const struct matrix *w, int n_heads, const float *x,
                     int x_stride, int x_head_stride, float *out, int out_stride,
                     int out_head_stride, int n_rows);
void cuda_gemm_pair(struct device *d, const struct matrix *w, const struct matrix *second,
                    const void *x, int x_stride, float *out, int out_stride, float *second_out,
                    int second_stride, int n_rows);

// --- moe.cu
void cuda_moe(struct device *d, const struct expert *experts, int n_experts, int n_chosen,
              const void *x, const int32_t *chosen, const float *weights, const int32_t *pos,
              float *out, int n_rows);
bool cuda_moe_shared(struct device *d, const struct expert *experts, const struct expert *shared,
                     int n_experts, int n_chosen, const void *x, const int32_t *chosen,
                     const float *weights, const int32_t *pos, float *out, int n_rows);

// --- rows.cu
void cuda_embed(struct device *d, const void *table, enum dtype dtype, int vocab_begin,
                int vocab_n, int hidden, const int32_t *ids, float *x, int n_rows);
void cuda_rmsnorm(struct device *d, const float *x, int x_stride, const float *weight, float eps,
                  void *out, int dim, int n_rows);
void cuda_add_rmsnorm(struct device *d, float *x, const float *y, const float *weight, float eps,
                      void *out, int dim, int n_rows);
void cuda_swiglu(struct device *d, const float *gate, const float *up, void *out, int n,
                 int n_rows);
void cuda_add(struct device *d, float *x, const float *y, size_t n);
void cuda_gather(struct device *d, const float *x, const int32_t *out_rows, int dim, float *out,
                 int n_out);

// --- rope.cu
void cuda_rope_angles(struct device *d, const float *inv_freq, float multiplier, int rope,
                      const int32_t *pos, float *cos_sin, int n_rows);
void cuda_rope(struct device *d, float *x, int x_stride, int x_head_stride, int n_heads, int rope,
               const float *cos_sin, int n_rows);
void cuda_kv_write(struct device *d, const struct attention_shape *a, const float *c,
                   const float *norm, const float *cos_sin, const struct step_inputs *in,
                   const struct kv_layer *kv, int n_rows);
void cuda_latents(struct device *d, const struct attention_shape *a, const float *q_a,
                  const float *q_norm, int q_lora, void *q_out, const float *c, const float *norm,
                  const float *cos_sin, const struct step_inputs *in, const struct kv_layer *kv,
                  int n_rows);

// --- mla.cu
void cuda_mla(struct device *d, const struct attention_shape *a, const float *q_abs,
              const float *q_pe, int q_stride, int q_head_stride, const struct step_inputs *in,
              const struct kv_layer *kv, float *out, int n_rows);

// --- mla_run.cu
void cuda_mla_run(struct device *d, const struct attention_shape *a, const float *q, int q_stride,
                  int q_head_stride, const struct matrix *uk, const struct matrix *uv,
                  const struct attention_run *run, const struct step_inputs *in,
                  const struct kv_layer *kv, float *out, int out_stride);
int cuda_run_least(const struct device *d, const struct attention_shape *a);

// --- route.cu
void cuda_route(struct device *d, const struct router *r, const void *x, int32_t *chosen,
                float *weights, int n_rows);

#ifdef __cplusplus
}
#endif

#endif
