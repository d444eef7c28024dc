// penstock bench pipeline: what a pipeline of this machine decodes in a second at several batches,
// and what that is made of: the processor's time of leaders and of the one that sends the jobs, and
// single steps of each stage, all of them busy at once. The CSV is what the simulator predicts the
// first from the rest by (sim --calibrated). Machines are faster at one time than at another, so
// pipeline and single steps are timed in turn, and medians count.
#include "common/clock.h"
#include "common/log.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/engine.h"
#include "tools/engine_options.h"
#include "tools/stage_times.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS = 32,       // the largest batch
    REPEATS_MOST = 20,
    FIRST_ID = 5,     // of the prompts: plain tokens in every model
    N_IDS = 97,
};

static const int BATCHES[] = {1, 2, 4, 8, 16, 32};
static const int DECODES[] = {1, 2, 3, 4, 5, 6, 8, 11, 16, 22, 32}; // rows of a step
static const int PROMPTS[] = {1, 2, 4, 8};                           // prompts of a step

enum {
    N_BATCHES = sizeof BATCHES / sizeof *BATCHES,
    N_DECODES = sizeof DECODES / sizeof *DECODES,
    N_PROMPTS = sizeof PROMPTS / sizeof *PROMPTS,
};

// A batch, run by run, and of all its runs together what was done.
struct batch {
    double tokens_s[REPEATS_MOST];
    double steps, rows;
    double leader_us[PP_MAX]; // processor's time
    double caller_us;         // of the thread that sends jobs and hears of each token
};

struct bench {
    struct engine_options options;
    int n_prompt, n_tokens, repeats;
    struct plan plan; // of the engine
    struct batch batches[N_BATCHES];
    struct stage_times times[REPEATS_MOST];
    const char *path; // of the CSV; NULL: none
};

// --- the whole pipeline

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return x < y ? -1 : x > y;
}

static double median(const double *of, int n)
{
    double sorted[REPEATS_MOST];
    memcpy(sorted, of, (size_t) n * sizeof *of);
    qsort(sorted, (size_t) n, sizeof *sorted, by_size);
    return sorted[n / 2];
}

static void on_result(void *arg, const struct job_key *key, struct wire_bytes result)
{
    (void) arg, (void) key, (void) result;
}

// Jobs whose prompts differ, as their rows would use other experts of a model that has them.
static enum status run_jobs(const struct bench *b, struct engine *g, int batch, int repeat,
                            struct error *e)
{
    static int32_t prompts[SLOTS][CONTEXT_MAX / 1024];
    static struct wire_job jobs[SLOTS];
    struct engine_events events = {.result = on_result};
    memset(jobs, 0, sizeof jobs);
    for (int i = 0; i < batch; i++) {
        for (int k = 0; k < b->n_prompt; k++) {
            prompts[i][k] = FIRST_ID + (repeat * 31 + i * 7 + k * 3) % N_IDS;
        }
        jobs[i] = (struct wire_job){.max_tokens = b->n_tokens, .sampling = sampling_default(),
                                    .ignore_eos = true, .attempts = 1,
                                    .ids = {prompts[i], (size_t) b->n_prompt * sizeof **prompts}};
        jobs[i].key.attempt = (uint64_t) (repeat * SLOTS + i + 1);
        jobs[i].sampling.temperature = 0;
        snprintf(jobs[i].key.tenant, sizeof jobs[i].key.tenant, "bench");
        snprintf(jobs[i].key.id, sizeof jobs[i].key.id, "job-%d", i);
    }
    return engine_run(g, jobs, batch, &events, e);
}

static enum status run_batch(const struct bench *b, struct engine *g, int n, int repeat,
                             struct batch *to, struct error *e)
{
    struct engine_counts before, after;
    try(engine_count(g, &before, e));
    int64_t from = clock_ns();
    try(run_jobs(b, g, n, repeat, e));
    to->tokens_s[repeat] = (double) n * b->n_tokens / ((double) (clock_ns() - from) / 1e9);
    try(engine_count(g, &after, e));
    to->steps += (double) (after.steps - before.steps);
    to->rows += (double) (after.rows - before.rows);
    to->caller_us += (double) (after.caller_ns - before.caller_ns) / 1e3;
    for (int i = 0; i < b->plan.pp; i++) {
        to->leader_us[i] += (double) (after.leader_ns[i] - before.leader_ns[i]) / 1e3;
    }
    return OK;
}

static enum status run_batches(struct bench *b, int repeat, struct error *e)
{
    struct engine *g;
    try(engine_open(&g, &b->options, e));
    b->plan = *engine_plan(g);
    enum status status = OK;
    for (int i = 0; i < N_BATCHES && status == OK; i++) {
        status = run_batch(b, g, BATCHES[i], repeat, &b->batches[i], e);
    }
    engine_close(&g);
    return status;
}

// --- single steps

static void add_kind(const struct bench *b, struct stage_times *t, struct stage_time kind)
{
    if (kind.seqs * kind.rows <= b->plan.max_rows) t->at[t->n++] = kind;
}

// Decoding in the middle of what a run generates, and prompts.
static enum status time_steps(struct bench *b, struct stage_times *t, struct error *e)
{
    for (int i = 0; i < N_DECODES; i++) {
        add_kind(b, t, (struct stage_time){DECODES[i], 1, b->n_prompt + b->n_tokens / 2, {0}});
    }
    for (int i = 0; i < N_PROMPTS; i++) {
        add_kind(b, t, (struct stage_time){PROMPTS[i], b->n_prompt, 0, {0}});
    }
    return stage_times_take(t, &b->options, &b->plan, e);
}

static double step_us(const struct bench *b, int kind, int stage)
{
    double us[REPEATS_MOST];
    for (int r = 0; r < b->repeats; r++) us[r] = b->times[r].at[kind].us[stage];
    return median(us, b->repeats);
}

// --- what is told

// That this process may use.
static int cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// Cores, and how many of them the ranks of a stage compute on: none, where a device does.
static void write_machine(const struct bench *b, FILE *to)
{
    const struct engine_options *o = &b->options;
    int threads = o->n_threads > 0 ? o->n_threads : cores();
    if (o->backend->kind != DEVICE_CPU) threads = 0;
    fprintf(to, "machine,%d,%d\n", cores(), threads * o->tp);
}

static void write_csv(const struct bench *b, FILE *to)
{
    const struct plan *p = &b->plan;
    fprintf(to, "pipeline,%d,%d,%d,%d,%d,%d,%d,%d\n", p->pp, p->slots, p->kv_blocks,
            p->max_context, p->max_rows, p->chunk, b->n_prompt, b->n_tokens);
    write_machine(b, to);
    for (int i = 0; i < p->pp; i++) {
        fprintf(to, "stage,%d,%d\n", i, p->layers[i]);
        for (int k = 0; k < b->times->n; k++) {
            const struct stage_time *t = &b->times->at[k];
            fprintf(to, "%s,%d,%d,%.1f\n", t->rows == 1 ? "step" : "prefill", i, t->seqs * t->rows,
                    step_us(b, k, i));
        }
        for (int k = 0; k < N_BATCHES; k++) {
            const struct batch *t = &b->batches[k];
            fprintf(to, "leader,%d,%.2f,%.1f\n", i, t->rows / t->steps, t->leader_us[i] / t->steps);
        }
    }
    for (int i = 0; i < N_BATCHES; i++) {
        const struct batch *t = &b->batches[i];
        fprintf(to, "caller,%.2f,%.1f\n", t->rows / t->steps, t->caller_us / t->steps);
        fprintf(to, "decode,%d,%.1f\n", BATCHES[i], median(t->tokens_s, b->repeats));
    }
}

static void show(const struct bench *b)
{
    int pp = b->plan.pp;
    printf("%d stages, %d prompt tokens, %d generated; us of the processor a step\n%8s %12s %8s",
           pp, b->n_prompt, b->n_tokens, "batch", "tokens/s", "rows");
    for (int i = 0; i < pp; i++) printf("     leader %d", i);
    printf("       caller\n");
    for (int i = 0; i < N_BATCHES; i++) {
        const struct batch *t = &b->batches[i];
        printf("%8d %12.1f %8.2f", BATCHES[i], median(t->tokens_s, b->repeats),
               t->rows / t->steps);
        for (int k = 0; k < pp; k++) printf(" %12.1f", t->leader_us[k] / t->steps);
        printf(" %12.1f\n", t->caller_us / t->steps);
    }
    printf("%8s", "rows");
    for (int i = 0; i < pp; i++) printf("    stage %d, us", i);
    for (int k = 0; k < b->times->n; k++) {
        const struct stage_time *t = &b->times->at[k];
        printf("\n%8d", t->seqs * t->rows);
        for (int i = 0; i < pp; i++) printf(" %14.1f", step_us(b, k, i));
        if (t->rows > 1) printf("  %d prompts", t->seqs);
    }
    printf("\n");
}

static enum status run_all(struct bench *b, struct error *e)
{
    FILE *csv;
    for (int r = 0; r < b->repeats; r++) {
        try(run_batches(b, r, e));
        try(time_steps(b, &b->times[r], e));
    }
    show(b);
    try(csv_open(&csv, b->path, e));
    if (csv != NULL) write_csv(b, csv);
    return csv_close(csv, b->path, OK, e);
}

int bench_pipeline(int argc, char **argv)
{
    static struct bench b = {.n_prompt = 16, .n_tokens = 128, .repeats = 5};
    struct engine_flags flags = ENGINE_FLAGS_DEFAULT;
    int64_t n_tokens = b.n_tokens, repeats = b.repeats;
    struct option_spec specs[] = {
        ENGINE_FLAG_ROWS(flags),
        {.name = "tokens", .kind = OPTION_INT, .value = &n_tokens, .argument = "N",
         .help = "Generated for each sequence (default 128).", .least = 1, .most = 1 << 20},
        {.name = "repeats", .kind = OPTION_INT, .value = &repeats, .argument = "N",
         .help = "Runs of each batch, whose median counts (default 5).", .least = 1,
         .most = REPEATS_MOST},
        CSV_FLAG_ROW(b.path),
    };
    struct options o = {.program = "penstock bench pipeline",
                        .usage = "--model DIR [OPTIONS]",
                        .about = "Times decoding by a pipeline in this process, and the single "
                                 "steps of its stages.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    enum status status = options_parse(&o, argc, argv, &e);
    if (status == OK && o.help) return EXIT_DONE;
    log_init("bench", LOG_WARN, false);
    b.n_tokens = (int) n_tokens;
    b.repeats = (int) repeats;
    if (status == OK) status = engine_flags_apply(&flags, &b.options, &e);
    if (status == OK) {
        b.options.slots = SLOTS;
        status = engine_context(&b.options, b.n_prompt, n_tokens, &e);
    }
    bool usage = status != OK;
    if (status == OK) status = run_all(&b, &e);
    if (status == OK) return EXIT_DONE;
    fprintf(stderr, "%s: %s\n", o.program, e.text);
    return usage ? EXIT_USAGE : EXIT_FAILED;
}
