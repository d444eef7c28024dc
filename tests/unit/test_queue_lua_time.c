// What time does to jobs: leases, schedules, deadlines (broker/queue_time.lua).
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

static void test_reap_gives_back_what_has_no_lease(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    make_running("2", "b", "2");
    make_running("3", "c", "3");
    expect("[]", "reap", "1", "10");
    make_due("ls", "default:a");
    make_due("ls", "default:b");
    expect("[[ready default a 1 group]]", "reap", "1", "1");
    expect("[[ok default b 2 3]]", "renew", "1", "30000", "default", "b", "2"); // just in time
    expect("[]", "reap", "1", "10");
    expect_window("[[a 1 3 100 20 0 1 0]]", "window", "1", "0", "default", "m", "0", "10");
}

static void test_a_schedule_holds_a_job_back(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "m");
    call("take", "1", "default", "1", "1000", "1000");
    expect("ok", "admit", "1", "default", "1", "a", "2", "h", "3", "100", "20", "9000000000000",
           "0", "60000", "3", "0", "", "", "m");
    expect_window("[]", "window", "1", "2", "default", "m", "0", "10");
    expect("[[gone default a]]", "claim", "1", "1", "1", "1", "g", "default", "a");
    make_due("dly", "default:a");
    expect("[[ready default a 0 ]]", "promote", "1", "10");
    expect_window("[[a 1 3 100 20 0 0 0]]", "window", "1", "2", "default", "m", "0", "10");
}

static void test_deadlines(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "a", "b", "c");
    call("take", "1", "default", "10", "1000", "1000");
    expect("ok", "admit", "1", "default", "1", "a", "0", "h", "3", "100", "20", "0", "1", "60000",
           "3", "0", "", "", "m");
    expect("ok", "admit", "1", "default", "2", "b", "0", "h", "3", "100", "20", "0",
           "9000000000000", "60000", "3", "0", "", "", "m");
    expect("ok", "admit", "1", "default", "3", "c", "0", "h", "3", "100", "20", "0", "1", "60000",
           "3", "0", "", "", "m");
    expect("[[gone default c]]", "claim", "1", "1", "1", "1", "g", "default", "c"); // ends it, too
    expect_event(0, "c expired 0");
    expect("[[expired default a 0 ]]", "promote", "1", "10");
    assert_non_null(strstr(cmd("GET", "%Tr:default:a"), "status\xa7" "expired"));
    expect_event(1, "a expired 0");
    // A running one is told to the broker, once, and does not run again.
    call("claim", "1", "30000", "100", "2", "g", "default", "b");
    cmd("HSET", "%Tj:default:b", "deadline", "1");
    make_due("exp", "default:b");
    expect("[[cancel default b 1 g]]", "promote", "1", "10");
    expect("[]", "promote", "1", "10");
    expect("[[expired default b 1 3]]", "renew", "1", "30000", "default", "b", "1"); // again
    expect("expired", "nack", "1", "default", "b", "1", "0");
    expect_clean();
}

#define test(f) cmocka_unit_test_setup(f, library_new_queue)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_reap_gives_back_what_has_no_lease),
        test(test_a_schedule_holds_a_job_back),
        test(test_deadlines),
    };
    return cmocka_run_group_tests(tests, library_start, library_stop);
}
