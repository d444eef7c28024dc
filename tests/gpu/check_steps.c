// Whole steps: recorded ones against the same steps as they come; that nothing is allocated once a
// stage is ready; and what a step of one rank of a large deployment takes, recorded and not.
#include "tests/gpu/check.h"
#include "tests/gpu/counted.h"
#include "tests/gpu/side.h"

#include "common/clock.h"
#include "common/layout.h"
#include "common/row_buckets.h"
#include "common/seal.h"
#include "kernels/comm.h"
#include "workers/forward.h"
#include "workers/stage.h"

#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct result *results;

static void must(enum status status, const struct error *e) { check(status == OK, "%s", e->text); }

// --- a stage with all layers of a small model

enum {
    SLOTS = 40, CONTEXT = 128, ROWS = 256, BLOCKS_EACH = CONTEXT / KV_BLOCK_ROWS,
    PROMPT = 5, // rows of slot 0's prompt; each slot has one more than the one before
    PROMPTS = 6, // slots whose prompts are in one step
    MANY = 300, // steps after which nothing may have been allocated
};

struct small {
    struct model_config config;
    struct checkpoint *checkpoint;
    struct stage *stage;
    void *memory, *staging;
    uint64_t number;
};

static void wait_for(struct stage *s)
{
    struct pollfd p = {.fd = stage_fd(s), .events = POLLIN};
    uint64_t events;
    check(poll(&p, 1, 60000) == 1, "the stage is silent for a minute");
    check(read(p.fd, &events, sizeof events) == sizeof events);
}

static void open_stage(struct small *m, const struct backend *b, enum precision p)
{
    struct error e = {0};
    struct stage_options o = {
        .config = &m->config, .checkpoint = m->checkpoint, .backend = b, .last = m->config.n_layers,
        .head = true, .tail = true, .tp = 1, .precision = p,
        .limits = {.max_rows = ROWS, .slots = SLOTS, .max_blocks = BLOCKS_EACH,
                   .n_blocks = SLOTS * BLOCKS_EACH, .max_out = ROWS,
                   .vocab_size = m->config.vocab_size, .score = true},
        .n_steps = 1};
    o.memory = m->memory = calloc(1, stage_memory_bytes(&o));
    o.staging = m->staging = malloc(stage_staging_bytes(&o));
    must(stage_create(&m->stage, &o, &e), &e);
    enum stage_state state;
    while ((state = stage_state(m->stage, &e)) == STAGE_LOADING) wait_for(m->stage);
    check(state == STAGE_READY, "%s", e.text);
    m->number = 0;
}

static void close_stage(struct small *m)
{
    stage_destroy(&m->stage);
    free(m->memory);
    free(m->staging);
}

static int prompt_rows(int slot) { return PROMPT + slot; }

// Prompts of slots [first, first + n), or a row of each behind its prompt.
static void fill(struct step *s, uint64_t number, bool prompts, int first, int n)
{
    step_reset(s, number);
    for (int slot = first; slot < first + n; slot++) {
        int rows = prompts ? prompt_rows(slot) : 1, pos = prompts ? 0 : prompt_rows(slot);
        s->runs[s->n_runs++] = (struct step_run){slot, pos, rows, RUN_LAST_ROW};
        for (int i = 0; i < rows; i++) s->ids[s->n_rows++] = 7 + (slot * 31 + pos + i) % 200;
        if (!prompts) continue;
        s->opens[s->n_opens++] = (struct step_open){.slot = slot, .n_blocks = BLOCKS_EACH,
                                                    .first_block = s->n_blocks, .n_prompt = rows,
                                                    .sampling = sampling_default()};
        for (int i = 0; i < BLOCKS_EACH; i++) {
            s->blocks[s->n_blocks++] = SLOTS * BLOCKS_EACH - 1 - (slot * BLOCKS_EACH + i);
        }
    }
    step_expand(s);
}

// Runs a step; its logits go to `to` (n_out, vocab), if there is one.
static void run(struct small *m, bool prompts, int first, int n, float *to)
{
    struct stage_step *s = stage_next(m->stage), *done;
    struct error e = {0};
    enum status status = OK;
    fill(&s->step, ++m->number, prompts, first, n);
    stage_submit(m->stage);
    while ((done = stage_done(m->stage, &status, &e)) == NULL) {
        must(status, &e);
        wait_for(m->stage);
    }
    size_t values = (size_t) done->step.n_out * (size_t) m->config.vocab_size;
    if (to != NULL) memcpy(to, done->logits, values * sizeof *to);
    stage_release(m->stage);
}

static void run_prompts(struct small *m)
{
    for (int slot = 0; slot < SLOTS; slot += PROMPTS) {
        run(m, true, slot, SLOTS - slot < PROMPTS ? SLOTS - slot : PROMPTS, NULL);
    }
}

static const int decodes[] = {1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 31, 33, 40};

enum { N_DECODES = sizeof decodes / sizeof *decodes };

// Logits of decode steps of `decodes` rows (heap).
static float *run_decodes(struct small *m, const struct backend *b, enum precision p)
{
    size_t vocab = (size_t) m->config.vocab_size, at = 0;
    float *logits = calloc((size_t) N_DECODES * SLOTS * vocab, sizeof *logits);
    check(logits != NULL);
    open_stage(m, b, p);
    run_prompts(m);
    for (int i = 0; i < N_DECODES; i++) {
        run(m, false, 0, decodes[i], logits + at * vocab);
        at += (size_t) decodes[i];
    }
    close_stage(m);
    return logits;
}

static void check_recorded(struct small *m, const char *name, enum precision p)
{
    struct backend eager = *backend_cuda();
    eager.records = false;
    float *want = run_decodes(m, &eager, p), *have = run_decodes(m, backend_cuda(), p);
    float *again = run_decodes(m, backend_cuda(), p);
    size_t vocab = (size_t) m->config.vocab_size, at = 0, all = 0;
    for (int i = 0; i < N_DECODES; i++) {
        size_t n = (size_t) decodes[i] * vocab;
        double off = difference(have + at, want + at, n);
        bool padded = row_bucket(decodes[i], SLOTS) != decodes[i];
        char line[160];
        snprintf(line, sizeof line, "recorded step, %s, %d rows%s", name, decodes[i],
                 padded ? ", padded" : "");
        // The same kernels for the same rows: the same bits; in exact mode in any case.
        result_error(results, line, off, padded && p == PRECISION_BF16 ? 1e-2 : 0);
        at += n;
        all += n;
    }
    bool same = memcmp(have, again, all * sizeof *have) == 0;
    result_error(results, "recorded steps, a second time", same ? 0 : INFINITY, 0);
    free(want);
    free(have);
    free(again);
}

// Steps of all kinds, after which the device has what it had.
static void check_no_allocation(struct small *m, const char *name, enum precision p)
{
    uint64_t before = counted_calls();
    open_stage(m, backend_cuda(), p);
    check(counted_calls() > before, "the counters are not in their place");
    uint64_t calls = counted_calls(), free_bytes = counted_free();
    uint64_t heap = seal_counts().broken;
    char line[160];
    run_prompts(m);
    for (int i = 0; i < MANY; i++) run(m, false, i % 3, 1 + i * 7 % (SLOTS - 3), NULL);
    run_prompts(m);
    snprintf(line, sizeof line, "%s: heap calls of the rank's thread", name);
    result_error(results, line, (double) (seal_counts().broken - heap), 0);
    snprintf(line, sizeof line, "%s: calls for memory after READY", name);
    result_error(results, line, (double) (counted_calls() - calls), 0);
    snprintf(line, sizeof line, "%s: free bytes that went meanwhile", name);
    result_error(results, line, fabs((double) free_bytes - (double) counted_free()), 0);
    close_stage(m);
}

// --- two stages, one behind the other on the same GPU, several steps on their way

enum { SPLIT = 3, FLYING = 3 };

struct pair {
    struct small stages[2]; // each with its stage and its memory
    char *between[FLYING];  // activations on their way, by step number
    uint64_t moved, ended;  // steps that have left the first stage, and the second
};

static void open_half(struct small *m, const struct small *model, const struct backend *b, int i)
{
    struct error e = {0};
    *m = *model;
    struct stage_options o = {
        .config = &m->config, .checkpoint = m->checkpoint, .backend = b,
        .first = i == 0 ? 0 : SPLIT, .last = i == 0 ? SPLIT : m->config.n_layers,
        .head = i == 0, .tail = i == 1, .tp = 1, .precision = PRECISION_BF16,
        .limits = {.max_rows = ROWS, .slots = SLOTS, .max_blocks = BLOCKS_EACH,
                   .n_blocks = SLOTS * BLOCKS_EACH, .max_out = ROWS,
                   .vocab_size = m->config.vocab_size, .score = true},
        .n_steps = FLYING};
    o.memory = m->memory = calloc(1, stage_memory_bytes(&o));
    o.staging = m->staging = malloc(stage_staging_bytes(&o));
    must(stage_create(&m->stage, &o, &e), &e);
    enum stage_state state;
    while ((state = stage_state(m->stage, &e)) == STAGE_LOADING) wait_for(m->stage);
    check(state == STAGE_READY, "%s", e.text);
}

// Prompts first, then decode steps; all have the same number in both stages.
static void fill_number(struct step *s, uint64_t number)
{
    uint64_t prompts = (SLOTS + PROMPTS - 1) / PROMPTS;
    int first = number < prompts ? (int) number * PROMPTS : 0;
    int left = SLOTS - first < PROMPTS ? SLOTS - first : PROMPTS;
    fill(s, number + 1, number < prompts, first,
         number < prompts ? left : decodes[number - prompts]);
}

// What has left the first stage goes to the second. False if there was nothing.
static bool move(struct pair *p, struct error *e)
{
    enum status status = OK;
    const struct stage_step *done = stage_done(p->stages[0].stage, &status, e);
    must(status, e);
    struct stage_step *place = stage_next(p->stages[1].stage);
    if (done == NULL || place == NULL) return false;
    char *between = p->between[p->moved % FLYING];
    memcpy(between, done->out,
           (size_t) done->step.n_rows * stage_row_bytes(&p->stages[0].config, PRECISION_BF16));
    stage_release(p->stages[0].stage);
    fill_number(&place->step, p->moved++);
    place->in = between;
    stage_submit(p->stages[1].stage);
    return true;
}

// All logits (heap).
static float *run_two(const struct small *model, const struct backend *b, int flying)
{
    static struct pair p;
    size_t vocab = (size_t) model->config.vocab_size, at = 0;
    float *logits = calloc((size_t) (N_DECODES + 1) * SLOTS * vocab, sizeof *logits);
    uint64_t n = (SLOTS + PROMPTS - 1) / PROMPTS + N_DECODES, sent = 0;
    struct error e = {0};
    p = (struct pair){0};
    for (int i = 0; i < 2; i++) open_half(&p.stages[i], model, b, i);
    for (int i = 0; i < FLYING; i++) {
        p.between[i] = malloc(ROWS * stage_row_bytes(&model->config, PRECISION_BF16));
    }
    while (p.ended < n) {
        struct stage_step *place, *done;
        enum status status = OK;
        bool busy = false;
        while (sent < n && sent - p.ended < (uint64_t) flying &&
               (place = stage_next(p.stages[0].stage)) != NULL) {
            fill_number(&place->step, sent++);
            stage_submit(p.stages[0].stage);
        }
        while (move(&p, &e)) busy = true;
        while ((done = stage_done(p.stages[1].stage, &status, &e)) != NULL) {
            size_t values = (size_t) done->step.n_out * vocab;
            memcpy(logits + at, done->logits, values * sizeof *logits);
            at += values;
            stage_release(p.stages[1].stage);
            p.ended++;
            busy = true;
        }
        must(status, &e);
        if (busy) continue;
        struct pollfd fds[2] = {{.fd = stage_fd(p.stages[0].stage), .events = POLLIN},
                                {.fd = stage_fd(p.stages[1].stage), .events = POLLIN}};
        check(poll(fds, 2, 60000) > 0, "two stages are silent for a minute");
        for (int i = 0; i < 2; i++) {
            uint64_t events;
            if (fds[i].revents != 0) check(read(fds[i].fd, &events, sizeof events) > 0);
        }
    }
    for (int i = 0; i < 2; i++) close_stage(&p.stages[i]);
    for (int i = 0; i < FLYING; i++) free(p.between[i]);
    return logits;
}

// Steps that overlap give what steps that are waited for give, one by one.
static void check_overlap(const struct small *m)
{
    struct backend waiting = *backend_cuda();
    waiting.step_end = NULL;
    waiting.pin = NULL;
    size_t n = (size_t) (N_DECODES + 1) * SLOTS * (size_t) m->config.vocab_size;
    float *want = run_two(m, &waiting, 1);
    for (int i = 0; i < 3; i++) {
        float *have = run_two(m, backend_cuda(), FLYING);
        result_error(results, "two stages, steps that overlap", difference(have, want, n), 0);
        free(have);
    }
    free(want);
}

// --- one rank of a large deployment: layers of V3 with random weights

enum { LARGE_TP = 8, LARGE_RANK = 3, LARGE_LAYERS = 17, LARGE_FIRST = 17, LARGE_ROWS = 512,
       LARGE_SLOTS = 128, LARGE_CONTEXT = 4096, TIMES = 15 };
#define LARGE_ARENA (44ull << 30)

struct large {
    struct model_config config;
    struct side gpu;
    struct comm *comm;
    struct weights weights;
    struct forward forward;
    struct step step;
    void *host, *step_memory, *in;
    char *out[DEVICE_STEPS];
    char *noise; // bytes that are a number in every type
};

static void fill_matrix(struct large *l, const struct matrix *m)
{
    struct matrix to = *m;
    for (int row = 0; row < m->n; row += 256) {
        l->gpu.b->matrix_pack(l->gpu.d, &to, row, m->n - row < 256 ? m->n - row : 256, l->noise);
    }
    float *scales = noise_scales(m);
    if (scales == NULL) return;
    size_t blocks = (size_t) ((m->row_phase + m->n + SCALE_BLOCK - 1) / SCALE_BLOCK) *
                    (size_t) ((m->col_phase + m->k + SCALE_BLOCK - 1) / SCALE_BLOCK);
    l->gpu.b->upload(l->gpu.d, m->scales, scales, blocks * sizeof *scales);
    free(scales);
}

static void fill_vector(struct large *l, const float *to, size_t n, float scale)
{
    float *values = noises(n, scale);
    l->gpu.b->upload(l->gpu.d, (float *) (uintptr_t) to, values, n * sizeof *values);
    free(values);
}

static void fill_layer(struct large *l, const struct layer *w)
{
    const struct model_config *c = &l->config;
    fill_vector(l, w->input_norm, (size_t) c->hidden_size, 1);
    fill_vector(l, w->post_norm, (size_t) c->hidden_size, 1);
    fill_vector(l, w->q_a_norm, (size_t) c->q_lora_rank, 1);
    fill_vector(l, w->kv_a_norm, (size_t) c->kv_lora_rank, 1);
    fill_vector(l, w->router.weight, (size_t) c->n_routed_experts * (size_t) c->hidden_size, 0.02f);
    fill_vector(l, w->router.bias, (size_t) c->n_routed_experts, 0.1f);
    const struct matrix *matrices[] = {&w->q_a, &w->q, &w->kv_a, &w->o, &w->gate, &w->up, &w->down};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) fill_matrix(l, matrices[i]);
    for (int h = 0; h < l->weights.n_heads; h++) {
        fill_matrix(l, &w->uk[h]);
        fill_matrix(l, &w->uv[h]);
    }
    for (int i = 0; i < c->n_routed_experts; i++) {
        fill_matrix(l, &w->experts[i].gate);
        fill_matrix(l, &w->experts[i].up);
        fill_matrix(l, &w->experts[i].down);
    }
}

static void lay_out(struct large *l, const struct step_limits *limits, struct carve *host)
{
    struct error e = {0};
    struct placement place = {LARGE_FIRST, LARGE_FIRST + LARGE_LAYERS, false, false, LARGE_RANK,
                              LARGE_TP};
    must(weights_layout(&l->weights, &l->config, &place, NULL, l->gpu.b, &l->gpu.arena, &e), &e);
    forward_layout(&l->forward, &l->weights, l->gpu.b, l->gpu.d, l->comm, l->comm, PRECISION_BF16,
                   limits, &l->gpu.arena, host);
}

static void open_large(struct large *l, const char *fixtures)
{
    struct error e = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/deepseek-v3", fixtures);
    must(model_config_load(&l->config, path, &e), &e);
    struct step_limits limits = {.max_rows = LARGE_ROWS, .slots = LARGE_SLOTS,
                                 .max_blocks = LARGE_CONTEXT / KV_BLOCK_ROWS,
                                 .max_out = LARGE_SLOTS,
                                 .n_blocks = LARGE_SLOTS * (LARGE_CONTEXT / KV_BLOCK_ROWS),
                                 .vocab_size = l->config.vocab_size};
    side_open(&l->gpu, backend_cuda(), PRECISION_BF16, LARGE_ARENA);
    size_t elements = LARGE_ROWS * (size_t) l->config.hidden_size;
    must(comm_local_create(&l->comm, 1, elements, 1, 0, NULL, &e), &e);
    struct matrix bits = {.dtype = DTYPE_F8_E4M3, .n = 256, .k = 18432};
    l->noise = noise_rows(&bits);
    for (int i = 1; i < 256 * 18432; i += 2) l->noise[i] &= (char) 0xbf; // small as bf16, too
    struct carve host = {0};
    l->host = calloc(1, 1 << 24);
    host = (struct carve){.base = l->host, .size = 1 << 24};
    lay_out(l, &limits, &host);
    for (int i = 0; i < LARGE_LAYERS; i++) fill_layer(l, &l->weights.layers[i]);
    fill_vector(l, l->weights.inv_freq, (size_t) l->config.qk_rope_head_dim / 2, 1);
    l->weights.rope_multiplier = 1;
    l->step_memory = malloc(step_bytes(&limits));
    step_init(&l->step, &limits, l->step_memory);
    size_t wire = LARGE_ROWS * stage_row_bytes(&l->config, PRECISION_BF16);
    l->in = calloc(1, wire);
    l->out[0] = calloc(DEVICE_STEPS, wire);
    check(l->in != NULL && l->out[0] != NULL);
    l->out[1] = l->out[0] + wire;
    must(l->gpu.b->pin(l->gpu.d, l->out[0], DEVICE_STEPS * wire, &e), &e);
    for (size_t i = 1; i < wire; i += 2) ((uint8_t *) l->in)[i] = (uint8_t) (noise_bits() & 0x3f);
}

static void close_large(struct large *l)
{
    weights_deinit(&l->weights);
    l->comm->ops->destroy(&l->comm);
    side_close(&l->gpu);
    free(l->noise);
    free(l->host);
    free(l->step_memory);
    free(l->in);
    free(l->out[0]);
}

// A row of each of n slots at the end of its context; slots are opened once.
static void fill_large(struct large *l, int n, bool open)
{
    struct step *s = &l->step;
    int blocks = LARGE_CONTEXT / KV_BLOCK_ROWS;
    step_reset(s, 1);
    for (int slot = 0; open && slot < LARGE_SLOTS; slot++) {
        s->opens[s->n_opens++] = (struct step_open){.slot = slot, .n_blocks = blocks,
                                                    .first_block = s->n_blocks,
                                                    .sampling = sampling_default()};
        for (int i = 0; i < blocks; i++, s->n_blocks++) s->blocks[s->n_blocks] = s->n_blocks;
    }
    for (int slot = 0; slot < n; slot++) {
        s->runs[s->n_runs++] = (struct step_run){slot, LARGE_CONTEXT - 1, 1, RUN_NO_LOGITS};
        s->ids[s->n_rows++] = slot;
    }
    step_expand(s);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

// Median milliseconds of a step of n rows, from its arrays until its activations are in the host.
static double time_large(struct large *l, int n)
{
    struct error e = {0};
    double ms[TIMES];
    for (int i = -2; i < TIMES; i++) {
        fill_large(l, n, false);
        int64_t from = clock_ns();
        must(forward_run(&l->forward, &l->step, l->in, l->out[0], &e), &e);
        if (i >= 0) ms[i] = (double) (clock_ns() - from) * 1e-6;
    }
    qsort(ms, TIMES, sizeof *ms, by_size);
    return ms[TIMES / 2];
}

// Milliseconds of a step of n rows among steps that overlap, as a rank of a stage runs them.
static double time_overlapping(struct large *l, int n)
{
    const struct backend *b = l->gpu.b;
    struct error e = {0};
    int64_t from = 0;
    for (int i = -2; i <= TIMES; i++) {
        int at = (i + DEVICE_STEPS) % DEVICE_STEPS;
        fill_large(l, n, false);
        must(forward_begin(&l->forward, &l->step, l->in, l->out[at], &e), &e);
        b->step_end(l->gpu.d, at);
        if (i > -2) must(b->step_wait(l->gpu.d, 1 - at, &e), &e);
        if (i == 0) from = clock_ns(); // a step has ended
    }
    double ms = (double) (clock_ns() - from) * 1e-6 / TIMES;
    must(b->sync(l->gpu.d, &e), &e);
    return ms;
}

// Microseconds of the host for a step of n rows, until it is on the device.
static double time_host(struct large *l, int n)
{
    struct error e = {0};
    double us[TIMES];
    for (int i = 0; i < TIMES; i++) {
        fill_large(l, n, false);
        int64_t from = clock_ns();
        must(forward_begin(&l->forward, &l->step, l->in, l->out[0], &e), &e);
        us[i] = (double) (clock_ns() - from) * 1e-3;
        must(l->gpu.b->sync(l->gpu.d, &e), &e);
    }
    qsort(us, TIMES, sizeof *us, by_size);
    return us[TIMES / 2];
}

// What a hop costs at both of its ends, alone: the device's part of it.
static void time_wire(struct large *l, int n)
{
    struct error e = {0};
    size_t values = (size_t) n * (size_t) l->config.hidden_size;
    double bytes = 2.0 * (double) values;
    for (int way = 0; way < 2; way++) {
        int64_t from = 0;
        for (int i = -2; i < TIMES; i++) {
            if (i == 0) from = clock_ns();
            if (way == 0) l->gpu.b->export_act(l->gpu.d, l->out[0], l->forward.x, values);
            else l->gpu.b->import_act(l->gpu.d, l->forward.x, l->in, values);
            must(l->gpu.b->sync(l->gpu.d, &e), &e);
        }
        double seconds = (double) (clock_ns() - from) * 1e-9 / TIMES;
        char line[160];
        snprintf(line, sizeof line, "%s of %d rows, waited for: %.1f us",
                 way == 0 ? "export" : "import", n, seconds * 1e6);
        result_figure(results, line, bytes / seconds * 1e-9, "GB/s", 0);
    }
}

static void check_large(const char *fixtures)
{
    static struct large l;
    static const int row_counts[] = {1, 2, 4, 8, 16, 32, 33, 48, 64, 128};
    struct error e = {0};
    char line[160];
    open_large(&l, fixtures);
    side_sync(&l.gpu);
    uint64_t calls = counted_calls(), free_bytes = counted_free();
    int64_t from = clock_ns();
    must(forward_prepare(&l.forward, &e), &e);
    int buckets[ROW_BUCKETS_MAX], n = row_buckets(LARGE_SLOTS, buckets);
    snprintf(line, sizeof line, "%d buckets of %d layers: %llu calls, %.0f ms, MiB", n,
             LARGE_LAYERS, (unsigned long long) (counted_calls() - calls),
             (double) (clock_ns() - from) * 1e-6);
    result_figure(results, line, ((double) free_bytes - (double) counted_free()) / (double) MIB,
                  "MiB", 0);
    fill_large(&l, 1, true);
    must(forward_run(&l.forward, &l.step, l.in, l.out[0], &e), &e);
    calls = counted_calls();
    free_bytes = counted_free();
    int recorded = l.forward.most_recorded;
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
        double graph = time_large(&l, row_counts[i]);
        double host = time_host(&l, row_counts[i]);
        l.forward.most_recorded = 0;
        double eager = time_large(&l, row_counts[i]), host_eager = time_host(&l, row_counts[i]);
        l.forward.most_recorded = recorded;
        snprintf(line, sizeof line, "step of %d rows, %d layers, TP 8: %.3f ms, not recorded",
                 row_counts[i], LARGE_LAYERS, graph);
        result_figure(results, line, eager, "ms", 0);
        snprintf(line, sizeof line, "step of %d rows among steps that overlap", row_counts[i]);
        result_figure(results, line, time_overlapping(&l, row_counts[i]), "ms", 0);
        if (row_counts[i] == 1) {
            snprintf(line, sizeof line, "a recorded step of one row, of one that is not");
            result_figure(results, line, graph / eager, "", 0);
            snprintf(line, sizeof line, "the host's time for it: %.0f us, of %.0f us", host,
                     host_eager);
            result_error(results, line, host / host_eager, 0.1);
        }
    }
    for (int rows = 1; rows <= LARGE_SLOTS; rows *= 128) time_wire(&l, rows);
    result_error(results, "large steps: calls for memory", (double) (counted_calls() - calls), 0);
    result_error(results, "large steps: free bytes that went",
                 fabs((double) free_bytes - (double) counted_free()), 0);
    close_large(&l);
}

void check_steps(struct result *r, const char *fixtures)
{
    static struct small m;
    struct error e = {0};
    char path[512];
    results = r;
    snprintf(path, sizeof path, "%s/tiny-fp8", fixtures);
    must(model_config_load(&m.config, path, &e), &e);
    must(checkpoint_open(&m.checkpoint, path, &e), &e);
    check_recorded(&m, "f32", PRECISION_F32);
    check_recorded(&m, "bf16", PRECISION_BF16);
    check_overlap(&m);
    check_no_allocation(&m, "f32", PRECISION_F32);
    check_no_allocation(&m, "bf16", PRECISION_BF16);
    checkpoint_close(&m.checkpoint);
    check_large(fixtures);
}
