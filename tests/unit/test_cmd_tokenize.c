// The subcommand as a user runs it: build/bin/penstock tokenize.
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "tests/unit/tokenizer_files.h"

static struct model_dir dir;
static char output[1 << 20];

static int make_model(void **state)
{
    (void) state;
    static const char *const merges[] = {"a b", "ab c"};
    json_t *root = small_tokenizer(merges, 2);
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    dir = model_dir_create();
    model_dir_write(&dir, "tokenizer.json", text, strlen(text));
    free(text);
    return 0;
}

static int remove_model(void **state)
{
    (void) state;
    model_dir_remove(&dir);
    return 0;
}

// Runs `penstock tokenize ARGUMENTS` on the input; what it prints is in `output`.
static int run(const char *arguments, const char *input, size_t n)
{
    char command[1024];
    snprintf(command, sizeof command, BUILD_DIR "/bin/penstock tokenize %s < %s/in 2>&1", arguments,
             dir.path);
    model_dir_write(&dir, "in", input, n);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    output[fread(output, 1, sizeof output - 1, p)] = 0;
    int status = pclose(p);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int run_on_model(const char *options, const char *input)
{
    char arguments[256];
    snprintf(arguments, sizeof arguments, "--model %s %s", dir.path, options);
    return run(arguments, input, strlen(input));
}

static void test_lines_in_lines_out(void **state)
{
    (void) state;
    assert_int_equal(run_on_model("", "{\"text\": \"<s>abc x\"}\n"
                                      "{\"ids\": [256, 257, 258, 228, 300]}\n"
                                      "{\"text\": \"\", \"id\": 7}\n"
                                      "{\"ids\": []}\n"
                                      "{\"text\": \"a\\u0000b\"}"), 0);
    assert_string_equal(output, "{\"ids\":[258,257,32,120]}\n"
                                "{\"text\":\"ababc<s>\xef\xbf\xbd\"}\n"
                                "{\"ids\":[]}\n"
                                "{\"text\":\"\"}\n"
                                "{\"ids\":[97,0,98]}\n");
    char arguments[256];
    snprintf(arguments, sizeof arguments, "--tokenizer %s/tokenizer.json", dir.path);
    assert_int_equal(run(arguments, "{\"ids\":[97,0,98]}\n", 18), 0);
    assert_string_equal(output, "{\"text\":\"a\\u0000b\"}\n");
}

static void test_flags_choose_the_key(void **state)
{
    (void) state;
    assert_int_equal(run_on_model("--decode", "{\"text\": \"x\", \"ids\": [97]}\n"), 0);
    assert_string_equal(output, "{\"text\":\"a\"}\n");
    assert_int_equal(run_on_model("--decode", "{\"text\": \"x\"}\n"), 1);
    assert_non_null(strstr(output, "the object has no \\\"ids\\\""));
    assert_int_equal(run_on_model("--chat", "{\"text\": \"x\"}\n"), 1);
    assert_non_null(strstr(output, "the object has no \\\"messages\\\""));
    assert_int_equal(run_on_model("", "{\"text\": \"x\", \"ids\": [97]}\n"), 1);
    assert_non_null(strstr(output, "\"code\":\"bad_line\""));
    assert_non_null(strstr(output, "--decode and --chat choose"));
}

// A bad line gives an error in its place; those around it don't suffer.
static void test_bad_lines(void **state)
{
    (void) state;
    static const struct {
        const char *line, *code, *says;
    } cases[] = {
        {"", "bad_line", "no JSON object"},
        {"{", "bad_line", "no JSON object"},
        {"[1]", "bad_line", "it is something else"},
        {"{\"text\": \"\xff\"}", "bad_line", "no JSON object"},
        {"{\"text\": \"x\", \"text\": \"y\"}", "bad_line", "duplicate"},
        {"{}", "bad_line", "the object has no"},
        {"{\"text\": 7}", "bad_line", "is no string"},
        {"{\"ids\": {}}", "bad_line", "is no array"},
        {"{\"ids\": [1, -1]}", "bad_line", "ids[1] is no token id"},
        {"{\"ids\": [1.0]}", "bad_line", "ids[0] is no token id"},
        {"{\"ids\": [4294967296]}", "bad_line", "ids[0] is no token id"},
        {"{\"messages\": []}", "template_unknown", "tokenizer_config.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char input[512];
        json_error_t why;
        snprintf(input, sizeof input, "{\"text\":\"a\"}\n%s\n{\"text\":\"b\"}\n", cases[i].line);
        assert_int_equal(run_on_model("", input), 1);
        char *second = strchr(output, '\n') + 1, *third = strchr(second, '\n') + 1;
        assert_memory_equal(output, "{\"ids\":[97]}\n", 13);
        assert_string_equal(third, "{\"ids\":[98]}\n");
        json_t *error = json_loadb(second, (size_t) (third - second), 0, &why);
        const char *code = NULL, *message = NULL;
        assert_int_equal(json_unpack(error, "{s{ssss!}!}", "error", "code", &code, "message",
                                     &message), 0);
        assert_string_equal(code, cases[i].code);
        if (strstr(message, cases[i].says) == NULL) fail_msg("%s: %s", cases[i].line, message);
        json_decref(error);
    }
}

static void test_usage(void **state)
{
    (void) state;
    assert_int_equal(run("--help", "", 0), 0);
    assert_non_null(strstr(output, "--decode"));
    assert_int_equal(run("", "", 0), 2);
    assert_non_null(strstr(output, "one of --model and --tokenizer is needed"));
    assert_int_equal(run_on_model("--tokenizer x", ""), 2);
    assert_int_equal(run_on_model("--decode --chat", ""), 2);
    assert_int_equal(run_on_model("--unknown", ""), 2);
    assert_int_equal(run("--model /nonexistent", "", 0), 1);
    assert_non_null(strstr(output, "penstock tokenize: no /nonexistent"));
    assert_int_equal(run_on_model("", ""), 0);
    assert_string_equal(output, "");
    model_dir_write(&dir, "tokenizer_config.json", "[]", 2);
    assert_int_equal(run_on_model("", "{\"text\":\"a\"}\n"), 0); // only chats need it
    assert_int_equal(run_on_model("--chat", ""), 1);
    assert_non_null(strstr(output, "tokenizer_config.json is no JSON object"));
}

static void test_chats(void **state)
{
    (void) state;
    char arguments[600];
    snprintf(arguments, sizeof arguments, "--chat --model %s", true_tokenizer_dir());
    static const char line[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}\n";
    assert_int_equal(run(arguments, line, strlen(line)), 0);
    assert_string_equal(output, "{\"text\":\"<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>\","
                                "\"ids\":[0,128803,23166,128804]}\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_in_lines_out), cmocka_unit_test(test_flags_choose_the_key),
        cmocka_unit_test(test_bad_lines),          cmocka_unit_test(test_usage),
        cmocka_unit_test(test_chats),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
