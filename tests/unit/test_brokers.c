// The lists of --broker and --broker-key.
#include "workers/brokers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

static struct brokers b;
static struct error e;

static void one_or_several(void **state)
{
    (void) state;
    assert_int_equal(brokers_parse(&b, "tcp://10.0.0.1:7300", &e), OK);
    assert_int_equal(b.n, 1);
    assert_string_equal(b.at[0].endpoint, "tcp://10.0.0.1:7300");
    assert_string_equal(brokers_beyond_loopback(&b), "tcp://10.0.0.1:7300");
    assert_int_equal(brokers_parse(&b, "tcp://127.0.0.1:1,ipc:///tmp/x,tcp://localhost:2", &e), OK);
    assert_int_equal(b.n, 3);
    assert_string_equal(b.at[1].endpoint, "ipc:///tmp/x");
    assert_string_equal(b.at[2].endpoint, "tcp://localhost:2");
    assert_null(brokers_beyond_loopback(&b));
    assert_null(b.at[0].key);
}

static void lists_that_are_refused(void **state)
{
    (void) state;
    char many[16 * (BROKERS_MAX + 1)] = "", large[ENDPOINT_MAX + 2];
    for (int i = 0; i <= BROKERS_MAX; i++) {
        snprintf(many + strlen(many), 16, "%stcp://h:%d", i > 0 ? "," : "", i);
    }
    memset(large, 'x', sizeof large);
    memcpy(large, "tcp://h:", 8);
    large[sizeof large - 1] = '\0';
#define A "tcp://a:1"
#define B "ipc:///b"
    const char *const lists[] = {"", ",", A ",", "," A, A ",," B, A "," B "," A, many, large,
                                 "10.0.0.1:7300", "tcp://a", "tcp://", "ipc://", A ",a:1"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        if (brokers_parse(&b, lists[i], &e) != ERR_INPUT) fail_msg("\"%s\" is taken", lists[i]);
        assert_string_equal(e.code, "bad_usage");
        assert_non_null(strstr(e.text, "--broker"));
    }
    *strrchr(many, ',') = '\0';
    assert_int_equal(brokers_parse(&b, many, &e), OK);
    assert_int_equal(b.n, BROKERS_MAX);
    large[ENDPOINT_MAX] = '\0';
    assert_int_equal(brokers_parse(&b, large, &e), OK);
}

static void one_key_for_all_or_one_for_each(void **state)
{
    (void) state;
    struct curve_pair a, c;
    char list[2 * CURVE_SIZE + CURVE_SIZE];
    assert_int_equal(curve_make(&a, &e), OK);
    assert_int_equal(curve_make(&c, &e), OK);
    assert_int_equal(brokers_parse(&b, "tcp://x:1,tcp://y:1", &e), OK);
    assert_int_equal(brokers_read_keys(&b, a.public_key, &e), OK);
    assert_string_equal(b.at[0].key, a.public_key);
    assert_string_equal(b.at[1].key, a.public_key);
    snprintf(list, sizeof list, "%s,%s", c.public_key, a.public_key);
    assert_int_equal(brokers_read_keys(&b, list, &e), OK);
    assert_string_equal(b.at[0].key, c.public_key);
    assert_string_equal(b.at[1].key, a.public_key);
    snprintf(list, sizeof list, "%s,%s,%s", c.public_key, a.public_key, a.public_key);
    assert_int_equal(brokers_read_keys(&b, list, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_usage");
    assert_int_equal(brokers_parse(&b, "tcp://x:1,tcp://y:1,tcp://z:1", &e), OK);
    snprintf(list, sizeof list, "%s,%s", c.public_key, a.public_key);
    assert_int_equal(brokers_read_keys(&b, list, &e), ERR_INPUT);
    assert_non_null(strstr(e.text, "2 keys for 3 brokers"));
    assert_int_not_equal(brokers_read_keys(&b, "no-such-file", &e), OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_or_several),
        cmocka_unit_test(lists_that_are_refused),
        cmocka_unit_test(one_key_for_all_or_one_for_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
