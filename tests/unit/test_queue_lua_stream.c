// The stream of a job's text, and jobs that end early with what they have (broker/queue_base.lua,
// queue_run.lua).
#include "common/result.h"
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

// A reply to be looked into; %s in the format is the queue's name.
static redisReply *ask(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    redisReply *r = redisvCommand(library_redis, format, args);
    va_end(args);
    assert_non_null(r);
    return r;
}

// A job with a prompt of 100 tokens, as the queue's first message.
static void make_streaming(const char *stream)
{
    cmd("RPUSH", "%Tin:default", "message");
    call("take", "1", "default", "1", "1000", "1000");
    expect("ok", "admit", "1", "default", "1", "a", "0", "hash", "3", "100", "20", "0", "0",
           "60000", "3", stream, "", "", "m");
}

static void claim(const char *number)
{
    call("claim", "1", "30000", "1000", number, "group", "default", "a");
}

// "attempt@offset:bytes ..."
static const char *chunks(void)
{
    static char text[1024];
    redisReply *r = ask("XRANGE ps:{%s}:t:default:a - +", library_tag);
    text[0] = '\0';
    for (size_t i = 0; i < r->elements; i++) {
        redisReply *const *f = r->element[i]->element[1]->element;
        assert_string_equal(f[0]->str, "attempt");
        assert_string_equal(f[2]->str, "offset");
        assert_string_equal(f[4]->str, "bytes");
        size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "%s%s@%s:%s", i > 0 ? " " : "", f[1]->str, f[3]->str,
                 f[5]->str);
    }
    freeReplyObject(r);
    return text;
}

static long long number_of(const char *command)
{
    redisReply *r = ask(command, library_tag);
    long long n = r->integer;
    freeReplyObject(r);
    return n;
}

static void expect_result(enum result_status status, const char *code, const int32_t *tokens, int n,
                          int n_prompt, const char *text)
{
    struct result result;
    struct error e = {0};
    redisReply *r = ask("GET ps:{%s}:r:default:a", library_tag);
    assert_int_equal(r->type, REDIS_REPLY_STRING);
    if (result_decode(&result, r->str, r->len, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(result.status, status);
    assert_string_equal(result.error.code, code);
    assert_int_equal(result.n_tokens, n);
    for (int i = 0; i < n; i++) assert_int_equal(result.tokens[i], tokens[i]);
    assert_int_equal(result.usage.completion, n);
    assert_int_equal(result.usage.prompt, n_prompt);
    assert_int_equal(result.text_bytes, text != NULL ? strlen(text) : 0);
    if (text != NULL) assert_memory_equal(result.text, text, strlen(text));
    assert_int_equal(result.text != NULL, text != NULL);
    result_deinit(&result);
    freeReplyObject(r);
}

// --- chunks

static void text_is_published_with_its_tokens(void **state)
{
    (void) state;
    make_streaming("1");
    claim("1");
    expect("[ok 4 3]", "stream", "1", "default", "a", "1", "0", "AAAA", "0", "abc");
    expect("[ok 8 5]", "stream", "1", "default", "a", "1", "4", "BBBB", "3", "de");
    assert_string_equal(chunks(), "1@0:abc 1@3:de");
    // What is there is not published again, whoever says it, and how.
    expect("[ok 8 5]", "stream", "1", "default", "a", "1", "4", "BBBB", "3", "de");
    expect("[ok 8 7]", "stream", "1", "default", "a", "1", "8", "", "0", "abcdefg");
    assert_string_equal(chunks(), "1@0:abc 1@3:de 1@5:fg");
    // Neither beyond a gap, nor text whose tokens are not saved.
    expect("[ok 12 7]", "stream", "1", "default", "a", "1", "8", "CCCC", "9", "xyz");
    expect("[gap 12 7]", "stream", "1", "default", "a", "1", "16", "EEEE", "7", "h");
    assert_string_equal(chunks(), "1@0:abc 1@3:de 1@5:fg");
    // A life of its own while it runs; the end says how long.
    assert_in_range(number_of("PTTL ps:{%s}:t:default:a"), 29 * 86400000ll, 30 * 86400000ll);
    expect("ok", "done", "1", "default", "a", "1", "done", "R", "7", "hij");
    assert_string_equal(chunks(), "1@0:abc 1@3:de 1@5:fg 1@7:hij");
    assert_in_range(number_of("PTTL ps:{%s}:t:default:a"), 1, 60000);
    expect("[stale 0 0]", "stream", "1", "default", "a", "1", "12", "DDDD", "10", "k");
    expect("ok", "done", "1", "default", "a", "1", "done", "R", "7", "hij"); // its reply was lost
    assert_string_equal(chunks(), "1@0:abc 1@3:de 1@5:fg 1@7:hij");
}

static void the_end_publishes_whatever_is_missing(void **state)
{
    (void) state;
    static const struct {
        const char *offset, *text, *wanted;
    } cases[] = {{"0", "abcdef", "1@0:abc 1@3:def"}, // of a broker that knew nothing
                 {"3", "def", "1@0:abc 1@3:def"},
                 {"0", "abc", "1@0:abc"},
                 {"5", "f", "1@0:abc 1@5:f"}}; // Redis had lost something
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        library_new_queue(NULL);
        make_streaming("1");
        claim("1");
        call("stream", "1", "default", "a", "1", "0", "AAAA", "0", "abc");
        expect("ok", "done", "1", "default", "a", "1", "done", "R", cases[i].offset, cases[i].text);
        assert_string_equal(chunks(), cases[i].wanted);
    }
}

static void a_later_attempt_goes_on_where_the_stream_ends(void **state)
{
    (void) state;
    make_streaming("1");
    claim("1");
    call("stream", "1", "default", "a", "1", "0", "AAAABBBB", "0", "abcd");
    expect("ready", "nack", "1", "default", "a", "1", "1");
    expect("[stale 0 0]", "stream", "1", "default", "a", "1", "8", "CCCC", "4", "ef");
    claim("2");
    expect("[stale 0 0]", "stream", "1", "default", "a", "1", "8", "CCCC", "4", "ef");
    expect("[ok 8 4]", "stream", "1", "default", "a", "2", "8", "", "0", "abc");
    expect("[ok 12 6]", "stream", "1", "default", "a", "2", "8", "CCCC", "0", "abcdef");
    assert_string_equal(chunks(), "1@0:abcd 2@4:ef");
}

static void jobs_without_stream_have_no_chunks(void **state)
{
    (void) state;
    make_streaming("0");
    claim("1");
    expect("[ok 4 0]", "stream", "1", "default", "a", "1", "0", "AAAA", "0", "abc");
    expect("ok", "done", "1", "default", "a", "1", "done", "R", "0", "abc");
    assert_int_equal(number_of("EXISTS ps:{%s}:t:default:a"), 0);
}

static void chunks_go_with_their_job(void **state)
{
    (void) state;
    // A dead letter that is tried again says all of it anew.
    make_streaming("1");
    claim("1");
    call("stream", "1", "default", "a", "1", "0", "AAAA", "0", "abc");
    expect("[dead 0]", "fail", "1", "default", "a", "1", "code", "text", "0", "0", "0", "0", "");
    assert_string_equal(chunks(), "1@0:abc");
    expect("ok", "retry", "default", "a");
    assert_int_equal(number_of("EXISTS ps:{%s}:t:default:a"), 0);
    call("take", "1", "default", "1", "1000", "1000");
    expect("ok", "admit", "1", "default", "2", "a", "0", "hash", "3", "100", "20", "0", "0",
           "60000", "3", "1", "", "", "m");
    claim("2");
    expect("[ok 4 1]", "stream", "1", "default", "a", "2", "0", "AAAA", "0", "x");
    assert_string_equal(chunks(), "2@0:x");
    // Chunks without a record of their job are of an earlier life.
    freeReplyObject(
        ask("DEL ps:{%s}:j:default:a ps:{%s}:rdy:0:default:m", library_tag, library_tag));
    freeReplyObject(ask("RPUSH ps:{%s}:in:default message", library_tag));
    call("take", "1", "default", "1", "1000", "1000");
    expect("ok", "admit", "1", "default", "3", "a", "0", "hash", "3", "100", "20", "0", "0",
           "60000", "3", "1", "", "", "m");
    assert_int_equal(number_of("EXISTS ps:{%s}:t:default:a"), 0);
}

static void bad_arguments_change_nothing(void **state)
{
    (void) state;
    make_streaming("1");
    claim("1");
    expect("!BADARG", "stream", "1", "default", "a", "1", "0", "AAAA", "0");
    expect("!BADARG", "stream", "1", "default", "a", "1", "0", "AAAA", "-1", "abc");
    expect("!BADARG", "stream", "1", "default", "a", "1", "x", "AAAA", "0", "abc");
    expect("!BADARG", "done", "1", "default", "a", "1", "done", "R", "x", "abc");
    expect("!BADARG", "done", "1", "default", "a", "1", "done", "R", "0", "abc", "more");
    expect("[unknown 0 0]", "stream", "1", "default", "b", "1", "0", "AAAA", "0", "abc");
    expect("[lead 2 b-1 3600000]", "lead", "b-1", "3600000", "0"); // its next life
    expect("!STALETERM", "stream", "1", "default", "a", "1", "0", "AAAA", "0", "abc");
    assert_int_equal(number_of("EXISTS ps:{%s}:t:default:a"), 0);
}

// --- early ends

static const char IDS[] = "\x05\0\0\0\xff\x01\0\0\n\0\0\0\x25\x25\x01\0"; // 5, 511, 10, 75045
static const int32_t tokens[] = {5, 511, 10, 75045};

static void save(void)
{
    redisReply *r = ask("FCALL stream 1 ps:{%s}:term 1 default a 1 0 %b 0 %s", library_tag, IDS,
                        (size_t) 16, "so far");
    assert_int_equal(r->element[1]->integer, 16);
    freeReplyObject(r);
}

static void a_lost_attempt_ends_with_what_was_saved(void **state)
{
    (void) state;
    for (int streams = 0; streams < 2; streams++) {
        library_new_queue(NULL);
        make_streaming(streams ? "1" : "0");
        claim("1");
        save();
        expect("[running 1 group]", "cancel", "1", "default", "0", "a");
        expect("cancelled", "nack", "1", "default", "a", "1", "1");
        expect_result(RESULT_CANCELLED, "cancelled", tokens, 4, 100, streams ? "so far" : NULL);
    }
}

static void a_deadline_while_it_waits_again_keeps_what_was_saved(void **state)
{
    (void) state;
    make_streaming("1");
    claim("1");
    save();
    expect("ready", "nack", "1", "default", "a", "1", "1");
    freeReplyObject(ask("HSET ps:{%s}:j:default:a deadline 1", library_tag));
    freeReplyObject(ask("ZADD ps:{%s}:exp 1 default:a", library_tag));
    call("promote", "1", "10");
    expect_result(RESULT_EXPIRED, "expired", tokens, 4, 100, "so far");
}

static void a_job_that_never_ran_has_nothing(void **state)
{
    (void) state;
    make_streaming("1");
    expect("[cancelled]", "cancel", "1", "default", "0", "a");
    expect_result(RESULT_CANCELLED, "cancelled", NULL, 0, 0, NULL);
}

static void a_deadline_is_told_to_the_group_again(void **state)
{
    (void) state;
    make_streaming("1");
    claim("1");
    freeReplyObject(ask("HSET ps:{%s}:j:default:a deadline 1", library_tag));
    redisReply *r = ask("FCALL renew 1 ps:{%s}:term 1 30000 default a 1", library_tag);
    assert_string_equal(r->element[0]->element[0]->str, "expired");
    freeReplyObject(r);
    expect("ok", "done", "1", "default", "a", "1", "expired", "R", "0", "partial");
    assert_string_equal(chunks(), "1@0:partial");
    r = ask("HGET ps:{%s}:j:default:a state", library_tag);
    assert_string_equal(r->str, "expired");
    freeReplyObject(r);
}

int main(void)
{
#define test(name) cmocka_unit_test_setup(name, library_new_queue)
    const struct CMUnitTest tests[] = {
        test(text_is_published_with_its_tokens),
        test(the_end_publishes_whatever_is_missing),
        test(a_later_attempt_goes_on_where_the_stream_ends),
        test(jobs_without_stream_have_no_chunks),
        test(chunks_go_with_their_job),
        test(bad_arguments_change_nothing),
        test(a_lost_attempt_ends_with_what_was_saved),
        test(a_deadline_while_it_waits_again_keeps_what_was_saved),
        test(a_job_that_never_ran_has_nothing),
        test(a_deadline_is_told_to_the_group_again),
    };
    return cmocka_run_group_tests(tests, library_start, library_stop);
}
