// The models of a broker: names, stages, and which of them cannot stand side by side.
#include "broker/model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

static struct models m;
static struct error e;

// Lists of up to three values each; NULL ends them.
static enum status load(const char *const *specs, const char *const *pp, const char *const *layers)
{
    struct option_list lists[3] = {0};
    const char *const *from[3] = {specs, pp, layers};
    for (int i = 0; i < 3; i++) {
        for (int k = 0; from[i] != NULL && from[i][k] != NULL; k++) {
            lists[i].at[lists[i].n++] = from[i][k];
        }
    }
    return models_load(&m, &lists[0], &lists[1], &lists[2], &e);
}

static void the_first_model_is_for_jobs_that_name_none(void **state)
{
    (void) state;
    const char *specs[] = {FIXTURES "/tiny-fp8", "big.1=" FIXTURES "/tiny-bf16", NULL};
    const char *pp[] = {"2", "big.1=3", NULL}, *layers[] = {"tiny-fp8=1,5", NULL};
    char list[256];
    if (load(specs, pp, layers) != OK) fail_msg("%s", e.text);
    assert_int_equal(m.n, 2);
    assert_int_equal(models_find(&m, ""), 0);
    assert_int_equal(models_find(&m, "tiny-fp8"), 0);
    assert_int_equal(models_find(&m, "big.1"), 1);
    assert_int_equal(models_find(&m, "big"), -1);
    assert_int_equal(m.at[0].pp, 2);
    assert_int_equal(m.at[0].layers[1], 5);
    assert_int_equal(m.at[1].pp, 3);
    assert_int_equal(m.at[1].layers[0], 0);
    models_list(&m, false, list, sizeof list);
    assert_string_equal(list, "\"tiny-fp8\", \"big.1\"");
    models_list(&m, true, list, sizeof list);
    assert_non_null(strstr(list, m.at[1].hash));
    models_list(&m, true, list, 12); // what there is room for
    assert_true(strlen(list) < 12);
    models_deinit(&m);
}

static void what_cannot_be_served_is_said(void **state)
{
    (void) state;
#define TINY FIXTURES "/tiny-bf16"
    static const struct {
        const char *specs[4], *pp, *text;
    } cases[] = {
        {{"a b=" TINY}, NULL, "a model's name"},
        {{"=" TINY}, NULL, "a model's name"},
        {{"a=" TINY, "a=" FIXTURES "/tiny-fp8"}, NULL, "two models have the name"},
        {{"a=" TINY, "b=" TINY}, NULL, "cannot be told apart"},
        {{"a=" TINY}, "b=2", "there is no model"},
        {{"a=" TINY}, "a=0", "--pp wants"},
        {{FIXTURES "/nowhere"}, NULL, "nowhere"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *pp[] = {cases[i].pp, NULL};
        e = (struct error){0};
        bool refused = load(cases[i].specs, pp, NULL) != OK;
        if (!refused || strstr(e.text, cases[i].text) == NULL) fail_msg("%zu: %s", i, e.text);
        assert_int_equal(m.n, 0);
    }
    struct option_list many = {0}, none = {0};
    while (many.n <= MODELS_MAX) many.at[many.n++] = "a=" TINY;
    assert_int_equal(models_load(&m, &many, &none, &none, &e), ERR_INPUT);
    assert_non_null(strstr(e.text, "more than 16 models"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_model_is_for_jobs_that_name_none),
        cmocka_unit_test(what_cannot_be_served_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
