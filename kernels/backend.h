// The device seam: a const table of model-level operations over device buffers and paged KV. One
// `struct device` is one rank's device and stream; all its calls come from that rank's thread. Ops
// are asynchronous on the stream, may report nothing, and take no step-varying value but the row
// bucket: ids, positions and tables lie in device buffers whose places it fixes. Errors surface at
// `sync`. Knows nothing of sequences, sockets or files.
//
// Shapes are written (rows, columns), row-major. "act" is the device's activation type: f32 on the
// CPU backend in both precisions (bf16 precision rounds where a GEMM reads); `hidden` etc. are the
// config's. A row whose position is -1 is padding: ops leave its outputs undefined and its KV
// alone.
#ifndef PENSTOCK_KERNELS_BACKEND_H
#define PENSTOCK_KERNELS_BACKEND_H

#include "common/checkpoint.h"
#include "common/device_sizes.h"
#include "common/model_config.h"
#include "common/sampling.h"
#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

enum precision {
    PRECISION_F32,  // exact mode: a row's result depends on nothing but its sequence
    PRECISION_BF16, // activations enter GEMMs as bf16, KV bf16; f32 accumulation and router
};

// A weight matrix of this rank in the backend's packed layout: y = x W^T.
struct matrix {
    enum dtype dtype; // DTYPE_F8_E4M3 with block scales, DTYPE_BF16 or DTYPE_F32
    int n, k;         // outputs, inputs of this slice
    int row_phase, col_phase; // of its first element inside a 128-block of scales
    void *data;       // packed; device_sizes' bytes
    float *scales;    // (ceil((row_phase+n)/128), ceil((col_phase+k)/128)); NULL unless FP8
};

static inline struct matrix_shape matrix_shape(const struct matrix *m)
{
    return (struct matrix_shape){m->dtype, m->n, m->k, m->row_phase, m->col_phase};
}

// What a step varies, in device memory. The first four lie one behind the other, so that one upload
// fills them; their addresses depend on the row bucket alone.
struct step_inputs {
    int32_t *ids;      // (bucket)
    int32_t *pos;      // (bucket) position in its sequence; -1: padding
    int32_t *slot;     // (bucket)
    int32_t *out_rows; // (bucket) which rows' hidden states become logits
    int32_t *blocks;   // (slots, max_blocks) KV block ids of each slot
    int max_blocks;
};

// The KV pool of one layer: (n_blocks, KV_BLOCK_ROWS, kv_width), f32 or bf16 by precision; or in
// FP8, whatever the precision, as common/kv_block.h has it.
struct kv_layer {
    void *pool;
    int n_blocks;
    bool fp8;
};

struct attention_shape {
    int n_heads; // of this rank
    int nope, rope, v, kv_lora;
    float softmax_scale;
    float norm_eps; // of the latent's norm
};

// Consecutive rows of one sequence in a step, known to the host.
struct attention_run {
    int slot, pos, n; // pos: of the first row in its sequence
};

struct router {
    const float *weight; // (n_experts, hidden), f32
    const float *bias;   // (n_experts) e_score_correction_bias
    int n_experts, hidden, n_groups, n_groups_kept, n_chosen;
    bool normalize;
    float scaling;
};

struct expert {
    struct matrix gate, up, down; // (moe_part, hidden) x2, (hidden, moe_part)
};

struct device;
struct sampler_ops;

enum { DEVICE_STEPS = 2 }; // that a device may have begun and not ended

// What a process has taken of a device beside its arenas, measured, in bytes.
struct device_usage {
    uint64_t context;   // driver and kernels; of all processes where others cannot be told apart
    uint64_t libraries; // recorded steps, buffers of libraries, what kernels made the driver take
    bool alone;         // `context` is of this process alone
};

struct device_options {
    enum precision precision;
    int n_threads;         // CPU: of this device's team, <= DEVICE_THREADS_MAX; 0: chosen
    uint64_t memory_bytes; // the arena's cap; 0: what the device has
    int index;             // CUDA: which of the machine's devices
};

struct backend {
    const char *name;
    enum device_kind kind; // device_sizes(kind): bytes of packed weights and of scratch
    bool records; // steps are padded to a row bucket, recorded once and replayed

    // --- life. ERR_UNAVAILABLE no_device where there is none.
    // Bytes that each of the first n devices may take unless told: of CPUs a share of what
    // is available, of GPUs what is free on the one that has least.
    enum status (*memory)(int n, uint64_t *bytes, struct error *e);
    enum status (*open)(struct device **device, const struct device_options *options,
                        struct error *e);
    void (*close)(struct device **device);
    // The one allocation of this device; called once, before anything else needs memory. Zeroed.
    enum status (*arena)(struct device *d, uint64_t bytes, void **base, struct error *e);
    // NULL where the host reads the arena itself. Else the one allocation of host memory (pinned)
    // for what the host keeps beside it: called once. Zeroed.
    enum status (*host_memory)(struct device *d, uint64_t bytes, void **base, struct error *e);
    // NULL where the host's memory is the device's. A rank's part of what its process has taken.
    void (*usage)(struct device *d, struct device_usage *usage);
    // NULL where ops write host memory themselves. Page-locks host memory of the caller, which
    // outlives the device, so that exports go there while other ops run.
    enum status (*pin)(struct device *d, void *memory, uint64_t bytes, struct error *e);
    // Gives the device its scratch, a part of the arena: device_sizes' bytes.
    void (*set_scratch)(struct device *d, const struct scratch_shape *s, void *scratch);

    // --- weights. Packs rows [row0, row0+n_rows) from `rows` (n_rows, k) row-major in m->dtype,
    // host memory, then done with. row0 is a multiple of 16; n_rows too unless it reaches n.
    void (*matrix_pack)(struct device *d, struct matrix *m, int row0, int n_rows, const void *rows);
    // Copies host bytes to device memory and back; `upload` is ordered on the stream and done with
    // `from` when it returns, `download` waits for the stream.
    void (*upload)(struct device *d, void *to, const void *from, size_t n);
    void (*download)(struct device *d, void *to, const void *from, size_t n);
    // Waits for the stream; reports the first fault since the last sync.
    enum status (*sync)(struct device *d, struct error *e);

    // --- steps that overlap; NULL where ops are done when they return. step_end stands behind all
    // that the device was given, exports too, as end i < DEVICE_STEPS; step_passed says whether it
    // is done, or has failed; step_wait waits for that, and reports as sync does.
    void (*step_end)(struct device *d, int i);
    bool (*step_passed)(struct device *d, int i);
    enum status (*step_wait)(struct device *d, int i, struct error *e);
    // From apart(true) to apart(false) choosing tokens (`sampler`), downloads and sync do not wait
    // for what the device was given behind the last end of a step, nor does that wait for them.
    void (*apart)(struct device *d, bool on);

    // --- recorded steps: begin..end records the ops between them once per row bucket, launch runs
    // them; `begin` is false for a bucket that was recorded. Recording takes memory of the device:
    // it is done while loading. On the CPU begin says "run now", end and launch do nothing.
    bool (*graph_begin)(struct device *d, int bucket);
    void (*graph_end)(struct device *d, int bucket);
    void (*graph_launch)(struct device *d, int bucket);

    // --- work beside other work: the ops from `branch` to `resume` and those from there to `join`
    // do not wait for each other; both see what came before, and what comes after sees both. The
    // former may be gemm and swiglu, the latter moe: they share no scratch. NULL: all in order.
    void (*branch)(struct device *d);
    void (*resume)(struct device *d);
    void (*join)(struct device *d);

    // --- ops. n_rows: the bucket.
    // x (n_rows, hidden) f32 = table row of each id; zeros where the id is not in
    // [vocab_begin, vocab_begin + vocab_n). table (vocab_n, hidden) row-major, BF16 or F32.
    void (*embed)(struct device *d, const void *table, enum dtype dtype, int vocab_begin,
                  int vocab_n, int hidden, const int32_t *ids, float *x, int n_rows);
    // out (n_rows, dim) act = x * rsqrt(mean(x^2) + eps) * weight. x f32, rows `x_stride` apart.
    void (*rmsnorm)(struct device *d, const float *x, int x_stride, const float *weight, float eps,
                    void *out, int dim, int n_rows);
    // x (n_rows, dim) f32 += y (n_rows, dim), then out as above: what `add` and `rmsnorm` give.
    void (*add_rmsnorm)(struct device *d, float *x, const float *y, const float *weight, float eps,
                        void *out, int dim, int n_rows);
    // out (n_rows, n) f32 = x (n_rows, k) act times W^T; strides in elements.
    void (*gemm)(struct device *d, const struct matrix *w, const void *x, int x_stride, float *out,
                 int out_stride, int n_rows);
    // Two products of the same rows, as gemm makes each: out by w, second_out by `second`.
    void (*gemm_pair)(struct device *d, const struct matrix *w, const struct matrix *second,
                      const void *x, int x_stride, float *out, int out_stride, float *second_out,
                      int second_stride, int n_rows);
    // For each head h of n_heads: out[row][h] (n) f32 = x[row][h] (k) times W_h^T.
    // x's heads are x_head_stride apart and its rows x_stride; the same for out.
    void (*gemm_heads)(struct device *d, const struct matrix *w, int n_heads, const float *x,
                       int x_stride, int x_head_stride, float *out, int out_stride,
                       int out_head_stride, int n_rows);
    // cos_sin (n_rows, rope/2, 2) f32 from positions; inv_freq (rope/2) f32 device.
    void (*rope_angles)(struct device *d, const float *inv_freq, float multiplier, int rope,
                        const int32_t *pos, float *cos_sin, int n_rows);
    // Rotates in place the pairs (2i, 2i+1) of n_heads vectors of `rope` values: x[row][head],
    // strides in elements, x pointing at the first rope value.
    void (*rope)(struct device *d, float *x, int x_stride, int x_head_stride, int n_heads, int rope,
                 const float *cos_sin, int n_rows);
    // kv_a's output c (n_rows, kv_lora + rope) f32 -> the pool: rmsnorm(latent, norm) | rope(k_pe),
    // at each row's (slot, pos).
    void (*kv_write)(struct device *d, const struct attention_shape *a, const float *c,
                     const float *norm, const float *cos_sin, const struct step_inputs *in,
                     const struct kv_layer *kv, int n_rows);
    // Both latents of the rows: q_out (n_rows, q_lora) act = rmsnorm of q_a (n_rows, q_lora) f32 by
    // q_norm and a's norm_eps, and c as kv_write has it.
    void (*latents)(struct device *d, const struct attention_shape *a, const float *q_a,
                    const float *q_norm, int q_lora, void *q_out, const float *c,
                    const float *norm, const float *cos_sin, const struct step_inputs *in,
                    const struct kv_layer *kv, int n_rows);
    // Absorbed MLA: q_abs (n_rows, n_heads, kv_lora) f32, q_pe the rope part of q (strides as in
    // rope), out (n_rows, n_heads, kv_lora) f32 = softmax(scale * (q_abs.kv + q_pe.k_pe)) kv over
    // rows 0..pos of the row's sequence. In f32 one fixed order over KV blocks for every row. KV of
    // earlier positions than the step's rows may be read before ops in front of it have ended.
    void (*mla)(struct device *d, const struct attention_shape *a, const float *q_abs,
                const float *q_pe, int q_stride, int q_head_stride, const struct step_inputs *in,
                const struct kv_layer *kv, float *out, int n_rows);
    // The router of deepseek-v3.md, all f32: x (n_rows, hidden) act -> chosen (n_rows, n_chosen)
    // i32 in order of descending biased score (ties: lowest index first), weights (n_rows,
    // n_chosen).
    void (*route)(struct device *d, const struct router *r, const void *x, int32_t *chosen,
                  float *weights, int n_rows);
    // out (n_rows, hidden) f32 = sum over the chosen experts of weight * down(silu(gate x) * up x):
    // this rank's part (gate, up cut by rows, down by columns). Work is grouped by expert, but a
    // row adds its experts in the order of `chosen`.
    void (*moe)(struct device *d, const struct expert *experts, int n_experts, int n_chosen,
                const void *x, const int32_t *chosen, const float *weights, const int32_t *pos,
                float *out, int n_rows);
    // out (n_rows, n) act = silu(gate) * up, both (n_rows, n) f32.
    void (*swiglu)(struct device *d, const float *gate, const float *up, void *out, int n,
                   int n_rows);
    // x += y, n elements f32.
    void (*add)(struct device *d, float *x, const float *y, size_t n);
    // n values of the residual stream from and to the form they have between stages, in host
    // memory: f32 in f32 precision, bf16 (rounded to nearest even) in bf16 precision. An import is
    // done with `wire` when it returns; an export is complete after sync, or after its step's end,
    // and overlaps with what follows if `wire` is pinned.
    void (*import_act)(struct device *d, float *x, const void *wire, size_t n);
    void (*export_act)(struct device *d, void *wire, const float *x, size_t n);
    // NULL: nothing comes ahead. What the next import, of the same `wire` and n, will want begins
    // to come while ops run. Done with `wire` when it returns.
    void (*import_ahead)(struct device *d, const void *wire, size_t n);
    // out (n_out, dim) f32 = rows out_rows[i] of x.
    void (*gather)(struct device *d, const float *x, const int32_t *out_rows, int dim, float *out,
                   int n_out);

    // --- ways of its own that a device may have; NULL where it has none.
    // What moe and a `shared` expert of every row make together: out as moe's, plus down(silu(gate
    // x) * up x) of it. False: not for such shapes or so many rows, and nothing was done.
    bool (*moe_shared)(struct device *d, const struct expert *experts, const struct expert *shared,
                       int n_experts, int n_chosen, const void *x, const int32_t *chosen,
                       const float *weights, const int32_t *pos, float *out, int n_rows);
    // What gemm_heads by uk, mla and gemm_heads by uv make together, for one run of rows: keys and
    // values are made from the latents of its sequence, which is less work where there are many
    // rows. q (run.n, n_heads, nope + rope) f32, rope turned, 16-byte aligned with its strides;
    // uk, uv (n_heads) as weights.h has them; out (run.n, n_heads, v) f32, rows out_stride apart.
    // It takes host values: not for recorded steps. Only where run_least says so.
    void (*mla_run)(struct device *d, const struct attention_shape *a, const float *q, int q_stride,
                    int q_head_stride, const struct matrix *uk, const struct matrix *uv,
                    const struct attention_run *run, const struct step_inputs *in,
                    const struct kv_layer *kv, float *out, int out_stride);
    // Rows of a run from which mla_run is the faster way; INT_MAX: none.
    int (*run_least)(const struct device *d, const struct attention_shape *a);

    // --- choosing tokens; NULL where the host reads logits where they lie.
    const struct sampler_ops *sampler; // kernels/sampler_ops.h
};

// Bytes of m->data for its shape.
static inline uint64_t matrix_bytes(const struct backend *b, const struct matrix *m)
{
    struct matrix_shape shape = matrix_shape(m);
    return device_sizes(b->kind)->matrix(&shape);
}

// Never NULL. Variants by instruction set are chosen when a device is opened (kernels/cpu/isa.h).
const struct backend *backend_cpu(void);

// NULL in a build without CUDA. Its `open` says whether there is a device.
const struct backend *backend_cuda(void);

// bf16 where the CPU has the instructions, else f32.
enum precision precision_auto(void);
const char *precision_name(enum precision p);

#endif
