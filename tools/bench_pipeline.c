// penstock bench pipeline: what a pipeline of this machine decodes in a second at several batches,
// and what that is made of: the time of its stages for a step, and of their leaders. From the CSV
// the simulator predicts the first by the rest (sim --calibrated).
#include "common/clock.h"
#include "common/log.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/engine.h"
#include "tools/engine_options.h"

#include <stdio.h>
#include <string.h>

enum {
    SLOTS = 32,       // the largest batch
    REPEATS_MOST = 20,
    FIRST_ID = 5,     // of the prompts: plain tokens in every model
    N_IDS = 97,
};

static const int BATCHES[] = {1, 2, 4, 8, 16, 32};

enum { N_BATCHES = sizeof BATCHES / sizeof *BATCHES };

// All runs of a batch.
struct batch {
    double seconds;
    struct engine_counts done;
};

struct bench {
    struct engine_options options;
    int n_prompt, n_tokens, repeats;
    struct plan plan; // of the engine
    struct batch batches[N_BATCHES];
    const char *path; // of the CSV; NULL: none
};

// --- the whole pipeline

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

static void add_counts(struct engine_counts *to, const struct engine_counts *before,
                       const struct engine_counts *after)
{
    to->decodes += after->decodes - before->decodes;
    to->prompts += after->prompts - before->prompts;
    to->rows += after->rows - before->rows;
    to->prompt_rows += after->prompt_rows - before->prompt_rows;
    for (int i = 0; i < PP_MAX; i++) {
        to->stages[i].decode_us += after->stages[i].decode_us - before->stages[i].decode_us;
        to->stages[i].prompt_us += after->stages[i].prompt_us - before->stages[i].prompt_us;
        to->stages[i].leader_ns += after->stages[i].leader_ns - before->stages[i].leader_ns;
        to->stages[i].leader_wait_ns +=
            after->stages[i].leader_wait_ns - before->stages[i].leader_wait_ns;
        to->stages[i].rank_ns += after->stages[i].rank_ns - before->stages[i].rank_ns;
        to->stages[i].rank_wait_ns +=
            after->stages[i].rank_wait_ns - before->stages[i].rank_wait_ns;
    }
}

static enum status run_batch(const struct bench *b, struct engine *g, int n, int repeat,
                             struct batch *to, struct error *e)
{
    struct engine_counts before, after;
    try(engine_count(g, &before, e));
    int64_t from = clock_ns();
    try(run_jobs(b, g, n, repeat, e));
    to->seconds += (double) (clock_ns() - from) / 1e9;
    try(engine_count(g, &after, e));
    add_counts(&to->done, &before, &after);
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

// --- what is told

static double tokens_s(const struct bench *b, int batch)
{
    return (double) b->repeats * BATCHES[batch] * b->n_tokens / b->batches[batch].seconds;
}

static double share(uint64_t of, uint64_t n) { return n > 0 ? (double) of / (double) n : 0; }

// Of a step. Rows that decode beside a prompt count as if they did so alone.
struct spent {
    double decode_rows, prompt_rows;
    double decode_us, prompt_us, late_us; // late: from when a rank is woken until it begins
    double leader_us, wait_us;            // wait: of the leader, for a core
};

static struct spent spent_by(const struct bench *b, int batch, int stage)
{
    const struct engine_counts *c = &b->batches[batch].done;
    uint64_t steps = c->decodes + c->prompts;
    uint64_t busy_us = c->stages[stage].decode_us + c->stages[stage].prompt_us;
    // What it waits while it computes is in the steps' own time.
    int64_t late = c->stages[stage].rank_ns + c->stages[stage].rank_wait_ns -
                   (int64_t) busy_us * 1000;
    return (struct spent){
        .decode_rows = share(c->rows - c->prompt_rows, c->decodes),
        .prompt_rows = share(c->prompt_rows, c->prompts),
        .decode_us = share(c->stages[stage].decode_us, c->decodes),
        .prompt_us = share(c->stages[stage].prompt_us, c->prompts),
        .late_us = late > 0 ? share((uint64_t) late, steps) / 1e3 : 0,
        .leader_us = share((uint64_t) c->stages[stage].leader_ns, steps) / 1e3,
        .wait_us = share((uint64_t) c->stages[stage].leader_wait_ns, steps) / 1e3,
    };
}

static void write_csv(const struct bench *b, FILE *to)
{
    const struct plan *p = &b->plan;
    fprintf(to, "pipeline,%d,%d,%d,%d,%d,%d,%d,%d\n", p->pp, p->slots, p->kv_blocks,
            p->max_context, p->max_rows, p->chunk, b->n_prompt, b->n_tokens);
    for (int i = 0; i < p->pp; i++) fprintf(to, "stage,%d,%d\n", i, p->layers[i]);
    for (int k = 0; k < N_BATCHES; k++) {
        struct spent s = spent_by(b, k, 0);
        fprintf(to, "decode,%d,%.1f,%.2f,%.2f\n", BATCHES[k], tokens_s(b, k), s.decode_rows,
                s.prompt_rows);
        for (int i = 0; i < p->pp; i++) {
            s = spent_by(b, k, i);
            fprintf(to, "spent,%d,%d,%.1f,%.1f,%.1f,%.1f,%.1f\n", BATCHES[k], i, s.decode_us,
                    s.prompt_us, s.late_us, s.leader_us, s.wait_us);
        }
    }
}

static void show(const struct bench *b)
{
    printf("%d stages, %d prompt tokens, %d generated; us of a step with decodes alone, of one "
           "with prompts,\nuntil a rank that is woken has a core, of the leader for a step, and "
           "until this has one\n%6s %10s %6s %6s %6s %10s %10s %8s %8s %8s\n", b->plan.pp,
           b->n_prompt, b->n_tokens, "batch", "tokens/s", "stage", "rows", "rows", "decode",
           "prompt", "late", "leader", "waits");
    for (int k = 0; k < N_BATCHES; k++) {
        for (int i = 0; i < b->plan.pp; i++) {
            struct spent s = spent_by(b, k, i);
            printf("%6d %10.1f %6d %6.2f %6.1f %10.1f %10.1f %8.1f %8.1f %8.1f\n", BATCHES[k],
                   tokens_s(b, k), i, s.decode_rows, s.prompt_rows, s.decode_us, s.prompt_us,
                   s.late_us, s.leader_us, s.wait_us);
        }
    }
}

static enum status run_all(struct bench *b, struct error *e)
{
    FILE *csv;
    for (int r = 0; r < b->repeats; r++) try(run_batches(b, r, e));
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
         .help = "Runs of each batch (default 5).", .least = 1,
         .most = REPEATS_MOST},
        CSV_FLAG_ROW(b.path),
    };
    struct options o = {.program = "penstock bench pipeline",
                        .usage = "--model DIR [OPTIONS]",
                        .about = "Times decoding by a pipeline in this process, its stages and "
                                 "their leaders.",
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
