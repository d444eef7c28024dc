// The Redis function library against a real redis-server. Replies are compared as text: arrays in
// brackets, nil as nil, an error as ! and its first word.
#include "broker/queue_lua.h"
#include "tests/support/redis.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>

enum { ARGS_MAX = 64, TEXT_SIZE = 4096 };

static struct test_redis server;
static redisContext *redis;
static char tag[32]; // of the queue of the running test
static char text[TEXT_SIZE];

// --- asking

static void show(const redisReply *r, char **at, char *end)
{
    if (*at >= end) return;
    size_t room = (size_t) (end - *at);
    int n = 0;
    switch (r->type) {
    case REDIS_REPLY_INTEGER: n = snprintf(*at, room, "%lld", r->integer); break;
    case REDIS_REPLY_NIL: n = snprintf(*at, room, "nil"); break;
    case REDIS_REPLY_ERROR:
        n = snprintf(*at, room, "!%.*s", (int) strcspn(r->str, " "), r->str);
        break;
    case REDIS_REPLY_ARRAY:
        *(*at)++ = '[';
        for (size_t i = 0; i < r->elements; i++) {
            if (i > 0) *(*at)++ = ' ';
            show(r->element[i], at, end);
        }
        n = snprintf(*at, room > 1 ? (size_t) (end - *at) : 0, "]");
        break;
    default: n = snprintf(*at, room, "%s", r->str); break;
    }
    *at += n;
}

static const char *ask(int n, const char **args, const size_t *sizes)
{
    redisReply *r = redisCommandArgv(redis, n, args, sizes);
    assert_non_null(r);
    char *at = text;
    memset(text, 0, sizeof text);
    show(r, &at, text + sizeof text - 2);
    freeReplyObject(r);
    return text;
}

// Any command; %T in a word stands for the keys' common beginning.
static const char *command(const char *first, ...)
{
    const char *args[ARGS_MAX];
    char words[ARGS_MAX][96];
    int n = 0;
    va_list list;
    va_start(list, first);
    for (const char *word = first; word != NULL; word = va_arg(list, const char *), n++) {
        if (strncmp(word, "%T", 2) == 0) {
            snprintf(words[n], sizeof words[n], "ps:{%s}:%s", tag, word + 2);
            word = words[n];
        }
        args[n] = word;
    }
    va_end(list);
    return ask(n, args, NULL);
}

// FCALL with the queue's key.
static const char *fcall(const char *name, ...)
{
    const char *args[ARGS_MAX] = {"FCALL", name, "1"};
    char key[64];
    int n = 4;
    snprintf(key, sizeof key, "ps:{%s}:term", tag);
    args[3] = key;
    va_list list;
    va_start(list, name);
    for (const char *word; (word = va_arg(list, const char *)) != NULL;) args[n++] = word;
    va_end(list);
    return ask(n, args, NULL);
}

// The headers without how long they have waited.
static const char *without_last(const char *reply)
{
    static char got[TEXT_SIZE];
    char *to = got;
    for (const char *at = reply; *at != '\0'; at++) {
        if (*at == ']' && at > reply && at[-1] != ']' && at[-1] != '[') {
            while (to > got && to[-1] != ' ') to--;
            to--;
        }
        *to++ = *at;
    }
    *to = '\0';
    return got;
}

#define cmd(...) command(__VA_ARGS__, NULL)
#define call(...) fcall(__VA_ARGS__, NULL)
#define expect(wanted, ...) assert_string_equal(call(__VA_ARGS__), wanted)
#define window(...) without_last(call(__VA_ARGS__))
#define expect_window(wanted, ...) assert_string_equal(window(__VA_ARGS__), wanted)
#define expect_cmd(wanted, ...) assert_string_equal(cmd(__VA_ARGS__), wanted)

static const char *admit(const char *seq, const char *id, const char *hash)
{
    return call("admit", "1", "default", seq, id, "0", hash, "3", "100", "20", "0", "0", "60000",
                "3", "0", "", "");
}

static void load_library(void)
{
    redisReply *r = redisCommand(redis, "FUNCTION LOAD REPLACE %b", queue_lua, queue_lua_size);
    assert_non_null(r);
    assert_string_equal(r->str, "penstock_v1");
    freeReplyObject(r);
}

static int group_start(void **state)
{
    (void) state;
    test_redis_start(&server, NULL);
    redis = test_redis_connect(&server);
    load_library();
    return 0;
}

static int group_stop(void **state)
{
    (void) state;
    redisFree(redis);
    test_redis_stop(&server);
    return 0;
}

// A queue of its own for each test, with term 1.
static int start(void **state)
{
    (void) state;
    static int n;
    snprintf(tag, sizeof tag, "q%d", n++);
    expect("1", "term_next");
    return 0;
}

// Pushes and admits job `id` as sequence number `seq`.
static void make_job(const char *seq, const char *id)
{
    cmd("RPUSH", "%Tin:default", id);
    call("take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit(seq, id, "hash"), "ok");
}

// And claims it as attempt `attempt`.
static void make_running(const char *seq, const char *id, const char *attempt)
{
    make_job(seq, id);
    char wanted[64];
    snprintf(wanted, sizeof wanted, "[[ok default %s %s %s", id, attempt, seq);
    const char *got = call("claim", "1", "group", "30000", "1000", seq, "default", id);
    assert_memory_equal(got, wanted, strlen(wanted));
}

// As if the time had come for a member of an index.
static void make_due(const char *index, const char *member)
{
    char key[32];
    snprintf(key, sizeof key, "%%T%s", index);
    expect_cmd("1", "ZADD", key, "XX", "CH", "1", member);
}

static const char *state_of(const char *id)
{
    char key[96];
    snprintf(key, sizeof key, "%%Tj:default:%s", id);
    return cmd("HGET", key, "state");
}

// The event after `n` others, without its id: "id event attempt".
static void expect_event(int n, const char *wanted)
{
    char key[64];
    snprintf(key, sizeof key, "ps:{%s}:ev:default", tag);
    redisReply *r = redisCommand(redis, "XRANGE %s - +", key);
    assert_non_null(r);
    assert_in_range(r->elements, (size_t) n + 1, (size_t) n + 1);
    const redisReply *e = r->element[n]->element[1];
    char got[256];
    snprintf(got, sizeof got, "%s %s %s", e->element[1]->str, e->element[3]->str,
             e->element[5]->str);
    freeReplyObject(r);
    assert_string_equal(got, wanted);
}

// Nothing but the listed keys' kinds may be left of a job.
static void expect_clean(void)
{
    expect_cmd("0", "HLEN", "%Traw");
    expect_cmd("0", "EXISTS", "%Ttaken", "%Trdy:0:default", "%Tdly", "%Tls", "%Texp", "%Tdead");
}

// --- life

static void test_the_life_of_a_job(void **state)
{
    (void) state;
    expect_cmd("2", "RPUSH", "%Tin:default", "message one", "message two");
    expect("[0 [default 1 11 message one] [default 2 11 message two]]", "take", "1", "default",
           "100", "1000", "1000");
    expect("ok", "admit", "1", "default", "1", "one", "0", "hash", "3", "100", "20", "0", "0",
           "60000", "3", "0", "custom", "batch");
    assert_string_equal(admit("2", "two", "hash"), "ok");
    expect_window("[[one 1 3 100 20 0 0 0] [two 2 3 100 20 0 0 0]]", "window", "1",
                  "0", "default", "0",
           "10");
    expect_window("[[two 2 3 100 20 0 0 0]]", "window", "1", "0", "default", "1", "10");

    const char *got = call("claim", "1", "group", "30000", "1000", "7", "default", "one");
    const char *wanted = "[[ok default one 1 1 message one  1 0 0 0 3 100 20 ";
    assert_memory_equal(got, wanted, strlen(wanted));
    assert_non_null(strstr(got, " 0 60000 0 0 custom batch]]"));
    expect_window("[[two 2 3 100 20 0 0 0]]", "window", "1", "0", "default", "0", "10");

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
    expect("2", "term_next");
    expect("!STALETERM", "take", "1", "default", "1", "1", "1");
    expect("!STALETERM", "recover", "1", "0", "1", "1", "1");
    assert_string_equal(admit("1", "b", "h"), "!STALETERM");
    expect("!STALETERM", "reject", "1", "default", "1", "b", "", "bad", "text", "");
    expect("!STALETERM", "cancel", "1", "default", "0", "a");
    expect("!STALETERM", "window", "1", "0", "default", "0", "1");
    expect("!STALETERM", "claim", "1", "g", "1", "1", "1", "default", "a");
    expect("!STALETERM", "renew", "1", "1", "default", "a", "1");
    expect("!STALETERM", "checkpoint", "1", "default", "a", "1", "0", "x");
    expect("!STALETERM", "done", "1", "default", "a", "1", "done", "x");
    expect("!STALETERM", "fail", "1", "default", "a", "1", "c", "t", "1", "1", "1", "0", "");
    expect("!STALETERM", "nack", "1", "default", "a", "1", "0");
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
        {"window", "1", "4", "default", "0", "1"},
        {"window", "1", "0", "default", "0", "100000"},
        {"claim", "1", "g", "1", "1", "1"},
        {"claim", "1", "g", "1", "1", "1", "default"},
        {"claim", "1", "g", "1", "1", "0", "default", "a"},
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

// --- ingest

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
    expect("2", "term_next"); // another broker
    expect("[1 [default 1 3 one] [default 3 5 three]]", "recover", "2", "0", "10", "8", "1000");
    expect("[2 [t-2 4 4 four]]", "recover", "2", "3", "10", "1000", "1000");
    expect("[3]", "recover", "2", "4", "10", "1000", "1000");
}

static void test_admit_may_be_repeated(void **state)
{
    (void) state;
    make_job("1", "a");
    assert_string_equal(admit("1", "a", "hash"), "ok");
    expect_cmd("1", "ZCARD", "%Trdy:0:default");
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
    call("claim", "1", "g", "30000", "1000", "1", "default", "a");
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
    call("claim", "1", "g", "30000", "1000", "1", "default", "a");
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

// --- cancel

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

// --- attempts

static void test_claim_keeps_to_its_byte_budget(void **state)
{
    (void) state;
    make_job("1", "aaaaa");
    make_job("2", "bbbbb");
    make_job("3", "ccccc");
    const char *got = call("claim", "1", "g", "30000", "12", "1", "default", "aaaaa", "default",
                           "nobody", "default", "bbbbb", "default", "ccccc");
    assert_non_null(strstr(got, "[ok default aaaaa 1"));
    assert_non_null(strstr(got, "[gone default nobody]"));
    assert_non_null(strstr(got, "[ok default bbbbb 2"));
    assert_non_null(strstr(got, "[later default ccccc]"));
    assert_string_equal(state_of("ccccc"), "queued");
    expect("[[gone default aaaaa]]", "claim", "1", "g", "1", "1", "2", "default", "aaaaa");
}

static void test_a_claim_whose_reply_was_lost_is_read_back(void **state)
{
    (void) state;
    make_job("1", "a");
    char first[TEXT_SIZE];
    strcpy(first, call("claim", "1", "g", "30000", "100", "7", "default", "a"));
    expect(first, "claim", "1", "g", "30000", "100", "7", "default", "a");
    expect_cmd("1", "HGET", "%Tj:default:a", "starts");
    expect("[[gone default a]]", "claim", "1", "g", "30000", "100", "8", "default", "a");
    expect("[[gone default a]]", "claim", "2", "g", "30000", "100", "7", "default", "a");
}

static void test_a_job_whose_bytes_are_gone_is_a_dead_letter(void **state)
{
    (void) state;
    make_job("1", "a");
    expect_cmd("1", "HDEL", "%Traw", "1");
    expect("[[gone default a]]", "claim", "1", "g", "30000", "100", "7", "default", "a");
    assert_string_equal(state_of("a"), "failed");
    expect_event(0, "a failed 0");
}

static void test_a_ready_entry_without_its_job_is_dropped(void **state)
{
    (void) state;
    make_job("1", "a");
    expect_cmd("1", "DEL", "%Tj:default:a");
    expect("[[gone default a]]", "claim", "1", "g", "30000", "100", "7", "default", "a");
    expect_window("[]", "window", "1", "0", "default", "0", "10");
}

static void test_only_the_running_attempt_may_finish(void **state)
{
    (void) state;
    expect("unknown", "done", "1", "default", "a", "1", "done", "R");
    make_running("1", "a", "1");
    expect("ready", "nack", "1", "default", "a", "1", "0");
    expect("stale", "done", "1", "default", "a", "1", "done", "zombie");
    call("claim", "1", "g", "30000", "100", "8", "default", "a");
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
    const char *got = call("claim", "1", "g", "30000", "100", "9", "default", "a");
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
    expect_window("[]", "window", "1", "0", "default", "0", "10");
    expect("[]", "promote", "1", "10");
    make_due("dly", "default:a");
    expect("[[ready default a 1 ]]", "promote", "1", "10");
    call("claim", "1", "g", "30000", "100", "9", "default", "a");
    expect("[retry 1000]", "fail", "1", "default", "a", "2", "c", "t", "1", "1000", "5000",
           "500000", ""); // half of 2,000
    make_due("dly", "default:a");
    call("promote", "1", "10");
    call("claim", "1", "g", "30000", "100", "10", "default", "a");
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
        assert_string_equal(window("window", "1", "0", "default", "0", "10"),
                            i == 1   ? "[[a 1 3 100 20 0 1 0]]"
                            : i == 2 ? "[[a 1 3 100 20 0 2 0]]"
                                     : "[[a 1 3 100 20 0 3 1]]");
        snprintf(attempt, sizeof attempt, "%d", i + 10); // the claim's id
        call("claim", "1", "g", "30000", "100", attempt, "default", "a");
    }
    // Given back by its group, it keeps its chance.
    expect("ready", "nack", "1", "default", "a", "4", "0");
    call("claim", "1", "g", "30000", "100", "20", "default", "a");
    make_due("ls", "default:a");
    expect("[[dead default a 5 g]]", "reap", "1", "10");
    expect_cmd("poison", "HGET", "%Tj:default:a", "code");
    expect_event(0, "a failed 5");
}

// --- time

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
    expect_window("[[a 1 3 100 20 0 1 0]]", "window", "1", "0", "default", "0", "10");
}

static void test_a_schedule_holds_a_job_back(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "m");
    call("take", "1", "default", "1", "1000", "1000");
    expect("ok", "admit", "1", "default", "1", "a", "2", "h", "3", "100", "20", "9000000000000",
           "0", "60000", "3", "0", "", "");
    expect_window("[]", "window", "1", "2", "default", "0", "10");
    expect("[[gone default a]]", "claim", "1", "g", "1", "1", "1", "default", "a");
    make_due("dly", "default:a");
    expect("[[ready default a 0 ]]", "promote", "1", "10");
    expect_window("[[a 1 3 100 20 0 0 0]]", "window", "1", "2", "default", "0", "10");
}

static void test_deadlines(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "a", "b", "c");
    call("take", "1", "default", "10", "1000", "1000");
    expect("ok", "admit", "1", "default", "1", "a", "0", "h", "3", "100", "20", "0", "1", "60000",
           "3", "0", "", "");
    expect("ok", "admit", "1", "default", "2", "b", "0", "h", "3", "100", "20", "0",
           "9000000000000", "60000", "3", "0", "", "");
    expect("ok", "admit", "1", "default", "3", "c", "0", "h", "3", "100", "20", "0", "1", "60000",
           "3", "0", "", "");
    expect("[[gone default c]]", "claim", "1", "g", "1", "1", "1", "default", "c"); // ends it, too
    expect_event(0, "c expired 0");
    expect("[[expired default a 0 ]]", "promote", "1", "10");
    assert_non_null(strstr(cmd("GET", "%Tr:default:a"), "status\xa7" "expired"));
    expect_event(1, "a expired 0");
    // A running one is told to the broker, once, and does not run again.
    call("claim", "1", "g", "30000", "100", "2", "default", "b");
    cmd("HSET", "%Tj:default:b", "deadline", "1");
    make_due("exp", "default:b");
    expect("[[cancel default b 1 g]]", "promote", "1", "10");
    expect("[]", "promote", "1", "10");
    expect("[[cancel default b 1 3]]", "renew", "1", "30000", "default", "b", "1"); // again
    expect("expired", "nack", "1", "default", "b", "1", "0");
    expect_clean();
}

// --- what people ask

static void test_tenants_and_their_budgets(void **state)
{
    (void) state;
    expect("[0 [default 1 0 0 0 0 0]]", "tenants");
    expect("ok", "tenant_set", "add", "big", "4", "1000", "8", "50000");
    expect("exists", "tenant_set", "add", "big", "", "", "", "");
    expect("unknown", "tenant_set", "set", "other", "2", "", "", "");
    expect("ok", "tenant_set", "set", "big", "", "10", "", "");
    expect_cmd("weight=4 bytes=10 jobs=8 tokens=50000", "HGET", "%Ttenants", "big");
    assert_non_null(strstr(call("tenants"), "[big 4 10 8 50000 0 0]"));
    expect("!BADARG", "tenant_set", "set", "big", "0", "", "", "");
    expect("!BADARG", "tenant_set", "set", "big", "1001", "", "", "");
    // What somebody wrote by hand is read as well as it can be.
    cmd("HSET", "%Ttenants", "big", "7");
    assert_non_null(strstr(call("tenants"), "[big 7 0 0 0 0 0]"));
    cmd("HSET", "%Ttenants", "big", "junk");
    assert_non_null(strstr(call("tenants"), "[big 1 0 0 0 0 0]"));
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
    call("claim", "1", "g", "30000", "1000", "1", "default", "b");
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

static void test_a_paused_queue_or_tenant_starts_nothing(void **state)
{
    (void) state;
    make_job("1", "a");
    expect("unknown", "pause", "nobody", "1");
    expect("ok", "pause", "default", "1");
    expect("[0 [default 1 0 0 0 1 1]]", "tenants");
    expect("[[later default a]]", "claim", "1", "g", "30000", "100", "1", "default", "a");
    expect("ok", "pause", "*", "1");
    expect("ok", "pause", "default", "0");
    expect("[1 [default 1 0 0 0 0 1]]", "tenants");
    expect("[[later default a]]", "claim", "1", "g", "30000", "100", "2", "default", "a");
    assert_non_null(strstr(call("stats"), "paused 1 paused_tenants 0"));
    expect("ok", "pause", "*", "0");
    const char *got = call("claim", "1", "g", "30000", "100", "3", "default", "a");
    assert_non_null(strstr(got, "[ok default a 1"));
    // What runs goes on, and a claim whose reply was lost is read back.
    expect("ok", "pause", "*", "1");
    got = call("claim", "1", "g", "30000", "100", "3", "default", "a");
    assert_non_null(strstr(got, "[ok default a 1"));
    expect("ok", "done", "1", "default", "a", "1", "done", "R");
}

static void test_dead_letters_are_listed_retried_and_purged(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "junk");
    call("take", "1", "default", "10", "1000", "1000");
    expect("dead", "reject", "1", "default", "1", "", "", "bad_msgpack", "a sentence", "");
    make_running("2", "b", "1");
    expect("[dead 0]", "fail", "1", "default", "b", "1", "code", "why", "0", "1", "1", "0", "");
    expect_cmd("[junk b]", "HVALS", "%Traw");
    const char *got = call("dead", "default", "0", "10");
    assert_non_null(strstr(got, "[0 [")); // all of them, newest first (or the same millisecond)
    assert_non_null(strstr(got, " code why 1 0]"));
    assert_non_null(strstr(got, " bad_msgpack a sentence 0 0]"));
    got = call("dead", "default", "0", "1");
    assert_memory_equal(got, "[1 [", 4);
    expect("[0]", "dead", "other", "0", "10");
    expect("unknown", "retry", "default", "nobody");
    expect("ok", "retry", "default", "b");
    expect("unknown", "retry", "default", "b");
    expect_cmd("[b]", "LRANGE", "%Tin:default", "0", "-1");
    expect_cmd("0", "EXISTS", "%Tj:default:b", "%Tr:default:b");
    expect("ok", "purge", "default", "raw-1");
    expect("unknown", "purge", "default", "raw-1");
    expect_clean();
    // It is a job like any other again.
    make_running("3", "b", "2");
    expect("unknown", "retry", "default", "b");
    expect("unknown", "purge", "default", "b");
    expect("ok", "done", "1", "default", "b", "2", "done", "R");
}

static void test_show_tells_where_a_job_is(void **state)
{
    (void) state;
    expect("[]", "show", "default", "a");
    make_job("1", "a");
    make_job("2", "b");
    const char *got = call("show", "default", "b");
    assert_non_null(strstr(got, "state queued"));
    assert_non_null(strstr(got, " ahead 1 waiting 2]"));
    expect("ok", "pause", "*", "1");
    assert_non_null(strstr(call("show", "default", "b"), " paused 1 ahead 1 waiting 2]"));
    expect("ok", "pause", "*", "0");
    call("claim", "1", "group", "30000", "100", "1", "default", "b");
    call("checkpoint", "1", "default", "b", "1", "0", "ABCD");
    got = call("show", "default", "b");
    assert_non_null(strstr(got, "state running"));
    assert_non_null(strstr(got, "owner group"));
    assert_non_null(strstr(got, " checkpoint 4 lease "));
    call("fail", "1", "default", "b", "1", "code", "why", "0", "1", "1", "0", "");
    assert_non_null(strstr(call("show", "default", "b"), " dead "));
}

// --- the server's limits

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
    const char *got = call("claim", "1", "g", "1000", "1000", "1", "default", "d");
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
    redisReply *r = redisCommand(redis, "FCALL selftest 1 ps:{%s}:term 1", tag);
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
    cmd("SET", "%Trdy:0:default", "x");
    assert_string_equal(admit("2", "a", "hash"), "!WRONGTYPE");
    cmd("DEL", "%Trdy:0:default");
    expect("[0 [default 2 1 m]]", "recover", "1", "0", "1", "10", "10");
    assert_string_equal(admit("2", "a", "hash"), "ok");
    // The leases: the job stays ready.
    cmd("SET", "%Tls", "x");
    expect("!WRONGTYPE", "claim", "1", "g", "1000", "10", "1", "default", "a");
    cmd("DEL", "%Tls");
    assert_non_null(strstr(call("claim", "1", "g", "1000", "10", "2", "default", "a"), "[ok"));
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
    strcpy(first, tag);
    snprintf(tag, sizeof tag, "%s-other", first);
    expect("1", "term_next");
    expect("[[gone default a]]", "claim", "1", "g", "1000", "10", "2", "default", "a");
    expect("[unknown]", "cancel", "1", "default", "0", "a");
    strcpy(tag, first);
    assert_string_equal(state_of("a"), "queued");
}

#define test(f) cmocka_unit_test_setup(f, start)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_the_life_of_a_job),
        test(test_an_older_term_is_refused_by_every_function),
        test(test_bad_arguments_change_nothing),
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
        test(test_reap_gives_back_what_has_no_lease),
        test(test_a_schedule_holds_a_job_back),
        test(test_deadlines),
        test(test_tenants_and_their_budgets),
        test(test_take_keeps_to_the_budgets_in_bytes),
        test(test_a_paused_queue_or_tenant_starts_nothing),
        test(test_dead_letters_are_listed_retried_and_purged),
        test(test_show_tells_where_a_job_is),
        test(test_a_full_redis_takes_nothing_in_but_drains),
        test(test_selftest_names_a_right_that_is_missing),
        test(test_an_error_in_the_middle_loses_nothing),
        test(test_keys_of_other_queues_are_left_alone),
    };
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
