#include "tests/sim/play.h"

#include "tests/sim/faults.h"
#include "tests/sim/sim_net.h"
#include "tests/sim/sim_redis.h"
#include "tests/sim/sim_stage.h"
#include "tests/sim/truth.h"
#include "tests/sim/world.h"

#include <stdio.h>
#include <string.h>

enum {
    LOOK_MS = 500,
    TENANTS = 3,
    JOBS_LEAST = 3, JOBS_MOST = 24,
    FAULTS_MOST = 7,
    MESSAGE_AGAIN_MS = 400, // a producer that finds Redis away
};

// After the last fault all jobs have ended so soon (leases, retries), and in the time that they
// take one after the other.
#define PATIENCE_NS (240 * SIM_S)
// Then every result is committed, and every credit is back.
#define IDLE_NS (60 * SIM_S)

static int64_t base_ns, row_ns, load_most_ns, way_most_ns;
static int n_tenants;

static int64_t step_ns(const struct stage_options *o, const struct step *s)
{
    int64_t whole = base_ns + row_ns * s->n_rows;
    return whole * (o->last - o->first) / o->config->n_layers + sim_between(0, base_ns / 8);
}

static int64_t load_ns(const struct stage_options *o)
{
    (void) o;
    return sim_between(50 * SIM_MS, load_most_ns);
}

// --- the deployment

static void choose_world(const struct model_config *c, struct world_options *w)
{
    *w = (struct world_options){.config = c, .tp = 1, .urgent_percent = 5, .fragile = true};
    w->n_brokers = sim_chance(40) ? 2 : 1;
    w->n_stages = (int) sim_between(1, c->n_layers < 3 ? c->n_layers : 3);
    w->pipelines = sim_chance(30) ? 2 : 1;
    w->spares = sim_chance(30) ? 1 : 0;
    w->n_groups = w->n_stages * w->pipelines + w->spares;
    w->slots = (int) sim_between(1, 6);
    w->max_context = (int) sim_between(2, 5) * KV_BLOCK_ROWS;
    int most = w->max_context / KV_BLOCK_ROWS;
    w->kv_blocks = (int) sim_between(most, most * w->slots);
    w->max_rows = (int) sim_between(8, 96);
    w->chunk = sim_chance(50) ? (int) sim_between(4, w->max_rows) : 0;
    w->device_bytes = 256 << 20;
    w->step_deadline_ms = sim_between(3000, 10000);
    w->age_ms = sim_chance(50) ? 20000 : 0;
    base_ns = sim_between(10, 120) * SIM_MS;
    row_ns = base_ns / 60;
    load_most_ns = sim_between(100, 4000) * SIM_MS;
}

static void choose_network(void)
{
    struct sim_net net = {.least_ns = 20000, .most_ns = sim_between(50, 5000) * 1000};
    if (sim_chance(20)) net.most_ns = sim_between(5, 80) * SIM_MS;
    net.blind_ns = sim_chance(60) ? sim_between(0, 20) * SIM_MS : sim_between(0, 8000) * SIM_MS;
    int64_t wake_ns = sim_chance(50) ? 100000 : sim_between(0, 3 * SIM_MS);
    sim_net_set(&net);
    sim_set_wake_ns(wake_ns);
    way_most_ns = net.most_ns + wake_ns;
}

// --- jobs

static void push(void *arg)
{
    struct truth_job *j = arg;
    if (sim_redis_up()) truth_push(j);
    else sim_at(sim_now() + MESSAGE_AGAIN_MS * SIM_MS, push, j);
}

static void push_cancel(void *arg)
{
    const struct truth_job *j = arg;
    if (sim_redis_up() && j->pushed_ns != 0) truth_push_cancel(j);
    else sim_at(sim_now() + MESSAGE_AGAIN_MS * SIM_MS, push_cancel, arg);
}

static void push_rubbish(void *arg)
{
    static const char rubbish[] = "\x81\xa1v\x01 this is no job";
    (void) arg;
    if (sim_redis_up()) truth_push_bytes("default", rubbish, sizeof rubbish - 1);
}

static void choose_job(struct truth_job *j, int i, int64_t from_ns, int64_t to_ns)
{
    static const char *const tenants[TENANTS] = {"default", "acme", "zeta"};
    int context = world.options.max_context;
    snprintf(j->tenant, sizeof j->tenant, "%s", tenants[sim_between(0, n_tenants - 1)]);
    snprintf(j->id, sizeof j->id, "job-%d", i);
    j->class = (int) sim_between(0, JOB_CLASSES - 1);
    j->refused = sim_chance(3);
    j->n_prompt = (int) sim_between(1, sim_chance(50) ? 20 : context - 1);
    j->max_tokens = (int) sim_between(1, sim_chance(70) ? 40 : context);
    if (j->n_prompt + j->max_tokens > context) j->max_tokens = context - j->n_prompt;
    if (j->refused) j->max_tokens = context + 1;
    j->ignore_eos = sim_chance(70);
    j->stream = sim_chance(20);
    int64_t at = sim_between(from_ns, to_ns);
    if (sim_chance(10)) j->at_ms = sim_wall_ms(at + sim_between(0, 10) * SIM_S);
    if (sim_chance(10)) j->deadline_ms = sim_wall_ms(at + sim_between(1, 60) * SIM_S);
    j->cancelled = sim_chance(10);
    truth_settle(j);
    sim_at(at, push, j);
    if (sim_chance(15)) sim_at(at + sim_between(0, 10 * SIM_S), push, j); // the same once more
    if (j->cancelled) sim_at(at + sim_between(0, 8 * SIM_S), push_cancel, j);
}

static void add_tenants(void)
{
    static const struct bytes argv[] = {
        {"HSET", 4}, {"ps:{" WORLD_QUEUE "}:tenants", sizeof "ps:{" WORLD_QUEUE "}:tenants" - 1},
        {"default", 7}, {"1", 1}, {"acme", 4}, {"weight=3 jobs=2", 15}, {"zeta", 4}, {"2", 1}};
    n_tenants = sim_chance(50) ? 1 : (int) sim_between(2, TENANTS);
    sim_redis_run(argv, 2 + 2 * n_tenants);
}

// --- the seed

// Of all jobs, if each step had rows of one of them only.
static int64_t work_ns(void)
{
    const struct world_options *w = &world.options;
    int chunk = w->chunk > 0 ? w->chunk : w->max_rows;
    int64_t steps = 0, rows = 0;
    for (int i = 0; i < truth.n; i++) {
        steps += truth.jobs[i].n_tokens + truth.jobs[i].n_prompt / chunk + 1;
        rows += truth.jobs[i].n_tokens + truth.jobs[i].n_prompt;
    }
    return steps * (2 * base_ns + w->n_stages * way_most_ns) + rows * row_ns;
}

static void run_until_ended(void)
{
    char why[256] = "";
    int64_t last = 0, at = 0;
    for (bool ended = false; !ended;) {
        at += LOOK_MS * SIM_MS;
        while (sim_step(at)) {}
        ended = truth_look();
        if (faults_end() > last) last = faults_end();
        if (!ended && at > last + PATIENCE_NS + work_ns()) {
            truth_show();
            sim_fail("%d of %d jobs have not ended", truth.n - truth.n_ended, truth.n);
        }
    }
    int64_t limit = (at > last ? at : last) + IDLE_NS;
    while (at < last || !world_is_idle(why, sizeof why)) {
        at += LOOK_MS * SIM_MS;
        while (sim_step(at)) {}
        if (at > limit) sim_fail("all jobs have ended, but %s", why);
    }
}

void play_seed(const struct model_config *c, uint64_t seed, bool trace, struct play_counts *counts)
{
    const struct sim_devices devices = {.step_ns = step_ns, .load_ns = load_ns};
    struct world_options w;
    world_open(seed, trace, false, &devices);
    choose_world(c, &w);
    w.device = seed % 2 == 0 ? DEVICE_CUDA : DEVICE_CPU; // paces that begin as either's
    choose_network();
    add_tenants();
    truth_begin(c, (int) sim_between(JOBS_LEAST, JOBS_MOST));
    int n_faults = sim_chance(10) ? 0 : (int) sim_between(1, FAULTS_MOST);
    int64_t to = sim_between(3, 30) * SIM_S;
    sim_say("%d brokers, %d pipelines of %d stages, %d spares, %d slots, %d blocks, context %d, "
            "%d rows, %d jobs, %d faults", w.n_brokers, w.pipelines, w.n_stages, w.spares, w.slots,
            w.kv_blocks, w.max_context, w.max_rows, truth.n, n_faults);
    faults_plan(n_faults, SIM_S, to);
    world_begin(&w);
    for (int i = 0; i < truth.n; i++) choose_job(&truth.jobs[i], i, 0, to);
    for (int i = (int) sim_between(0, 2); i > 0; i--) {
        sim_at(sim_between(0, to), push_rubbish, NULL);
    }
    run_until_ended();
    counts->n_seeds++;
    counts->n_jobs += (uint64_t) truth.n;
    counts->n_faults += (uint64_t) n_faults;
    counts->n_lives += (uint64_t) world.n_died;
    counts->n_steps += sim_stage_counts()->n_steps;
    counts->n_tokens += (uint64_t) truth.n_checked_tokens;
    counts->simulated_ns += sim_now();
    for (int i = 0; i < 4; i++) counts->n_by_word[i] += (uint64_t) truth.n_by_word[i];
    world_close();
}
