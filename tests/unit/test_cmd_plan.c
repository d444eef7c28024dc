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

// Lines of the table, wrapped and barred, keep to a terminal.
static void expect_width(size_t most)
{
    for (const char *at = c.out_text; *at != '\0'; at += strcspn(at, "\n") + 1) {
        size_t n = strcspn(at, "\n");
        if (n > most) fail_msg("%zu columns: %.*s", n, (int) n, at);
        if (at[n] == '\0') break;
    }
}

// The keys that programs rely on, whether or not it fits.
static void test_keys_of_the_object(void **state)
{
    (void) state;
    static const char *const KEYS[] = {"fits", "layers", "tp", "pp", "model", "stages", "kv_blocks",
                                       "kv_tokens", "slots", "reason", "remedies"};
    for (int nodes = 3; nodes <= 4; nodes++) {
        int status = command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes",
                                 nodes == 3 ? "3" : "4", "--gpus", "8", "--vram", "24564MiB",
                                 "--json");
        assert_int_equal(status, nodes == 3 ? 1 : 0);
        json_t *o = object();
        for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) {
            assert_non_null(json_object_get(o, KEYS[i]));
        }
        const json_t *model = json_object_get(o, "model"), *stages = json_object_get(o, "stages");
        assert_int_equal(number(model, "tensors"), 91991);
        assert_int_equal(number(model, "elements"), 684531386000);
        assert_int_equal(number(model, "bytes"), 688574839360);
        assert_int_equal(json_array_size(json_object_get(o, "layers")), nodes);
        assert_int_equal(json_array_size(stages), nodes);
        assert_int_equal(number(o, "kv_tokens"), 64 * number(o, "kv_blocks"));
        assert_int_equal(json_array_size(json_object_get(o, "remedies")) > 0, nodes == 3);
        assert_int_equal(json_is_string(json_object_get(o, "reason")), nodes == 3);
        for (int i = 0; i < nodes; i++) {
            const json_t *s = json_array_get(stages, (size_t) i), *line;
            const char *name;
            long long sum = 0;
            json_object_foreach(json_object_get(s, "ledger"), name, line)
            {
                sum += json_integer_value(line);
            }
            assert_int_equal(sum, number(s, "total_bytes"));
            assert_int_equal(number(s, "free_bytes"), (24564ll << 20) - sum);
        }
        json_decref(o);
    }
}

static void test_tables(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "4",
                                 "--gpus", "8", "--vram", "24564MiB"), 0);
    expect_width(80);
    assert_non_null(strstr(c.out_text, "91991 tensors, 684531386000 elements, 688574839360"));
    assert_non_null(strstr(c.out_text, "    1     17-31  WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW"));
    assert_non_null(strstr(c.out_text, " tokens\nslots "));
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "3",
                                 "--gpus", "8", "--vram", "24564MiB"), 1);
    expect_width(80);
    assert_non_null(strstr(c.out_text, "WWWWW!"));
    assert_non_null(strstr(c.out_text, "Any one of these makes it fit:\n  --nodes 4"));
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "4",
                                 "--gpus", "8", "--vram", "24564MiB", "--compare", "16,15,15,15"),
                     0);
    expect_width(80);
    assert_non_null(strstr(c.out_text, "17,15,15,14"));
    assert_non_null(strstr(c.out_text, "16,15,15,15"));
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "4",
                                 "--gpus", "32", "--vram", "24564MiB", "--slots", "7", "--explain"),
                     0);
    expect_width(80);
    assert_non_null(strstr(c.out_text, "tp 32 cuts through blocks of scales"));
    assert_non_null(strstr(c.out_text, "bounds the pool"));
    assert_non_null(strstr(c.out_text, "pinned:\n  --slots: "));
    assert_non_null(strstr(c.out_text, "  context             536870912\n"));
}

// The refusal is told beside another split, too.
static void test_compare_with_a_refusal(void **state)
{
    (void) state;
    static const char *const WORDS[] = {"plan", "--model", V3, "--nodes", "3", "--gpus", "8",
                                        "--vram", "24564MiB", "--compare", "20,20,21", NULL,
                                        NULL};
    command_start(&c, cmd_plan, WORDS, NULL);
    assert_int_equal(command_wait(&c), 1);
    expect_width(80);
    assert_non_null(strstr(c.out_text, "are lacking, from the"));
    assert_non_null(strstr(c.out_text, "\nIt does not fit.\n"));
    assert_non_null(strstr(c.out_text, "Any one of these makes it fit:\n  --nodes 4"));
    const char *json[sizeof WORDS / sizeof *WORDS];
    memcpy(json, WORDS, sizeof WORDS);
    json[11] = "--json";
    command_start(&c, cmd_plan, json, NULL);
    assert_int_equal(command_wait(&c), 1);
    json_t *o = object();
    assert_true(json_is_false(json_object_get(o, "fits")));
    assert_true(json_is_string(json_object_get(o, "reason")));
    assert_true(json_array_size(json_object_get(o, "remedies")) > 0);
    json_decref(o);
}

static void test_nodes_that_differ(void **state)
{
    (void) state;
    assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "4",
                                 "--gpus", "8", "--vram", "24564MiB,24564MiB,48GiB,80GiB",
                                 "--json"), 0);
    json_t *o = object();
    const json_t *layers = json_object_get(o, "layers"), *stages = json_object_get(o, "stages");
    assert_true(json_integer_value(json_array_get(layers, 3)) >
                json_integer_value(json_array_get(layers, 0)));
    assert_int_equal(number(json_array_get(stages, 2), "device_bytes"), 48ll << 30);
    json_decref(o);
    // A slow last node: for KV blocks it takes much, for time little.
    int64_t last[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", V3, "--nodes", "3",
                                     "--gpus", "8", "--vram", "80GiB", "--rates",
                                     "h100,h100,rtx4090", "--objective", i == 0 ? "kv" : "time",
                                     "--json"), 0);
        o = object();
        last[i] = json_integer_value(json_array_get(json_object_get(o, "layers"), 2));
        stages = json_object_get(o, "stages");
        assert_true(json_real_value(json_object_get(json_array_get(stages, 2), "step_seconds")) >
                    0);
        json_decref(o);
    }
    assert_true(last[1] < last[0]);
}

static void test_kinds_of_devices(void **state)
{
    (void) state;
    static const struct {
        const char *vram, *device, *kind;
    } CASES[] = {{"24G", "auto", "cuda"}, {"1G", "auto", "cpu"}, {"24G", "cpu", "cpu"},
                 {"3G", "cuda", "cuda"}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", FIXTURES "/tiny-fp8",
                                     "--vram", CASES[i].vram, "--device", CASES[i].device,
                                     "--mtp", "--json"), 0);
        json_t *o = object();
        assert_string_equal(json_string_value(json_object_get(o, "device")), CASES[i].kind);
        const json_t *ledger =
            json_object_get(json_array_get(json_object_get(o, "stages"), 0), "ledger");
        assert_int_equal(number(ledger, "context") > 0, strcmp(CASES[i].kind, "cuda") == 0);
        assert_true(number(ledger, "mtp") > 0);
        json_decref(o);
    }
}

// On GPUs the ranks pin host memory beside their group's: each 16 MiB for its copies, and the last
// stage's what the host reads.
static void test_host_memory_of_gpus(void **state)
{
    (void) state;
    long long staging[2][2], sampler[2][2]; // [device][stage]
    for (int gpu = 0; gpu < 2; gpu++) {
        assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", FIXTURES "/tiny-fp8",
                                     "--vram", "4G", "--device", gpu ? "cuda" : "cpu", "--gpus",
                                     "4", "--tp", "2", "--pp", "2", "--json"), 0);
        json_t *o = object();
        for (int i = 0; i < 2; i++) {
            const json_t *host =
                json_object_get(json_array_get(json_object_get(o, "stages"), (size_t) i), "host");
            staging[gpu][i] = number(host, "staging");
            sampler[gpu][i] = number(host, "sampler");
        }
        json_decref(o);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(staging[1][i] - staging[0][i], 2 * (20ll << 20));
        assert_int_equal(sampler[0][i], 0);
        assert_int_equal(sampler[1][i] > 0, i == 1);
    }
}

// The types of the files' headers, not those that the config implies.
static void test_types_come_from_the_headers(void **state)
{
    (void) state;
    struct model_dir d = model_dir_create();
    static char bytes[1 << 22];
    static const char *const NAMES[] = {"config.json", "model.safetensors.index.json",
                                        "model-00001-of-00002.safetensors",
                                        "model-00002-of-00002.safetensors"};
    long long weights[2];
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < 4; i++) {
            char from[256];
            snprintf(from, sizeof from, FIXTURES "/tiny-bf16/%s", NAMES[i]);
            FILE *f = fopen(from, "rb");
            assert_non_null(f);
            size_t n = fread(bytes, 1, sizeof bytes, f);
            assert_true(n > 0 && n < sizeof bytes);
            fclose(f);
            if (i == 0) { // says f32, the files are bf16
                char *type = strstr(bytes, "\"bfloat16\"");
                assert_non_null(type);
                memcpy(type, "\"float32\" ", 10);
            }
            if (i == 0 || k == 1) model_dir_write(&d, NAMES[i], bytes, n);
        }
        assert_int_equal(command_run(&c, cmd_plan, NULL, "plan", "--model", d.path, "--vram", "1G",
                                     "--json"), 0);
        json_t *o = object();
        weights[k] = number(json_array_get(json_object_get(o, "stages"), 0),
                            "weight_bytes_per_rank");
        json_decref(o);
    }
    assert_true(weights[0] > weights[1] * 19 / 10 && weights[0] <= 2 * weights[1]);
    model_dir_remove(&d);
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
        {"--model", V3, "--vram=1G,2G"},
        {"--model", V3, "--vram=1G,2G", "--nodes=3"},
        {"--model", V3, "--vram=0"},
        {"--model", V3, "--vram=1G", "--device=tpu"},
        {"--model", V3, "--vram=1G", "--rates=abacus"},
        {"--model", V3, "--vram=1G", "--rates=cpu,cpu"},
        {"--model", V3, "--vram=1G", "--rates=cpu,h100", "--nodes=3"},
        {"--model", V3, "--vram=1G", "--rates=cpu,cpu,abacus", "--nodes=3"},
        {"--model", V3, "--vram=1G", "--objective=beauty"},
        {"--model", V3, "--vram=1G", "--compare=1,2"},
        {"--model", FIXTURES "/kimi-k2", "--vram=1G", "--mtp"},
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
        cmocka_unit_test(test_keys_of_the_object),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_compare_with_a_refusal),
        cmocka_unit_test(test_nodes_that_differ),
        cmocka_unit_test(test_kinds_of_devices),
        cmocka_unit_test(test_host_memory_of_gpus),
        cmocka_unit_test(test_types_come_from_the_headers),
        cmocka_unit_test(test_the_cut_asked_for),
        cmocka_unit_test(test_files_of_each_stage),
        cmocka_unit_test(test_files_from_the_index_alone),
        cmocka_unit_test(test_help_and_usage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
