// Attention of a run of rows: some heads at a time, as many as scratch has room for.
#include "kernels/cuda/mla_run.cuh"

#include <limits.h>

// Below, what expanding the sequence's latents takes is more than it saves.
enum { LEAST_ROWS = 256 };

int cuda_run_least(const struct device *d, const struct attention_shape *a)
{
    bool takes = d->hopper && d->precision == PRECISION_BF16 && a->kv_lora == RUN_LORA &&
                 a->rope == RUN_ROPE && a->nope == RUN_HEAD && a->v == RUN_HEAD;
    return takes && d->scratch.run.expanded != NULL ? LEAST_ROWS : INT_MAX;
}

void cuda_mla_run(struct device *d, const struct attention_shape *a, const float *q, int q_stride,
                  int q_head_stride, const struct matrix *uk, const struct matrix *uv,
                  const struct attention_run *run, const struct step_inputs *in,
                  const struct kv_layer *kv, float *out, int out_stride)
{
    int context = run->pos + run->n;
    check((context - 1) / KV_BLOCK_ROWS < in->max_blocks, "%d tokens are beyond the block table",
          context);
    check(context <= d->shape.max_context, "%d tokens are beyond the scratch", context);
    int most = cuda_expanded_heads(a->n_heads, context);
    struct kv_layer layer = *kv;
    const int32_t *blocks = in->blocks + (size_t) run->slot * in->max_blocks;
    if (kv->fp8) {
        check(d->scratch.run.kv != NULL, "no scratch for KV in FP8");
        layer = run_widen_kv(d, kv, blocks, (int) ceil_div((uint64_t) context, KV_BLOCK_ROWS),
                             d->scratch.run.kv);
    }
    for (int head = 0; head < a->n_heads; head += most) {
        struct run r = {};
        r.pos = run->pos;
        r.n = run->n;
        r.n_heads = a->n_heads - head < most ? a->n_heads - head : most;
        r.padded = (int) ceil_div((uint64_t) context, RUN_KEYS) * RUN_KEYS;
        r.blocks = kv->fp8 ? NULL : blocks;
        r.n_blocks = layer.n_blocks;
        r.scale = a->softmax_scale;
        r.q = q + (size_t) head * q_head_stride;
        r.q_stride = (size_t) q_stride;
        r.q_head_stride = (size_t) q_head_stride;
        r.out = out + (size_t) head * RUN_HEAD;
        r.out_stride = (size_t) out_stride;
        run_widen(d, uk + head, uv + head, r.n_heads, d->scratch.run.weights);
        run_expand(d, &r, &layer, d->scratch.run.weights, d->scratch.run.expanded);
        run_attend(d, &r, &layer, d->scratch.run.expanded);
    }
}
