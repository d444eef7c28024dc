#include "common/rank_layout.h"

#include "common/kv_block.h"

uint64_t rank_kv_block_bytes(const struct model_config *c, int n_layers, bool f32, bool fp8_kv)
{
    return (uint64_t) n_layers *
           kv_block_bytes(c->kv_lora_rank, c->qk_rope_head_dim, f32, fp8_kv);
}

uint64_t rank_kv_layer_bytes(const struct rank_shape *s)
{
    return (uint64_t) s->n_blocks * rank_kv_block_bytes(s->config, 1, s->f32, s->fp8_kv);
}

int rank_ffn_width(const struct model_config *c, const struct placement *p)
{
    int64_t shared = (int64_t) c->n_shared_experts * c->moe_intermediate_size, widest = 1;
    int64_t dense_n = layout_part(c->intermediate_size, p->tp_rank, p->tp).n;
    int64_t shared_n = layout_part(shared, p->tp_rank, p->tp).n;
    bool dense = p->first < c->n_dense_layers && p->first < p->last;
    bool moe = p->last > c->n_dense_layers && p->first < p->last;
    if (dense && dense_n > widest) widest = dense_n;
    if (moe && shared_n > widest) widest = shared_n;
    return (int) widest;
}

static int heads_of(const struct rank_shape *s) { return s->config->n_heads / s->place.tp; }

static struct range vocab_of(const struct rank_shape *s)
{
    return layout_part(s->config->vocab_size, s->place.tp_rank, s->place.tp);
}

struct scratch_shape rank_scratch_shape(const struct rank_shape *s)
{
    const struct model_config *m = s->config;
    return (struct scratch_shape){.max_rows = s->max_rows,
                                  .max_out = s->max_out,
                                  .f32 = s->f32,
                                  .fp8_kv = s->fp8_kv,
                                  .hidden = m->hidden_size,
                                  .intermediate = rank_ffn_width(m, &s->place),
                                  .moe_intermediate = m->moe_intermediate_size / s->place.tp,
                                  .n_experts = m->n_routed_experts,
                                  .n_chosen = m->n_experts_per_token,
                                  .n_heads = heads_of(s),
                                  .kv_lora = m->kv_lora_rank,
                                  .rope = m->qk_rope_head_dim,
                                  .nope = m->qk_nope_head_dim,
                                  .v = m->v_head_dim,
                                  .q_lora = m->q_lora_rank,
                                  .vocab = (int) vocab_of(s).n,
                                  .max_context = s->max_blocks * KV_BLOCK_ROWS,
                                  .slots = s->slots,
                                  .tp = s->place.tp};
}

struct sampler_shape rank_sampler_shape(const struct rank_shape *s)
{
    struct range vocab = vocab_of(s);
    return (struct sampler_shape){.slots = s->slots,
                                  .max_context = s->max_blocks * KV_BLOCK_ROWS,
                                  .max_out = s->max_out,
                                  .vocab_begin = (int) vocab.begin,
                                  .vocab_n = (int) vocab.n,
                                  .vocab_size = s->config->vocab_size,
                                  .tp = s->place.tp,
                                  .on_device = !device_sizes(s->device)->host_reads};
}

static void count_step(const struct rank_shape *s, uint64_t bytes[N_RANK_BUFFERS])
{
    const struct model_config *m = s->config;
    uint64_t rows = (uint64_t) s->max_rows, heads = (uint64_t) heads_of(s);
    uint64_t hidden = (uint64_t) m->hidden_size, q_lora = (uint64_t) m->q_lora_rank;
    uint64_t q_head = (uint64_t) (m->qk_nope_head_dim + m->qk_rope_head_dim);
    uint64_t latent = (uint64_t) m->kv_lora_rank, chosen = (uint64_t) m->n_experts_per_token;
    uint64_t ffn = (uint64_t) rank_ffn_width(m, &s->place);
    struct scratch_shape scratch = rank_scratch_shape(s);
    bytes[RANK_KV] = rank_kv_layer_bytes(s) * (uint64_t) (s->place.last - s->place.first);
    bytes[RANK_ROWS] = bytes[RANK_HOST_ROWS] = RANK_ROW_ARRAYS * rows * 4;
    bytes[RANK_BLOCKS] = (uint64_t) s->slots * (uint64_t) s->max_blocks * 4;
    bytes[RANK_X] = bytes[RANK_H] = rows * hidden * 4;
    bytes[RANK_Q_A] = bytes[RANK_Q_A_NORMED] = rows * q_lora * 4;
    bytes[RANK_Q] = rows * heads * q_head * 4;
    bytes[RANK_C] = rows * (uint64_t) model_kv_width(m) * 4;
    bytes[RANK_COS_SIN] = rows * (uint64_t) m->qk_rope_head_dim * 4;
    bytes[RANK_Q_ABS] = bytes[RANK_O_LAT] = rows * heads * latent * 4;
    bytes[RANK_O_V] = rows * heads * (uint64_t) m->v_head_dim * 4;
    bytes[RANK_Y] = bytes[RANK_Y_SHARED] = rows * hidden * 4;
    bytes[RANK_GATE] = bytes[RANK_UP] = bytes[RANK_ACT] = rows * ffn * 4;
    bytes[RANK_CHOSEN] = bytes[RANK_EXPERT_WEIGHT] = rows * chosen * 4;
    bytes[RANK_SCRATCH] = device_sizes(s->device)->scratch(&scratch);
    bytes[RANK_COMM] = device_sizes(s->device)->comm(s->place.tp);
    bytes[RANK_COMM_PINNED] = device_sizes(s->device)->comm_pinned(s->place.tp);
}

static void count_tail(const struct rank_shape *s, uint64_t bytes[N_RANK_BUFFERS])
{
    uint64_t out = (uint64_t) s->max_out, hidden = (uint64_t) s->config->hidden_size;
    bytes[RANK_OUT_X] = bytes[RANK_OUT_H] = out * hidden * 4;
    bytes[RANK_OUT_SLOT] = bytes[RANK_OUT_POS] = out * 4;
    bytes[RANK_SAMPLED] = out * RANK_SAMPLED_BYTES;
    struct sampler_shape sampler = rank_sampler_shape(s);
    bytes[RANK_LOGITS] = out * (uint64_t) vocab_of(s).n * 4;
    bytes[RANK_SAMPLER] = sampler_device_bytes(&sampler);
}

static enum ledger_line line_of(enum rank_buffer b)
{
    if (b == RANK_KV) return LEDGER_KV;
    if (b == RANK_SCRATCH) return LEDGER_SCRATCH;
    if (b == RANK_COMM || b == RANK_COMM_PINNED) return LEDGER_COMM;
    if (b == RANK_SAMPLER) return LEDGER_SAMPLER;
    return b == RANK_LOGITS ? LEDGER_LOGITS : LEDGER_ACTIVATIONS;
}

static bool of_host(enum rank_buffer b)
{
    return b == RANK_HOST_ROWS || b == RANK_COMM_PINNED || b == RANK_OUT_SLOT ||
           b == RANK_OUT_POS || b == RANK_SAMPLED;
}

void rank_carve(const struct rank_shape *s, struct carve *c, struct carve *host,
                void *at[N_RANK_BUFFERS], void **sampler)
{
    uint64_t bytes[N_RANK_BUFFERS] = {0};
    check((host == c) == device_sizes(s->device)->host_reads);
    count_step(s, bytes);
    if (s->place.tail) count_tail(s, bytes);
    for (int b = 0; b < N_RANK_BUFFERS; b++) {
        struct carve *from = of_host((enum rank_buffer) b) ? host : c;
        carve_line(from, line_of((enum rank_buffer) b));
        at[b] = b < RANK_OUT_X || s->place.tail ? carve_take(from, bytes[b]) : NULL;
    }
    *sampler = NULL;
    if (!s->place.tail) return;
    struct sampler_shape shape = rank_sampler_shape(s);
    struct sampler_parts parts;
    if (host->base != NULL) *sampler = host->base + host->used;
    sampler_carve(&parts, &shape, host);
}

struct ledger rank_host_ledger(const struct rank_shape *s)
{
    const struct device_sizes *sizes = device_sizes(s->device);
    struct carve c = {0}, host = {0};
    void *at[N_RANK_BUFFERS], *sampler;
    if (sizes->host_reads) return host.ledger;
    rank_carve(s, &c, &host, at, &sampler);
    host.ledger.bytes[LEDGER_STAGING] += sizes->pinned;
    return host.ledger;
}
