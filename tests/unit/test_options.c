#include "common/options.h"

#include "tests/support/folder.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>
#include <unistd.h>

static bool verbose;
static const char *model;
static int64_t ranks, bytes;
static double temperature;
static struct option_list many;
static struct option_spec specs[6];
static const char *positional[1];
static struct options options;

static int reset(void **state)
{
    (void) state;
    verbose = false, model = "none", ranks = 1, bytes = 7, temperature = 1;
    many = (struct option_list){0};
    struct option_spec fresh[] = {
        {"verbose", OPTION_FLAG, &verbose, NULL, "Says more.", 0, 0, false},
        {"model-dir", OPTION_STRING, &model, "DIR", "The model.", 0, 0, false},
        {"tp", OPTION_INT, &ranks, "N", "Ranks.", 1, 64, false},
        {"temperature", OPTION_NUMBER, &temperature, "T", "Heat.", 0, 2, false},
        {"vram", OPTION_BYTES, &bytes, "BYTES", "Memory.", 0, 0, false},
        {"many", OPTION_LIST, &many, "X", "Each.", 0, 0, false},
    };
    memcpy(specs, fresh, sizeof specs);
    options = (struct options){.program = "test", .usage = "FILE", .about = "A test.",
                               .specs = specs, .n_specs = 6, .positional = positional,
                               .max_positional = 1, .environment = true};
    unsetenv("PENSTOCK_MODEL_DIR");
    unsetenv("PENSTOCK_TP");
    unsetenv("PENSTOCK_MANY");
    return 0;
}

static enum status parse(struct error *e, const char *a, const char *b, const char *c)
{
    char *argv[] = {"test", (char *) a, (char *) b, (char *) c, NULL};
    int argc = 1;
    while (argc < 4 && argv[argc] != NULL) argc++;
    return options_parse(&options, argc, argv, e);
}

static void reads_flags_values_and_arguments(void **state)
{
    (void) state;
    struct error e;
    assert_int_equal(parse(&e, "--tp=4", "file", "--verbose"), OK);
    assert_int_equal(ranks, 4);
    assert_true(verbose && specs[2].given && !specs[1].given);
    assert_int_equal(options.n_positional, 1);
    assert_string_equal(positional[0], "file");
    assert_int_equal(parse(&e, "--vram", "24GiB", NULL), OK);
    assert_int_equal(bytes, 24ll << 30);
}

static void a_flag_wins_over_the_environment(void **state)
{
    (void) state;
    struct error e;
    setenv("PENSTOCK_MODEL_DIR", "env", 1);
    setenv("PENSTOCK_TP", "8", 1);
    assert_int_equal(parse(&e, "--tp", "2", NULL), OK);
    assert_string_equal(model, "env");
    assert_int_equal(ranks, 2);
    setenv("PENSTOCK_TP", "many", 1);
    assert_int_equal(parse(&e, NULL, NULL, NULL), ERR_INPUT);
    assert_non_null(strstr(e.text, "PENSTOCK_TP"));
}

static void a_file_may_hold_what_the_environment_would(void **state)
{
    (void) state;
    char folder[FOLDER_SIZE], path[128], big[OPTION_FILE_MAX + 1];
    struct error e;
    folder_make(folder, "options");
    snprintf(path, sizeof path, "%s/file", folder);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    setenv("PENSTOCK_MODEL_DIR_FILE", path, 1);
    assert_int_equal(parse(&e, NULL, NULL, NULL), ERR_INPUT); // an empty one
    assert_non_null(strstr(e.text, "PENSTOCK_MODEL_DIR_FILE"));
    assert_int_equal(write(fd, "redis://u:p@h\nmore\n", 19), 19);
    assert_int_equal(parse(&e, NULL, NULL, NULL), OK);
    assert_string_equal(model, "redis://u:p@h");
    setenv("PENSTOCK_MODEL_DIR", "env", 1); // wins over a file
    assert_int_equal(parse(&e, NULL, NULL, NULL), OK);
    assert_string_equal(model, "env");
    unsetenv("PENSTOCK_MODEL_DIR");
    memset(big, 'x', sizeof big);
    assert_int_equal(pwrite(fd, big, sizeof big, 0), sizeof big);
    assert_int_equal(parse(&e, NULL, NULL, NULL), ERR_INPUT);
    close(fd);
    folder_remove(folder);
    assert_int_equal(parse(&e, NULL, NULL, NULL), ERR_INPUT);
    assert_non_null(strstr(e.text, "cannot read"));
    unsetenv("PENSTOCK_MODEL_DIR_FILE");
}

static void an_option_may_be_given_more_than_once(void **state)
{
    (void) state;
    struct error e;
    assert_int_equal(parse(&e, "--many=a", "--many", "b=1,2"), OK);
    assert_int_equal(many.n, 2);
    assert_string_equal(many.at[1], "b=1,2");
    setenv("PENSTOCK_MANY", "x=/a,b;y", 1);
    reset(NULL);
    setenv("PENSTOCK_MANY", "x=/a,b;y", 1);
    assert_int_equal(parse(&e, NULL, NULL, NULL), OK);
    assert_int_equal(many.n, 2);
    assert_string_equal(many.at[0], "x=/a,b");
    assert_string_equal(many.at[1], "y");
    assert_int_equal(parse(&e, "--many", "z", NULL), OK); // flags win
    assert_int_equal(many.n, 1);
    assert_string_equal(many.at[0], "z");
    char *argv[OPTION_LIST_MAX + 2] = {"test"};
    for (int i = 0; i <= OPTION_LIST_MAX; i++) argv[i + 1] = "--many=a";
    reset(NULL);
    assert_int_equal(options_parse(&options, OPTION_LIST_MAX + 1, argv, &e), OK);
    reset(NULL);
    assert_int_equal(options_parse(&options, OPTION_LIST_MAX + 2, argv, &e), ERR_INPUT);
    char *text = malloc(OPTION_LIST_BYTES_MAX + 1);
    memset(text, 'a', OPTION_LIST_BYTES_MAX);
    text[OPTION_LIST_BYTES_MAX] = '\0';
    reset(NULL);
    setenv("PENSTOCK_MANY", text, 1);
    assert_int_equal(parse(&e, NULL, NULL, NULL), ERR_INPUT);
    text[OPTION_LIST_BYTES_MAX - 1] = '\0';
    setenv("PENSTOCK_MANY", text, 1);
    assert_int_equal(parse(&e, NULL, NULL, NULL), OK);
    free(text);
}

static void stages_of_one_model_and_of_all(void **state)
{
    (void) state;
    static const struct {
        const char *pp[2], *layers[2], *model;
        int n, first; // n 0: refused
    } cases[] = {
        {{NULL}, {NULL}, "m", 1, 0},
        {{"2"}, {NULL}, "m", 2, 0},
        {{"2", "m=3"}, {NULL}, "m", 3, 0},
        {{"m=3", "2"}, {NULL}, "m", 3, 0},
        {{"m=3", "2"}, {NULL}, "other", 2, 0},
        {{"mm=3"}, {NULL}, "m", 1, 0},
        {{"2"}, {"m=4,1,1"}, "m", 3, 4},
        {{"2"}, {"m=4,1,1"}, "other", 2, 0},
        {{"m=2"}, {"4,1,1"}, "m", 2, 0},
        {{"m=2"}, {"m=4,1,1"}, "m", 0, 0},
        {{"65"}, {NULL}, "m", 0, 0},
        {{"m=x"}, {NULL}, "m", 0, 0},
        {{"m="}, {NULL}, "m", 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct option_list pp = {0}, layers = {0};
        struct error e;
        int v[PP_MAX], n = 0;
        for (int k = 0; k < 2; k++) {
            if (cases[i].pp[k] != NULL) pp.at[pp.n++] = cases[i].pp[k];
            if (cases[i].layers[k] != NULL) layers.at[layers.n++] = cases[i].layers[k];
        }
        enum status status = options_stages(&pp, &layers, cases[i].model, v, &n, &e);
        bool good = cases[i].n == 0 ? status == ERR_INPUT
                                    : status == OK && n == cases[i].n && v[0] == cases[i].first;
        if (!good) fail_msg("case %zu: %d stages, %d layers", i, n, v[0]);
    }
}

static void names_what_is_wrong(void **state)
{
    (void) state;
    const char *bad[][2] = {{"--nothing", NULL}, {"--tp", "0"},   {"--tp", "65"}, {"--tp", "x"},
                            {"--tp", NULL},      {"--vram", "x"}, {"--vram", "-1"},
                            {"--temperature", "nan"},             {"--vram", "1Q"}, {"-x", NULL},
                            {"one", "two"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error e = {0};
        reset(NULL);
        assert_int_equal(parse(&e, bad[i][0], bad[i][1], NULL), ERR_INPUT);
        assert_string_equal(e.code, "bad_usage");
        assert_true(strlen(e.text) > 10);
    }
}

static void layers_and_bytes(void **state)
{
    (void) state;
    struct error e;
    int v[PP_MAX], n;
    int64_t b;
    assert_int_equal(options_layers("3,4,2", 0, v, &n, &e), OK);
    assert_true(n == 3 && v[0] == 3 && v[1] == 4 && v[2] == 2);
    assert_int_equal(options_layers("3,4,2", 3, v, &n, &e), OK);
    assert_int_equal(options_layers(NULL, 0, v, &n, &e), OK);
    assert_true(n == 1 && v[0] == 0);
    assert_int_equal(options_layers(NULL, 4, v, &n, &e), OK);
    assert_true(n == 4 && v[0] == 0);
    char long_list[2 * PP_MAX + 2] = "1";
    for (int i = 0; i < PP_MAX; i++) strcat(long_list, ",1");
    const struct { const char *text; int pp; } bad[] = {
        {"3,4,2", 1}, {"3,4,2", 2}, {"", 0},  {"3,,2", 0}, {"3,", 0},    {"-3", 0},
        {"0,3", 0},   {"3,0", 0},   {" 3", 0}, {"3;4", 0},  {"1025", 0},
        {"99999999999999999999", 0},
        {long_list, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (options_layers(bad[i].text, bad[i].pp, v, &n, &e) != ERR_INPUT) fail_msg("row %zu", i);
        assert_string_equal(e.code, "bad_usage");
    }
    const struct { const char *text; int64_t bytes; } good[] = {
        {"0", 0}, {"12", 12}, {"24G", 24000000000}, {"24GB", 24000000000}, {"1.5Ki", 1536},
        {"2MiB", 2 << 20}, {"3k", 3000}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(options_bytes(good[i].text, &b, &e), OK);
        assert_int_equal(b, good[i].bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(reads_flags_values_and_arguments, reset),
        cmocka_unit_test_setup(a_flag_wins_over_the_environment, reset),
        cmocka_unit_test_setup(a_file_may_hold_what_the_environment_would, reset),
        cmocka_unit_test_setup(an_option_may_be_given_more_than_once, reset),
        cmocka_unit_test_setup(stages_of_one_model_and_of_all, reset),
        cmocka_unit_test_setup(names_what_is_wrong, reset),
        cmocka_unit_test_setup(layers_and_bytes, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
