// Absorbed multi-head latent attention over paged KV: cuts the step into (row, group of heads)
// items; each walks the row's blocks in order (inner_body.h). No head depends on the cut.
#include "kernels/cpu/device.h"
#include "kernels/cpu/inner.h"
#include "kernels/cpu/ops.h"

#include "common/limits.h"

enum { HEADS_MIN = 4 }; // fewer heads at once read the KV too often

static uint64_t tile_values(int kv_lora, int rope)
{
    return (uint64_t) KV_BLOCK_ROWS * (uint64_t) (kv_lora + rope);
}

struct mla {
    const struct device *device;
    const struct attention_shape *a;
    const float *q_abs, *q_pe;
    size_t q_stride;
    int q_head_stride;
    const struct step_inputs *in;
    const struct kv_layer *kv;
    float *out;
    int heads, groups; // heads of an item, items of a row
};

static void mla_items(void *arg, int begin, int end, int thread)
{
    const struct mla *m = arg;
    const struct attention_shape *a = m->a;
    const struct inner *inner = inner_for(m->device->isa);
    float *tile = m->device->scratch.mla_tiles;
    if (tile != NULL) tile += (size_t) thread * tile_values(a->kv_lora, a->rope);
    for (int item = begin; item < end; item++) {
        size_t row = (size_t) (item / m->groups);
        int pos = m->in->pos[row], head = item % m->groups * m->heads;
        if (pos < 0) continue;
        check(pos / KV_BLOCK_ROWS < m->in->max_blocks, "position %d is beyond the table", pos);
        size_t first = (row * a->n_heads + head) * a->kv_lora;
        struct attend t = {
            .shape = a,
            .precision = m->device->precision,
            .q_abs = m->q_abs + first,
            .q_pe = m->q_pe + row * m->q_stride + (size_t) head * m->q_head_stride,
            .q_pe_stride = m->q_head_stride,
            .n_heads = head + m->heads <= a->n_heads ? m->heads : a->n_heads - head,
            .kv = m->kv,
            .blocks = m->in->blocks + (size_t) m->in->slot[row] * m->in->max_blocks,
            .n_rows = pos + 1,
            .tile = tile,
            .out = m->out + first,
        };
        inner->attend(&t);
    }
}

void cpu_mla(struct device *d, const struct attention_shape *a, const float *q_abs,
             const float *q_pe, int q_stride, int q_head_stride, const struct step_inputs *in,
             const struct kv_layer *kv, float *out, int n_rows)
{
    struct mla m = {d, a, q_abs, q_pe, (size_t) q_stride, q_head_stride, in, kv, out,
                    ATTEND_HEADS_MAX, 0};
    bool exact = d->precision == PRECISION_F32 && !kv->fp8;
    check(exact || d->scratch.mla_tiles != NULL, "no scratch");
    int threads = team_threads(d->team);
    for (;; m.heads /= 2) { // with few rows, smaller groups keep all threads busy
        m.groups = (a->n_heads + m.heads - 1) / m.heads;
        if (m.heads == HEADS_MIN || n_rows * m.groups >= 2 * threads) break;
    }
    team_run(d->team, mla_items, &m, n_rows * m.groups, 1);
}
