// A row's latent and rope key into the paged pool.
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/device.h"
#include "kernels/cpu/e4m3.h"
#include "kernels/cpu/ops.h"

#include "common/limits.h"

enum { WRITE_ROWS = 16 }; // rows worth another thread

struct kv_write {
    enum precision precision;
    const struct attention_shape *a;
    const float *c, *norm, *cos_sin;
    const struct step_inputs *in;
    const struct kv_layer *kv;
};

static size_t kv_block(const struct kv_write *w, int row)
{
    int pos = w->in->pos[row], index = pos / KV_BLOCK_ROWS;
    check(index < w->in->max_blocks, "position %d is beyond the block table", pos);
    int id = w->in->blocks[(size_t) w->in->slot[row] * w->in->max_blocks + index];
    check(id >= 0 && id < w->kv->n_blocks, "KV block %d of %d", id, w->kv->n_blocks);
    return (size_t) id;
}

// values (kv_lora + rope) into the row's place of an FP8 block.
static void write_fp8(const struct kv_write *w, size_t block, int at, const float *values)
{
    int lora = w->a->kv_lora, rope = w->a->rope;
    struct kv_block shape = kv_block_fp8(lora, rope);
    uint8_t *base = (uint8_t *) w->kv->pool + block * shape.bytes;
    uint8_t *latent = base + (size_t) at * lora;
    uint16_t *key = (uint16_t *) (void *) (base + shape.rope) + (size_t) at * rope;
    float *scales = (float *) (void *) (base + shape.scales) + (size_t) at * shape.n_scales;
    for (int k = 0; k < shape.n_scales; k++) {
        int first = k * KV_SCALE_VALUES;
        int n = lora - first < KV_SCALE_VALUES ? lora - first : KV_SCALE_VALUES;
        scales[k] = kv_scale(values + first, n);
        for (int i = first; i < first + n; i++) latent[i] = e4m3_round(values[i] / scales[k]);
    }
    for (int i = 0; i < rope; i++) key[i] = bf16_round(values[lora + i]);
}

static void write_rows(void *arg, int begin, int end, int thread)
{
    (void) thread;
    const struct kv_write *w = arg;
    int lora = w->a->kv_lora, rope = w->a->rope, width = lora + rope;
    float values[MODEL_LORA_RANK_MAX + MODEL_HEAD_DIM_MAX];
    for (int row = begin; row < end; row++) {
        if (w->in->pos[row] < 0) continue;
        const float *c = w->c + (size_t) row * width;
        size_t block = kv_block(w, row), at = (size_t) (w->in->pos[row] % KV_BLOCK_ROWS);
        size_t first = (block * KV_BLOCK_ROWS + at) * width;
        bool exact = w->precision == PRECISION_F32 && !w->kv->fp8;
        float *to = exact ? (float *) w->kv->pool + first : values;
        row_rmsnorm(c, w->norm, w->a->norm_eps, to, lora);
        row_rope(c + lora, w->cos_sin + (size_t) row * rope, to + lora, rope);
        if (exact) continue;
        if (w->kv->fp8) {
            write_fp8(w, block, (int) at, values);
            continue;
        }
        uint16_t *halves = (uint16_t *) w->kv->pool + first;
        for (int i = 0; i < width; i++) halves[i] = bf16_round(values[i]);
    }
}

void cpu_kv_write(struct device *d, const struct attention_shape *a, const float *c,
                  const float *norm, const float *cos_sin, const struct step_inputs *in,
                  const struct kv_layer *kv, int n_rows)
{
    struct kv_write w = {d->precision, a, c, norm, cos_sin, in, kv};
    team_run(d->team, write_rows, &w, n_rows, WRITE_ROWS);
}

void cpu_latents(struct device *d, const struct attention_shape *a, const float *q_a,
                 const float *q_norm, int q_lora, void *q_out, const float *c, const float *norm,
                 const float *cos_sin, const struct step_inputs *in, const struct kv_layer *kv,
                 int n_rows)
{
    cpu_rmsnorm(d, q_a, q_lora, q_norm, a->norm_eps, q_out, q_lora, n_rows);
    cpu_kv_write(d, a, c, norm, cos_sin, in, kv, n_rows);
}
