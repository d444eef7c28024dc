#include "tests/support/command.h"
#include "tests/support/folder.h"

#include "kernels/backend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#define TINY FIXTURES "/tiny-fp8"
#define V3 FIXTURES "/deepseek-v3"
#define SMALL "--device", "cpu", "--threads", "1"

static struct command c;

static json_t *object(void)
{
    json_t *o = json_loads(c.out_text, 0, NULL);
    assert_true(json_is_object(o));
    return o;
}

static const json_t *at(const json_t *o, const char *a, const char *b, const char *d)
{
    o = json_object_get(o, a);
    if (b != NULL) o = json_object_get(o, b);
    if (d != NULL) o = json_object_get(o, d);
    assert_non_null(o);
    return o;
}

static long long number(const json_t *o, const char *key)
{
    assert_true(json_is_integer(json_object_get(o, key)));
    return json_integer_value(json_object_get(o, key));
}

static double real(const json_t *o, const char *key)
{
    assert_true(json_is_real(json_object_get(o, key)));
    return json_real_value(json_object_get(o, key));
}

// The second stage of two, which has logits: what it carves is what `penstock plan` says.
static void test_ledger_is_that_of_the_plan(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", TINY "/config.json",
                                 "--nodes", "2", "--gpus", "2", "--layers", "2,3", "--vram",
                                 "64MiB", "--device", "cpu", "--slots", "4", "--max-context", "128",
                                 "--json"), 0);
    json_t *plan = object();
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", TINY, "--layers",
                                 "2,3", "--tp", "2", "--stage", "1", "--vram", "64MiB", SMALL,
                                 "--batch", "1,4", "--context", "128", "--json"), 0);
    json_t *o = object();
    const json_t *stage = json_array_get(json_object_get(plan, "stages"), 1);
    const json_t *planned = at(o, "measured", "memory", "planned");
    assert_true(json_equal(planned, json_object_get(stage, "ledger")));
    assert_true(json_equal(planned, at(o, "measured", "memory", "carved")));
    assert_int_equal(number(o, "kv_blocks"), number(plan, "kv_blocks"));
    assert_int_equal(number(at(o, "measured", "memory", NULL), "arena_bytes"),
                     number(stage, "total_bytes"));
    json_decref(o);
    json_decref(plan);
}

static void expect_ops(const json_t *step, bool tail, bool logits)
{
    static const char *const ALWAYS[] = {"inputs", "import", "norm", "q_a", "q", "kv_a", "rope",
                                         "kv_write", "absorb", "mla", "unabsorb", "o", "reduce",
                                         "add", "route", "moe", "ffn"};
    const json_t *ops = json_object_get(step, "ops");
    for (size_t i = 0; i < sizeof ALWAYS / sizeof *ALWAYS; i++) {
        if (real(ops, ALWAYS[i]) <= 0) fail_msg("%s took no time", ALWAYS[i]);
    }
    assert_true((real(ops, "head") > 0) == logits);
    assert_true((real(ops, "outputs") > 0) == !tail);
    assert_true(real(step, "seconds") > real(step, "layers_seconds"));
    assert_true(real(step, "layers_seconds") > 0);
    assert_in_range(number(step, "repeats"), 3, 20);
}

static void test_times_by_op(void **state)
{
    (void) state;
    for (int stage = 0; stage < 2; stage++) {
        char text[2] = {(char) ('0' + stage), '\0'};
        assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", TINY, "--pp",
                                     "2", "--tp", "2", "--stage", text, "--rank", "1", "--vram",
                                     "64MiB", SMALL, "--batch", "1,4,8", "--context", "100",
                                     "--max-rows", "32", "--prefill", "1000", "--json"), 0);
        json_t *o = object();
        const json_t *decodes = at(o, "measured", "decode", NULL);
        const json_t *prefills = at(o, "measured", "prefill", NULL);
        const int rows[] = {1, 4, 8}, prompts[] = {32, 100}; // a step, and what a context holds
        assert_int_equal(json_array_size(decodes), 3);
        assert_int_equal(json_array_size(prefills), 2);
        for (size_t i = 0; i < 3; i++) {
            const json_t *t = json_array_get(decodes, i);
            assert_int_equal(number(t, "rows"), rows[i]);
            assert_in_range(number(t, "experts"), 4, rows[i] * 4 < 16 ? rows[i] * 4 : 16);
            expect_ops(t, stage == 1, stage == 1);
        }
        for (size_t i = 0; i < 2; i++) {
            const json_t *t = json_array_get(prefills, i);
            assert_int_equal(number(t, "rows"), prompts[i]);
            expect_ops(t, stage == 1, stage == 1);
        }
        if (json_object_get(at(o, "measured", "memory", NULL), "heap_calls") != NULL) {
            assert_int_equal(number(at(o, "measured", "memory", NULL), "heap_calls"), 0);
        }
        json_decref(o);
    }
}

static void test_predictions_are_apart(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", TINY, "--pp", "2",
                                 "--tp", "2", "--vram", "64MiB", SMALL, "--batch", "1,4",
                                 "--context", "64", "--prefill", "0", "--rates", "rtx4090",
                                 "--here", "h100", "--json"), 0);
    json_t *o = object();
    assert_int_equal(json_array_size(at(o, "measured", "prefill", NULL)), 0);
    assert_string_equal(json_string_value(at(o, "predicted", "rates", NULL)), "rtx4090");
    const json_t *list = at(o, "predicted", "decode", NULL);
    assert_int_equal(json_array_size(list), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *p = json_array_get(list, i);
        double rows = (double) number(p, "rows"), step = real(p, "step_seconds");
        double slowest = real(p, "slowest_stage_seconds");
        assert_true(step > slowest && slowest > real(p, "reduces_seconds"));
        assert_true(real(p, "scaled_seconds") != real(p, "measured_seconds"));
        assert_true(fabs(real(p, "tokens_s_alone") * step / rows - 1) < 1e-6);
        assert_true(fabs(real(p, "tokens_s_filled") * slowest / rows - 1) < 1e-6);
    }
    json_decref(o);
}

static void test_a_pool_for_fewer_is_shared(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", TINY, "--pp", "2",
                                 "--tp", "2", "--vram", "12MiB", SMALL, "--batch", "1,32",
                                 "--max-rows", "32", "--context", "256", "--json"), 0);
    json_t *o = object();
    const json_t *decodes = at(o, "measured", "decode", NULL);
    assert_in_range(number(o, "sequences"), 1, 31);
    assert_true(json_is_false(json_object_get(json_array_get(decodes, 0), "shared_kv")));
    assert_true(json_is_true(json_object_get(json_array_get(decodes, 1), "shared_kv")));
    json_decref(o);
}

// Refused with the plan's own numbers, before a device is opened.
static void test_what_does_not_fit(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "4",
                                 "--gpus", "8", "--layers", "17,15,15,14", "--vram", "20GiB",
                                 "--slots", "8", "--max-context", "4096", "--json"), 1);
    json_t *plan = object();
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", V3, "--layers",
                                 "17,15,15,14", "--tp", "8", "--stage", "1", "--vram", "20GiB",
                                 "--batch", "8", "--device", "cpu", "--json"), 1);
    json_t *o = object();
    const json_t *stage = json_array_get(json_object_get(plan, "stages"), 1);
    assert_true(json_is_false(json_object_get(o, "fits")));
    assert_non_null(strstr(json_string_value(json_object_get(o, "reason")), "lacking"));
    assert_int_equal(number(o, "device_bytes"), number(stage, "device_bytes"));
    assert_true(number(o, "total_bytes") > number(o, "device_bytes"));
    json_decref(o);
    json_decref(plan);
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", V3, "--layers",
                                 "17,15,15,14", "--tp", "8", "--vram", "20GiB", "--device", "cpu"),
                     1);
    assert_non_null(strstr(c.err_text, "lacking"));
    assert_string_equal(c.out_text, "");
}

static void test_tables(void **state)
{
    (void) state;
    char folder[FOLDER_SIZE], path[FOLDER_SIZE + 16], line[1024];
    folder_make(folder, "rehearse");
    snprintf(path, sizeof path, "%s/table.csv", folder);
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", TINY, "--pp", "2",
                                 "--tp", "2", "--vram", "64MiB", SMALL, "--batch", "1,4",
                                 "--context", "64", "--prefill", "40", "--csv", path), 0);
    assert_non_null(strstr(c.out_text, "stage 0 (layers 0-"));
    assert_non_null(strstr(c.out_text, "measured"));
    assert_non_null(strstr(c.out_text, "predicted of 2 stages x 2 ranks, with rates of cpu"));
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    assert_memory_equal(line, "step,rows,seconds,", 18);
    static const char *const ROWS[] = {"decode,1,", "decode,4,", "prefill,40,"};
    for (size_t i = 0; i < 3; i++) {
        assert_non_null(fgets(line, sizeof line, f));
        assert_memory_equal(line, ROWS[i], strlen(ROWS[i]));
    }
    assert_null(fgets(line, sizeof line, f));
    fclose(f);
    folder_remove(folder);
}

static void test_usage(void **state)
{
    (void) state;
    static const struct {
        const char *flag, *value, *says;
    } cases[] = {
        {"--stage", "2", "there are 2"},
        {"--rank", "2", "there are 2"},
        {"--batch", "1,x", "--batch wants"},
        {"--batch", "0", "--batch wants"},
        {"--batch", "1,", "--batch wants"},
        {"--batch", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "up to 16 numbers"},
        {"--batch", "600", "a step has up to 512 rows"},
        {"--context", "5000", "max_context"},
        {"--device", "tpu", "--device wants"},
        {"--precision", "fp8", "--precision wants"},
        {"--rates", "abacus", "no rates are known"},
        {"--here", "abacus", "no rates are known"},
        {"--tp", "3", "3"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", TINY, "--pp",
                                     "2", "--tp", "2", "--vram", "64MiB", "--batch", "1",
                                     "--context", "64", "--device", "cpu", cases[i].flag,
                                     cases[i].value), 2);
        if (strstr(c.err_text, cases[i].says) == NULL) fail_msg("%s", c.err_text);
    }
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--vram", "64MiB"), 2);
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", TINY), 2);
    if (backend_cuda() != NULL) return;
    assert_int_equal(command_run(&c, cmd_rehearse, NULL, "rehearse", "--model", TINY, "--vram",
                                 "64MiB", "--device", "cuda"), 1);
    assert_non_null(strstr(c.err_text, "built without CUDA"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ledger_is_that_of_the_plan),
        cmocka_unit_test(test_times_by_op),
        cmocka_unit_test(test_predictions_are_apart),
        cmocka_unit_test(test_a_pool_for_fewer_is_shared),
        cmocka_unit_test(test_what_does_not_fit),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_usage),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
