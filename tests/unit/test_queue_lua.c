// The Redis function library as a whole: a job's life, terms, arguments, the server's limits.
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

static void test_the_life_of_a_job(void **state)
{
    (void) state;
    expect_cmd("2", "RPUSH", "%Tin:default", "message one", "message two");
    expect("[0 [default 1 11 message one] [default 2 11 message two]]", "take", "1", "default",
           "100", "1000", "1000");
    expect("ok", "admit", "1", "default", "1", "one", "0", "hash", "3", "100", "20", "0", "0",
           "60000", "3", "0", "custom", "batch", "m");
    assert_string_equal(admit("2", "two", "hash"), "ok");
    expect_window("[[one 1 3 100 20 0 0 0] [two 2 3 100 20 0 0 0]]", "window", "1",
                  "0", "default", "m", "0", "10");
    expect_window("[[two 2 3 100 20 0 0 0]]", "window", "1", "0", "default", "m", "1", "10");

    const char *got = call("claim", "1", "30000", "1000", "7", "group", "default", "one");
    const char *wanted = "[[ok default one 1 1 message one  1 0 0 0 3 100 20 ";
    assert_memory_equal(got, wanted, strlen(wanted));
    assert_non_null(strstr(got, " 0 60000 0 0 custom batch ]]"));
    expect_window("[[two 2 3 100 20 0 0 0]]", "window", "1", "0", "default", "m", "0", "10");

    expect("[[ok default one 1 3]]", "renew", "1", "30000", "default", "one", "1");
    expect("[ok 4]", "checkpoint", "1", "default", "one", "1", "0", "ABCD");
    expect("ok", "done", "1", "default", "one", "1", "done", "the result");
    expect_cmd("the result", "GET", "%Tr:default:one");
    assert_in_range(atoi(cmd("PTTL", "%Tr:default:one")), 50000, 60000);
    assert_in_range(atoi(cmd("PTTL", "%Tj:default:one")), 50000, 60000);
    expect_event(0, "one done 1");
    expect_cmd("[1 1]", "HMGET", "%Tb:default:batch", "total", "done");

    // Only the other job is left.
    expect_cmd("[2]", "HKEYS", "%Traw");
    expect_cmd("0", "EXISTS", "%Tls", "%Tc:default:one", "%Ttaken");
    got = call("stats");
    assert_non_null(strstr(got, "term 1 inbox 0 taken 0 ready 1 delayed 0 running 0 dead 0"));
    assert_non_null(strstr(got, "raw 1 "));
    assert_non_null(strstr(got, "admitted 2"));
    assert_non_null(strstr(got, "done 1"));
}

static void test_an_older_term_is_refused_by_every_function(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    expect("[lead 2 b-1 3600000]", "lead", "b-1", "3600000", "0");
    expect("!STALETERM", "take", "1", "default", "1", "1", "1");
    expect("!STALETERM", "recover", "1", "0", "1", "1", "1");
    assert_string_equal(admit("1", "b", "h"), "!STALETERM");
    expect("!STALETERM", "reject", "1", "default", "1", "b", "", "bad", "text", "");
    expect("!STALETERM", "cancel", "1", "default", "0", "a");
    expect("!STALETERM", "window", "1", "0", "default", "m", "0", "1");
    expect("!STALETERM", "claim", "1", "1", "1", "1", "g", "default", "a");
    expect("!STALETERM", "renew", "1", "1", "default", "a", "1");
    expect("!STALETERM", "checkpoint", "1", "default", "a", "1", "0", "x");
    expect("!STALETERM", "done", "1", "default", "a", "1", "done", "x");
    expect("!STALETERM", "fail", "1", "default", "a", "1", "c", "t", "1", "1", "1", "0", "");
    expect("!STALETERM", "nack", "1", "default", "a", "1", "0");
    expect("!STALETERM", "lead", "b-1", "3600000", "1");
    expect("!STALETERM", "resign", "1");
    expect("!STALETERM", "fleet", "1", "1000", "{}");
    expect("!STALETERM", "reap", "1", "1");
    expect("!STALETERM", "promote", "1", "1");
    expect("!STALETERM", "selftest", "1");
    assert_string_equal(state_of("a"), "running");
    // A higher term than the stored one rules from then on.
    expect("ok", "selftest", "9");
    expect("!STALETERM", "renew", "2", "1", "default", "a", "1");
    expect("ok", "done", "9", "default", "a", "1", "done", "x");
}

static void test_bad_arguments_change_nothing(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    cmd("RPUSH", "%Tin:default", "m");
    static const char *const calls[][13] = {
        {"take", "0", "default", "1", "1", "1"},
        {"take", "x", "default", "1", "1", "1"},
        {"take", "1", "def:ault", "1", "1", "1"},
        {"take", "1", "", "1", "1", "1"},
        {"take", "1", "nobody", "1", "1", "1"},
        {"take", "1", "default", "0", "1", "1"},
        {"take", "1", "default", "-1", "1", "1"},
        {"take", "1", "default", "1e3", "1", "1"},
        {"take", "1", "default", "1", "99999999999999999999", "1"},
        {"take", "1", "default", "1", "1"},
        {"take", "1", "default", "1", "1", "1", "x"},
        {"take", "1", "default", "1", "1", "1", "1", "1"},
        {"take"},
        {"cancel", "1", "default", "0", "a b"},
        {"cancel", "1", "default", "0", "a\n"},
        {"cancel", "1", "default", "x", "a"},
        {"window", "1", "4", "default", "m", "0", "1"},
        {"window", "1", "0", "default", "m", "0", "100000"},
        {"claim", "1", "1", "1", "1"},
        {"claim", "1", "1", "1", "1", "g", "default"},
        {"claim", "1", "1", "1", "0", "g", "default", "a"},
        {"renew", "1", "1", "default", "a"},
        {"renew", "1", "1", "default", "a", "1.5"},
        {"checkpoint", "1", "default", "a", "1", "-1", "x"},
        {"done", "1", "default", "a", "1", "failed", "x"},
        {"done", "1", "default", "a", "1", "done", ""},
        {"fail", "1", "default", "a", "1", "bad code", "t", "1", "1", "1", "0", ""},
        {"fail", "1", "default", "a", "1", "c", "t", "2", "1", "1", "0", ""},
        {"fail", "1", "default", "a", "1", "c", "t", "1", "1", "1", "1000000", ""},
        {"nack", "1", "default", "a", "1", "2"},
        {"reject", "1", "default", "0", "a", "", "c", "t", ""},
        {"reap", "1", "0"},
        {"promote", "1", "x"},
        {"stats", "1"},
        {"selftest", "1", "2"},
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        const char *const *a = calls[i];
        const char *got = call(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10],
                               a[11], a[12]);
        if (strcmp(got, "!BADARG") != 0) fail_msg("call %zu (%s): %s", i, a[0], got);
    }
    expect_cmd("!BADARG", "FCALL", "stats", "1", "%Tother");
    expect_cmd("!BADARG", "FCALL", "stats", "1", "ps:{a}b:term");
    expect_cmd("!BADARG", "FCALL", "stats", "0");
    expect_cmd("1", "LLEN", "%Tin:default");
    assert_string_equal(state_of("a"), "running");
    expect("[[ok default a 1 3]]", "renew", "1", "1", "default", "a", "1");
}

static void test_a_full_redis_takes_nothing_in_but_drains(void **state)
{
    (void) state;
    make_running("1", "a", "1");
    make_running("2", "b", "2");
    make_running("3", "c", "3");
    make_job("4", "d");
    cmd("CONFIG", "SET", "maxmemory", "1");
    expect_cmd("!OOM", "RPUSH", "%Tin:default", "m");
    expect("!OOM", "take", "1", "default", "1", "1", "1");
    expect("[[ok default a 1 3]]", "renew", "1", "1000", "default", "a", "1");
    expect("ok", "done", "1", "default", "a", "1", "done", "R");
    expect("[retry 0]", "fail", "1", "default", "b", "2", "c", "t", "1", "1", "1", "0", "");
    expect("ready", "nack", "1", "default", "c", "3", "1");
    const char *got = call("claim", "1", "1000", "1000", "1", "g", "default", "d");
    assert_non_null(strstr(got, "[ok default d 4"));
    expect("[cancelled]", "cancel", "1", "default", "0", "c");
    assert_non_null(strstr(call("stats"), "running 1"));
    cmd("CONFIG", "SET", "maxmemory", "0");
}

static void test_selftest_names_a_right_that_is_missing(void **state)
{
    (void) state;
    cmd("ACL", "SETUSER", "poor", "on", "nopass", "~*", "+@all", "-xadd");
    expect("ok", "selftest", "1");
    expect_cmd("OK", "AUTH", "poor", "");
    redisReply *r =
        redisCommand(library_redis, "FCALL selftest 1 ps:{%s}:term 1", library_tag);
    expect_cmd("OK", "AUTH", "default", "");
    assert_non_null(r);
    assert_int_equal(r->type, REDIS_REPLY_ERROR);
    assert_non_null(strstr(r->str, "XADD"));
    freeReplyObject(r);
}

static void test_an_error_in_the_middle_loses_nothing(void **state)
{
    (void) state;
    // `raw` of the wrong type: take fails and the inbox keeps its messages.
    cmd("RPUSH", "%Tin:default", "m");
    cmd("SET", "%Traw", "x");
    expect("!WRONGTYPE", "take", "1", "default", "1", "10", "10");
    expect_cmd("1", "LLEN", "%Tin:default");
    cmd("DEL", "%Traw");
    expect("[0 [default 2 1 m]]", "take", "1", "default", "1", "10", "10");
    // The ready set: the message stays taken, and the next admit mends the job.
    cmd("SET", "%Trdy:0:default:m", "x");
    assert_string_equal(admit("2", "a", "hash"), "!WRONGTYPE");
    cmd("DEL", "%Trdy:0:default:m");
    expect("[0 [default 2 1 m]]", "recover", "1", "0", "1", "10", "10");
    assert_string_equal(admit("2", "a", "hash"), "ok");
    // The leases: the job stays ready.
    cmd("SET", "%Tls", "x");
    expect("!WRONGTYPE", "claim", "1", "1000", "10", "1", "g", "default", "a");
    cmd("DEL", "%Tls");
    assert_non_null(strstr(call("claim", "1", "1000", "10", "2", "g", "default", "a"), "[ok"));
    // The events: done can be done again.
    cmd("SET", "%Tev:default", "x");
    expect("!WRONGTYPE", "done", "1", "default", "a", "1", "done", "R");
    assert_string_equal(state_of("a"), "running");
    expect_cmd("m", "HGET", "%Traw", "2");
    cmd("DEL", "%Tev:default");
    expect("ok", "done", "1", "default", "a", "1", "done", "R");
    expect_event(0, "a done 1");
    expect_clean();
}

static void test_keys_of_other_queues_are_left_alone(void **state)
{
    (void) state;
    make_job("1", "a");
    char first[32];
    strcpy(first, library_tag);
    assert_true(strlen(first) + sizeof "-other" <= sizeof library_tag);
    strcat(library_tag, "-other");
    expect("[lead 1 b-1 3600000]", "lead", "b-1", "3600000", "0");
    expect("[[gone default a]]", "claim", "1", "1000", "10", "2", "g", "default", "a");
    expect("[unknown]", "cancel", "1", "default", "0", "a");
    strcpy(library_tag, first);
    assert_string_equal(state_of("a"), "queued");
}

#define test(f) cmocka_unit_test_setup(f, library_new_queue)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_the_life_of_a_job),
        test(test_an_older_term_is_refused_by_every_function),
        test(test_bad_arguments_change_nothing),
        test(test_a_full_redis_takes_nothing_in_but_drains),
        test(test_selftest_names_a_right_that_is_missing),
        test(test_an_error_in_the_middle_loses_nothing),
        test(test_keys_of_other_queues_are_left_alone),
    };
    return cmocka_run_group_tests(tests, library_start, library_stop);
}
