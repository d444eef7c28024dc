#include "tests/sim/calibrated.h"

#include "tests/sim/sim_net.h"
#include "tests/sim/sim_stage.h"
#include "tests/sim/truth.h"
#include "tests/sim/world.h"
#include "workers/head.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { POINTS_MAX = 32, BATCHES_MAX = 32, SEED = 1,
       TOGETHER_MS = 2000 /* until then all jobs of a batch are admitted, and come at once */ };

#define PATIENCE_NS (3600 * SIM_S)
#define WITHIN 0.10

// A time in microseconds over the rows of a step.
struct curve {
    int n;
    struct { double rows, us; } at[POINTS_MAX]; // by rows
};

// What was measured.
static struct {
    int n_stages, slots, kv_blocks, max_context, max_rows, chunk, n_prompt, n_tokens;
    int cores, threads; // of the machine; of each stage's ranks, 0 where a device computes
    int layers[PP_MAX];
    struct curve decode[PP_MAX], prefill[PP_MAX], leader[PP_MAX], caller;
    int n_batches;
    struct { int batch; double tokens_s; } batches[BATCHES_MAX];
} csv;

// --- the file

// Batches may have steps of the same size: their mean counts.
static bool add_point(struct curve *c, double rows, double us)
{
    if (c->n > 0 && c->at[c->n - 1].rows >= rows) {
        c->at[c->n - 1].us = (c->at[c->n - 1].us + us) / 2;
        return true;
    }
    if (c->n == POINTS_MAX) return false;
    c->at[c->n].rows = rows;
    c->at[c->n++].us = us;
    return true;
}

// Of each stage one.
static struct curve *curves_named(const char *name)
{
    if (strcmp(name, "step") == 0) return csv.decode;
    if (strcmp(name, "prefill") == 0) return csv.prefill;
    return strcmp(name, "leader") == 0 ? csv.leader : NULL;
}

static bool read_line(const char *line)
{
    int i, n;
    double rows, us;
    char name[16];
    if (sscanf(line, "pipeline,%d,%d,%d,%d,%d,%d,%d,%d", &csv.n_stages, &csv.slots, &csv.kv_blocks,
               &csv.max_context, &csv.max_rows, &csv.chunk, &csv.n_prompt, &csv.n_tokens) == 8) {
        return csv.n_stages >= 1 && csv.n_stages <= PP_MAX && csv.n_tokens >= 1;
    }
    if (sscanf(line, "machine,%d,%d", &csv.cores, &csv.threads) == 2) {
        return csv.cores >= 1 && csv.threads >= 0;
    }
    if (sscanf(line, "stage,%d,%d", &i, &n) == 2 && i >= 0 && i < csv.n_stages) {
        csv.layers[i] = n;
        return true;
    }
    if (sscanf(line, "caller,%lf,%lf", &rows, &us) == 2) return add_point(&csv.caller, rows, us);
    if (sscanf(line, "decode,%d,%lf", &n, &us) == 2 && csv.n_batches < BATCHES_MAX) {
        csv.batches[csv.n_batches].batch = n;
        csv.batches[csv.n_batches++].tokens_s = us;
        return true;
    }
    if (sscanf(line, "%15[a-z],%d,%lf,%lf", name, &i, &rows, &us) != 4) return false;
    struct curve *of = curves_named(name);
    return of != NULL && i >= 0 && i < csv.n_stages && add_point(&of[i], rows, us);
}

static enum status read_file(const char *path, struct error *e)
{
    char line[256];
    int n = 0;
    FILE *f = fopen(path, "r");
    if (f == NULL) return error_set(e, ERR_IO, NULL, "cannot read %s: %s", path, strerror(errno));
    memset(&csv, 0, sizeof csv);
    bool good = true;
    while (good && fgets(line, sizeof line, f) != NULL) {
        n++;
        good = read_line(line);
    }
    fclose(f);
    for (int i = 0; i < csv.n_stages; i++) {
        good = good && csv.decode[i].n >= 2 && csv.prefill[i].n >= 1 && csv.leader[i].n >= 1;
    }
    if (good && csv.n_batches >= 1 && csv.batches[0].batch == 1 && csv.caller.n >= 1 &&
        csv.cores >= 1) {
        return OK;
    }
    return error_set(e, ERR_INPUT, "bad_csv", "%s, line %d: not what penstock bench pipeline "
                     "writes, with a batch of 1 first", path, n);
}

// --- times

static int stage_index(const struct stage_options *o)
{
    int i = 0;
    for (int first = 0; i + 1 < csv.n_stages && first + csv.layers[i] <= o->first; i++) {
        first += csv.layers[i];
    }
    return i;
}

// Linear between the points, and beyond the last ones.
static double at(const struct curve *c, double rows)
{
    int i = 1;
    if (c->n == 1) return c->at[0].us;
    while (i + 1 < c->n && c->at[i].rows < rows) i++;
    double r0 = c->at[i - 1].rows, r1 = c->at[i].rows;
    double t0 = c->at[i - 1].us, t1 = c->at[i].us;
    double us = t0 + (t1 - t0) * (rows - r0) / (r1 - r0);
    return us > 0 ? us : 0;
}

static int64_t step_ns(const struct stage_options *o, const struct step *s)
{
    const struct curve *of = s->n_rows > s->n_runs ? csv.prefill : csv.decode;
    return (int64_t) (at(&of[stage_index(o)], s->n_rows) * 1e3);
}

static int64_t leader_ns(const struct stage_options *o, const struct step *s)
{
    return (int64_t) (at(&csv.leader[stage_index(o)], s->n_rows) * 1e3);
}

static int64_t caller_ns(const struct step *s)
{
    return (int64_t) (at(&csv.caller, s->n_rows) * 1e3);
}

static int64_t load_ns(const struct stage_options *o)
{
    (void) o;
    return SIM_S;
}

// What one sequence takes beyond its steps and their leaders, for each hop: links, and threads that
// wake.
static double hop_us(void)
{
    double us = 1e6 / csv.batches[0].tokens_s * csv.n_tokens;
    for (int i = 0; i < csv.n_stages; i++) {
        us -= at(&csv.prefill[i], csv.n_prompt) + at(&csv.leader[i], csv.n_prompt);
        us -= (at(&csv.decode[i], 1) + at(&csv.leader[i], 1)) * (csv.n_tokens - 1);
    }
    return us > 0 ? us / csv.n_tokens / csv.n_stages : 0;
}

// --- a batch

static bool some_run(const struct head *h) { return h != NULL && h->n_running > 0; }
static bool none_run(const struct head *h) { return h != NULL && h->n_running == 0; }

static void run_until(bool (*reached)(const struct head *h))
{
    while (!reached(world_head())) {
        if (sim_now() > PATIENCE_NS) sim_fail("the batch does not end");
        sim_step(sim_now() + SIM_S);
    }
}

static int n_jobs(void)
{
    int n = 0;
    for (int i = 0; i < csv.n_batches; i++) n += csv.batches[i].batch;
    return n;
}

static void push_jobs(int first, int n)
{
    for (int i = first; i < first + n; i++) {
        struct truth_job *j = &truth.jobs[i];
        snprintf(j->tenant, sizeof j->tenant, "default");
        snprintf(j->id, sizeof j->id, "job-%d", i);
        j->n_prompt = csv.n_prompt;
        j->max_tokens = csv.n_tokens;
        j->ignore_eos = true;
        j->at_ms = sim_wall_ms(sim_now()) + TOGETHER_MS;
        truth_settle(j);
        truth_push(j);
    }
}

static void open_world(const struct model_config *c, bool trace)
{
    const struct sim_devices devices = {.step_ns = step_ns, .load_ns = load_ns, .cores = csv.cores,
                                        .threads = csv.threads,
                                        .leader_ns = leader_ns, .caller_ns = caller_ns};
    int64_t hop = (int64_t) (hop_us() * 1e3);
    const struct sim_net net = {.least_ns = hop, .most_ns = hop};
    struct world_options w = {.config = c, .n_brokers = 1, .n_groups = csv.n_stages,
                              .n_stages = csv.n_stages, .tp = 1, .pipelines = 1,
                              .slots = csv.slots, .kv_blocks = csv.kv_blocks,
                              .max_context = csv.max_context, .max_rows = csv.max_rows,
                              .chunk = csv.chunk, .device_bytes = 1ull << 40,
                              .step_deadline_ms = 60000};
    memcpy(w.layers, csv.layers, sizeof w.layers);
    world_open(SEED, trace, true, &devices);
    sim_net_set(&net);
    world_begin(&w);
    truth_begin(c, n_jobs());
}

// Jobs from `first` on; returns tokens a second.
static double play(int first, int batch)
{
    push_jobs(first, batch);
    run_until(some_run);
    int64_t from = sim_now();
    run_until(none_run);
    return (double) batch * csv.n_tokens / ((double) (sim_now() - from) / 1e9);
}

enum status calibrated_show(const struct model_config *c, const char *path, bool trace, bool *good,
                            struct error *e)
{
    *good = true;
    try(read_file(path, e));
    printf("# predicted from the times of single steps and %.1f us a hop, as one sequence shows "
           "them\n# %8s %12s %12s %8s\n", hop_us(), "batch", "predicted", "measured", "ratio");
    // In the order of the benchmark, by one head: it learns from each batch how to cut the next.
    open_world(c, trace);
    for (int i = 0, first = 0; i < csv.n_batches; first += csv.batches[i++].batch) {
        int batch = csv.batches[i].batch;
        double predicted = play(first, batch), ratio = predicted / csv.batches[i].tokens_s;
        printf("# %8d %12.1f %12.1f %8.3f\n", batch, predicted, csv.batches[i].tokens_s, ratio);
        if (batch > 1) *good = *good && fabs(ratio - 1) <= WITHIN;
    }
    world_close();
    return OK;
}
