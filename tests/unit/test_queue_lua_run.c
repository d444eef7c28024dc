// Claims, and how attempts end (broker/queue_run.lua).
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

static void test_claim_keeps_to_its_byte_budget(void **state)
{
    (void) state;
    make_job("1", "aaaaa");
    make_job("2", "bbbbb");
    make_job("3", "ccccc");
    const char *got = call("claim", "1", "30000", "12", "1", "g", "default", "aaaaa", "g",
                           "default", "nobody", "g", "default", "bbbbb", "h", "default", "ccccc");
    assert_non_null(strstr(got, "[ok default aaaaa 1"));
    assert_non_null(strstr(got, "[gone default nobody]"));
    assert_non_null(strstr(got, "[ok default bbbbb 2"));
    assert_non_null(strstr(got, "[later default ccccc]"));
    assert_string_equal(state_of("ccccc"), "queued");
    expect("[[gone default aaaaa]]", "claim", "1", "1", "1", "2", "g", "default", "aaaaa");
}

static void test_a_claim_whose_reply_was_lost_is_read_back(void **state)
{
    (void) state;
    make_job("1", "a");
    char first[LIBRARY_TEXT_SIZE];
    strcpy(first, call("claim", "1", "30000", "100", "7", "g", "default", "a"));
    expect(first, "claim", "1", "30000", "100", "7", "g", "default", "a");
    expect_cmd("1", "HGET", "%Tj:default:a", "starts");
    expect("[[gone default a]]", "claim", "1", "30000", "100", "8", "g", "default", "a");
    expect("[[gone default a]]", "claim", "2", "30000", "100", "7", "g", "default", "a");
}

static void test_a_job_whose_bytes_are_gone_is_a_dead_letter(void **state)
{
    (void) state;
    make_job("1", "a");
    expect_cmd("1", "HDEL", "%Traw", "1");
    expect("[[gone default a]]", "claim", "1", "30000", "100", "7", "g", "default", "a");
    assert_string_equal(state_of("a"), "failed");
    expect_event(0, "a failed 0");
}

static void test_a_ready_entry_without_its_job_is_dropped(void **state)
{
    (void) state;
    make_job("1", "a");
    expect_cmd("1", "DEL", "%Tj:default:a");
    expect("[[gone default a]]", "claim", "1", "30000", "100", "7", "g", "default", "a");
    expect_window("[]", "window", "1", "0", "default", "m", "0", "10");
}

static void test_only_the_running_attempt_may_finish(void **state)
{
    (void) state;
    expect("unknown", "done", "1", "default", "a", "1", "done", "R");
    make_running("1", "a", "1");
    expect("ready", "nack", "1", "default", "a", "1", "0");
    expect("stale", "done", "1", "default", "a", "1", "done", "zombie");
    call("claim", "1", "30000", "100", "8", "g", "default", "a");
    expect("stale", "done", "1", "default", "a", "1", "done", "zombie");
    expect("[[stale default a 1 3]]", "renew", "1", "1", "default", "a", "1");
    expect("[stale 0]", "checkpoint", "1", "default", "a", "1", "0", "x");
    expect("stale", "nack", "1", "default", "a", "1", "0");
    expect("[stale 0]", "fail", "1", "default", "a", "1", "c", "t", "1", "1", "1", "0", "");
    expect("ok", "done", "1", "default", "a", "2", "done", "first");
    expect("ok", "done", "1", "default", "a", "2", "done", "again"); // its reply was lost
    expect("stale", "done", "1", "default", "a", "1", "done", "zombie");
    expect_cmd("first", "GET", "%Tr:default:a");
    expect_event(0, "a done 2");
    expect_clean();
}

static void test_a_checkpoint_grows_and_outlives_its_attempt(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    expect("[ok 3]", "checkpoint", "1", "default", "a", "1", "0", "abc");
    expect("[ok 3]", "checkpoint", "1", "default", "a", "1", "0", "abc");
    expect("[ok 5]", "checkpoint", "1", "default", "a", "1", "1", "bcde");
    expect("[gap 5]", "checkpoint", "1", "default", "a", "1", "6", "g");
    expect("ready", "nack", "1", "default", "a", "1", "1");
    const char *got = call("claim", "1", "30000", "100", "9", "g", "default", "a");
    const char *wanted = "[[ok default a 2 1 a abcde 2 0 1 0 ";
    assert_memory_equal(got, wanted, strlen(wanted));
    expect("ok", "done", "1", "default", "a", "2", "done", "R");
    expect_cmd("0", "EXISTS", "%Tc:default:a");
}

static void test_retries_back_off_and_end_in_a_dead_letter(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    expect("[retry 1000]", "fail", "1", "default", "a", "1", "c", "t", "1", "1000", "5000",
           "999999", "");
    expect_window("[]", "window", "1", "0", "default", "m", "0", "10");
    expect("[]", "promote", "1", "10");
    make_due("dly", "default:a");
    expect("[[ready default a 1 ]]", "promote", "1", "10");
    call("claim", "1", "30000", "100", "9", "g", "default", "a");
    expect("[retry 1000]", "fail", "1", "default", "a", "2", "c", "t", "1", "1000", "5000",
           "500000", ""); // half of 2,000
    make_due("dly", "default:a");
    call("promote", "1", "10");
    call("claim", "1", "30000", "100", "10", "g", "default", "a");
    expect("[dead 0]", "fail", "1", "default", "a", "3", "code", "text", "1", "1000", "5000", "0",
           "RESULT");
    assert_string_equal(state_of("a"), "failed");
    expect_cmd("[code text 3]", "HMGET", "%Tj:default:a", "code", "text", "fails");
    expect_cmd("-1", "PTTL", "%Tj:default:a");
    expect_cmd("RESULT", "GET", "%Tr:default:a");
    expect_cmd("a", "HGET", "%Traw", "1");
    expect_event(0, "a failed 3");
    // After 30 days it is dropped, bytes and all.
    make_due("dead", "default:a");
    expect("[]", "promote", "1", "10");
    expect_cmd("0", "EXISTS", "%Tj:default:a", "%Tr:default:a");
    expect_clean();
}

static void test_the_backoff_has_an_upper_limit(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    cmd("HSET", "%Tj:default:a", "fails", "15", "max", "20");
    expect("[retry 5000]", "fail", "1", "default", "a", "1", "c", "t", "1", "1000", "5000",
           "999999", "");
}

static void test_what_is_not_retryable_fails_at_once(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    expect("[dead 0]", "fail", "1", "default", "a", "1", "bad_seed", "text", "0", "1", "1", "0",
           "");
    assert_non_null(strstr(cmd("GETRANGE", "%Tr:default:a", "35", "-1"), "bad_seed"));
}

static void test_a_job_that_loses_three_groups_is_poison(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    char attempt[8];
    for (int i = 1; i <= 3; i++) {
        snprintf(attempt, sizeof attempt, "%d", i);
        expect("ready", "nack", "1", "default", "a", attempt, "1");
        assert_string_equal(window("window", "1", "0", "default", "m", "0", "10"),
                            i == 1   ? "[[a 1 3 100 20 0 1 0]]"
                            : i == 2 ? "[[a 1 3 100 20 0 2 0]]"
                                     : "[[a 1 3 100 20 0 3 1]]");
        snprintf(attempt, sizeof attempt, "%d", i + 10); // the claim's id
        call("claim", "1", "30000", "100", attempt, "g", "default", "a");
    }
    // Given back by its group, it keeps its chance.
    expect("ready", "nack", "1", "default", "a", "4", "0");
    call("claim", "1", "30000", "100", "20", "g", "default", "a");
    make_due("ls", "default:a");
    expect("[[dead default a 5 g]]", "reap", "1", "10");
    expect_cmd("poison", "HGET", "%Tj:default:a", "code");
    expect_event(0, "a failed 5");
}

#define test(f) cmocka_unit_test_setup(f, library_new_queue)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_claim_keeps_to_its_byte_budget),
        test(test_a_claim_whose_reply_was_lost_is_read_back),
        test(test_a_job_whose_bytes_are_gone_is_a_dead_letter),
        test(test_a_ready_entry_without_its_job_is_dropped),
        test(test_only_the_running_attempt_may_finish),
        test(test_a_checkpoint_grows_and_outlives_its_attempt),
        test(test_retries_back_off_and_end_in_a_dead_letter),
        test(test_the_backoff_has_an_upper_limit),
        test(test_what_is_not_retryable_fails_at_once),
        test(test_a_job_that_loses_three_groups_is_poison),
    };
    return cmocka_run_group_tests(tests, library_start, library_stop);
}
