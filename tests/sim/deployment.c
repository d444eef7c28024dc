#include "tests/sim/deployment.h"

#include "common/cost_model.h"
#include "common/plan.h"
#include "tests/sim/sim_net.h"
#include "tests/sim/sim_redis.h"
#include "tests/sim/sim_stage.h"
#include "tests/sim/truth.h"
#include "tests/sim/world.h"
#include "workers/head.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    OUTPUT = 512,        // tokens of each job
    WARM_STEP_NS = 1000, // a step before all sequences decode, which takes more rows than any later
    WARM_ROWS = STEP_ROWS_MAX,
    SETTLE_STEPS = 30,   // after that, before anything is counted
    STEPS = 300,         // that are counted
    SEED = 1,
};

#define PATIENCE_NS (3600 * SIM_S)

// What the device's times are made of; one deployment is played at a time.
static struct {
    struct cost_model cost;
    struct device_rates rates;
    bool warm;
} playing;

// --- times

static struct plan_stage stage_of(const struct stage_options *o)
{
    return (struct plan_stage){o->first, o->last, o->head, o->tail};
}

static int64_t step_ns(const struct stage_options *o, const struct step *s)
{
    struct cost_step content = {0};
    struct plan_stage stage = stage_of(o);
    if (playing.warm) return WARM_STEP_NS;
    for (int i = 0; i < s->n_runs; i++) {
        const struct step_run *r = &s->runs[i];
        cost_step_add(&content, r->pos, r->n, r->logits == RUN_LAST_ROW);
    }
    return (int64_t) (cost_stage(&playing.cost, &stage, &playing.rates, &content).seconds * 1e9);
}

static int64_t load_ns(const struct stage_options *o)
{
    (void) o;
    return SIM_S;
}

// --- the plan

static enum status make_plan(const struct deployment *d, int slots, struct plan *p)
{
    struct plan_request r = {.config = d->config, .device = DEVICE_CUDA, .pp = d->nodes,
                             .tp = d->gpus, .fp8_kv = d->fp8_kv, .slots = slots,
                             .max_context = d->context};
    struct error e;
    for (int i = 0; i < d->nodes; i++) r.device_bytes[i] = d->device_bytes;
    return plan_make(p, &r, &e);
}

static int blocks_of(int tokens) { return (tokens + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS; }

// What a layer's q_b and kv_b take on each rank beyond its slice of them, where KV is shared out by
// sequence and every rank needs all heads.
static double replicated_bytes(const struct deployment *d)
{
    const struct model_config *c = d->config;
    double heads = c->n_heads, nope = c->qk_nope_head_dim, rope = c->qk_rope_head_dim;
    double q = heads * (nope + rope) * (c->q_lora_rank > 0 ? c->q_lora_rank : c->hidden_size);
    double kv = heads * (nope + c->v_head_dim) * c->kv_lora_rank;
    if (d->kv_ranks == 1) return 0;
    return (q + kv) * (c->fp8 ? 1 : 2) * (d->gpus - 1) / d->gpus;
}

// Blocks of the pool, if its ranks share them out.
static int64_t pool_of(const struct deployment *d, const struct plan *p)
{
    double least = INFINITY;
    for (int i = 0; i < p->pp; i++) {
        double block = (double) p->kv_block_bytes[i];
        double room = (double) p->kv_room[i] * block - p->layers[i] * replicated_bytes(d);
        double n = room * d->kv_ranks / block;
        if (n < least) least = n;
    }
    return least > 0 ? (int64_t) least : 0;
}

static bool holds(const struct deployment *d, int batch, struct plan *p)
{
    if (make_plan(d, batch, p) != OK || !p->fits) return false;
    return pool_of(d, p) >= (int64_t) batch * blocks_of(d->context);
}

int deployment_capacity(const struct deployment *d)
{
    int low = 0, high = SLOTS_MAX + 1;
    while (high - low > 1) {
        struct plan p;
        int middle = (low + high) / 2;
        if (holds(d, middle, &p)) low = middle;
        else high = middle;
    }
    return low;
}

// --- one batch

// Tokens that all running sequences have; -1: not all of them decode.
static int64_t decoded(const struct head *h, int batch)
{
    int64_t n = 0;
    if (h == NULL || h->n_running != batch) return -1;
    for (int i = 0; i < h->options.limits.slots; i++) {
        const struct seq *q = &h->seqs[i];
        if (!q->used) continue;
        if (q->n_known == q->n_prompt) return -1;
        n += q->n_known;
    }
    return n;
}

struct mark {
    int64_t ns, tokens, busy[PP_MAX];
    uint64_t n_steps;
};

static struct mark mark_now(int batch)
{
    const struct sim_stage_counts *c = sim_stage_counts();
    struct mark m = {.ns = sim_now(), .tokens = decoded(world_head(), batch),
                     .n_steps = c->n_steps};
    for (int i = 0; i < c->n_firsts; i++) m.busy[i] = c->busy_ns[i];
    return m;
}

static void run_until(bool (*reached)(uint64_t n), uint64_t n)
{
    while (!reached(n)) {
        if (sim_now() > PATIENCE_NS) sim_fail("the deployment does not get there");
        sim_step(sim_now() + SIM_S);
    }
}

static bool all_decode(uint64_t batch) { return decoded(world_head(), (int) batch) >= 0; }
static bool steps_done(uint64_t n) { return sim_stage_counts()->n_steps >= n; }

static void push_jobs(const struct deployment *d, int batch)
{
    truth_begin(d->config, batch);
    sim_redis_watch(NULL); // light devices choose other tokens
    for (int i = 0; i < batch; i++) {
        struct truth_job *j = &truth.jobs[i];
        snprintf(j->tenant, sizeof j->tenant, "default");
        snprintf(j->id, sizeof j->id, "job-%d", i);
        j->n_prompt = d->context - OUTPUT;
        j->max_tokens = OUTPUT;
        j->ignore_eos = true;
        j->ids = sim_alloc((size_t) j->n_prompt * sizeof *j->ids);
        for (int k = 0; k < j->n_prompt; k++) j->ids[k] = 2 + (i + k) % 1000;
        truth_push(j);
    }
}

// With the decodes dealt out over n steps in flight, if nothing ever waits but for its turn.
static void limit_with(const struct deployment *d, int n, struct deployment_figures *f)
{
    double b = (double) f->batch / n, slowest = 0, round = 0;
    struct cost_step s = {b, b * f->context, b * f->context, b};
    for (int i = 0, first = 0; i < f->n_stages; first += f->layers[i++]) {
        struct plan_stage stage = {first, first + f->layers[i], i == 0, i == f->n_stages - 1};
        double seconds = cost_stage(&playing.cost, &stage, &playing.rates, &s).seconds;
        if (seconds > slowest) slowest = seconds;
        round += seconds + cost_link(&playing.cost, &d->rates, &s);
    }
    double by_stage = b / slowest, by_round = f->batch / round;
    double limit_s = by_stage < by_round ? by_stage : by_round;
    if (limit_s <= f->limit_s) return;
    f->limit_s = limit_s;
    f->stage_ms = slowest * 1e3;
}

// Of as many steps as do best: the head may have fewer in flight than it is allowed.
static void limit(const struct deployment *d, struct deployment_figures *f)
{
    int most = f->batch < f->steps_in_flight ? f->batch : f->steps_in_flight;
    for (int n = most < f->n_stages ? most : f->n_stages; n <= most; n++) limit_with(d, n, f);
}

static void measure(const struct deployment *d, struct deployment_figures *f)
{
    playing.warm = true;
    run_until(all_decode, (uint64_t) f->batch);
    playing.warm = false;
    run_until(steps_done, sim_stage_counts()->n_steps + SETTLE_STEPS);
    struct mark a = mark_now(f->batch);
    run_until(steps_done, a.n_steps + STEPS);
    struct mark b = mark_now(f->batch);
    if (a.tokens < 0 || b.tokens < 0) sim_fail("a sequence ended too early");
    double ns = (double) (b.ns - a.ns), busiest = 0;
    for (int i = 0; i < f->n_stages; i++) {
        double busy = (double) (b.busy[i] - a.busy[i]);
        if (busy > busiest) busiest = busy;
    }
    f->tokens_s = (double) (b.tokens - a.tokens) / ns * 1e9;
    f->bubble = busiest < ns ? 1 - busiest / ns : 0; // a step counts when it begins
    f->context = (double) (a.tokens + b.tokens) / 2 / f->batch;
    limit(d, f);
}

static struct sim_net network_of(const struct deployment *d)
{
    int64_t way = (int64_t) (d->rates.link_s * 1e9);
    return (struct sim_net){.least_ns = way, .most_ns = way, .bytes_per_s = d->rates.link,
                            .payload_scale = (double) d->config->hidden_size * 2 / SIM_WORD_BYTES};
}

void deployment_play(const struct deployment *d, int batch, struct deployment_figures *f)
{
    const struct sim_devices devices = {.step_ns = step_ns, .load_ns = load_ns, .light = true};
    struct cost_form form = {.tp = d->gpus, .kv_ranks = d->kv_ranks, .fp8_gemm = d->config->fp8,
                             .fp8_kv = d->fp8_kv};
    struct plan p;
    *f = (struct deployment_figures){.batch = batch, .fits = holds(d, batch, &p)};
    if (!f->fits) return;
    f->n_stages = p.pp;
    f->steps_in_flight = p.steps_in_flight;
    memcpy(f->layers, p.layers, sizeof f->layers);
    cost_model_init(&playing.cost, d->config, &form);
    playing.rates = d->rates;
    playing.warm = true;
    world_open(SEED, d->trace, true, &devices);
    struct sim_net net = network_of(d);
    sim_net_set(&net);
    // The room for KV is the plan's own; what-ifs of its form need a larger device to say so.
    struct world_options w = {.config = d->config, .n_brokers = 1, .n_groups = d->nodes,
                              .n_stages = d->nodes, .tp = d->gpus, .pipelines = 1, .slots = batch,
                              .kv_blocks = batch * blocks_of(d->context),
                              .max_context = d->context, .max_rows = WARM_ROWS,
                              .device = DEVICE_CUDA,
                              .device_bytes = d->device_bytes * (uint64_t) (2 * d->kv_ranks),
                              .step_deadline_ms = 600000};
    memcpy(w.layers, p.layers, sizeof w.layers);
    world_begin(&w);
    push_jobs(d, batch);
    measure(d, f);
    world_close();
}

// --- what is told

static const struct {
    const char *name, *rates;
    uint64_t bytes;
} cards[] = {{"4090", "rtx4090", 24564 * (uint64_t) MIB}, {"h100", "h100", 81559 * (uint64_t) MIB}};

enum status deployment_parse(const char *text, struct deployment *d, struct error *e)
{
    char card[32] = "";
    int n = 0;
    bool read = sscanf(text, "%dx%dx%31[a-z0-9]%n", &d->nodes, &d->gpus, card, &n) == 3;
    for (size_t i = 0; read && i < sizeof cards / sizeof *cards; i++) {
        if (strcmp(cards[i].name, card) != 0 || text[n] != '\0') continue;
        if (d->nodes < 1 || d->nodes > GROUPS_IN_WORLD || d->gpus < 1 || d->gpus > TP_MAX) break;
        d->device_bytes = cards[i].bytes;
        return device_rates_named(&d->rates, cards[i].rates, e);
    }
    return error_set(e, ERR_INPUT, "bad_usage", "--deployment wants NODESxGPUSxCARD, with a card "
                     "of 4090 or h100, as 4x8x4090, not \"%.40s\"", text);
}

// Of performance.md, for 4x8x4090 with KV in FP8, shared out over the ranks: tokens/s with stock
// NCCL. What is told beside them was not measured either.
static double derived(const struct deployment *d, int batch, bool capacity)
{
    static const double rates[][2] = {{1, 63}, {8, 423}, {32, 896}, {128, 1563}};
    bool known = d->nodes == 4 && d->gpus == 8 && strcmp(d->rates.name, "rtx4090") == 0 &&
                 d->kv_ranks == 8 && d->fp8_kv && d->context == 4096;
    for (int i = 0; known && i < 4; i++) {
        if ((int) rates[i][0] == batch) return rates[i][1];
    }
    return known && capacity ? 2634 : 0;
}

static bool show_batch(const struct deployment *d, int batch, bool capacity)
{
    struct deployment_figures f;
    deployment_play(d, batch, &f);
    if (!f.fits) {
        printf("# %8d   does not fit\n", batch);
        return true;
    }
    double known = derived(d, batch, capacity);
    char beside[32] = "-";
    if (known > 0) snprintf(beside, sizeof beside, "%.0f", known);
    printf("# %8d %10.1f %10.1f %8.1f%% %8.1f%% %10.2f %12s\n", batch, f.tokens_s, f.limit_s,
           100 * f.tokens_s / f.limit_s, 100 * f.bubble, f.stage_ms, beside);
    // With fewer sequences than steps in flight the stages wait for want of work.
    bool full = batch >= f.steps_in_flight;
    return f.tokens_s >= 0.95 * f.limit_s && (!full || f.bubble <= 0.05);
}

static bool show_form(const struct deployment *d)
{
    int capacity = deployment_capacity(d);
    const int batches[] = {1, 8, 32, 128, capacity};
    bool good = true;
    printf("#\n# KV %s, %s: %d sequences of %d tokens\n",
           d->kv_ranks > 1 ? "shared out over the ranks (not built yet)" : "whole on each rank",
           d->fp8_kv ? "FP8" : "bf16", capacity, d->context);
    printf("# %8s %10s %10s %9s %9s %10s %12s\n", "batch", "tokens/s", "limit", "of it", "bubble",
           "stage, ms", "derived");
    for (int i = 0; i < 5 && capacity > 0; i++) {
        bool last = i == 4;
        if (last && capacity == batches[i - 1]) continue;
        good = show_batch(d, batches[i], last) && good;
    }
    return good;
}

bool deployment_show(struct deployment *d)
{
    struct plan p;
    int capacity = deployment_capacity(d);
    if (capacity == 0) {
        printf("# the model does not fit: see penstock plan\n");
        return false;
    }
    make_plan(d, capacity, &p);
    printf("# PREDICTED: the true broker and head, step times of the cost model (%s). Nothing\n"
           "# here was measured on such devices. %d nodes of %d, layers", d->rates.name,
           d->nodes, d->gpus);
    for (int i = 0; i < p.pp; i++) printf("%c%d", i > 0 ? ',' : ' ', p.layers[i]);
    printf(", %d steps in flight; decode\n", p.steps_in_flight);
    bool good = show_form(d);
    d->kv_ranks = d->gpus;
    d->fp8_kv = true;
    return d->gpus > 1 ? show_form(d) && good : good;
}
