// From an inbox to a job or a dead letter, and cancels (broker/queue_ingest.lua).
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

static void test_take_keeps_to_its_byte_budget(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "aaaaa", "bbbbb", "ccccc", "ddddd");
    // The first is always taken, however large.
    expect("[3 [default 1 5 aaaaa]]", "take", "1", "default", "10", "2", "100");
    expect("[1 [default 2 5 bbbbb] [default 3 5 ccccc]]", "take", "1", "default", "10", "14",
           "100");
    expect("[0 [default 4 5 ddddd]]", "take", "1", "default", "1", "100", "100");
    expect("[0]", "take", "1", "default", "1", "100", "100");
}

static void test_a_message_that_is_too_large_is_not_carried(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "0123456789");
    expect("[0 [default 1 10 nil]]", "take", "1", "default", "1", "100", "9");
    expect("[0 [default 1 10 nil]]", "recover", "1", "0", "1", "100", "9");
    expect("dead", "reject", "1", "default", "1", "", "", "too_large", "too large", "");
    expect_event(0, "raw-1 failed 0");
}

static void test_messages_that_were_not_admitted_are_found_again(void **state)
{
    (void) state;
    cmd("HSET", "%Ttenants", "t-2", "1");
    cmd("RPUSH", "%Tin:default", "one", "two", "three");
    cmd("RPUSH", "%Tin:t-2", "four");
    call("take", "1", "default", "10", "1000", "1000");
    call("take", "1", "t-2", "10", "1000", "1000");
    assert_string_equal(admit("2", "two", "h"), "ok");
    expect("[lead 2 b-1 3600000]", "lead", "b-1", "3600000", "0"); // its next life
    expect("[1 [default 1 3 one] [default 3 5 three]]", "recover", "2", "0", "10", "8", "1000");
    expect("[2 [t-2 4 4 four]]", "recover", "2", "3", "10", "1000", "1000");
    expect("[3]", "recover", "2", "4", "10", "1000", "1000");
}

static void test_admit_may_be_repeated(void **state)
{
    (void) state;
    make_job("1", "a");
    assert_string_equal(admit("1", "a", "hash"), "ok");
    expect_cmd("1", "ZCARD", "%Trdy:0:default:m");
    expect_cmd("1", "HGET", "%Tn", "admitted");
    assert_string_equal(admit("99", "b", "hash"), "unknown");
}

static void test_the_same_id_with_the_same_body_is_a_duplicate(void **state)
{
    (void) state;
    make_job("1", "a");
    cmd("RPUSH", "%Tin:default", "a", "a");
    call("take", "1", "default", "10", "1000", "1000");
    assert_string_equal(admit("2", "a", "hash"), "duplicate");
    expect_cmd("[1 3]", "HKEYS", "%Traw");
    call("claim", "1", "30000", "1000", "1", "g", "default", "a");
    expect("ok", "done", "1", "default", "a", "1", "done", "R");
    // News of a finished job goes out again, for whoever sent it again and waits.
    assert_string_equal(admit("3", "a", "hash"), "duplicate_done");
    expect_event(1, "a done 1");
    expect_cmd("R", "GET", "%Tr:default:a");
    expect_clean();
}

static void test_the_same_id_with_another_body_is_a_conflict(void **state)
{
    (void) state;
    make_job("1", "a");
    cmd("RPUSH", "%Tin:default", "other");
    call("take", "1", "default", "10", "1000", "1000");
    assert_string_equal(admit("2", "a", "other hash"), "id_conflict");
    assert_string_equal(state_of("a"), "queued");
    assert_string_equal(state_of("raw-2"), "failed");
    expect_cmd("id_conflict", "HGET", "%Tj:default:raw-2", "code");
    expect_event(1, "raw-2 failed 0");
    assert_non_null(strstr(cmd("XRANGE", "%Tev:default", "-", "+"), "[id a event id_conflict"));
    expect_cmd("other", "HGET", "%Traw", "2");
    // The first job runs on as if nothing had happened.
    call("claim", "1", "30000", "1000", "1", "g", "default", "a");
    expect("ok", "done", "1", "default", "a", "1", "done", "R");
}

static void test_an_id_is_free_again_when_its_result_has_expired(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    expect("ok", "done", "1", "default", "a", "1", "done", "R");
    expect_cmd("2", "DEL", "%Tj:default:a", "%Tr:default:a"); // what their TTLs do
    make_running("2", "a", "2");
    expect("stale", "done", "1", "default", "a", "1", "done", "R");
    expect("ok", "done", "1", "default", "a", "2", "done", "R");
}

static void test_a_rejected_message_is_a_dead_letter_with_a_result(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "junk", "bad");
    call("take", "1", "default", "10", "1000", "1000");
    expect("dead", "reject", "1", "default", "1", "", "", "bad_msgpack", "a sentence", "");
    expect("dead", "reject", "1", "default", "2", "b", "custom", "bad_field", "text", "RESULT");
    expect("dead", "reject", "1", "default", "1", "", "", "bad_msgpack", "a sentence", "");
    expect("unknown", "reject", "1", "default", "7", "x", "", "bad_msgpack", "a sentence", "");
    // The result that is made here has all keys of a result; v, id, status, attempts, error first.
    expect_cmd("\x8a\xa1v\x01\xa2id\xa5raw-1\xa6status\xa5"
               "error\xa8"
               "attempts",
               "GETRANGE", "%Tr:default:raw-1", "0", "34");
    assert_non_null(strstr(cmd("GETRANGE", "%Tr:default:raw-1", "36", "-1"),
                           "\xa5"
                           "error\x83\xa4"
                           "code\xab"
                           "bad_msgpack\xa7message\xaa"
                           "a sentence\xa9retryable\xc2"));
    expect_cmd("RESULT", "GET", "%Tr:default:b");
    expect_event(1, "b failed 0");
    expect_cmd("2", "ZCARD", "%Tdead");
    expect_cmd("[1 2]", "HKEYS", "%Traw");
    expect_cmd("0", "EXISTS", "%Ttaken");
    expect_cmd("2", "HGET", "%Tn", "rejected");
    // It never was a job, so the corrected message may have its id.
    make_job("3", "b");
    assert_string_equal(state_of("b"), "queued");
    expect_cmd("[1 3]", "HKEYS", "%Traw");
    expect_cmd("1", "ZCARD", "%Tdead");
}

static void test_a_rejected_message_with_the_id_of_a_job_leaves_the_job_alone(void **state)
{
    (void) state;
    make_job("1", "a");
    make_job("2", "raw-3"); // a user may choose this id
    cmd("RPUSH", "%Tin:default", "bad");
    call("take", "1", "default", "10", "1000", "1000");
    expect("id_conflict", "reject", "1", "default", "3", "a", "", "bad_field", "text", "");
    assert_string_equal(state_of("a"), "queued");
    assert_string_equal(state_of("raw-3"), "queued");
    assert_string_equal(state_of("raw-3-"), "failed");
}

static void test_cancel_in_every_state(void **state)
{
    (void) state;
    expect("[unknown]", "cancel", "1", "default", "0", "nobody");
    make_job("1", "queued");
    cmd("RPUSH", "%Tin:default", "cancel message");
    call("take", "1", "default", "10", "1000", "1000");
    expect("[cancelled]", "cancel", "1", "default", "2", "queued");
    expect("[cancelled]", "cancel", "1", "default", "2", "queued");
    expect_event(0, "queued cancelled 0");
    assert_non_null(strstr(cmd("GET", "%Tr:default:queued"), "status\xa9" "cancelled"));
    expect_clean();

    make_running("3", "running", "1");
    expect("[running 1 group]", "cancel", "1", "default", "0", "running");
    expect("[[cancel default running 1 3]]", "renew", "1", "30000", "default", "running", "1");
    expect("ok", "done", "1", "default", "running", "1", "cancelled", "R");
    expect_event(1, "running cancelled 1");
    expect("[cancelled]", "cancel", "1", "default", "0", "running");

    make_running("4", "done", "2");
    expect("ok", "done", "1", "default", "done", "2", "done", "R");
    expect("[done]", "cancel", "1", "default", "0", "done");
    expect_cmd("R", "GET", "%Tr:default:done");
    expect_clean();
}

static void test_a_cancelled_job_does_not_run_again(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    make_running("2", "b", "2");
    make_running("3", "c", "3");
    call("cancel", "1", "default", "0", "a");
    call("cancel", "1", "default", "0", "b");
    call("cancel", "1", "default", "0", "c");
    expect("cancelled", "nack", "1", "default", "a", "1", "1");
    expect("[cancelled 0]", "fail", "1", "default", "b", "2", "c", "t", "1", "1", "1", "0", "");
    make_due("ls", "default:c");
    expect("[[cancelled default c 3 group]]", "reap", "1", "10");
    expect_clean();
}

static void test_take_keeps_to_the_budgets_in_bytes(void **state)
{
    (void) state;
    expect("ok", "tenant_set", "set", "default", "", "12", "", "");
    cmd("RPUSH", "%Tin:default", "aaaaa", "bbbbb", "ccccc", "ddddd");
    expect("[2 [default 1 5 aaaaa] [default 2 5 bbbbb]]", "take", "1", "default", "10", "1000",
           "100", "0");
    expect("[1 [default 3 5 ccccc]]", "take", "1", "default", "10", "1000", "100", "0");
    expect("[1]", "take", "1", "default", "10", "1000", "100", "0"); // 15 of 12
    // Whatever way they leave makes room: a rejected one, one that has ended, a cancel.
    expect("dead", "reject", "1", "default", "1", "a", "", "bad", "text", "");
    expect("[0 [default 4 5 ddddd]]", "take", "1", "default", "10", "1000", "100", "0");
    assert_string_equal(admit("2", "b", "h"), "ok");
    assert_string_equal(admit("3", "c", "h"), "ok");
    expect_cmd("[15 15]", "HMGET", "%Tbytes", "default", "*");
    call("claim", "1", "30000", "1000", "1", "g", "default", "b");
    expect("ok", "done", "1", "default", "b", "1", "done", "R");
    expect("[cancelled]", "cancel", "1", "default", "4", "c");
    expect_cmd("[0 0]", "HMGET", "%Tbytes", "default", "*");
    // And that of all together.
    expect("ok", "tenant_set", "add", "t", "1", "0", "0", "0");
    expect("ok", "tenant_set", "set", "default", "", "0", "", "");
    cmd("RPUSH", "%Tin:default", "aaaaa");
    cmd("RPUSH", "%Tin:t", "bbbbb");
    expect("[0 [default 5 5 aaaaa]]", "take", "1", "default", "10", "1000", "100", "5");
    expect("[1]", "take", "1", "t", "10", "1000", "100", "5");
    expect("[0 [t 6 5 bbbbb]]", "take", "1", "t", "10", "1000", "100", "6");
}

#define test(f) cmocka_unit_test_setup(f, library_new_queue)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_take_keeps_to_its_byte_budget),
        test(test_a_message_that_is_too_large_is_not_carried),
        test(test_messages_that_were_not_admitted_are_found_again),
        test(test_admit_may_be_repeated),
        test(test_the_same_id_with_the_same_body_is_a_duplicate),
        test(test_the_same_id_with_another_body_is_a_conflict),
        test(test_an_id_is_free_again_when_its_result_has_expired),
        test(test_a_rejected_message_is_a_dead_letter_with_a_result),
        test(test_a_rejected_message_with_the_id_of_a_job_leaves_the_job_alone),
        test(test_cancel_in_every_state),
        test(test_a_cancelled_job_does_not_run_again),
        test(test_take_keeps_to_the_budgets_in_bytes),
    };
    return cmocka_run_group_tests(tests, library_start, library_stop);
}
