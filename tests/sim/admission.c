#include "tests/sim/admission.h"

#include "tests/sim/sim_redis.h"
#include "tests/sim/sim_stage.h"
#include "tests/sim/truth.h"
#include "tests/sim/world.h"
#include "workers/head.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    JOBS = 10000,
    AVERAGE_JOBS = 20,  // that the pool holds
    LEFT_OUT = JOBS / 20,
    STAGES = 2,
    SLOTS = 256,        // never what is short
    BASE_MS = 10,       // of a step in a stage
    ROW_US = 20,
    COUNT_EVERY_MS = 1000,
    SEED = 1,
};

static int64_t step_ns(const struct stage_options *o, const struct step *s)
{
    (void) o;
    return BASE_MS * SIM_MS + ROW_US * 1000ll * s->n_rows;
}

static int64_t load_ns(const struct stage_options *o)
{
    (void) o;
    return SIM_S;
}

static int blocks_of(int tokens) { return (tokens + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS; }

// Uniform in its whole length, which prompt and output share at random.
static int choose_jobs(const struct model_config *c, int context)
{
    int64_t blocks = 0;
    truth_begin(c, JOBS);
    for (int i = 0; i < JOBS; i++) {
        struct truth_job *j = &truth.jobs[i];
        int whole = (int) sim_between(2, context);
        snprintf(j->tenant, sizeof j->tenant, "default");
        snprintf(j->id, sizeof j->id, "job-%d", i);
        j->n_prompt = (int) sim_between(1, whole - 1);
        j->max_tokens = whole - j->n_prompt;
        j->class = 1;
        j->ignore_eos = true;
        truth_settle(j);
        blocks += blocks_of(whole);
    }
    return (int) (blocks * AVERAGE_JOBS / JOBS);
}

static int n_done(void)
{
    static const char key[] = "ps:{" WORLD_QUEUE "}:n";
    const struct bytes argv[] = {{"HGET", 4}, {key, sizeof key - 1}, {"done", 4}};
    struct answer a = sim_redis_run(argv, 3);
    return a.kind == ANSWER_BYTES ? atoi(a.bytes.at) : 0;
}

struct usage {
    double block_ns; // reserved blocks over time
    int64_t from_ns, to_ns;
};

static int reserved(void)
{
    const struct head *h = world_head();
    return h != NULL ? h->kv.n_blocks - h->kv.n_free : 0;
}

// From the first reservation until so many jobs are done.
static struct usage run_until_done(int n)
{
    struct usage u = {0};
    int64_t count_ns = 0, before_ns = sim_now();
    int before = 0;
    while (count_ns == 0 || n_done() < n) {
        count_ns = sim_now() + COUNT_EVERY_MS * SIM_MS;
        while (sim_step(count_ns)) {
            u.block_ns += (double) before * (double) (sim_now() - before_ns);
            before_ns = sim_now();
            before = reserved();
            if (u.from_ns == 0 && before > 0) u.from_ns = sim_now();
        }
    }
    u.to_ns = sim_now();
    return u;
}

// urgent_percent: of the pool, which is kept free for class 0 and so is none of these jobs'.
static bool show(const struct model_config *c, int context, int urgent_percent, bool trace)
{
    const struct sim_devices devices = {.step_ns = step_ns, .load_ns = load_ns};
    world_open(SEED, trace, false, &devices);
    int blocks = choose_jobs(c, context);
    if (blocks < blocks_of(context)) blocks = blocks_of(context);
    struct world_options w = {.config = c, .n_brokers = 1, .n_groups = STAGES, .n_stages = STAGES,
                              .tp = 1, .pipelines = 1, .slots = SLOTS, .kv_blocks = blocks,
                              .max_context = context, .urgent_percent = urgent_percent,
                              .age_ms = 300000,
                              .device_bytes = 1ull << 40, .step_deadline_ms = 60000};
    world_begin(&w);
    for (int i = 0; i < JOBS; i++) truth_push(&truth.jobs[i]);
    struct usage u = run_until_done(JOBS - LEFT_OUT);
    double seconds = (double) (u.to_ns - u.from_ns) / 1e9;
    double share = u.block_ns / 1e9 / seconds / blocks;
    run_until_done(JOBS);
    bool ended = truth_look() && truth.n_by_word[0] == JOBS;
    printf("# %d jobs of 2 to %d tokens over %d blocks, %d%% kept for class 0: %d done, %d tokens "
           "checked;\n#   %.2f%% of the blocks reserved over %.0f simulated seconds, the last %d "
           "jobs left out\n", JOBS, context, blocks, urgent_percent, truth.n_by_word[0],
           truth.n_checked_tokens, 100 * share, seconds, LEFT_OUT);
    world_close();
    return ended && share >= 0.95 * (1 - urgent_percent / 100.0);
}

bool admission_show(const struct model_config *c, int context, bool trace)
{
    bool all = show(c, context, 0, trace);
    return show(c, context, 5, trace) && all;
}
