#include "tests/support/command.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "model_dir.h"

#define V3 FIXTURES "/deepseek-v3"

static struct command c;

static json_t *object(void)
{
    json_t *o = json_loads(c.out_text, 0, NULL);
    assert_true(json_is_object(o));
    return o;
}

static long long number(const json_t *o, const char *key)
{
    assert_true(json_is_integer(json_object_get(o, key)));
    return json_integer_value(json_object_get(o, key));
}

static void test_deepseek_v3(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "4",
                                 "--gpus", "8", "--vram", "24564MiB"), 0);
    assert_non_null(strstr(c.out_text, "layers      17,15,15,14\n"));
    assert_non_null(strstr(c.out_text, "It fits."));
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3 "/config.json",
                                 "--nodes", "4", "--gpus", "8", "--vram", "24564MiB", "--json"), 0);
    json_t *o = object();
    assert_true(json_is_true(json_object_get(o, "fits")));
    assert_int_equal(number(o, "pp"), 4);
    assert_int_equal(number(o, "tp"), 8);
    assert_int_equal(number(o, "kv_tokens"), number(o, "kv_blocks") * 64);
    const json_t *stages = json_object_get(o, "stages");
    assert_int_equal(json_array_size(stages), 4);
    assert_int_equal(number(json_array_get(stages, 3), "first"), 47);
    assert_int_equal(number(json_array_get(stages, 3), "last"), 61);
    assert_true(number(json_array_get(stages, 1), "total_bytes") < 24564ll << 20);
    json_decref(o);
}

static void test_what_does_not_fit(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "2",
                                 "--gpus", "8", "--vram", "24G", "--json"), 1);
    json_t *o = object();
    assert_true(json_is_false(json_object_get(o, "fits")));
    assert_non_null(strstr(json_string_value(json_object_get(o, "reason")), "lacking"));
    json_decref(o);
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--vram", "24G"), 1);
    assert_non_null(strstr(c.out_text, "It does not fit."));
}

static void test_the_cut_asked_for(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", FIXTURES "/tiny-fp8",
                                 "--gpus", "4", "--tp", "2", "--vram", "1G", "--layers", "1,4",
                                 "--slots", "3", "--max-context", "100", "--precision", "f32",
                                 "--json"), 0);
    json_t *o = object();
    assert_int_equal(number(o, "pp"), 2);
    assert_int_equal(number(o, "slots"), 3);
    assert_int_equal(number(o, "max_context"), 100);
    assert_int_equal(number(o, "kv_blocks"), 3 * 2);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(o, "layers"), 1)), 4);
    assert_int_equal(number(json_array_get(json_object_get(o, "stages"), 0), "kv_block_bytes"),
                     64 * 144 * 4);
    json_decref(o);
}

// The reference: the names in the index, told to stages by what they say of layers.
static void test_files_of_each_stage(void **state)
{
    (void) state;
    json_t *index = json_load_file(FIXTURES "/tiny-fp8/model.safetensors.index.json", 0, NULL);
    bool reads[2][2] = {{false}}; // stage, file
    const char *name;
    json_t *file;
    json_object_foreach(json_object_get(index, "weight_map"), name, file)
    {
        int layer = -1, at = json_string_value(file)[10] - '1'; // model-0000N-of-00002
        if (sscanf(name, "model.layers.%d.", &layer) == 1) {
            if (layer < 5) reads[layer >= 1][at] = true; // layer 5 is multi-token prediction
        } else {
            reads[strstr(name, "embed_tokens") == NULL][at] = true;
        }
    }
    char want[256] = "";
    for (int i = 0; i < 4; i++) {
        if (!reads[i / 2][i % 2]) continue;
        snprintf(want + strlen(want), sizeof want - strlen(want),
                 "%d\tmodel-0000%d-of-00002.safetensors\n", i / 2, i % 2 + 1);
    }
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", FIXTURES "/tiny-fp8",
                                 "--nodes", "2", "--vram", "1G", "--layers", "1,4", "--files"), 0);
    assert_string_equal(c.out_text, want);
    assert_null(strstr(want, "0\tmodel-00002")); // or the case would show nothing
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", FIXTURES "/tiny-fp8",
                                 "--nodes", "2", "--vram", "1G", "--layers", "1,4", "--files",
                                 "--json"), 0);
    json_t *o = object(), *stages = json_object_get(o, "stages");
    assert_int_equal(json_array_size(json_object_get(json_array_get(stages, 0), "files")), 1);
    json_decref(o);
    json_decref(index);
}

// They are known before any of them is there.
static void test_files_from_the_index_alone(void **state)
{
    (void) state;
    struct model_dir d = model_dir_create();
    char from[256], bytes[65536];
    for (int i = 0; i < 2; i++) {
        const char *name = i == 0 ? "config.json" : "model.safetensors.index.json";
        snprintf(from, sizeof from, FIXTURES "/tiny-fp8/%s", name);
        FILE *f = fopen(from, "rb");
        assert_non_null(f);
        size_t n = fread(bytes, 1, sizeof bytes, f);
        assert_true(n > 0 && n < sizeof bytes);
        fclose(f);
        if (i == 1) {
            assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", d.path, "--vram",
                                         "1G", "--files"), 1);
            assert_non_null(strstr(c.err_text, "holds neither"));
        }
        model_dir_write(&d, name, bytes, n);
    }
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", d.path, "--vram", "1G",
                                 "--files"), 0);
    assert_non_null(strstr(c.out_text, "0\tmodel-00002-of-00002.safetensors\n"));
    static const char lacking[] = "{\"weight_map\":{\"lm_head.weight\":\"a.safetensors\"}}";
    model_dir_write(&d, "model.safetensors.index.json", lacking, sizeof lacking - 1);
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", d.path, "--vram", "1G",
                                 "--files"), 1);
    assert_non_null(strstr(c.err_text, "does not list tensor model.embed_tokens.weight"));
    model_dir_remove(&d);
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model",
                                 FIXTURES "/tiny-fp8/config.json", "--vram", "1G", "--files"), 2);
    assert_non_null(strstr(c.err_text, "directory"));
}

static void test_help_and_usage(void **state)
{
    (void) state;
    static const char *const BAD[][6] = {
        {"--vram", "1G"},
        {"--model", V3},
        {"--model", V3, "--vram", "lots"},
        {"--model", V3, "--vram=1G", "--tp=2"},
        {"--model", V3, "--vram=1G", "--pp=2"},
        {"--model", V3, "--vram=1G", "--layers=1,2"},
        {"--model", V3, "--vram=1G", "--layers=61,0"},
        {"--model", V3, "--vram=1G", "--precision=int4"},
        {"--model", V3, "--vram=1G", "--gpus=6"},
        {"--nothing"},
    };
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--help"), 0);
    assert_memory_equal(c.out_text, "usage: penstock plan", 20);
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        int status = command_run(&c, cmd_plan, NULL, "plan", BAD[i][0], BAD[i][1], BAD[i][2],
                                 BAD[i][3], BAD[i][4]);
        if (status != 2) fail_msg("%zu: exit status %d: %s", i, status, c.err_text);
        assert_string_equal(c.out_text, "");
        assert_true(strlen(c.err_text) > 20);
    }
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", "/nowhere", "--vram", "1G",
                                 "--json"), 1);
    json_t *o = object();
    assert_non_null(json_object_get(o, "error"));
    json_decref(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deepseek_v3),
        cmocka_unit_test(test_what_does_not_fit),
        cmocka_unit_test(test_the_cut_asked_for),
        cmocka_unit_test(test_files_of_each_stage),
        cmocka_unit_test(test_files_from_the_index_alone),
        cmocka_unit_test(test_help_and_usage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
