#include "common/plan_cost.h"

#include "common/packed.h"
#include "common/rank_layout.h"

#include <string.h>

// --- weights

struct counting {
    const struct plan_source *source;
    struct carve carve;
};

static enum status count_slice(const struct slice *s, void *arg)
{
    struct counting *n = arg;
    packed_carve(n->source->device, n->source->config, s, layout_type(n->source->types, s),
                 &n->carve, NULL, NULL);
    return OK;
}

static struct part_bytes part_of(const struct counting *n)
{
    const uint64_t *bytes = n->carve.ledger.bytes;
    return (struct part_bytes){bytes[LEDGER_WEIGHTS], bytes[LEDGER_SCALES], bytes[LEDGER_PACKING]};
}

static struct part_bytes count_part(const struct plan_source *source, struct placement place)
{
    struct counting n = {.source = source};
    check(layout_walk(source->config, &place, count_slice, &n) == OK);
    return part_of(&n);
}

static struct part_bytes count_mtp(const struct plan_source *source, struct placement place)
{
    struct counting n = {.source = source};
    const struct model_config *c = source->config;
    for (int i = 0; i < c->n_mtp_layers; i++) {
        check(layout_walk_mtp(c, &place, c->n_layers + i, false, count_slice, &n) == OK);
    }
    return part_of(&n);
}

static void count_ends(struct plan_cost *c)
{
    const struct plan_source *s = &c->source;
    for (int rank = 0; rank < s->tp; rank++) {
        struct placement head = {.head = true, .tp_rank = rank, .tp = s->tp};
        struct placement tail = {.tail = true, .tp_rank = rank, .tp = s->tp};
        c->head[rank] = count_part(s, head);
        c->tail[rank] = count_part(s, tail);
        if (!s->mtp || s->config->n_mtp_layers == 0) continue;
        c->mtp[rank] = count_mtp(s, tail);
        c->mtp_embed[rank] = c->head[rank];
    }
}

static bool alike(const struct plan_cost *c, int a, int b)
{
    const struct plan_source *s = &c->source;
    bool dense = a < s->config->n_dense_layers;
    return dense == (b < s->config->n_dense_layers) &&
           memcmp(s->types->layers[a], s->types->layers[b], sizeof s->types->layers[a]) == 0;
}

static enum status add_kind(struct plan_cost *c, int layer, struct error *e)
{
    const struct plan_source *s = &c->source;
    if (c->n_kinds == PLAN_KINDS_MAX) {
        return error_set(e, ERR_LIMIT, "bad_plan",
                         "layer %d: the tensors' types make more than %d kinds of layers", layer,
                         PLAN_KINDS_MAX);
    }
    c->like[c->n_kinds] = layer;
    for (int rank = 0; rank < s->tp; rank++) {
        struct placement place = {.first = layer, .last = layer + 1, .tp_rank = rank, .tp = s->tp};
        c->kinds[c->n_kinds][rank] = count_part(s, place);
    }
    c->n_kinds++;
    return OK;
}

static enum status count_layers(struct plan_cost *c, struct error *e)
{
    for (int layer = 0; layer < c->source.config->n_layers; layer++) {
        int kind = 0;
        while (kind < c->n_kinds && !alike(c, layer, c->like[kind])) kind++;
        if (kind == c->n_kinds) try(add_kind(c, layer, e));
        for (int k = 0; k < PLAN_KINDS_MAX; k++) {
            c->n_before[k][layer + 1] = (uint16_t) (c->n_before[k][layer] + (k == kind));
        }
    }
    return OK;
}

enum status plan_cost_init(struct plan_cost *c, const struct plan_source *source, struct error *e)
{
    memset(c, 0, sizeof *c);
    c->source = *source;
    count_ends(c);
    return count_layers(c, e);
}

// --- the rest

static struct ledger count_rest(const struct plan_cost *c, const struct placement *place,
                                int64_t kv_blocks)
{
    const struct plan_source *s = &c->source;
    const struct device_sizes *sizes = device_sizes(s->device);
    struct rank_shape shape = {.config = s->config,
                               .place = *place,
                               .device = s->device,
                               .f32 = c->limits.f32,
                               .fp8_kv = c->limits.fp8_kv,
                               .slots = c->limits.slots,
                               .max_blocks = c->limits.max_blocks,
                               .n_blocks = (int) kv_blocks,
                               .max_rows = c->limits.max_rows,
                               .max_out = c->limits.max_out};
    struct carve carve = {0}, beside = {0};
    void *at[N_RANK_BUFFERS], *sampler;
    packed_carve_frequencies(s->config, &carve);
    rank_carve(&shape, &carve, sizes->host_reads ? &carve : &beside, at, &sampler);
    carve.ledger.bytes[LEDGER_CONTEXT] =
        c->limits.context > 0 ? c->limits.context : sizes->context;
    carve.ledger.bytes[LEDGER_LIBRARIES] = sizes->libraries;
    carve.ledger.bytes[LEDGER_RESERVE] = c->limits.reserve;
    return carve.ledger;
}

// Layers that have a dense FFN, experts, or both: what the buffers depend on.
static struct placement layers_with(const struct model_config *m, bool dense, bool moe)
{
    int n = m->n_dense_layers;
    return (struct placement){.first = dense && n > 0 ? n - 1 : n,
                              .last = moe && n < m->n_layers ? n + 1 : n};
}

static void count_rests(struct plan_cost *c)
{
    for (int i = 0; i < 8; i++) {
        bool dense = i & 4, moe = i & 2, tail = i & 1;
        struct placement place = layers_with(c->source.config, dense, moe);
        place.tail = tail;
        place.tp = c->source.tp;
        for (place.tp_rank = 0; place.tp_rank < place.tp; place.tp_rank++) {
            struct ledger rest = count_rest(c, &place, 0);
            c->rest[dense][moe][tail][place.tp_rank] = ledger_total(&rest);
        }
    }
}

static uint64_t total(struct part_bytes p) { return p.weights + p.scales + p.packing; }

// Whether rank a has at least the bytes of rank b in every part.
static bool outweighs(const struct plan_cost *c, int a, int b)
{
    for (int k = 0; k < c->n_kinds; k++) {
        if (total(c->kinds[k][a]) < total(c->kinds[k][b])) return false;
    }
    for (int i = 0; i < 8; i++) {
        const uint64_t *rest = c->rest[i / 4][i / 2 % 2][i % 2];
        if (rest[a] < rest[b]) return false;
    }
    return total(c->head[a]) >= total(c->head[b]) && total(c->tail[a]) >= total(c->tail[b]) &&
           total(c->mtp[a]) >= total(c->mtp[b]);
}

// The largest rank is among those that no other outweighs.
static void drop_small_ranks(struct plan_cost *c)
{
    c->n_ranks = 0;
    for (int rank = 0; rank < c->source.tp; rank++) {
        bool small = false;
        for (int i = 0; i < rank && !small; i++) small = outweighs(c, i, rank);
        if (!small) c->ranks[c->n_ranks++] = rank;
    }
}

void plan_cost_limits(struct plan_cost *c, const struct plan_limits *limits)
{
    c->limits = *limits;
    c->block_layer = rank_kv_block_bytes(c->source.config, 1, limits->f32, limits->fp8_kv);
    count_rests(c);
    drop_small_ranks(c);
}

// --- stages

static int n_of(const struct plan_cost *c, const struct plan_stage *s, int kind)
{
    return c->n_before[kind][s->last] - c->n_before[kind][s->first];
}

static bool has_mtp(const struct plan_cost *c, const struct plan_stage *s)
{
    return s->tail && c->source.mtp && c->source.config->n_mtp_layers > 0;
}

// Of the layers of multi-token prediction: weights, KV, and the inputs of their projection.
static uint64_t mtp_bytes(const struct plan_cost *c, const struct plan_stage *s, int rank,
                          int64_t kv_blocks)
{
    const struct model_config *m = c->source.config;
    if (!has_mtp(c, s)) return 0;
    uint64_t kv = c->block_layer * (uint64_t) m->n_mtp_layers * (uint64_t) kv_blocks;
    uint64_t inputs = (uint64_t) c->limits.max_rows * 2 * (uint64_t) m->hidden_size * sizeof(float);
    return total(c->mtp[rank]) + (s->head ? 0 : total(c->mtp_embed[rank])) + carve_aligned(kv) +
           carve_aligned(inputs);
}

static uint64_t kv_bytes(const struct plan_cost *c, const struct plan_stage *s, int64_t kv_blocks)
{
    return carve_aligned(c->block_layer * (uint64_t) (s->last - s->first) * (uint64_t) kv_blocks);
}

static uint64_t rank_bytes(const struct plan_cost *c, const struct plan_stage *s, int rank,
                           int64_t kv_blocks)
{
    int n_dense = c->source.config->n_dense_layers;
    bool dense = s->first < n_dense, moe = s->last > n_dense;
    uint64_t bytes = c->rest[dense][moe][s->tail][rank] + kv_bytes(c, s, kv_blocks) +
                     mtp_bytes(c, s, rank, kv_blocks);
    if (s->head) bytes += total(c->head[rank]);
    if (s->tail) bytes += total(c->tail[rank]);
    for (int k = 0; k < c->n_kinds; k++) {
        bytes += (uint64_t) n_of(c, s, k) * total(c->kinds[k][rank]);
    }
    return bytes;
}

static int largest_rank(const struct plan_cost *c, const struct plan_stage *s, int64_t kv_blocks)
{
    int largest = c->ranks[0];
    uint64_t most = 0;
    for (int i = 0; i < c->n_ranks; i++) {
        uint64_t bytes = rank_bytes(c, s, c->ranks[i], kv_blocks);
        if (bytes <= most) continue;
        most = bytes;
        largest = c->ranks[i];
    }
    return largest;
}

uint64_t plan_cost_bytes(const struct plan_cost *c, const struct plan_stage *s, int64_t kv_blocks)
{
    return rank_bytes(c, s, largest_rank(c, s, kv_blocks), kv_blocks);
}

static void add_part(struct ledger *l, struct part_bytes p, int n)
{
    l->bytes[LEDGER_WEIGHTS] += (uint64_t) n * p.weights;
    l->bytes[LEDGER_SCALES] += (uint64_t) n * p.scales;
    l->bytes[LEDGER_PACKING] += (uint64_t) n * p.packing;
}

struct ledger plan_cost_rank(const struct plan_cost *c, const struct plan_stage *s, int rank,
                             int64_t kv_blocks)
{
    struct placement place = {s->first, s->last, s->head, s->tail, rank, c->source.tp};
    struct ledger l = count_rest(c, &place, kv_blocks);
    if (s->head) add_part(&l, c->head[rank], 1);
    if (s->tail) add_part(&l, c->tail[rank], 1);
    for (int k = 0; k < c->n_kinds; k++) add_part(&l, c->kinds[k][rank], n_of(c, s, k));
    l.bytes[LEDGER_MTP] = mtp_bytes(c, s, rank, kv_blocks);
    return l;
}

struct ledger plan_cost_ledger(const struct plan_cost *c, const struct plan_stage *s,
                               int64_t kv_blocks)
{
    struct ledger l = plan_cost_rank(c, s, largest_rank(c, s, kv_blocks), kv_blocks);
    check(ledger_total(&l) == plan_cost_bytes(c, s, kv_blocks), "the lines add up");
    return l;
}

static uint64_t plain(struct part_bytes p) { return p.weights + p.scales; }

uint64_t plan_cost_weights(const struct plan_cost *c, const struct plan_stage *s)
{
    uint64_t most = 0;
    for (int rank = 0; rank < c->source.tp; rank++) {
        uint64_t bytes = s->head ? plain(c->head[rank]) : 0;
        if (s->tail) bytes += plain(c->tail[rank]);
        for (int k = 0; k < c->n_kinds; k++) {
            bytes += (uint64_t) n_of(c, s, k) * plain(c->kinds[k][rank]);
        }
        if (has_mtp(c, s)) {
            bytes += plain(c->mtp[rank]) + (s->head ? 0 : plain(c->mtp_embed[rank]));
        }
        most = bytes > most ? bytes : most;
    }
    return most;
}

uint64_t plan_cost_block(const struct plan_cost *c, const struct plan_stage *s)
{
    int mtp = has_mtp(c, s) ? c->source.config->n_mtp_layers : 0;
    return c->block_layer * (uint64_t) (s->last - s->first + mtp);
}
