#include "common/packed.h"

enum dtype packed_type(enum dtype type) { return type == DTYPE_F16 ? DTYPE_F32 : type; }

struct packing {
    const struct device_sizes *sizes;
    const struct model_config *config;
    const struct slice *slice;
    enum dtype type;
    struct carve *carve;
    packed_part *put;
    void *arg;
};

static void put(const struct packing *p, int i, const struct matrix_shape *shape, void *data,
                float *scales)
{
    if (p->put != NULL) p->put(p->arg, p->slice, i, shape, data, scales);
}

// A matrix of outputs n and inputs k of the tensor; turned for W_UK.
static void carve_matrix(const struct packing *p, int i, struct range n, struct range k)
{
    int block = p->config->scale_block;
    struct matrix_shape shape = {packed_type(p->type), (int) n.n, (int) k.n,
                                 (int) (n.begin % block), (int) (k.begin % block)};
    float *scales = NULL;
    carve_line(p->carve, LEDGER_WEIGHTS);
    void *data = carve_take(p->carve, p->sizes->matrix(&shape));
    if (p->type == DTYPE_F8_E4M3) {
        uint64_t blocks = (uint64_t) (layout_blocks(n, block).n * layout_blocks(k, block).n);
        carve_line(p->carve, LEDGER_SCALES);
        scales = carve_take(p->carve, blocks * sizeof *scales);
    }
    put(p, i, &shape, data, scales);
}

static void carve_heads(const struct packing *p)
{
    const struct model_config *c = p->config;
    int64_t key = c->qk_nope_head_dim, value = c->v_head_dim;
    struct range latent = {0, c->kv_lora_rank}, rows = p->slice->row;
    for (int h = 0; h < rows.n / (key + value); h++) {
        int64_t row = rows.begin + h * (key + value);
        carve_matrix(p, 2 * h, latent, (struct range){row, key});
        carve_matrix(p, 2 * h + 1, (struct range){row + key, value}, latent);
    }
}

void packed_carve(enum device_kind device, const struct model_config *c, const struct slice *s,
                  enum dtype type, struct carve *carve, packed_part *part, void *arg)
{
    struct packing p = {device_sizes(device), c, s, type, carve, part, arg};
    const struct ledger before = carve->ledger;
    uint64_t values = (uint64_t) (s->row.n * s->col.n), weights = values * dtype_size(type);
    uint64_t scales = layout_slice_bytes_as(c, s, type) - weights;
    carve_line(carve, LEDGER_WEIGHTS);
    if (layout_is_vector(s)) {
        put(&p, 0, NULL, carve_take(carve, values * sizeof(float)), NULL);
    } else if (s->role == ROLE_EMBED) {
        put(&p, 0, NULL, carve_take(carve, values * dtype_size(packed_type(type))), NULL);
    } else if (s->role == ROLE_KV_B) {
        carve_heads(&p);
    } else {
        carve_matrix(&p, 0, s->row, s->col);
    }
    const struct ledger *now = &carve->ledger;
    uint64_t took = now->bytes[LEDGER_WEIGHTS] - before.bytes[LEDGER_WEIGHTS];
    uint64_t took_scales = now->bytes[LEDGER_SCALES] - before.bytes[LEDGER_SCALES];
    carve_move(carve, LEDGER_WEIGHTS, LEDGER_PACKING, took - weights);
    carve_move(carve, LEDGER_SCALES, LEDGER_PACKING, took_scales - scales);
}

float *packed_carve_frequencies(const struct model_config *c, struct carve *carve)
{
    carve_line(carve, LEDGER_PACKING);
    return carve_take(carve, (uint64_t) (c->qk_rope_head_dim / 2) * sizeof(float));
}
