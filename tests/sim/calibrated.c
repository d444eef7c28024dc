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

enum {
    BATCHES_MAX = 32,
    SEED = 1,
    TOGETHER_MS = 2000, // until then all jobs of a batch are admitted, and come at once
};

#define PATIENCE_NS (3600 * SIM_S)
#define WITHIN 0.10

// The time of a step over its rows.
struct curve {
    int n;
    struct { double rows, us; } at[BATCHES_MAX]; // by rows
};

// What was measured.
static struct {
    int n_stages, slots, kv_blocks, max_context, max_rows, chunk, n_prompt, n_tokens;
    int layers[PP_MAX];
    struct curve decode[PP_MAX], prompt[PP_MAX]; // of all batches
    int n_batches;
    struct batch {
        int batch;
        double tokens_s, decode_rows, prompt_rows; // rows: of a step
        struct { double decode_us, prompt_us, late_us, leader_us, wait_us; } stages[PP_MAX];
    } batches[BATCHES_MAX];
} csv;

static const struct batch *playing;

// --- the file

static bool read_stage(struct batch *b, const char *line)
{
    int n, i;
    double decode, prompt, late, leader, wait;
    if (sscanf(line, "spent,%d,%d,%lf,%lf,%lf,%lf,%lf", &n, &i, &decode, &prompt, &late,
               &leader, &wait) != 7) {
        return false;
    }
    if (n != b->batch || i < 0 || i >= csv.n_stages) return false;
    b->stages[i].decode_us = decode;
    b->stages[i].prompt_us = prompt;
    b->stages[i].late_us = late;
    b->stages[i].leader_us = leader;
    b->stages[i].wait_us = wait;
    return decode > 0 && prompt > 0 && late >= 0 && leader >= 0 && wait >= 0;
}

static bool read_line(const char *line)
{
    int i, n;
    if (sscanf(line, "pipeline,%d,%d,%d,%d,%d,%d,%d,%d", &csv.n_stages, &csv.slots, &csv.kv_blocks,
               &csv.max_context, &csv.max_rows, &csv.chunk, &csv.n_prompt, &csv.n_tokens) == 8) {
        return csv.n_stages >= 1 && csv.n_stages <= PP_MAX && csv.n_tokens >= 2;
    }
    if (sscanf(line, "stage,%d,%d", &i, &n) == 2 && i >= 0 && i < csv.n_stages) {
        csv.layers[i] = n;
        return true;
    }
    if (strncmp(line, "decode,", 7) == 0 && csv.n_batches < BATCHES_MAX) {
        struct batch *b = &csv.batches[csv.n_batches++];
        return sscanf(line, "decode,%d,%lf,%lf,%lf", &b->batch, &b->tokens_s, &b->decode_rows,
                      &b->prompt_rows) == 4 &&
               b->batch >= 1 && b->tokens_s > 0 && b->decode_rows > 0 && b->prompt_rows > 0;
    }
    return csv.n_batches > 0 && read_stage(&csv.batches[csv.n_batches - 1], line);
}

// Of batches with about the same steps the mean counts.
static void add_point(struct curve *c, double rows, double us)
{
    if (c->n > 0 && rows < 1.1 * c->at[c->n - 1].rows) {
        c->at[c->n - 1].us = (c->at[c->n - 1].us + us) / 2;
        return;
    }
    c->at[c->n].rows = rows;
    c->at[c->n++].us = us;
}

// False: not each stage of each batch is there.
static bool make_curves(void)
{
    if (csv.n_batches < 1 || csv.batches[0].batch != 1) return false;
    for (int k = 0; k < csv.n_batches; k++) {
        const struct batch *b = &csv.batches[k];
        for (int i = 0; i < csv.n_stages; i++) {
            if (b->stages[i].decode_us <= 0) return false;
            add_point(&csv.decode[i], b->decode_rows, b->stages[i].decode_us);
            add_point(&csv.prompt[i], b->prompt_rows, b->stages[i].prompt_us);
        }
    }
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
    if (good && make_curves()) return OK;
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
    if (c->n == 1) return c->at[0].us * fmax(rows / c->at[0].rows, 1);
    while (i + 1 < c->n && c->at[i].rows < rows) i++;
    double r0 = c->at[i - 1].rows, r1 = c->at[i].rows;
    double t0 = c->at[i - 1].us, t1 = c->at[i].us;
    double us = t0 + (t1 - t0) * (rows - r0) / (r1 - r0);
    return us > 0 ? us : 0;
}

// A step of so many rows while this batch runs. A machine is faster at one time than at another, so
// the curve is moved to where the batch's own steps lie.
static double decode_us(const struct batch *b, int stage, double rows)
{
    const struct curve *c = &csv.decode[stage];
    return b->stages[stage].decode_us * at(c, rows) / at(c, b->decode_rows);
}

static double prompt_us(const struct batch *b, int stage, double rows)
{
    const struct curve *c = &csv.prompt[stage];
    return b->stages[stage].prompt_us * at(c, rows) / at(c, b->prompt_rows);
}

static int64_t step_ns(const struct stage_options *o, const struct step *s)
{
    int i = stage_index(o);
    bool prompts = s->n_rows > s->n_runs;
    return (int64_t) ((prompts ? prompt_us(playing, i, s->n_rows)
                               : decode_us(playing, i, s->n_rows)) * 1e3);
}

static int64_t leader_ns(const struct stage_options *o, const struct step *s, int64_t *wait_ns)
{
    int i = stage_index(o);
    (void) s;
    *wait_ns = (int64_t) (playing->stages[i].wait_us * 1e3);
    return (int64_t) (playing->stages[i].leader_us * 1e3);
}

static int64_t late_ns(const struct stage_options *o)
{
    return (int64_t) (playing->stages[stage_index(o)].late_us * 1e3);
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
    const struct batch *b = csv.batches;
    double us = 1e6 / b->tokens_s * csv.n_tokens;
    for (int i = 0; i < csv.n_stages; i++) {
        us -= prompt_us(b, i, csv.n_prompt) + b->stages[i].decode_us * (csv.n_tokens - 1);
        us -= (b->stages[i].late_us + b->stages[i].leader_us) * csv.n_tokens;
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
    const struct sim_devices devices = {.step_ns = step_ns, .load_ns = load_ns,
                                        .leader_ns = leader_ns, .late_ns = late_ns};
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
static double play(int first, const struct batch *b)
{
    playing = b;
    push_jobs(first, b->batch);
    run_until(some_run);
    int64_t from = sim_now();
    run_until(none_run);
    return (double) b->batch * csv.n_tokens / ((double) (sim_now() - from) / 1e9);
}

enum status calibrated_show(const struct model_config *c, const char *path, bool trace, bool *good,
                            struct error *e)
{
    *good = true;
    try(read_file(path, e));
    printf("# predicted from the times of steps and leaders, and %.1f us a hop, as one sequence "
           "shows them\n# %8s %12s %12s %8s\n",
           hop_us(), "batch", "predicted", "measured", "ratio");
    // In the order of the benchmark, by one head: it learns from each batch how to cut the next.
    playing = csv.batches;
    open_world(c, trace);
    for (int i = 0, first = 0; i < csv.n_batches; first += csv.batches[i++].batch) {
        const struct batch *b = &csv.batches[i];
        double predicted = play(first, b), ratio = predicted / b->tokens_s;
        printf("# %8d %12.1f %12.1f %8.3f\n", b->batch, predicted, b->tokens_s, ratio);
        if (b->batch > 1) *good = *good && fabs(ratio - 1) <= WITHIN;
    }
    world_close();
    return OK;
}
