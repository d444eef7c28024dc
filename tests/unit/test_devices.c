// The devices that a user names.
#include "common/limits.h"
#include "kernels/devices.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void four_ranks_on_cpus(void **state)
{
    (void) state;
    struct devices d;
    struct error e = {0};
    uint64_t all, each;
    assert_int_equal(devices_parse("cpu:1", &d, &e), OK);
    assert_ptr_equal(d.backend, backend_cpu());
    assert_int_equal(d.n, 1);
    assert_int_equal(devices_memory(&d, &all, &e), OK);
    assert_int_equal(devices_parse("cpu:4", &d, &e), OK);
    assert_int_equal(d.n, 4);
    assert_int_equal(devices_memory(&d, &each, &e), OK);
    assert_true(each > 0 && each < all);
    assert_int_equal(devices_parse("cpu", &d, &e), OK);
    assert_int_equal(d.n, 1);
}

static void gpus_where_the_program_knows_them(void **state)
{
    (void) state;
    struct devices d;
    struct error e = {0};
    uint64_t bytes;
    enum status status = devices_parse("cuda:2", &d, &e);
    if (backend_cuda() == NULL) {
        assert_int_equal(status, ERR_UNSUPPORTED);
        assert_string_equal(e.code, "no_cuda");
        return;
    }
    assert_int_equal(status, OK);
    assert_ptr_equal(d.backend, backend_cuda());
    assert_int_equal(d.n, 2);
    assert_int_equal(d.n_gpus, 0);
    assert_int_equal(devices_parse("cuda:4/2", &d, &e), OK);
    assert_int_equal(d.n, 4);
    assert_int_equal(d.n_gpus, 2);
    assert_int_equal(devices_parse("cuda/1", &d, &e), OK);
    assert_int_equal(d.n, 1);
    assert_int_equal(d.n_gpus, 1);
    d = (struct devices){backend_cuda(), 10000, 0};
    assert_int_equal(devices_memory(&d, &bytes, &e), ERR_UNAVAILABLE);
    assert_string_equal(e.code, "no_device");
}

static void other_words_are_refused(void **state)
{
    (void) state;
    static const char *const texts[] = {"", "cpu:", "cpu:0", "cpu:-1", "cpu:+1", "cpu: 1", "cpu:1x",
                                        "cpu:1000", "CPU:1", "cpu1", "cp", "cpus:1", "gpu:1",
                                        "cuda:", "cuda:0", "cuda:0,1", "cpu:99999999999999999999",
                                        "cuda:2/", "cuda:2/0", "cuda:2/1x", "cpu:2/1", "cuda/"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct devices d;
        struct error e = {0};
        if (devices_parse(texts[i], &d, &e) != ERR_INPUT) fail_msg("\"%s\" is taken", texts[i]);
        assert_string_equal(e.code, "bad_usage");
        assert_non_null(strstr(e.text, "cuda:N"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(four_ranks_on_cpus),
        cmocka_unit_test(gpus_where_the_program_knows_them),
        cmocka_unit_test(other_words_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
