#include "common/plan_cost.h"

#include "common/carve.h"
#include "common/layout.h"

enum {
    PANEL_ROWS = 64,          // kernels pack matrices in panels of so many rows
    GROUP_COLS = 4,           // of FP8, counted from the scale block's edge
    SCRATCH_THREADS_MAX = 64, // of one device
    SCRATCH_EDGE = 256,       // values before and behind a row that is laid out by scale blocks
    SCRATCH_TILE_ROWS = 1024, // of PANEL_ROWS values, for each thread: unpacked weights, sums
    SCRATCH_HEAD_ROWS = 32,   // rows that are multiplied in all heads at once
    SCRATCH_SPARE = 256 * 1024,
    SAMPLER_BATCH = 32,       // rows sampled together where ranks share the vocabulary
    SAMPLER_ID_BYTES = 16,    // for each id of the vocabulary beside the rows of logits
    SAMPLER_ROW_BYTES = 8192, // for each row and rank: lists of candidates and histograms
    SAMPLER_SLOT_BYTES = 512, // for each sequence beside its ids
    SAMPLER_SPARE = 64 * 1024,
    SAMPLED_BYTES = 16 + 8 * LOGPROBS_MAX, // one chosen token with its alternatives
};

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

// As carve_take counts it.
static uint64_t carved(uint64_t bytes) { return round_up(bytes, CARVE_ALIGN); }

// --- weights

// Two bytes an element stand for every type but e4m3, as in layout_slice_bytes.
static uint64_t matrix_carved(const struct model_config *c, bool quantized, struct range rows,
                              struct range cols)
{
    uint64_t panels = ((uint64_t) rows.n + PANEL_ROWS - 1) / PANEL_ROWS;
    if (!quantized) return carved(panels * PANEL_ROWS * round_up((uint64_t) cols.n, 2) * 2);
    uint64_t before = (uint64_t) (cols.begin % GROUP_COLS);
    uint64_t values = panels * PANEL_ROWS * round_up(before + (uint64_t) cols.n, GROUP_COLS);
    uint64_t row_blocks = (uint64_t) layout_blocks(rows, c->scale_block).n;
    uint64_t col_blocks = (uint64_t) layout_blocks(cols, c->scale_block).n;
    uint64_t marks = carved(panels * PANEL_ROWS / 8); // a bit for each row
    return carved(marks + values) + carved(row_blocks * col_blocks * sizeof(float));
}

// Each head's part of kv_b is two matrices: keys turned, values as they are.
static uint64_t heads_carved(const struct model_config *c, const struct slice *s)
{
    int64_t key = c->qk_nope_head_dim, value = c->v_head_dim, end = s->row.begin + s->row.n;
    struct range latent = {0, c->kv_lora_rank};
    uint64_t bytes = 0;
    for (int64_t row = s->row.begin; row < end; row += key + value) {
        bytes += matrix_carved(c, s->quantized, latent, (struct range){row, key}) +
                 matrix_carved(c, s->quantized, (struct range){row + key, value}, latent);
    }
    return bytes;
}

// What a slice takes in a rank's arena: panels, alignment, vectors and the router as f32.
static uint64_t slice_carved(const struct model_config *c, const struct slice *s)
{
    switch (s->role) {
    case ROLE_EMBED: return carved((uint64_t) (s->row.n * s->col.n) * 2);
    case ROLE_FINAL_NORM:
    case ROLE_INPUT_NORM:
    case ROLE_POST_NORM:
    case ROLE_Q_A_NORM:
    case ROLE_KV_A_NORM:
    case ROLE_ROUTER:
    case ROLE_ROUTER_BIAS: return carved((uint64_t) (s->row.n * s->col.n) * 4);
    case ROLE_KV_B: return heads_carved(c, s);
    default: return matrix_carved(c, s->quantized, s->row, s->col);
    }
}

struct counting {
    struct plan_cost *cost;
    enum plan_part part;
};

static enum status count_slice(const struct slice *slice, void *arg)
{
    const struct counting *n = arg;
    struct plan_cost *cost = n->cost;
    struct slice s = *slice;
    uint64_t most = 0;
    for (int rank = 0; rank < cost->tp; rank++) {
        layout_cut(cost->config, &s, rank, cost->tp);
        uint64_t bytes = layout_slice_bytes(cost->config, &s);
        uint64_t more = slice_carved(cost->config, &s);
        more = more > bytes ? more - bytes : 0;
        cost->weights[rank][n->part] += bytes;
        most = more > most ? more : most;
    }
    cost->packing[n->part] += most;
    return OK;
}

static void count_part(struct plan_cost *cost, enum plan_part part, struct placement place)
{
    struct counting n = {cost, part};
    place.tp = cost->tp;
    check(layout_walk(cost->config, &place, count_slice, &n) == OK);
}

// Whether rank a has at least the bytes of rank b in every part.
static bool outweighs(const struct plan_cost *c, int a, int b)
{
    for (int part = 0; part < N_PARTS; part++) {
        if (c->weights[a][part] < c->weights[b][part]) return false;
    }
    return true;
}

// The largest rank is among those that no other outweighs.
static void drop_small_ranks(struct plan_cost *c)
{
    for (int rank = 0; rank < c->tp; rank++) {
        bool small = false;
        for (int i = 0; i < c->n_ranks && !small; i++) small = outweighs(c, i, rank);
        if (small) continue;
        for (int part = 0; part < N_PARTS; part++) {
            c->weights[c->n_ranks][part] = c->weights[rank][part];
        }
        c->n_ranks++;
    }
}

void plan_cost_init(struct plan_cost *c, const struct model_config *config, int tp)
{
    int n = config->n_layers, dense = config->n_dense_layers;
    *c = (struct plan_cost){.config = config, .tp = tp};
    count_part(c, PART_HEAD, (struct placement){.head = true});
    if (dense > 0) count_part(c, PART_DENSE, (struct placement){.first = 0, .last = 1});
    if (dense < n) count_part(c, PART_MOE, (struct placement){.first = n - 1, .last = n});
    count_part(c, PART_TAIL, (struct placement){.tail = true});
    drop_small_ranks(c);
}

// --- buffers: the forward pass' (workers/forward.c), line by line

static uint64_t activations(const struct plan_cost *c, const struct plan_limits *l, uint64_t ffn,
                            bool tail)
{
    const struct model_config *m = c->config;
    uint64_t rows = (uint64_t) l->max_rows, out = (uint64_t) l->max_out;
    uint64_t hidden = (uint64_t) m->hidden_size, heads = (uint64_t) (m->n_heads / c->tp);
    uint64_t q_head = (uint64_t) (m->qk_nope_head_dim + m->qk_rope_head_dim);
    uint64_t blocks = (uint64_t) l->slots * (uint64_t) l->max_blocks;
    const uint64_t values[] = {
        rows, rows, rows, rows,                              // inputs
        blocks,                                              // block tables
        rows * hidden, rows * hidden,                        // x, h
        rows * (uint64_t) m->q_lora_rank,                    // q_a
        rows * (uint64_t) m->q_lora_rank,                    // and normed
        rows * heads * q_head,                               // q
        rows * (uint64_t) model_kv_width(m),                 // c
        rows * (uint64_t) m->qk_rope_head_dim,               // cos, sin
        rows * heads * (uint64_t) m->kv_lora_rank,           // q absorbed
        rows * heads * (uint64_t) m->kv_lora_rank,           // o latent
        rows * heads * (uint64_t) m->v_head_dim,             // o
        rows * hidden, rows * hidden,                        // y of routed and shared experts
        rows * ffn, rows * ffn, rows * ffn,                  // gate, up, act
        rows * (uint64_t) m->n_experts_per_token,            // chosen experts
        rows * (uint64_t) m->n_experts_per_token,            // their weights
        (uint64_t) m->qk_rope_head_dim / 2,                  // inverse frequencies
        tail ? out * hidden : 0, tail ? out * hidden : 0,    // rows with logits
        tail ? out : 0, tail ? out : 0,                      // their slots and positions
        tail ? out * SAMPLED_BYTES / 4 : 0,
    };
    uint64_t bytes = 0;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) bytes += carved(values[i] * 4);
    return bytes;
}

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

// An upper bound of what the kernels want beside: rows and what they chose sorted by expert, scores
// of the router, an input in another order, and for each thread some unpacked weight rows, its sums
// and a KV block in f32.
static uint64_t kernel_scratch(const struct plan_cost *c, const struct plan_limits *l, uint64_t ffn)
{
    const struct model_config *m = c->config;
    uint64_t rows = (uint64_t) l->max_rows, hidden = (uint64_t) m->hidden_size;
    uint64_t pairs = rows * (uint64_t) m->n_experts_per_token;
    uint64_t moe = (uint64_t) (m->moe_intermediate_size / c->tp);
    uint64_t heads = (uint64_t) (m->n_heads / c->tp);
    uint64_t widest = larger(larger(hidden, ffn), larger((uint64_t) m->q_lora_rank,
                                                         heads * (uint64_t) m->v_head_dim));
    uint64_t head = larger((uint64_t) m->qk_nope_head_dim, (uint64_t) m->kv_lora_rank);
    uint64_t inputs = larger(rows, (uint64_t) l->max_out) * (widest + SCRATCH_EDGE) +
                      SCRATCH_HEAD_ROWS * heads * (head + SCRATCH_EDGE);
    uint64_t by_expert = rows * (hidden + SCRATCH_EDGE) + pairs * (2 * moe + SCRATCH_EDGE);
    uint64_t scores = rows * (uint64_t) m->n_routed_experts;
    uint64_t thread = PANEL_ROWS * (SCRATCH_TILE_ROWS + pairs) +
                      KV_BLOCK_ROWS * (uint64_t) model_kv_width(m);
    return 4 * (inputs + by_expert + scores + SCRATCH_THREADS_MAX * thread) + SCRATCH_SPARE;
}

// An upper bound of sampler_bytes for a stage's largest slice of the vocabulary.
static uint64_t sampler(const struct plan_cost *c, const struct plan_limits *l)
{
    uint64_t vocab = (uint64_t) layout_part(c->config->vocab_size, 0, c->tp).n;
    uint64_t batch = (uint64_t) (l->max_out < SAMPLER_BATCH ? l->max_out : SAMPLER_BATCH);
    uint64_t context = (uint64_t) l->max_blocks * KV_BLOCK_ROWS, ranks = (uint64_t) c->tp;
    return (uint64_t) l->slots * (context * 4 + SAMPLER_SLOT_BYTES) +
           (batch * 5 + SAMPLER_ID_BYTES) * vocab + batch * (ranks + 2) * SAMPLER_ROW_BYTES +
           SAMPLER_SPARE;
}

static struct plan_ledger rest_of(const struct plan_cost *c, const struct plan_limits *l,
                                  const bool has[N_PARTS])
{
    const struct model_config *m = c->config;
    int64_t shared = (int64_t) m->n_shared_experts * m->moe_intermediate_size;
    int64_t dense_width = has[PART_DENSE] ? layout_part(m->intermediate_size, 0, c->tp).n : 1;
    int64_t moe_width = has[PART_MOE] ? layout_part(shared, 0, c->tp).n : 1;
    uint64_t ffn = (uint64_t) (dense_width > moe_width ? dense_width : moe_width);
    struct plan_ledger p = {.activations = activations(c, l, ffn, has[PART_TAIL]),
                            .scratch = kernel_scratch(c, l, ffn),
                            .reserve = l->reserve};
    if (has[PART_TAIL]) {
        uint64_t vocab = (uint64_t) layout_part(m->vocab_size, 0, c->tp).n;
        p.logits = carved((uint64_t) l->max_out * vocab * 4);
        p.sampler = sampler(c, l);
    }
    p.total = p.activations + p.logits + p.sampler + p.scratch + p.reserve;
    return p;
}

void plan_cost_limits(struct plan_cost *c, const struct plan_limits *l)
{
    c->kv_layer_block = KV_BLOCK_ROWS * (uint64_t) model_kv_width(c->config) * (l->f32 ? 4 : 2);
    for (int i = 0; i < 16; i++) {
        const bool has[N_PARTS] = {
            [PART_HEAD] = i & 8, [PART_DENSE] = i & 4, [PART_MOE] = i & 2, [PART_TAIL] = i & 1};
        c->rest[has[PART_HEAD]][has[PART_DENSE]][has[PART_MOE]][has[PART_TAIL]] =
            rest_of(c, l, has);
    }
}

// --- stages

static void count_parts(const struct plan_cost *c, const struct plan_stage *s,
                        uint64_t n[N_PARTS])
{
    int dense = c->config->n_dense_layers;
    int first = s->first < dense ? s->first : dense, last = s->last < dense ? s->last : dense;
    n[PART_HEAD] = s->head;
    n[PART_DENSE] = (uint64_t) (last - first);
    n[PART_MOE] = (uint64_t) (s->last - s->first - (last - first));
    n[PART_TAIL] = s->tail;
}

static uint64_t weight_bytes(const struct plan_cost *c, const uint64_t n[N_PARTS])
{
    uint64_t most = 0;
    for (int rank = 0; rank < c->n_ranks; rank++) {
        const uint64_t *w = c->weights[rank];
        uint64_t bytes = n[PART_HEAD] * w[PART_HEAD] + n[PART_DENSE] * w[PART_DENSE] +
                         n[PART_MOE] * w[PART_MOE] + n[PART_TAIL] * w[PART_TAIL];
        most = bytes > most ? bytes : most;
    }
    return most;
}

static uint64_t packing_bytes(const struct plan_cost *c, const uint64_t n[N_PARTS])
{
    uint64_t bytes = 0;
    for (int part = 0; part < N_PARTS; part++) bytes += n[part] * c->packing[part];
    return bytes;
}

static const struct plan_ledger *rest_at(const struct plan_cost *c, const uint64_t n[N_PARTS])
{
    return &c->rest[n[PART_HEAD] > 0][n[PART_DENSE] > 0][n[PART_MOE] > 0][n[PART_TAIL] > 0];
}

uint64_t plan_cost_block(const struct plan_cost *c, int n_layers)
{
    return c->kv_layer_block * (uint64_t) n_layers;
}

uint64_t plan_cost_bytes(const struct plan_cost *c, const struct plan_stage *s, int64_t kv_blocks)
{
    uint64_t n[N_PARTS];
    count_parts(c, s, n);
    return weight_bytes(c, n) + packing_bytes(c, n) + rest_at(c, n)->total +
           plan_cost_block(c, s->last - s->first) * (uint64_t) kv_blocks;
}

struct plan_ledger plan_cost_ledger(const struct plan_cost *c, const struct plan_stage *s,
                                    int64_t kv_blocks)
{
    uint64_t n[N_PARTS];
    count_parts(c, s, n);
    struct plan_ledger p = *rest_at(c, n);
    p.weights = weight_bytes(c, n);
    p.kv = plan_cost_block(c, s->last - s->first) * (uint64_t) kv_blocks;
    p.scratch += packing_bytes(c, n);
    p.total = plan_cost_bytes(c, s, kv_blocks);
    return p;
}
