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

enum { POINTS_MAX = 32, BATCHES_MAX = 32, SEED = 1 };

#define PATIENCE_NS (3600 * SIM_S)
#define WITHIN 0.10

// What was measured.
static struct {
    int n_stages, slots, kv_blocks, max_context, max_rows, chunk, n_prompt, n_tokens;
    int layers[PP_MAX];
    int n_points[PP_MAX];
    struct { double rows, us; } points[PP_MAX][POINTS_MAX]; // by rows
    int n_batches;
    struct { int batch; double tokens_s; } batches[BATCHES_MAX];
} csv;

// --- the file

static bool read_line(const char *line)
{
    int i, n;
    double x;
    if (sscanf(line, "pipeline,%d,%d,%d,%d,%d,%d,%d,%d", &csv.n_stages, &csv.slots, &csv.kv_blocks,
               &csv.max_context, &csv.max_rows, &csv.chunk, &csv.n_prompt, &csv.n_tokens) == 8) {
        return csv.n_stages >= 1 && csv.n_stages <= PP_MAX && csv.n_tokens >= 1;
    }
    if (sscanf(line, "stage,%d,%d", &i, &n) == 2 && i >= 0 && i < csv.n_stages) {
        csv.layers[i] = n;
        return true;
    }
    if (sscanf(line, "step,%d,%d,%lf", &i, &n, &x) == 3 && i >= 0 && i < csv.n_stages &&
        csv.n_points[i] < POINTS_MAX) {
        csv.points[i][csv.n_points[i]].rows = n;
        csv.points[i][csv.n_points[i]++].us = x;
        return true;
    }
    if (sscanf(line, "decode,%d,%lf", &n, &x) != 2 || csv.n_batches == BATCHES_MAX) return false;
    csv.batches[csv.n_batches].batch = n;
    csv.batches[csv.n_batches++].tokens_s = x;
    return true;
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
    for (int i = 0; i < csv.n_stages; i++) good = good && csv.n_points[i] >= 2;
    if (good && csv.n_batches >= 1 && csv.batches[0].batch == 1) return OK;
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
static double step_us(int stage, double rows)
{
    int n = csv.n_points[stage], i = 1;
    while (i + 1 < n && csv.points[stage][i].rows < rows) i++;
    double r0 = csv.points[stage][i - 1].rows, r1 = csv.points[stage][i].rows;
    double t0 = csv.points[stage][i - 1].us, t1 = csv.points[stage][i].us;
    return t0 + (t1 - t0) * (rows - r0) / (r1 - r0);
}

static int64_t step_ns(const struct stage_options *o, const struct step *s)
{
    return (int64_t) (step_us(stage_index(o), s->n_rows) * 1e3);
}

static int64_t load_ns(const struct stage_options *o)
{
    (void) o;
    return SIM_S;
}

// What a round of one sequence takes beyond its steps, for each hop: leaders and links.
static double hop_us(void)
{
    double round = 1e6 / csv.batches[0].tokens_s;
    for (int i = 0; i < csv.n_stages; i++) round -= step_us(i, 1);
    return round > 0 ? round / csv.n_stages : 0;
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

static void push_jobs(const struct model_config *c, int batch)
{
    truth_begin(c, batch);
    for (int i = 0; i < batch; i++) {
        struct truth_job *j = &truth.jobs[i];
        snprintf(j->tenant, sizeof j->tenant, "default");
        snprintf(j->id, sizeof j->id, "job-%d", i);
        j->n_prompt = csv.n_prompt;
        j->max_tokens = csv.n_tokens;
        j->ignore_eos = true;
        truth_settle(j);
        truth_push(j);
    }
}

static double play(const struct model_config *c, int batch, bool trace)
{
    const struct sim_devices devices = {step_ns, load_ns, false};
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
    push_jobs(c, batch);
    run_until(some_run);
    int64_t from = sim_now();
    run_until(none_run);
    double seconds = (double) (sim_now() - from) / 1e9;
    world_close();
    return (double) batch * csv.n_tokens / seconds;
}

enum status calibrated_show(const struct model_config *c, const char *path, bool trace, bool *good,
                            struct error *e)
{
    *good = true;
    try(read_file(path, e));
    printf("# predicted from the times of single steps and %.1f us a hop, as one sequence shows "
           "them\n# %8s %12s %12s %8s\n", hop_us(), "batch", "predicted", "measured", "ratio");
    for (int i = 0; i < csv.n_batches; i++) {
        int batch = csv.batches[i].batch;
        double predicted = play(c, batch, trace), ratio = predicted / csv.batches[i].tokens_s;
        printf("# %8d %12.1f %12.1f %8.3f\n", batch, predicted, csv.batches[i].tokens_s, ratio);
        if (batch > 1) *good = *good && fabs(ratio - 1) <= WITHIN;
    }
    return OK;
}
