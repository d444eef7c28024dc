// Why a job waits (broker/queue_why.lua).
#include "tests/support/queue_library.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>

// A ready job with so many tokens of output.
static void ready(const char *tenant, const char *seq, const char *id, const char *class,
                  const char *most)
{
    char inbox[32];
    snprintf(inbox, sizeof inbox, "%%Tin:%s", tenant);
    cmd("RPUSH", inbox, id);
    call("take", "1", tenant, "1", "1000", "1000");
    expect("ok", "admit", "1", tenant, seq, id, class, "hash", "3", "10", most, "0", "0", "1000",
           "3", "0", "", "", "m");
}

static void expect_why(const char *tenant, const char *id, const char *part)
{
    const char *got = call("why", tenant, id);
    if (strstr(got, part) == NULL) fail_msg("%s: no '%s' in %s", id, part, got);
}

static void test_what_goes_before_a_ready_job(void **state)
{
    (void) state;
    expect("ok", "tenant_set", "add", "big", "3", "", "", "");
    ready("default", "1", "a", "2", "100");
    ready("default", "2", "b", "2", "200");
    expect_why("default", "a", "state queued");
    expect_why("default", "a", " first 0 mean 100]");
    expect_why("default", "b", " first 1 mean 100]");
    // All of better classes, of any tenant; of its own, by the shares: 3 of `big` for each.
    ready("big", "3", "c", "0", "30");
    expect_why("default", "a", " first 1 mean 30]");
    static const char *const ids[] = {"d", "e", "f", "g", "h"};
    for (int i = 0; i < 5; i++) {
        char seq[8];
        snprintf(seq, sizeof seq, "%d", 4 + i);
        ready("big", seq, ids[i], "2", "30");
    }
    expect_why("default", "a", " first 4 mean 30]");
    expect_why("default", "b", " first 7 mean 40]");
    expect_why("big", "h", " first 7 mean ");
    expect("ok", "pause", "big", "1");
    expect_why("default", "a", " first 0 mean 100]");
    expect("!BADARG", "why", "default", "no name");
}

static void test_a_message_that_is_not_admitted(void **state)
{
    (void) state;
    // {'v': 1, 'id': ...}
    static const char *const messages[] = {"\x82\xa1v\1\xa2id\xa1x", "\x82\xa1v\1\xa2id\xa2xy",
                                           ("\x82\xa1v\1\xa2id\xd9\x25"
                                            "a234567890123456789012345678901234567")};
    cmd("DEL", "%Tlead");
    for (int i = 0; i < 3; i++) cmd("RPUSH", "%Tin:default", messages[i]);
    expect("[place inbox position 1 inbox 3 waits no_broker]", "why", "default", "x");
    expect("[place inbox position 2 inbox 3 waits no_broker]", "why", "default", "xy");
    expect("[place inbox position 3 inbox 3 waits no_broker]", "why", "default",
           "a234567890123456789012345678901234567");
    expect("[inbox 3 waits no_broker]", "why", "default", "y");
    expect("[inbox 0 waits no_tenant]", "why", "nobody", "x");
    cmd("SET", "%Tlead", "1 broker");
    expect("[place inbox position 2 inbox 3]", "why", "default", "xy");
    call("take", "1", "default", "1", "1000", "1000");
    expect("[place taken]", "why", "default", "x");
    expect("ok", "tenant_set", "set", "default", "", "9", "", "");
    expect("[place inbox position 1 inbox 2 waits bytes bytes_used 9 bytes_budget 9]", "why",
           "default", "xy");
}

#define test(f) cmocka_unit_test_setup(f, library_new_queue)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_what_goes_before_a_ready_job),
        test(test_a_message_that_is_not_admitted),
    };
    return cmocka_run_group_tests(tests, library_start, library_stop);
}
