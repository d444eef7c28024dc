// penstock bench pipeline: what a pipeline of this machine decodes in a second at several batches,
// and what single steps take in each of its stages, all of them busy at once. The CSV is what the
// simulator predicts the first from the second by (sim --calibrated).
#include "common/clock.h"
#include "common/log.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/csv.h"
#include "tools/engine.h"
#include "tools/engine_options.h"
#include "workers/stage.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SLOTS = 32,       // the largest batch
    STEP_TIMES = 60,  // of each number of rows
    WARM_STEPS = 10,  // before these
    REPEATS_MOST = 20,
    PAGE = 4096,
    FIRST_ID = 5,     // of the prompts: plain tokens in every model
};

static const int BATCHES[] = {1, 2, 4, 8, 16, 32};
static const int ROWS[] = {1, 2, 3, 4, 5, 6, 8, 11, 16, 22, 32};

enum { N_BATCHES = sizeof BATCHES / sizeof *BATCHES, N_ROWS = sizeof ROWS / sizeof *ROWS };

struct bench {
    struct engine_options options;
    int n_prompt, n_tokens, repeats;
    struct plan plan;    // of the engine
    const char *path;    // of the CSV; NULL: none
    FILE *csv;
    // While stages are timed:
    int n_stages;
    struct stage *stages[PP_MAX];
    void *memory[PP_MAX], *staging[PP_MAX], *input[PP_MAX];
    int64_t from_ns[PP_MAX], times[PP_MAX][STEP_TIMES];
    int n_steps[PP_MAX];
    uint64_t number[PP_MAX];
    double step_us[PP_MAX][N_ROWS];
};

static int by_time(const void *a, const void *b)
{
    int64_t x = *(const int64_t *) a, y = *(const int64_t *) b;
    return x < y ? -1 : x > y;
}

// --- the whole pipeline

static void on_result(void *arg, const struct job_key *key, struct wire_bytes result)
{
    (void) arg, (void) key, (void) result;
}

static enum status run_batch(struct bench *b, struct engine *g, int batch, double *tokens_s,
                             struct error *e)
{
    static int32_t prompt[CONTEXT_MAX / 1024];
    static struct wire_job jobs[SLOTS];
    int64_t times[REPEATS_MOST];
    struct engine_events events = {.result = on_result};
    for (int i = 0; i < b->n_prompt; i++) prompt[i] = FIRST_ID + i % 100;
    for (int r = 0; r < b->repeats; r++) {
        memset(jobs, 0, sizeof jobs);
        for (int i = 0; i < batch; i++) {
            jobs[i] = (struct wire_job){.max_tokens = b->n_tokens, .sampling = sampling_default(),
                                        .ignore_eos = true, .attempts = 1,
                                        .ids = {prompt, (size_t) b->n_prompt * sizeof *prompt}};
            jobs[i].key.attempt = (uint64_t) (r * SLOTS + i + 1);
            jobs[i].sampling.temperature = 0;
            snprintf(jobs[i].key.tenant, sizeof jobs[i].key.tenant, "bench");
            snprintf(jobs[i].key.id, sizeof jobs[i].key.id, "job-%d", i);
        }
        int64_t from = clock_ns();
        try(engine_run(g, jobs, batch, &events, e));
        times[r] = clock_ns() - from;
    }
    qsort(times, (size_t) b->repeats, sizeof *times, by_time);
    *tokens_s = (double) batch * b->n_tokens / ((double) times[b->repeats / 2] / 1e9);
    return OK;
}

static enum status run_batches(struct bench *b, double tokens_s[N_BATCHES], struct error *e)
{
    struct engine *g;
    try(engine_open(&g, &b->options, e));
    b->plan = *engine_plan(g);
    enum status status = OK;
    for (int i = 0; i < N_BATCHES && status == OK; i++) {
        status = run_batch(b, g, BATCHES[i], &tokens_s[i], e);
    }
    engine_close(&g);
    return status;
}

// --- single steps

static enum status open_stage(struct bench *b, int i, const struct model_config *config,
                              const struct checkpoint *checkpoint, struct error *e)
{
    const struct plan *p = &b->plan;
    struct stage_options o = {.config = config,
                              .checkpoint = checkpoint,
                              .backend = b->options.backend,
                              .first = p->first[i],
                              .last = p->first[i] + p->layers[i],
                              .head = i == 0,
                              .tail = i + 1 == p->pp,
                              .tp = p->tp,
                              .n_threads = b->options.n_threads,
                              .precision = b->options.precision,
                              .n_steps = 1,
                              .limits = {.max_rows = p->max_rows, .slots = p->slots,
                                         .max_blocks = p->max_blocks, .n_blocks = p->kv_blocks,
                                         .max_out = p->max_out,
                                         .vocab_size = config->vocab_size}};
    size_t staging = (size_t) (stage_staging_bytes(&o) + PAGE - 1) / PAGE * PAGE;
    b->memory[i] = calloc(1, stage_memory_bytes(&o));
    b->staging[i] = aligned_alloc(PAGE, staging);
    b->input[i] = calloc((size_t) p->max_rows, stage_row_bytes(config, o.precision));
    if (b->memory[i] == NULL || b->staging[i] == NULL || b->input[i] == NULL) {
        return error_set(e, ERR_NOMEM, NULL, "no memory for a stage's steps");
    }
    memset(b->staging[i], 0, staging);
    o.memory = b->memory[i];
    o.staging = b->staging[i];
    return stage_create(&b->stages[i], &o, e);
}

// A row of each of n sequences, at the middle of what a run of this benchmark generates.
static void submit(struct bench *b, int i, int n)
{
    struct stage_step *place = stage_next(b->stages[i]);
    struct step *s = &place->step;
    bool first = b->number[i] == 0;
    step_reset(s, ++b->number[i]);
    for (int k = 0; first && k < b->plan.slots; k++) {
        struct step_open *o = &s->opens[s->n_opens++];
        *o = (struct step_open){.slot = k, .n_blocks = b->plan.max_blocks,
                                .first_block = s->n_blocks, .n_prompt = b->n_prompt,
                                .sampling = sampling_default()};
        o->sampling.temperature = 0;
        for (int j = 0; j < b->plan.max_blocks; j++, s->n_blocks++) {
            s->blocks[s->n_blocks] = (int32_t) s->n_blocks;
        }
    }
    for (int k = 0; k < n; k++) {
        s->runs[s->n_runs++] =
            (struct step_run){k, b->n_prompt + b->n_tokens / 2, 1, RUN_LAST_ROW};
        s->ids[s->n_rows++] = FIRST_ID + k;
    }
    step_expand(s);
    place->in = b->input[i];
    b->from_ns[i] = clock_ns();
    stage_submit(b->stages[i]);
}

// Until every stage has its times; those that have go on, so that the others are not alone.
static enum status time_rows(struct bench *b, int n_rows, struct error *e)
{
    struct pollfd fds[PP_MAX];
    int n_done = 0;
    memset(b->n_steps, 0, sizeof b->n_steps);
    for (int i = 0; i < b->n_stages; i++) {
        fds[i] = (struct pollfd){.fd = stage_fd(b->stages[i]), .events = POLLIN};
        submit(b, i, n_rows);
    }
    while (n_done < b->n_stages) {
        poll(fds, (nfds_t) b->n_stages, -1);
        for (int i = 0; i < b->n_stages; i++) {
            enum status status;
            uint64_t times;
            ssize_t n = read(fds[i].fd, &times, sizeof times);
            if (stage_done(b->stages[i], &status, e) == NULL) {
                if (status != OK) return status;
                check(n > 0 || errno == EAGAIN, "eventfd: %s", strerror(errno));
                continue;
            }
            int k = b->n_steps[i]++ - WARM_STEPS;
            if (k >= 0 && k < STEP_TIMES) b->times[i][k] = clock_ns() - b->from_ns[i];
            n_done += k + 1 == STEP_TIMES;
            stage_release(b->stages[i]);
            if (n_done < b->n_stages) submit(b, i, n_rows);
        }
    }
    for (int i = 0; i < b->n_stages; i++) stage_reset(b->stages[i]);
    memset(b->number, 0, sizeof b->number);
    return OK;
}

static enum status time_stages(struct bench *b, struct error *e)
{
    for (int i = 0; i < b->n_stages; i++) {
        enum stage_state state;
        while ((state = stage_state(b->stages[i], e)) == STAGE_LOADING) {
            struct pollfd fd = {.fd = stage_fd(b->stages[i]), .events = POLLIN};
            uint64_t times;
            poll(&fd, 1, -1);
            ssize_t ignored = read(fd.fd, &times, sizeof times);
            (void) ignored;
        }
        if (state == STAGE_FAILED) return e->status;
    }
    for (int r = 0; r < N_ROWS; r++) {
        try(time_rows(b, ROWS[r], e));
        for (int i = 0; i < b->n_stages; i++) {
            qsort(b->times[i], STEP_TIMES, sizeof **b->times, by_time);
            b->step_us[i][r] = (double) b->times[i][STEP_TIMES / 2] / 1e3;
        }
    }
    return OK;
}

static enum status run_stages(struct bench *b, struct error *e)
{
    static struct model_config config;
    struct checkpoint *checkpoint;
    try(model_config_load(&config, b->options.model, e));
    try(checkpoint_open(&checkpoint, b->options.model, e));
    enum status status = OK;
    b->n_stages = b->plan.pp;
    for (int i = 0; i < b->n_stages && status == OK; i++) {
        status = open_stage(b, i, &config, checkpoint, e);
    }
    if (status == OK) status = time_stages(b, e);
    for (int i = 0; i < b->n_stages; i++) {
        stage_destroy(&b->stages[i]);
        free(b->memory[i]);
        free(b->staging[i]);
        free(b->input[i]);
    }
    checkpoint_close(&checkpoint);
    return status;
}

// --- what is told

static void show(const struct bench *b, const double *tokens_s, FILE *to)
{
    const struct plan *p = &b->plan;
    fprintf(to, "pipeline,%d,%d,%d,%d,%d,%d,%d,%d\n", p->pp, p->slots, p->kv_blocks,
            p->max_context, p->max_rows, p->chunk, b->n_prompt, b->n_tokens);
    for (int i = 0; i < p->pp; i++) {
        fprintf(to, "stage,%d,%d\n", i, p->layers[i]);
        for (int r = 0; r < N_ROWS; r++) {
            fprintf(to, "step,%d,%d,%.1f\n", i, ROWS[r], b->step_us[i][r]);
        }
    }
    for (int i = 0; i < N_BATCHES; i++) fprintf(to, "decode,%d,%.1f\n", BATCHES[i], tokens_s[i]);
}

static enum status run_all(struct bench *b, struct error *e)
{
    double tokens_s[N_BATCHES];
    try(run_batches(b, tokens_s, e));
    try(run_stages(b, e));
    printf("%d stages, %d prompt tokens, %d generated\n%8s %12s\n", b->plan.pp, b->n_prompt,
           b->n_tokens, "batch", "tokens/s");
    for (int i = 0; i < N_BATCHES; i++) printf("%8d %12.1f\n", BATCHES[i], tokens_s[i]);
    printf("%8s", "rows");
    for (int i = 0; i < b->plan.pp; i++) printf("    stage %d, us", i);
    for (int r = 0; r < N_ROWS; r++) {
        printf("\n%8d", ROWS[r]);
        for (int i = 0; i < b->plan.pp; i++) printf(" %14.1f", b->step_us[i][r]);
    }
    printf("\n");
    try(csv_open(&b->csv, b->path, e));
    if (b->csv != NULL) show(b, tokens_s, b->csv);
    return csv_close(b->csv, b->path, OK, e);
}

int bench_pipeline(int argc, char **argv)
{
    static struct bench b = {.n_prompt = 16, .n_tokens = 128, .repeats = 3};
    struct engine_flags flags = ENGINE_FLAGS_DEFAULT;
    int64_t n_tokens = b.n_tokens, repeats = b.repeats;
    struct option_spec specs[] = {
        ENGINE_FLAG_ROWS(flags),
        {.name = "tokens", .kind = OPTION_INT, .value = &n_tokens, .argument = "N",
         .help = "Generated for each sequence (default 128).", .least = 1, .most = 1 << 20},
        {.name = "repeats", .kind = OPTION_INT, .value = &repeats, .argument = "N",
         .help = "Runs of each batch, whose median counts (default 3).", .least = 1,
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
