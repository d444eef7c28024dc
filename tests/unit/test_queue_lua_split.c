// Jobs that are split, in the Redis function library: children, levels, the final run, and what
// becomes of all when one of them fails, is cancelled, expires, or a call is made again
// (broker/queue_split.lua).
#include "tests/support/queue_library.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// A parent that waits for its split, as sequence number `seq`.
static const char *admit_parent(const char *seq, const char *id, const char *hash,
                                const char *deadline)
{
    return call("admit", "1", "default", seq, id, "1", hash, "0", "0", "0", "0", deadline, "60000",
                "3", "0", "custom", "batch", "m");
}

static void make_parent(const char *seq, const char *id)
{
    cmd("RPUSH", "%Tin:default", id);
    call("take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit_parent(seq, id, "hash", "0"), "ok");
}

// Two children of level 1.
static const char *split_in_two(const char *id)
{
    return call("split", "1", "default", id, "1", "0 0 0", "h1", "3", "10", "20", "message 1", "h2",
                "4", "11", "21", "message 2");
}

static void make_split(const char *seq, const char *id)
{
    make_parent(seq, id);
    assert_string_equal(split_in_two(id), "ok");
}

static void run_child(const char *child, const char *claim, const char *attempt)
{
    char wanted[96];
    snprintf(wanted, sizeof wanted, "[[ok default %s %s ", child, attempt);
    const char *got = call("claim", "1", "30000", "1000", claim, "group", "default", child);
    assert_memory_equal(got, wanted, strlen(wanted));
}

static void finish_child(const char *child, const char *attempt, const char *result)
{
    run_child(child, attempt, attempt);
    expect("ok", "done", "1", "default", child, attempt, "done", result);
}

static void claims_nothing(const char *id)
{
    char wanted[96];
    snprintf(wanted, sizeof wanted, "[[gone default %s]]", id);
    expect(wanted, "claim", "1", "30000", "1000", "999", "group", "default", id);
}

// Whole lives of promote: what is due is done, and the verdicts are told.
static const char *promote(void) { return call("promote", "1", "100"); }

static void expect_no_parent_left(void)
{
    expect_cmd("0", "EXISTS", "%Tjoin:m", "%Tm:default:p", "%Trdy:1:default:m", "%Tls", "%Texp",
               "%Tdly");
}

// --- life

static void a_parent_is_split_and_runs_last(void **state)
{
    (void) state;
    make_parent("1", "p");
    assert_string_equal(state_of("p"), "waiting");
    expect("[]", "window", "1", "1", "default", "m", "0", "10");
    expect("[[default p 0 0]]", "joins", "1", "m", "10");
    expect("[ok p ]", "gather", "1", "default", "p", "0", "0", "1000");
    expect_cmd("1", "HGET", "%Tbytes", "default");
    assert_string_equal(split_in_two("p"), "ok");
    expect("[]", "joins", "1", "m", "10");
    expect_cmd("19", "HGET", "%Tbytes", "default"); // the tenant's budget counts children

    // Children are ready in their parent's class and place, before what came later.
    cmd("RPUSH", "%Tin:default", "later");
    call("take", "1", "default", "1", "1000", "1000");
    expect("ok", "admit", "1", "default", "4", "later", "1", "h", "1", "1", "1", "0", "0", "60000",
           "3", "0", "", "", "m");
    expect_window("[[p-m1-1 2 3 10 20 0 0 0] [p-m1-2 3 4 11 21 0 0 0] [later 4 1 1 1 0 0 0]]",
                  "window", "1", "1", "default", "m", "0", "10");
    const char *got = call("claim", "1", "30000", "1000", "7", "group", "default", "p-m1-2");
    const char *wanted = "[[ok default p-m1-2 1 3 message 2  1 0 0 1 4 11 21 ";
    assert_memory_equal(got, wanted, strlen(wanted));
    expect("ok", "done", "1", "default", "p-m1-2", "1", "done", "result 2");
    expect("[]", "joins", "1", "m", "10");
    expect_cmd("1", "ZCARD", "%Tm:default:p");
    finish_child("p-m1-1", "2", "result 1");
    expect("[[default p 1 2]]", "joins", "1", "m", "10");
    expect("[ok p 0 0 0 [1 result 1] [2 result 2]]", "gather", "1", "default", "p", "1", "0",
           "1000");
    expect("[ok p 0 0 0 [1 result 1]]", "gather", "1", "default", "p", "1", "0", "1");
    expect("[ok  0 0 0 [2 result 2]]", "gather", "1", "default", "p", "1", "1", "1000");

    // Its own run: another message, in its old place, with what the children took.
    expect("ok", "reduce", "1", "default", "p", "1", "5", "30", "40", "21 0 7", "the last");
    assert_string_equal(state_of("p"), "queued");
    expect("[]", "joins", "1", "m", "10");
    got = call("claim", "1", "30000", "1000", "9", "group", "default", "p");
    wanted = "[[ok default p 3 1 the last  1 0 0 1 5 30 40 ";
    assert_memory_equal(got, wanted, strlen(wanted));
    assert_non_null(strstr(got, " custom batch 21 0 7]]"));
    expect_cmd("[1 4 5]", "HKEYS", "%Traw"); // its own message, the later one's, the last
    expect("ok", "done", "1", "default", "p", "3", "done", "the result");
    expect_cmd("the result", "GET", "%Tr:default:p");
    expect_cmd("[4]", "HKEYS", "%Traw");
    expect_cmd("5", "HGET", "%Tbytes", "default"); // of the later one
    // Children live as long as the result; nobody was told of them but of the parent.
    assert_in_range(atoi(cmd("PTTL", "%Tr:default:p-m1-1")), 50000, 60000);
    assert_in_range(atoi(cmd("PTTL", "%Tj:default:p-m1-2")), 50000, 60000);
    expect_cmd("1", "XLEN", "%Tev:default");
    expect_event(0, "p done 3");
    expect_cmd("[1 1]", "HMGET", "%Tb:default:batch", "total", "done");
    expect_cmd("4", "HGET", "%Tn", "admitted");
    expect_cmd("3", "HGET", "%Tn", "done");
}

static void levels_follow_one_another(void **state)
{
    (void) state;
    make_split("1", "p");
    finish_child("p-m1-1", "1", "result 1");
    finish_child("p-m1-2", "2", "result 2");
    expect("ok", "split", "1", "default", "p", "2", "21 0 9", "h3", "1", "1", "1", "message 3");
    expect("[]", "joins", "1", "m", "10");
    finish_child("p-m2-1", "3", "result 3");
    expect("[[default p 2 1]]", "joins", "1", "m", "10");
    expect("[ok p 21 0 9 [1 result 3]]", "gather", "1", "default", "p", "2", "0", "1000");
    // It ends with what they made, without a run of its own.
    expect("ok", "joined", "1", "default", "p", "2", "done", "", "", "all of it", "");
    expect_cmd("all of it", "GET", "%Tr:default:p");
    expect_cmd("[done 2 2 1]", "HMGET", "%Tj:default:p", "state", "split", "n1", "n2");
    assert_in_range(atoi(cmd("PTTL", "%Tr:default:p-m1-1")), 50000, 60000);
    assert_in_range(atoi(cmd("PTTL", "%Tr:default:p-m2-1")), 50000, 60000);
    expect_clean();
    expect_no_parent_left();
    expect_cmd("0", "HGET", "%Tbytes", "default");
}

static void a_scheduled_parent_waits_for_its_time(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "p");
    call("take", "1", "default", "1", "1000", "1000");
    expect("ok", "admit", "1", "default", "1", "p", "1", "hash", "0", "0", "0", "9000000000000",
           "0", "60000", "3", "0", "", "", "m");
    expect("[]", "joins", "1", "m", "10");
    make_due("dly", "default:p");
    promote();
    expect("[[default p 0 0]]", "joins", "1", "m", "10");
}

// --- made again

static void every_step_may_be_repeated(void **state)
{
    (void) state;
    make_parent("1", "p");
    assert_string_equal(admit_parent("1", "p", "hash", "0"), "ok");
    assert_string_equal(split_in_two("p"), "ok");
    assert_string_equal(split_in_two("p"), "ok");
    expect_cmd("3", "HLEN", "%Traw");
    finish_child("p-m1-1", "1", "result 1");
    assert_string_equal(split_in_two("p"), "ok");
    expect_cmd("1", "ZCARD", "%Tm:default:p");
    finish_child("p-m1-2", "2", "result 2");
    assert_string_equal(split_in_two("p"), "ok");
    expect("[[default p 1 2]]", "joins", "1", "m", "10");
    for (int i = 0; i < 2; i++) {
        expect("ok", "reduce", "1", "default", "p", "1", "5", "30", "40", "21 0 7", "the last");
        expect_cmd("2", "HLEN", "%Traw");
    }
    assert_string_equal(split_in_two("p"), "stale");
    expect("stale", "joined", "1", "default", "p", "1", "done", "", "", "x", "");
    expect("[stale]", "gather", "1", "default", "p", "1", "0", "1000");
    finish_child("p", "3", "the result");
    expect("ok", "reduce", "1", "default", "p", "1", "5", "30", "40", "21 0 7", "the last");
    expect("unknown", "split", "1", "default", "q", "1", "0 0 0", "h", "1", "1", "1", "m");
    expect("unknown", "reduce", "1", "default", "q", "1", "1", "1", "1", "", "m");
    expect("unknown", "joined", "1", "default", "q", "1", "done", "", "", "x", "");
    expect("[unknown]", "gather", "1", "default", "q", "1", "0", "1000");
    expect_clean();
    expect_no_parent_left();
}

static void the_same_message_again_is_a_duplicate(void **state)
{
    (void) state;
    make_split("1", "p");
    cmd("RPUSH", "%Tin:default", "p", "p");
    call("take", "1", "default", "2", "1000", "1000");
    assert_string_equal(admit_parent("4", "p", "hash", "0"), "duplicate");
    assert_string_equal(admit_parent("5", "p", "other", "0"), "id_conflict");
    assert_string_equal(state_of("p"), "waiting");
    expect_cmd("2", "ZCARD", "%Tm:default:p");
}

// A split that broke off in the middle, as a crash within a function would leave it.
static void a_split_that_broke_off_is_completed(void **state)
{
    (void) state;
    make_split("1", "p");
    finish_child("p-m1-1", "1", "result 1");
    cmd("HSET", "%Tj:default:p", "split", "0");
    cmd("HDEL", "%Tj:default:p", "n1");
    cmd("DEL", "%Tm:default:p", "%Trdy:1:default:m");
    cmd("ZADD", "%Tjoin:m", "1", "default:p");
    assert_string_equal(split_in_two("p"), "ok");
    expect_cmd("[2]", "ZRANGE", "%Tm:default:p", "0", "-1");
    finish_child("p-m1-2", "2", "result 2");
    expect("[[default p 1 2]]", "joins", "1", "m", "10");
    expect_cmd("2", "HGET", "%Tn", "done");
}

// --- other ends

static void a_childs_failure_is_its_parents(void **state)
{
    (void) state;
    make_split("1", "p");
    run_child("p-m1-1", "1", "1");
    run_child("p-m1-2", "2", "2");
    expect("[dead 0]", "fail", "1", "default", "p-m1-1", "1", "bad_body", "it is wrong", "0", "1",
           "1", "0", "");
    assert_string_equal(state_of("p"), "failed");
    expect_cmd("[child_failed the child p-m1-1 failed: bad_body: it is wrong]", "HMGET",
               "%Tj:default:p", "code", "text");
    expect_cmd("1", "EXISTS", "%Tr:default:p");
    expect_cmd("[default:p]", "ZRANGE", "%Tdead", "0", "-1"); // not the child
    expect_event(0, "p failed 0");
    expect_cmd("[1 1]", "HMGET", "%Tb:default:batch", "total", "failed");
    // The other one is told at once, and when its lease is renewed.
    assert_string_equal(promote(), "[[running default p-m1-2 2 group]]");
    expect("[[cancel default p-m1-2 2 4]]", "renew", "1", "1000", "default", "p-m1-2", "2");
    expect("ok", "done", "1", "default", "p-m1-2", "2", "cancelled", "x");
    expect_cmd("[1 2]", "HMGET", "%Tj:default:p", "split", "n1");
    expect_cmd("[1]", "HKEYS", "%Traw"); // for a retry
    expect_cmd("0", "HGET", "%Tbytes", "default");
    expect_no_parent_left();
}

static void a_long_sentence_is_cut_before_a_character(void **state)
{
    (void) state;
    make_split("1", "p");
    run_child("p-m1-1", "1", "1");
    char sentence[600] = "";
    for (int i = 0; i < 199; i++) memcpy(sentence + 3 * i, "中", 4);
    expect("[dead 0]", "fail", "1", "default", "p-m1-1", "1", "c", sentence, "0", "1", "1", "0",
           "");
    const char *got = cmd("HGET", "%Tj:default:p", "text");
    assert_in_range(strlen(got), 470, 479);
    assert_string_equal(got + strlen(got) - 3, "中");
}

static void a_parent_that_is_cancelled_takes_its_children_along(void **state)
{
    (void) state;
    make_split("1", "p");
    run_child("p-m1-1", "1", "1");
    expect("[cancelled]", "cancel", "1", "default", "0", "p");
    assert_string_equal(state_of("p"), "cancelled");
    claims_nothing("p-m1-2"); // even before promote
    assert_string_equal(state_of("p-m1-2"), "cancelled");
    assert_string_equal(promote(), "[[running default p-m1-1 1 group]]");
    expect("ok", "done", "1", "default", "p-m1-1", "1", "cancelled", "x");
    expect_clean();
    expect_no_parent_left();
}

static void queued_children_are_cancelled_by_promote(void **state)
{
    (void) state;
    make_split("1", "p");
    expect("[cancelled]", "cancel", "1", "default", "0", "p");
    expect("[[cancelled default p-m1-1 0 ] [cancelled default p-m1-2 0 ]]", "promote", "1", "10");
    assert_in_range(atoi(cmd("PTTL", "%Tj:default:p-m1-1")), 50000, 60000);
    expect_cmd("1", "XLEN", "%Tev:default");
    expect_clean();
    expect_no_parent_left();
    expect_cmd("0", "HGET", "%Tbytes", "default");
}

static void a_group_that_is_lost_does_not_revive_a_cancelled_child(void **state)
{
    (void) state;
    make_split("1", "p");
    run_child("p-m1-1", "1", "1");
    expect("[cancelled]", "cancel", "1", "default", "0", "p");
    expect("cancelled", "nack", "1", "default", "p-m1-1", "1", "1");
}

static void cancelling_a_child_fails_its_parent(void **state)
{
    (void) state;
    make_split("1", "p");
    expect("[cancelled]", "cancel", "1", "default", "0", "p-m1-2");
    expect_cmd("[failed child_failed the child p-m1-2 failed: it was cancelled]", "HMGET",
               "%Tj:default:p", "state", "code", "text");
}

static void the_deadline_is_for_all(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "p");
    call("take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit_parent("1", "p", "hash", "9000000000000"), "ok");
    assert_string_equal(split_in_two("p"), "ok");
    run_child("p-m1-1", "1", "1");
    expect_cmd("[default:p default:p-m1-1 default:p-m1-2]", "ZRANGE", "%Texp", "0", "-1");
    // A child's comes first.
    cmd("HSET", "%Tj:default:p-m1-2", "deadline", "1");
    make_due("exp", "default:p-m1-2");
    expect("[[expired default p-m1-2 0 ]]", "promote", "1", "1");
    assert_string_equal(state_of("p"), "expired");
    assert_string_equal(promote(), "[[running default p-m1-1 1 group]]");
    expect_event(0, "p expired 0");

    // The parent's does.
    make_split("4", "q");
    cmd("ZADD", "%Texp", "1", "default:q");
    assert_non_null(strstr(promote(), "[expired default q 0 ]"));
    assert_non_null(strstr(cmd("HGET", "%Tj:default:q-m1-1", "cancel"), "1"));
}

static void a_retry_keeps_what_was_done(void **state)
{
    (void) state;
    make_split("1", "p");
    finish_child("p-m1-1", "1", "result 1");
    run_child("p-m1-2", "2", "2");
    expect("[dead 0]", "fail", "1", "default", "p-m1-2", "2", "c", "t", "0", "1", "1", "0", "");
    assert_in_range(atoll(cmd("PTTL", "%Tr:default:p-m1-1")), 2000000000, 2592000000);
    expect("ok", "retry", "default", "p");
    expect("[0 [default 4 1 p]]", "take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit_parent("4", "p", "hash", "0"), "ok");
    assert_string_equal(split_in_two("p"), "ok");
    expect_cmd("[2]", "ZRANGE", "%Tm:default:p", "0", "-1"); // the first is done
    finish_child("p-m1-2", "3", "result 2");
    expect("[ok p 0 0 0 [1 result 1] [2 result 2]]", "gather", "1", "default", "p", "1", "0",
           "1000");
}

static void a_retry_makes_again_what_differs(void **state)
{
    (void) state;
    make_split("1", "p");
    finish_child("p-m1-1", "1", "result 1");
    expect("ok", "joined", "1", "default", "p", "1", "failed", "c", "t", "", "");
    expect("ok", "retry", "default", "p");
    promote(); // the second child ends as cancelled
    call("take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit_parent("4", "p", "hash", "0"), "ok");
    expect("ok", "split", "1", "default", "p", "1", "0 0 0", "other", "3", "10", "20", "message 1",
           "h2", "4", "11", "21", "message 2");
    expect_cmd("[1 2]", "ZRANGE", "%Tm:default:p", "0", "-1");
    expect_cmd("0", "EXISTS", "%Tr:default:p-m1-1");
}

static void children_of_an_earlier_life_end_first(void **state)
{
    (void) state;
    make_split("1", "p");
    run_child("p-m1-1", "1", "1");
    expect("ok", "joined", "1", "default", "p", "1", "failed", "c", "t", "", "");
    expect("ok", "retry", "default", "p");
    call("take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit_parent("4", "p", "hash", "0"), "ok");
    assert_string_equal(split_in_two("p"), "later");
    expect("[]", "joins", "1", "m", "10"); // not at once
    expect("ok", "done", "1", "default", "p-m1-1", "1", "cancelled", "x");
    promote();
    make_due("join:m", "default:p");
    assert_string_equal(split_in_two("p"), "ok");
    expect_cmd("[1 2]", "ZRANGE", "%Tm:default:p", "0", "-1");
}

static void ids_of_others_are_left_alone(void **state)
{
    (void) state;
    make_job("1", "p-m1-2");
    make_parent("2", "p");
    assert_string_equal(split_in_two("p"), "id_conflict");
    expect_cmd("0", "EXISTS", "%Tj:default:p-m1-1");
    expect_cmd("[queued 1]", "HMGET", "%Tj:default:p-m1-2", "state", "seq");
    expect("ok", "joined", "1", "default", "p", "0", "failed", "id_conflict", "text", "", "");
    // And nobody else takes a child's.
    make_split("3", "q");
    cmd("RPUSH", "%Tin:default", "q-m1-1");
    call("take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit("6", "q-m1-1", "hash"), "id_conflict");
    cmd("RPUSH", "%Tin:default", "q-m1-1"); // not even with the same request: no event would come
    call("take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit("7", "q-m1-1", "h1"), "id_conflict");
    assert_string_equal(state_of("q-m1-1"), "queued");
}

static void a_purge_takes_the_children_along(void **state)
{
    (void) state;
    make_split("1", "p");
    finish_child("p-m1-1", "1", "result 1");
    expect("[cancelled]", "cancel", "1", "default", "0", "p-m1-2");
    expect("unknown", "purge", "default", "p-m1-2"); // a child is no dead letter
    expect("ok", "purge", "default", "p");
    expect_cmd("0", "EXISTS", "%Tj:default:p", "%Tj:default:p-m1-1", "%Tr:default:p-m1-1",
               "%Tj:default:p-m1-2", "%Tr:default:p-m1-2");
    expect_clean();
}

static void a_child_that_runs_when_its_parent_is_purged_leaves_nothing(void **state)
{
    (void) state;
    make_split("1", "p");
    run_child("p-m1-1", "1", "1");
    expect("[cancelled]", "cancel", "1", "default", "0", "p-m1-2");
    expect("ok", "purge", "default", "p");
    assert_string_equal(state_of("p-m1-1"), "running");
    expect("ok", "done", "1", "default", "p-m1-1", "1", "cancelled", "what it has");
    assert_true(atoi(cmd("PTTL", "%Tr:default:p-m1-1")) <= 1);
    assert_true(atoi(cmd("PTTL", "%Tj:default:p-m1-1")) <= 1);
}

static void a_failed_run_of_the_parent_keeps_its_message(void **state)
{
    (void) state;
    make_split("1", "p");
    finish_child("p-m1-1", "1", "result 1");
    finish_child("p-m1-2", "2", "result 2");
    expect("ok", "reduce", "1", "default", "p", "1", "5", "30", "40", "21 0 7", "the last");
    run_child("p", "3", "3");
    expect("[dead 0]", "fail", "1", "default", "p", "3", "c", "t", "0", "1", "1", "0", "");
    expect_cmd("[p]", "HVALS", "%Traw");
    expect("ok", "retry", "default", "p");
    expect_cmd("[p]", "LRANGE", "%Tin:default", "0", "-1");
}

// --- arguments

static void show_tells_of_children(void **state)
{
    (void) state;
    make_split("1", "p");
    finish_child("p-m1-1", "1", "result 1");
    assert_non_null(strstr(call("show", "default", "p"), " open 1"));
    assert_non_null(strstr(call("show", "default", "p"), "n1 2"));
    assert_non_null(strstr(call("show", "default", "p-m1-2"), "parent p"));
}

static void older_terms_and_bad_arguments(void **state)
{
    (void) state;
    make_parent("1", "p");
    static const char *const bad[][13] = {
        {"joins", "1", "m", "0"},
        {"gather", "1", "default", "p", "9", "0", "1"},
        {"gather", "1", "default", "p", "0", "5000", "1"},
        {"split", "1", "default", "p", "0", "", "h", "1", "1", "1", "m"},
        {"split", "1", "default", "p", "9", "", "h", "1", "1", "1", "m"},
        {"split", "1", "default", "p", "1", "", "h", "1", "1", "x", "m"},
        {"split", "1", "default", "p", "1", "", "h", "1", "1", "1", ""},
        {"split", "1", "default", "p", "1", "", "h", "1", "1", "1"},
        {"split", "1", "default", "p", "1", ""},
        {"reduce", "1", "default", "p", "0", "1", "1", "1", "", ""},
        {"reduce", "1", "default", "p", "0", "x", "1", "1", "", "m"},
        {"joined", "1", "default", "p", "0", "cancelled", "", "", "x", ""},
        {"joined", "1", "default", "p", "0", "done", "", "", "", ""},
        {"joined", "1", "default", "p", "0", "failed", "bad code", "", "", ""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *const *a = bad[i];
        const char *got = call(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10],
                               a[11], a[12]);
        if (strcmp(got, "!BADARG") != 0) fail_msg("call %zu (%s): %s", i, a[0], got);
    }
    assert_string_equal(state_of("p"), "waiting");
    expect("[lead 2 b-1 3600000]", "lead", "b-1", "3600000", "0"); // its next life
    assert_string_equal(split_in_two("p"), "!STALETERM");
    expect("!STALETERM", "joins", "1", "m", "1");
    expect("!STALETERM", "gather", "1", "default", "p", "0", "0", "1");
    expect("!STALETERM", "reduce", "1", "default", "p", "0", "1", "1", "1", "", "m");
    expect("!STALETERM", "joined", "1", "default", "p", "0", "done", "", "", "x", "");
}

#define test(f) cmocka_unit_test_setup(f, library_new_queue)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(a_parent_is_split_and_runs_last),
        test(levels_follow_one_another),
        test(a_scheduled_parent_waits_for_its_time),
        test(every_step_may_be_repeated),
        test(the_same_message_again_is_a_duplicate),
        test(a_split_that_broke_off_is_completed),
        test(a_childs_failure_is_its_parents),
        test(a_long_sentence_is_cut_before_a_character),
        test(a_parent_that_is_cancelled_takes_its_children_along),
        test(queued_children_are_cancelled_by_promote),
        test(a_group_that_is_lost_does_not_revive_a_cancelled_child),
        test(cancelling_a_child_fails_its_parent),
        test(the_deadline_is_for_all),
        test(a_retry_keeps_what_was_done),
        test(a_retry_makes_again_what_differs),
        test(children_of_an_earlier_life_end_first),
        test(ids_of_others_are_left_alone),
        test(a_purge_takes_the_children_along),
        test(a_child_that_runs_when_its_parent_is_purged_leaves_nothing),
        test(a_failed_run_of_the_parent_keeps_its_message),
        test(show_tells_of_children),
        test(older_terms_and_bad_arguments),
    };
    return cmocka_run_group_tests(tests, library_start, library_stop);
}
