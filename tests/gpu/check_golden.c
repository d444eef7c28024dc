// Golden files: a checkpoint's prompts through one stage with all layers, on the GPU, against the
// logits of the reference implementation; then greedy tokens, one step each.
#include "tests/gpu/check.h"

#include "common/checkpoint.h"
#include "common/layout.h"
#include "tests/support/golden.h"
#include "workers/stage.h"

#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONTEXT = 512, SLOTS = 4, ROWS_MAX = 8 * CONTEXT, N_OVERLAPPING = 48 };

// A check in brief is for tools that run a kernel a hundred times as long: steps of so many rows
// at most, and so much patience with the stage.
enum { BRIEF_PROMPTS = 3, BRIEF_ROWS = 24, SILENCE_MS = 60000, BRIEF_SILENCE_MS = 600000 };

// How a model is shared out, and how the ranks sum.
struct shared_out {
    int tp, n_gpus;
    struct comm_cuda_options comm;
    const char *name; // NULL: as many ranks on as many GPUs
};

struct model {
    struct model_config config;
    struct checkpoint *checkpoint;
    struct stage *stage;
    void *memory, *staging; // the stage's
    struct golden golden;
    int silence_ms;  // how long the stage may take for anything
    bool fp8_kv;
    uint64_t number; // of the last step
    double errors[ROWS_MAX];
    int n_errors;
    double first_prompt; // median error of p0
    int n_same, n_clear; // greedy tokens as in the golden file, and those that leave no doubt
};

static void must(enum status status, const struct error *e) { check(status == OK, "%s", e->text); }

static void wait_for(struct model *m)
{
    struct pollfd p = {.fd = stage_fd(m->stage), .events = POLLIN};
    uint64_t events;
    check(poll(&p, 1, m->silence_ms) == 1, "the stage is silent for %d ms", m->silence_ms);
    check(read(p.fd, &events, sizeof events) == sizeof events);
}

static void open_model(struct model *m, const char *weights, const char *golden, enum precision p,
                       bool brief, const struct shared_out *cut, int n_steps)
{
    struct error e = {0};
    m->silence_ms = brief ? BRIEF_SILENCE_MS : SILENCE_MS;
    must(model_config_load(&m->config, weights, &e), &e);
    must(checkpoint_open(&m->checkpoint, weights, &e), &e);
    golden_load(&m->golden, golden);
    struct stage_options o = {.config = &m->config,
                              .checkpoint = m->checkpoint,
                              .backend = backend_cuda(),
                              .first = 0,
                              .last = m->config.n_layers,
                              .head = true,
                              .tail = true,
                              .tp = cut->tp,
                              .n_gpus = cut->n_gpus,
                              .sums = cut->comm,
                              .precision = p,
                              .limits = {.max_rows = brief ? BRIEF_ROWS : CONTEXT,
                                         .slots = SLOTS,
                                         .max_blocks = CONTEXT / KV_BLOCK_ROWS,
                                         .n_blocks = SLOTS * CONTEXT / KV_BLOCK_ROWS,
                                         .fp8_kv = m->fp8_kv,
                                         .max_out = brief ? BRIEF_ROWS : CONTEXT,
                                         .vocab_size = m->config.vocab_size,
                                         .score = n_steps == 1},
                              .n_steps = n_steps,
                              .collective_deadline_ms = m->silence_ms};
    m->memory = calloc(1, stage_memory_bytes(&o));
    m->staging = malloc(stage_staging_bytes(&o));
    check(m->memory != NULL && m->staging != NULL);
    o.memory = m->memory;
    o.staging = m->staging;
    must(stage_create(&m->stage, &o, &e), &e);
    enum stage_state state;
    while ((state = stage_state(m->stage, &e)) == STAGE_LOADING) wait_for(m);
    check(state == STAGE_READY, "%s", e.text);
}

static void close_model(struct model *m)
{
    stage_destroy(&m->stage);
    free(m->memory);
    free(m->staging);
    checkpoint_close(&m->checkpoint);
    golden_free(&m->golden);
}

// Runs rows [pos, pos + n) of the sequence in slot 1; `open` begins it, `end` ends the one before.
static const struct stage_step *run(struct model *m, const int32_t *ids, int pos, int n, bool open,
                                    bool end)
{
    struct stage_step *s = stage_next(m->stage);
    check(s != NULL);
    step_reset(&s->step, ++m->number);
    if (end) s->step.closes[s->step.n_closes++] = 1;
    if (open) {
        s->step.opens[s->step.n_opens++] = (struct step_open){.slot = 1,
                                                              .n_blocks = CONTEXT / KV_BLOCK_ROWS,
                                                              .n_prompt = n,
                                                              .sampling = sampling_default()};
        for (int i = 0; i < CONTEXT / KV_BLOCK_ROWS; i++) {
            s->step.blocks[s->step.n_blocks++] = CONTEXT / KV_BLOCK_ROWS - 1 - i;
        }
    }
    s->step.runs[s->step.n_runs++] = (struct step_run){1, pos, n, RUN_ALL_ROWS};
    memcpy(s->step.ids, ids, (size_t) n * sizeof *ids);
    s->step.n_rows = n;
    step_expand(&s->step);
    stage_submit(m->stage);
    struct error e = {0};
    enum status status = OK;
    struct stage_step *done;
    while ((done = stage_done(m->stage, &status, &e)) == NULL) {
        must(status, &e);
        wait_for(m);
    }
    return done;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

double median(double *values, int n)
{
    qsort(values, (size_t) n, sizeof *values, by_size);
    return values[n / 2];
}

static double row_error(const float *have, const float *want, int n)
{
    double off = 0, all = 0;
    for (int i = 0; i < n; i++) {
        double d = (double) have[i] - (double) want[i];
        off += d * d;
        all += (double) want[i] * (double) want[i];
    }
    return isnan(off) ? INFINITY : sqrt(off / all);
}

static void run_prompt(struct model *m, int prompt, int n_greedy)
{
    const struct golden_prompt *p = &m->golden.prompts[prompt];
    int vocab = m->golden.vocab;
    const struct stage_step *s = run(m, p->ids, 0, p->n_ids, true, prompt > 0);
    int first = m->n_errors;
    for (int i = 0; i < p->n_rows && m->n_errors < ROWS_MAX; i++) {
        const float *have = s->logits + (size_t) (p->n_ids - p->n_rows + i) * (size_t) vocab;
        m->errors[m->n_errors++] = row_error(have, p->logits + (size_t) i * (size_t) vocab, vocab);
    }
    if (prompt == 0) m->first_prompt = median(m->errors + first, m->n_errors - first);
    int32_t id = s->tokens[p->n_ids - 1].id;
    stage_release(m->stage);
    for (int i = 0; i < p->n_greedy && i < n_greedy && p->n_ids + i < CONTEXT; i++) {
        if (p->margin[i] > 0.01f) {
            m->n_clear++;
            m->n_same += id == p->greedy[i];
        }
        int32_t next = p->greedy[i]; // what the golden file went on with
        s = run(m, &next, p->n_ids + i, 1, false, false);
        id = s->tokens[0].id;
        stage_release(m->stage);
    }
}

static void check_model(struct result *r, const char *name, const char *weights, const char *golden,
                        enum precision p, bool fp8_kv, double bar, bool brief,
                        const struct shared_out *cut)
{
    static struct model m;
    char line[160];
    m = (struct model){.fp8_kv = fp8_kv};
    open_model(&m, weights, golden, p, brief, cut, 1);
    int n_prompts = brief ? BRIEF_PROMPTS : m.golden.n_prompts;
    for (int i = 0; i < n_prompts; i++) run_prompt(&m, i, brief ? 1 : CONTEXT);
    snprintf(line, sizeof line, "golden %s: median row error", name);
    result_error(r, line, median(m.errors, m.n_errors), bar);
    snprintf(line, sizeof line, "golden %s: largest row error", name);
    bool exact = p == PRECISION_F32 && !fp8_kv;
    result_error(r, line, m.errors[m.n_errors - 1], exact ? 1e-3 : INFINITY);
    snprintf(line, sizeof line, "golden %s: p0", name);
    result_error(r, line, m.first_prompt, exact ? 1e-4 : fp8_kv ? bar : 0.02);
    snprintf(line, sizeof line, "golden %s: greedy tokens that differ, of %d", name, m.n_clear);
    // In bf16 a random model's router flips experts, and a token with it; in FP8 more of them.
    double others = exact ? 0 : fp8_kv ? 0.6 : 0.2;
    result_error(r, line, m.n_clear - m.n_same, m.n_clear * others);
    close_model(&m);
}

// --- steps that overlap

// A step of the slot's next rows: its prompt, or the token that was chosen last.
static void submit(struct model *m, int slot, const int32_t *ids, int pos, int n)
{
    enum { BLOCKS = CONTEXT / KV_BLOCK_ROWS };
    struct step *s = &stage_next(m->stage)->step;
    step_reset(s, ++m->number);
    if (pos == 0) {
        struct sampling sampling = sampling_default();
        sampling.temperature = slot % 2 == 0 ? 0 : 0.8f;
        sampling.top_p = 0.9f;
        sampling.seed = (uint64_t) slot;
        s->opens[s->n_opens++] = (struct step_open){.slot = slot, .n_blocks = BLOCKS, .n_prompt = n,
                                                    .sampling = sampling};
        for (int i = 0; i < BLOCKS; i++) s->blocks[s->n_blocks++] = slot * BLOCKS + i;
    }
    s->runs[s->n_runs++] = (struct step_run){slot, pos, n, RUN_LAST_ROW};
    memcpy(s->ids, ids, (size_t) n * sizeof *ids);
    s->n_rows = n;
    step_expand(s);
    stage_submit(m->stage);
}

// Tokens of SLOTS sequences, a step for each row, as many of them in flight as the stage has steps.
static void run_slots(struct model *m, int n_steps, int32_t tokens[SLOTS][N_OVERLAPPING])
{
    int pos[SLOTS] = {0}, n[SLOTS] = {0}, queue[SLOTS], n_queued = SLOTS, flying = 0;
    for (int i = 0; i < SLOTS; i++) queue[i] = i;
    for (int left = SLOTS * N_OVERLAPPING; left > 0;) {
        for (; n_queued > 0 && flying < n_steps; flying++) {
            int slot = queue[0];
            const struct golden_prompt *p = &m->golden.prompts[slot % m->golden.n_prompts];
            memmove(queue, queue + 1, (size_t) --n_queued * sizeof *queue);
            bool first = pos[slot] == 0;
            submit(m, slot, first ? p->ids : &tokens[slot][n[slot] - 1], pos[slot],
                   first ? p->n_ids : 1);
            pos[slot] += first ? p->n_ids : 1;
        }
        struct error e = {0};
        enum status status = OK;
        struct stage_step *done = stage_done(m->stage, &status, &e);
        must(status, &e);
        if (done == NULL) {
            wait_for(m);
            continue;
        }
        int slot = done->step.runs[0].slot;
        tokens[slot][n[slot]++] = done->tokens[0].id;
        if (n[slot] < N_OVERLAPPING) queue[n_queued++] = slot;
        stage_release(m->stage);
        flying--;
        left--;
    }
}

static void check_overlapping(struct result *r, const char *weights, const char *golden)
{
    static struct model m;
    static int32_t tokens[2][SLOTS][N_OVERLAPPING];
    const struct shared_out one = {.tp = 1};
    int differ = 0;
    for (int k = 0; k < 2; k++) {
        m = (struct model){0};
        open_model(&m, weights, golden, PRECISION_BF16, false, &one, k == 0 ? 1 : 3);
        run_slots(&m, k == 0 ? 1 : 3, tokens[k]);
        close_model(&m);
    }
    for (int i = 0; i < SLOTS; i++) {
        for (int k = 0; k < N_OVERLAPPING; k++) differ += tokens[0][i][k] != tokens[1][i][k];
    }
    char line[80];
    snprintf(line, sizeof line, "a tail's steps overlap: tokens that differ, of %d",
             SLOTS * N_OVERLAPPING);
    result_error(r, line, differ, 0);
}

static const struct {
    const char *name;
    double bf16, fp8_kv; // bars of the median row error: random routers are sent elsewhere by e4m3
} MODELS[] = {{"tiny-fp8", 0.10, 0.40}, {"tiny-bf16", 0.05, 0.10}, {"shipped", 0.05, 0.05}};

enum { KV_NUMBERS = 6, N_NUMBERS = 9 };

// Number i: a checkpoint in f32 (even) or bf16; from KV_NUMBERS on, one in bf16 with KV in FP8.
static void check_number(struct result *r, const char *fixtures, const char *model, int i,
                         bool brief, const struct shared_out *cut)
{
    bool fp8_kv = i >= KV_NUMBERS, f32 = !fp8_kv && i % 2 == 0;
    int which = fp8_kv ? i - KV_NUMBERS : i / 2;
    double bar = f32 ? 1e-4 : fp8_kv ? MODELS[which].fp8_kv : MODELS[which].bf16;
    char golden[512], name[96], of_ranks[40] = "";
    snprintf(golden, sizeof golden, "%s/%s", fixtures, MODELS[which].name);
    if (cut->tp > 1) {
        snprintf(of_ranks, sizeof of_ranks, ", %d ranks on %d GPUs", cut->tp, cut->n_gpus);
    }
    snprintf(name, sizeof name, "%s %s%s%s%s", MODELS[which].name, f32 ? "f32" : "bf16",
             fp8_kv ? ", KV in FP8" : "", of_ranks, cut->name != NULL ? cut->name : "");
    check_model(r, name, which == 2 ? model : golden, golden,
                f32 ? PRECISION_F32 : PRECISION_BF16, fp8_kv, bar, brief, cut);
}

void check_golden(struct result *r, const char *fixtures, const char *model, bool brief)
{
    struct shared_out cut = {.tp = 1};
    for (int i = 0; i < (brief ? 2 : N_NUMBERS); i++) {
        check_number(r, fixtures, model, i, brief, &cut);
    }
    if (brief) check_number(r, fixtures, model, KV_NUMBERS, brief, &cut);
    char golden[512];
    snprintf(golden, sizeof golden, "%s/shipped", fixtures);
    if (!brief) check_overlapping(r, model, golden);
}

void check_golden_ranks(struct result *r, const char *fixtures, const char *model, int tp,
                        int n_gpus)
{
    struct shared_out cut = {.tp = tp, .n_gpus = n_gpus};
    for (int i = 0; i < N_NUMBERS; i++) check_number(r, fixtures, model, i, false, &cut);
}

void check_golden_ways(struct result *r, const char *fixtures, const char *model, int n_gpus,
                       bool staged)
{
    static const struct shared_out PEERS[] = {{.comm = {.way = COMM_DIRECT}, .name = ", direct"},
                                       {.comm = {.way = COMM_NCCL}, .name = ", nccl"}};
    static const struct shared_out STAGED[] = {
        {.comm = {.staged = true}, .name = ", host"},
        {.comm = {.staged = true, .way = COMM_NCCL}, .name = ", nccl over host"},
        {.comm = {.staged = true, .coarse_least = 1}, .name = ", coarse"},
    };
    const struct shared_out *cuts = staged ? STAGED : PEERS;
    size_t n = staged ? sizeof STAGED / sizeof *STAGED : sizeof PEERS / sizeof *PEERS;
    for (int tp = 2; tp <= 4 && tp <= n_gpus; tp *= 2) {
        for (size_t k = 0; k < n; k++) {
            struct shared_out cut = cuts[k];
            cut.tp = cut.n_gpus = tp;
            // Rounding is for bf16, and for a model that was trained: random ones have routers
            // whose choices change.
            bool coarse = cut.comm.coarse_least > 0;
            for (int i = coarse ? 5 : 0; i < 6; i++) {
                check_number(r, fixtures, model, i, false, &cut);
            }
        }
    }
}
