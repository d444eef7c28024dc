// Steps that are padded to a row bucket and recorded, against steps as they come: the CPU's ops
// under a table that says it records.
#include "common/row_buckets.h"
#include "workers/stage.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/stage_case.h"

enum { SLOTS = 6, CONTEXT = 128, ROWS = 96, BLOCKS_EACH = CONTEXT / KV_BLOCK_ROWS, STEPS = 5 };

// All ranks count.
static atomic_int n_begun[ROWS + 1]; // by bucket: how often it was to be recorded
static atomic_int n_launched[ROWS + 1];
static atomic_int n_embedded[ROWS + 1]; // by rows of the op

static bool count_begin(struct device *d, int bucket)
{
    (void) d;
    n_begun[bucket]++;
    return true;
}

static void count_launch(struct device *d, int bucket)
{
    (void) d;
    n_launched[bucket]++;
}

static void count_embed(struct device *d, const void *table, enum dtype dtype, int vocab_begin,
                        int vocab_n, int hidden, const int32_t *ids, float *x, int n_rows)
{
    n_embedded[n_rows]++;
    backend_cpu()->embed(d, table, dtype, vocab_begin, vocab_n, hidden, ids, x, n_rows);
}

static struct backend recording(void)
{
    struct backend b = *backend_cpu();
    b.records = true;
    b.graph_begin = count_begin;
    b.graph_launch = count_launch;
    b.embed = count_embed;
    return b;
}

struct model {
    struct model_config config;
    struct checkpoint *checkpoint;
};

static struct stage *open_stage(const struct model *m, const struct backend *b, int tp,
                                void **memory, void **staging)
{
    struct error e = {0};
    struct stage_options o = {
        .config = &m->config, .checkpoint = m->checkpoint, .backend = b, .last = m->config.n_layers,
        .head = true, .tail = true, .tp = tp, .n_threads = 1, .precision = PRECISION_F32,
        .limits = {.max_rows = ROWS, .slots = SLOTS, .max_blocks = BLOCKS_EACH,
                   .n_blocks = SLOTS * BLOCKS_EACH, .max_out = ROWS,
                   .vocab_size = m->config.vocab_size, .score = true},
        .n_steps = 1};
    o.memory = *memory = calloc(1, stage_memory_bytes(&o));
    o.staging = *staging = malloc(stage_staging_bytes(&o));
    struct stage *stage;
    if (stage_create(&stage, &o, &e) != OK) fail_msg("%s", e.text);
    if (stage_case_wait(stage, &e) != STAGE_READY) fail_msg("%s", e.text);
    return stage;
}

// Step 0 has a prompt of each slot, the others a row of some of them: `n` slots, from `first` on.
static void fill(struct step *s, int number, int first, int n)
{
    step_reset(s, (uint64_t) number + 1);
    for (int slot = 0; number == 0 && slot < SLOTS; slot++) {
        s->opens[s->n_opens++] = (struct step_open){.slot = slot, .n_blocks = BLOCKS_EACH,
                                                    .first_block = s->n_blocks, .n_prompt = 9,
                                                    .sampling = sampling_default()};
        for (int i = 0; i < BLOCKS_EACH; i++, s->n_blocks++) {
            s->blocks[s->n_blocks] = SLOTS * BLOCKS_EACH - 1 - s->n_blocks;
        }
    }
    for (int i = 0; i < n; i++) {
        int slot = first + i, rows = number == 0 ? 9 + slot : 1;
        int pos = number == 0 ? 0 : 9 + slot; // the row behind the prompt, again and again
        s->runs[s->n_runs++] = (struct step_run){slot, pos, rows, RUN_LAST_ROW};
        for (int k = 0; k < rows; k++) s->ids[s->n_rows++] = 7 + (slot * 31 + pos + k) % 200;
    }
    step_expand(s);
}

// The logits of all steps, one behind the other (heap).
static float *run_steps(const struct model *m, const struct backend *b, int tp)
{
    static const struct {
        int first, n;
    } steps[STEPS] = {{0, SLOTS}, {0, 1}, {0, 3}, {1, 5}, {0, SLOTS}};
    void *memory, *staging;
    struct stage *stage = open_stage(m, b, tp, &memory, &staging);
    size_t vocab = (size_t) m->config.vocab_size, at = 0;
    float *logits = calloc(STEPS * SLOTS * vocab, sizeof *logits);
    for (int i = 0; i < STEPS; i++) {
        struct stage_step *s = stage_next(stage), *done;
        struct error e = {0};
        enum status status;
        fill(&s->step, i, steps[i].first, steps[i].n);
        stage_submit(stage);
        while ((done = stage_done(stage, &status, &e)) == NULL) {
            if (status != OK) fail_msg("%s", e.text);
            struct pollfd fd = {.fd = stage_fd(stage), .events = POLLIN};
            uint64_t n;
            assert_true(poll(&fd, 1, -1) == 1);
            assert_int_equal(read(fd.fd, &n, sizeof n), sizeof n);
        }
        size_t bytes = (size_t) done->step.n_out * vocab * sizeof(float);
        memcpy(logits + at * vocab, done->logits, bytes);
        at += (size_t) done->step.n_out;
        stage_release(stage);
    }
    stage_destroy(&stage);
    free(memory);
    free(staging);
    return logits;
}

static void forget(void)
{
    for (int i = 0; i <= ROWS; i++) n_begun[i] = n_launched[i] = n_embedded[i] = 0;
}

static void padding_changes_no_result(void **state)
{
    (void) state;
    static const char *const names[] = {FIXTURES "/tiny-fp8", FIXTURES "/tiny-bf16"};
    struct backend b = recording();
    for (int i = 0; i < 2; i++) {
        struct model m;
        struct error e = {0};
        if (model_config_load(&m.config, names[i], &e) != OK) fail_msg("%s", e.text);
        if (checkpoint_open(&m.checkpoint, names[i], &e) != OK) fail_msg("%s", e.text);
        size_t bytes = STEPS * SLOTS * (size_t) m.config.vocab_size * sizeof(float);
        float *want = run_steps(&m, backend_cpu(), 1);
        forget();
        float *have = run_steps(&m, &b, 1);
        assert_memory_equal(have, want, bytes);
        // Recorded while loading: 1, 2, 4 and 6 rows, at most one of each slot. Then 1, 3, 5 and 6.
        static const int want_begun[SLOTS + 1] = {0, 2, 1, 0, 2, 0, 3};
        assert_memory_equal(n_begun, want_begun, sizeof want_begun);
        assert_memory_equal(n_launched, want_begun, sizeof want_begun);
        assert_int_equal(n_embedded[69], 1); // the prompts, as they came
        int buckets[ROW_BUCKETS_MAX], n = row_buckets(ROWS, buckets);
        for (int k = 0; k < n; k++) assert_true(n_embedded[buckets[k]] > 0); // what runs first
        float *two = run_steps(&m, &b, 2), *two_plain = run_steps(&m, backend_cpu(), 2);
        assert_memory_equal(two, two_plain, bytes);
        free(want);
        free(have);
        free(two);
        free(two_plain);
        checkpoint_close(&m.checkpoint);
    }
}

// --- a device whose exports come late

enum { LATE_BYTES = 1 << 18, FIRST_STAGE = 2 };

// What a step's export wrote, until its end has been waited for.
static struct late {
    char bytes[LATE_BYTES];
    void *wire;
    size_t n;
    int polls;
} late[DEVICE_STEPS];

static int n_exported, n_waited, most_apart;
static int n_embeds, most_ahead; // steps that a tail began; beyond the one it chooses tokens for
static bool is_apart;

static void late_export(struct device *d, void *wire, const float *x, size_t n)
{
    struct late *l = &late[n_exported % DEVICE_STEPS];
    assert_true(n * sizeof *x <= sizeof l->bytes && l->wire == NULL);
    backend_cpu()->export_act(d, l->bytes, x, n);
    l->wire = wire;
    l->n = n * sizeof *x;
}

static void late_end(struct device *d, int i)
{
    (void) d;
    assert_int_equal(i, n_exported % DEVICE_STEPS);
    late[i].polls = 0;
    n_exported++;
    int apart = n_exported - n_waited;
    if (apart > most_apart) most_apart = apart;
}

static bool late_passed(struct device *d, int i)
{
    (void) d;
    return ++late[i].polls > 3;
}

static enum status late_wait(struct device *d, int i, struct error *e)
{
    (void) d;
    (void) e;
    assert_int_equal(i, n_waited % DEVICE_STEPS);
    assert_false(is_apart);
    if (late[i].wire != NULL) memcpy(late[i].wire, late[i].bytes, late[i].n);
    late[i].wire = NULL;
    n_waited++;
    return OK;
}

static void late_embed(struct device *d, const void *table, enum dtype dtype, int vocab_begin,
                       int vocab_n, int hidden, const int32_t *ids, float *x, int n_rows)
{
    n_embeds++;
    backend_cpu()->embed(d, table, dtype, vocab_begin, vocab_n, hidden, ids, x, n_rows);
}

static void late_apart(struct device *d, bool on)
{
    (void) d;
    assert_true(is_apart != on);
    is_apart = on;
    assert_int_equal(n_exported, n_waited + 1); // the step whose tokens are chosen, and no other
    int ahead = n_embeds - n_exported;
    if (ahead > most_ahead) most_ahead = ahead;
}

static struct backend overlapping(void)
{
    struct backend b = *backend_cpu();
    b.export_act = late_export;
    b.step_end = late_end;
    b.step_passed = late_passed;
    b.step_wait = late_wait;
    b.embed = late_embed;
    b.apart = late_apart;
    memset(late, 0, sizeof late);
    n_exported = n_waited = most_apart = n_embeds = most_ahead = 0;
    return b;
}

// What leaves a stage of the layers below `last` in each step: activations, or with all layers the
// logits. All steps are submitted as there is room. `bytes`: of a row.
static char *run_stage(const struct model *m, const struct backend *b, int last, size_t bytes)
{
    struct error e = {0};
    bool tail = last == m->config.n_layers;
    struct stage_options o = {
        .config = &m->config, .checkpoint = m->checkpoint, .backend = b, .last = last,
        .head = true, .tail = tail, .tp = 1, .n_threads = 1, .precision = PRECISION_F32,
        .limits = {.max_rows = ROWS, .slots = SLOTS, .max_blocks = BLOCKS_EACH,
                   .n_blocks = SLOTS * BLOCKS_EACH, .max_out = ROWS,
                   .vocab_size = m->config.vocab_size, .score = tail},
        .n_steps = 3};
    void *memory = calloc(1, stage_memory_bytes(&o)), *staging = malloc(stage_staging_bytes(&o));
    o.memory = memory;
    o.staging = staging;
    struct stage *stage;
    if (stage_create(&stage, &o, &e) != OK) fail_msg("%s", e.text);
    if (stage_case_wait(stage, &e) != STAGE_READY) fail_msg("%s", e.text);
    size_t at = 0;
    char *all = calloc(STEPS * ROWS, bytes);
    int sent = 0;
    for (int back = 0; back < STEPS;) {
        struct stage_step *s, *done;
        enum status status;
        while (sent < STEPS && (s = stage_next(stage)) != NULL) {
            fill(&s->step, sent, 0, sent == 0 ? SLOTS : sent);
            stage_submit(stage);
            sent++;
        }
        bool room = false; // for steps that were not sent yet: nothing else would end
        while ((done = stage_done(stage, &status, &e)) != NULL) {
            room = true;
            assert_int_equal(done->step.number, ++back);
            size_t n = (size_t) (tail ? done->step.n_out : done->step.n_rows) * bytes;
            memcpy(all + at, tail ? (void *) done->logits : done->out, n);
            at += n;
            stage_release(stage);
        }
        if (status != OK) fail_msg("%s", e.text);
        struct pollfd fd = {.fd = stage_fd(stage), .events = POLLIN};
        uint64_t n;
        if (back == STEPS) break;
        if (room && sent < STEPS) continue;
        assert_true(poll(&fd, 1, -1) == 1);
        assert_int_equal(read(fd.fd, &n, sizeof n), sizeof n);
    }
    struct stage_figures figures;
    stage_figures(stage, &figures);
    assert_int_equal(figures.rows, 69 + 1 + 2 + 3 + 4);
    stage_destroy(&stage);
    free(memory);
    free(staging);
    return all;
}

static void steps_overlap_and_stay_in_order(void **state)
{
    (void) state;
    struct model m;
    struct error e = {0};
    if (model_config_load(&m.config, FIXTURES "/tiny-bf16", &e) != OK) fail_msg("%s", e.text);
    if (checkpoint_open(&m.checkpoint, FIXTURES "/tiny-bf16", &e) != OK) fail_msg("%s", e.text);
    for (int tail = 0; tail < 2; tail++) {
        struct backend b = overlapping();
        int last = tail ? m.config.n_layers : FIRST_STAGE;
        size_t bytes = tail ? (size_t) m.config.vocab_size * sizeof(float)
                            : stage_row_bytes(&m.config, PRECISION_F32);
        char *want = run_stage(&m, backend_cpu(), last, bytes);
        char *have = run_stage(&m, &b, last, bytes);
        assert_memory_equal(have, want, STEPS * ROWS * bytes);
        assert_int_equal(n_waited, STEPS);
        assert_int_equal(n_exported, STEPS);
        // All were there at once; a tail began each before it chose tokens for the one before.
        assert_int_equal(tail ? 1 + most_ahead : most_apart, DEVICE_STEPS);
        free(want);
        free(have);
    }
    checkpoint_close(&m.checkpoint);
}

// --- what steps one by one bring

// Of each rank's thread: the import that came ahead.
static _Thread_local const void *ahead;
static _Thread_local size_t ahead_n;
static atomic_int n_ahead, n_imports;

static void note_ahead(struct device *d, const void *wire, size_t n)
{
    (void) d;
    assert_null(ahead);
    ahead = wire;
    ahead_n = n;
    n_ahead++;
}

static void note_import(struct device *d, float *x, const void *wire, size_t n)
{
    assert_true(ahead == NULL || (ahead == wire && ahead_n == n));
    ahead = NULL;
    n_imports++;
    backend_cpu()->import_act(d, x, wire, n);
}

// Two ranks of the last stage, which are given all steps at once: what the next one brings comes
// while one runs.
static void a_tail_of_ranks_has_the_next_step_ahead(void **state)
{
    (void) state;
    struct backend b = overlapping();
    struct model m;
    struct error e = {0};
    b.import_act = note_import;
    b.import_ahead = note_ahead;
    if (model_config_load(&m.config, FIXTURES "/tiny-bf16", &e) != OK) fail_msg("%s", e.text);
    if (checkpoint_open(&m.checkpoint, FIXTURES "/tiny-bf16", &e) != OK) fail_msg("%s", e.text);
    struct stage_options o = {
        .config = &m.config, .checkpoint = m.checkpoint, .backend = &b, .first = FIRST_STAGE,
        .last = m.config.n_layers, .tail = true, .tp = 2, .n_threads = 1,
        .precision = PRECISION_F32,
        .limits = {.max_rows = ROWS, .slots = SLOTS, .max_blocks = BLOCKS_EACH,
                   .n_blocks = SLOTS * BLOCKS_EACH, .max_out = ROWS,
                   .vocab_size = m.config.vocab_size},
        .n_steps = STEPS};
    void *memory = calloc(1, stage_memory_bytes(&o)), *staging = malloc(stage_staging_bytes(&o));
    char *in = calloc(ROWS, stage_row_bytes(&m.config, PRECISION_F32));
    o.memory = memory;
    o.staging = staging;
    struct stage *stage;
    if (stage_create(&stage, &o, &e) != OK) fail_msg("%s", e.text);
    if (stage_case_wait(stage, &e) != STAGE_READY) fail_msg("%s", e.text);
    for (int i = 0; i < STEPS; i++) {
        struct stage_step *s = stage_next(stage);
        fill(&s->step, i, 0, i == 0 ? SLOTS : i);
        s->in = in;
        stage_submit(stage);
    }
    for (int back = 0; back < STEPS;) {
        enum status status;
        for (; stage_done(stage, &status, &e) != NULL; back++) stage_release(stage);
        if (status != OK) fail_msg("%s", e.text);
        struct pollfd fd = {.fd = stage_fd(stage), .events = POLLIN};
        uint64_t n;
        if (back == STEPS) break;
        assert_true(poll(&fd, 1, -1) == 1);
        assert_int_equal(read(fd.fd, &n, sizeof n), sizeof n);
    }
    stage_destroy(&stage);
    assert_int_equal(n_imports, 2 * STEPS);
    assert_true(n_ahead > 0 && n_ahead < n_imports); // the first one was waited for
    free(memory);
    free(staging);
    free(in);
    checkpoint_close(&m.checkpoint);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(padding_changes_no_result),
                                       cmocka_unit_test(steps_overlap_and_stay_in_order),
                                       cmocka_unit_test(a_tail_of_ranks_has_the_next_step_ahead)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
