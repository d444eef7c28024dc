// What is planned is what is taken: with exactly the plan's bytes a pipeline serves, with one byte
// less it is refused, by the plan and by the ranks, as a device would refuse it.
#include "common/log.h"
#include "common/result.h"
#include "tools/engine.h"
#include "tools/made_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_dir.h"
#include "stage_case.h"

static const struct made_shape SHAPES[] = {
    {.layers = 3, .hidden = 144, .heads = 4, .experts = 4, .dtype = DTYPE_F8_E4M3},
    {.layers = 4, .hidden = 72, .heads = 4, .experts = 3, .q_lora = 24, .dtype = DTYPE_BF16},
    {.layers = 3, .hidden = 40, .heads = 8, .experts = 2, .dtype = DTYPE_F32},
};
enum { N_SHAPES = sizeof SHAPES / sizeof *SHAPES };

static struct model_dir dirs[N_SHAPES];

static int setup(void **state)
{
    (void) state;
    struct error e = {0};
    for (int i = 0; i < N_SHAPES; i++) {
        dirs[i] = model_dir_create();
        if (made_model_write(dirs[i].path, &SHAPES[i], &e) != OK) fail_msg("%s", e.text);
    }
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    for (int i = 0; i < N_SHAPES; i++) model_dir_remove(&dirs[i]);
    return 0;
}

static void on_result(void *arg, const struct job_key *key, struct wire_bytes bytes)
{
    struct result r;
    struct error e;
    (void) key;
    assert_int_equal(result_decode(&r, bytes.at, bytes.n, &e), OK);
    assert_int_equal(r.status, RESULT_OK);
    *(int *) arg += r.n_tokens;
    result_deinit(&r);
}

// As many sequences at once as there are slots, each as long as the context.
static void fill_to_the_end(struct engine *g, const struct engine_options *o)
{
    static const int32_t ids[] = {3, 5, 7, 9};
    struct wire_job jobs[8];
    struct error e = {0};
    int n = 0;
    for (int i = 0; i < o->slots; i++) {
        jobs[i] = (struct wire_job){.key = {"local", "", 1}, .sampling = sampling_default(),
                                    .attempts = 1, .max_tokens = o->max_context - 4,
                                    .ignore_eos = true, .ids = {ids, sizeof ids}};
        snprintf(jobs[i].key.id, sizeof jobs[i].key.id, "%d", i);
    }
    struct engine_events events = {.arg = &n, .result = on_result};
    if (engine_run(g, jobs, o->slots, &events, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(n, o->slots * (o->max_context - 4));
}

static void the_plans_bytes_are_enough_and_no_byte_less(void **state)
{
    (void) state;
    int n = 0;
    for (int k = 0; k < N_SHAPES * 3 * 3 * 2; k++) {
        int shape = k % N_SHAPES, tp = 1 << k / N_SHAPES % 3, pp = 1 + k / N_SHAPES / 3 % 3;
        struct engine_options o = {.model = dirs[shape].path, .tp = tp, .pp = pp, .slots = 2,
                                   .max_context = 70, .n_threads = 1,
                                   .backend = backend_cpu()};
        struct engine *g;
        struct error e = {0};
        uint64_t most = 0;
        o.precision = k / N_SHAPES / 9 ? PRECISION_F32 : PRECISION_BF16;
        if (engine_open(&g, &o, &e) != OK) fail_msg("%s tp %d pp %d: %s", o.model, tp, pp, e.text);
        for (int i = 0; i < pp; i++) {
            uint64_t total = ledger_total(&engine_plan(g)->stages[i]);
            if (total > most) most = total;
        }
        engine_close(&g);
        o.memory_bytes = most;
        if (engine_open(&g, &o, &e) != OK) fail_msg("%s tp %d pp %d: %s", o.model, tp, pp, e.text);
        fill_to_the_end(g, &o);
        engine_close(&g);
        o.memory_bytes = most - 1;
        assert_int_equal(engine_open(&g, &o, &e), ERR_NOMEM);
        assert_string_equal(e.code, "does_not_fit");
        assert_non_null(strstr(e.text, "1 bytes are lacking, from the line "));
        n++;
    }
    print_message("# %d cuts\n", n);
}

static const struct backend *backend; // of the stages that follow

// Without a plan, as a group is that was told more than it has.
static enum status open_stage(int shape, int tp, enum precision p, uint64_t memory,
                              uint64_t *total, struct error *e)
{
    struct model_config config;
    struct checkpoint *checkpoint;
    struct stage *stage;
    assert_int_equal(model_config_load(&config, dirs[shape].path, e), OK);
    assert_int_equal(checkpoint_open(&checkpoint, dirs[shape].path, e), OK);
    struct stage_options o = {.config = &config,
                              .checkpoint = checkpoint,
                              .backend = backend,
                              .last = config.n_layers,
                              .head = true,
                              .tail = true,
                              .tp = tp,
                              .n_threads = 1,
                              .precision = p,
                              .memory_bytes = memory,
                              .limits = {.max_rows = 20, .slots = 3, .max_blocks = 2,
                                         .n_blocks = 5, .max_out = 3,
                                         .vocab_size = config.vocab_size},
                              .n_steps = 2};
    o.memory = calloc(1, stage_memory_bytes(&o));
    o.staging = malloc(stage_staging_bytes(&o));
    enum status status = stage_create(&stage, &o, e);
    if (status == OK && stage_case_wait(stage, e) == STAGE_FAILED) status = e->status;
    if (status == OK) {
        struct ledger l = stage_ledger(stage);
        *total = ledger_total(&l);
    }
    stage_destroy(&stage);
    free(o.memory);
    free(o.staging);
    checkpoint_close(&checkpoint);
    return status;
}

static void a_rank_refuses_by_its_ledger(void **state)
{
    (void) state;
    backend = backend_cpu();
    for (int k = 0; k < N_SHAPES * 2 * 2; k++) {
        int shape = k % N_SHAPES, tp = k / N_SHAPES % 2 ? 4 : 1;
        enum precision p = k / N_SHAPES / 2 ? PRECISION_F32 : PRECISION_BF16;
        struct error e = {0};
        uint64_t total = 0, again = 0;
        if (open_stage(shape, tp, p, 0, &total, &e) != OK) fail_msg("%s", e.text);
        if (open_stage(shape, tp, p, total, &again, &e) != OK) fail_msg("%s", e.text);
        assert_int_equal(again, total);
        assert_int_equal(open_stage(shape, tp, p, total - 1, &again, &e), ERR_NOMEM);
        assert_string_equal(e.code, "does_not_fit");
        assert_non_null(strstr(e.text, ": 1 bytes are lacking, from the line kv on"));
        assert_int_equal(open_stage(shape, tp, p, 4096, &again, &e), ERR_NOMEM);
        assert_non_null(strstr(e.text, "from the line weights on"));
    }
}

static void take_some(struct device *d, struct device_usage *usage)
{
    (void) d;
    *usage = (struct device_usage){.context = 1000, .libraries = 300, .alone = true};
}

// What a driver has taken beside the arena is told, once it is known. It ends no load: it may be
// other processes', and nothing more is taken from then on.
static void a_rank_counts_what_the_driver_took(void **state)
{
    (void) state;
    struct backend b = *backend_cpu();
    struct error e = {0};
    uint64_t carved = 0, total = 0;
    backend = backend_cpu();
    if (open_stage(0, 2, PRECISION_F32, 0, &carved, &e) != OK) fail_msg("%s", e.text);
    b.usage = take_some;
    backend = &b;
    if (open_stage(0, 2, PRECISION_F32, carved + 1300, &total, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(total, carved + 1300);
    total = 0;
    if (open_stage(0, 2, PRECISION_F32, carved + 1292, &total, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(total, carved + 1300);
}

int main(void)
{
    log_init("test", LOG_ERROR, false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_plans_bytes_are_enough_and_no_byte_less),
        cmocka_unit_test(a_rank_refuses_by_its_ledger),
        cmocka_unit_test(a_rank_counts_what_the_driver_took),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
