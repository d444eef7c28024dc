// The leader's lease: the functions lead and resign in a real Redis, what becomes of brokers that
// want the same queue, and the pure part against replies that no honest server gives.
#include "broker/queue_lead.h"

#include "broker/queue.h"
#include "broker/queue_lua.h"
#include "common/clock.h"
#include "tests/support/redis.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <czmq.h>
#include <hiredis/hiredis.h>

enum { PATIENCE_MS = 30000, SHORT_MS = 1000, LONG_MS = 3600000 };

static struct test_redis server;
static redisContext *redis;
static char tag[32]; // of the running test's queue

// --- the functions

// "word term owner", or "!CODE".
static const char *lead(const char *owner, int ttl_ms, int term)
{
    static char text[256];
    redisReply *r = redisCommand(redis, "FCALL lead 1 ps:{%s}:term %s %d %d", tag, owner, ttl_ms,
                                 term);
    assert_non_null(r);
    if (r->type == REDIS_REPLY_ERROR) {
        snprintf(text, sizeof text, "!%.*s", (int) strcspn(r->str, " "), r->str);
    } else {
        assert_int_equal(r->elements, 4);
        snprintf(text, sizeof text, "%s %s %s", r->element[0]->str, r->element[1]->str,
                 r->element[2]->str);
        long long ms = atoll(r->element[3]->str);
        assert_in_range(ms, 0, LONG_MS);
    }
    freeReplyObject(r);
    return text;
}

static void resign(int term, const char *wanted)
{
    redisReply *r = redisCommand(redis, "FCALL resign 1 ps:{%s}:term %d", tag, term);
    assert_non_null(r);
    if (strncmp(r->str, wanted, strlen(wanted)) != 0) fail_msg("%s, not %s", r->str, wanted);
    freeReplyObject(r);
}

static void the_lease_goes_to_one_and_comes_back_to_its_owner(void **state)
{
    (void) state;
    assert_string_equal(lead("a", LONG_MS, 0), "lead 1 a");
    assert_string_equal(lead("b", LONG_MS, 0), "standby 1 a");
    assert_string_equal(lead("a", LONG_MS, 1), "lead 1 a"); // renewed
    assert_string_equal(lead("a", LONG_MS, 0), "lead 2 a"); // its next life
    assert_string_equal(lead("a", LONG_MS, 1), "!STALETERM"); // the former one
    assert_string_equal(lead("b", LONG_MS, 0), "standby 2 a");
    resign(1, "STALETERM");
    resign(2, "ok");
    resign(2, "ok"); // the reply was lost
    assert_string_equal(lead("b", LONG_MS, 0), "lead 3 b");
    resign(2, "STALETERM");
    assert_string_equal(lead("a", LONG_MS, 2), "!STALETERM");
    assert_string_equal(lead("a", LONG_MS, 0), "standby 3 b");
}

static void a_lease_that_ended_is_renewed_unless_another_took_it(void **state)
{
    (void) state;
    assert_string_equal(lead("a", 1, 0), "lead 1 a");
    int64_t end = clock_ms() + PATIENCE_MS;
    for (bool gone = false; !gone;) {
        redisReply *r = redisCommand(redis, "EXISTS ps:{%s}:lead", tag);
        gone = r->integer == 0;
        freeReplyObject(r);
        assert_true(clock_ms() < end);
    }
    assert_string_equal(lead("a", LONG_MS, 1), "lead 1 a");
    // Redis came back empty: the higher term rules.
    redisReply *r = redisCommand(redis, "DEL ps:{%s}:lead ps:{%s}:term", tag, tag);
    freeReplyObject(r);
    assert_string_equal(lead("b", LONG_MS, 0), "lead 1 b");
    assert_string_equal(lead("a", LONG_MS, 7), "lead 7 a");
    assert_string_equal(lead("b", LONG_MS, 1), "!STALETERM");
}

static void what_the_leader_says_is_read_with_its_lease(void **state)
{
    (void) state;
    redisReply *r = redisCommand(redis, "FCALL_RO fleet_read 1 ps:{%s}:term", tag);
    assert_int_equal(r->elements, 3);
    assert_string_equal(r->element[0]->str, "");
    assert_string_equal(r->element[2]->str, "");
    freeReplyObject(r);
    assert_string_equal(lead("a", LONG_MS, 0), "lead 1 a");
    r = redisCommand(redis, "FCALL fleet 1 ps:{%s}:term 1 60000 %s", tag, "{\"v\":1}");
    assert_string_equal(r->str, "ok");
    freeReplyObject(r);
    r = redisCommand(redis, "FCALL_RO fleet_read 1 ps:{%s}:term", tag);
    assert_string_equal(r->element[0]->str, "1 a");
    assert_in_range(r->element[1]->integer, 1, LONG_MS);
    assert_string_equal(r->element[2]->str, "{\"v\":1}");
    freeReplyObject(r);
    r = redisCommand(redis, "PTTL ps:{%s}:fleet", tag);
    assert_in_range(r->integer, 1, 60000); // it ends by itself
    freeReplyObject(r);
}

static void bad_arguments_change_nothing(void **state)
{
    (void) state;
    static const char *const calls[] = {
        "FCALL lead 1 %s", "FCALL lead 1 %s a 1", "FCALL lead 1 %s a 0 0", "FCALL lead 1 %s a 1 -1",
        "FCALL lead 1 %s a x 0", "FCALL lead 1 %s a 1 0 0", "FCALL resign 1 %s",
        "FCALL resign 1 %s 0", "FCALL fleet 1 %s 1 0 {}", "FCALL fleet 1 %s 0 1 {}",
        "FCALL fleet 1 %s 1 1",
    };
    char key[64], long_name[200];
    snprintf(key, sizeof key, "ps:{%s}:term", tag);
    memset(long_name, 'x', sizeof long_name);
    long_name[sizeof long_name - 1] = '\0';
    assert_string_equal(lead(long_name, 1, 0), "!BADARG");
    redisReply *r = redisCommand(redis, "FCALL lead 1 %s %s 1 0", key, "a b");
    assert_true(r->type == REDIS_REPLY_ERROR && strncmp(r->str, "BADARG ", 7) == 0);
    freeReplyObject(r);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        r = redisCommand(redis, calls[i], key);
        assert_non_null(r);
        if (r->type != REDIS_REPLY_ERROR || strncmp(r->str, "BADARG ", 7) != 0) {
            fail_msg("%s", calls[i]);
        }
        freeReplyObject(r);
    }
    r = redisCommand(redis, "EXISTS ps:{%s}:lead ps:{%s}:fleet ps:{%s}:term", tag, tag, tag);
    assert_int_equal(r->integer, 0);
    freeReplyObject(r);
}

// --- brokers in a loop

struct bench {
    zloop_t *loop; // shared
    struct queue *queue;
    int n_ready, n_standby, n_down, n_refused, n_replies;
    uint64_t term;
    char leader[BROKER_NAME_MAX + 1];
    struct error why, error;
};

static const int *wanted;
static int wanted_count;
static int64_t until_ms;

static void on_ready(void *arg, uint64_t term)
{
    struct bench *b = arg;
    b->n_ready++;
    b->term = term;
}

static void on_standby(void *arg, const char *leader, uint64_t term)
{
    struct bench *b = arg;
    b->n_standby++;
    b->term = term;
    snprintf(b->leader, sizeof b->leader, "%s", leader);
}

static void on_down(void *arg, const struct error *why)
{
    struct bench *b = arg;
    b->n_down++;
    b->why = *why;
}

static void on_refused(void *arg, const struct error *why)
{
    struct bench *b = arg;
    b->n_refused++;
    b->why = *why;
}

static void on_inbox(void *arg, const char *tenant) { (void) arg, (void) tenant; }

static void on_reply(void *arg, const struct queue_reply *r)
{
    struct bench *b = arg;
    b->n_replies++;
    b->error = r->error;
}

static int on_look(zloop_t *loop, int timer, void *arg)
{
    (void) loop, (void) timer, (void) arg;
    if (*wanted >= wanted_count) return -1;
    if (clock_ms() > until_ms) fail_msg("waited in vain");
    return 0;
}

static void wait_for(zloop_t *loop, const int *what, int count)
{
    wanted = what;
    wanted_count = count;
    until_ms = clock_ms() + PATIENCE_MS;
    int timer = zloop_timer(loop, 1, 0, on_look, NULL);
    zloop_start(loop);
    zloop_timer_end(loop, timer);
}

static void open_queue(struct bench *b, zloop_t *loop, const char *owner, int64_t lead_ms)
{
    struct queue_options o = {.url = server.url, .name = tag, .owner = owner, .lead_ms = lead_ms};
    struct queue_events events = {b, on_ready, on_standby, on_down, on_refused, on_inbox};
    struct error e;
    *b = (struct bench){.loop = loop};
    assert_int_equal(queue_create(&b->queue, loop, &o, &events, &e), OK);
}

static zloop_t *new_loop(void)
{
    zloop_t *loop = zloop_new();
    zloop_set_nonstop(loop, true);
    return loop;
}

static void a_second_broker_stands_by_until_the_first_resigns(void **state)
{
    (void) state;
    struct bench a, b;
    zloop_t *loop = new_loop();
    open_queue(&a, loop, "a", SHORT_MS);
    wait_for(loop, &a.n_ready, 1);
    open_queue(&b, loop, "b", SHORT_MS);
    wait_for(loop, &b.n_standby, 1);
    assert_string_equal(b.leader, "a");
    assert_true(b.term == a.term && queue_term(b.queue) == 0 && !queue_ready(b.queue));
    assert_int_equal(queue_promote(b.queue, 10, on_reply, &b), ERR_UNAVAILABLE);
    // The lease is renewed: after some of its lengths it is still a's.
    int64_t end = clock_ms() + 3 * SHORT_MS;
    while (clock_ms() < end) {
        assert_int_equal(queue_promote(a.queue, 10, on_reply, &a), OK);
        wait_for(loop, &a.n_replies, a.n_replies + 1);
        assert_int_equal(a.error.status, OK);
    }
    assert_true(b.n_ready == 0 && b.n_standby == 1);
    assert_int_equal(queue_resign(a.queue, on_reply, &a), OK);
    wait_for(loop, &b.n_ready, 1);
    assert_int_equal(b.term, a.term + 1);
    assert_int_equal(queue_promote(b.queue, 10, on_reply, &b), OK);
    wait_for(loop, &b.n_replies, 1);
    assert_int_equal(b.error.status, OK);
    // What the former leader says now is refused, and ends it.
    assert_int_equal(queue_promote(a.queue, 10, on_reply, &a), OK);
    wait_for(loop, &a.n_refused, 1);
    assert_string_equal(a.why.code, "stale_term");
    queue_destroy(&a.queue);
    queue_destroy(&b.queue);
    zloop_destroy(&loop);
}

static void a_leader_that_is_gone_is_replaced_when_its_lease_ends(void **state)
{
    (void) state;
    struct bench a, b;
    zloop_t *loop = new_loop();
    open_queue(&a, loop, "a", SHORT_MS);
    wait_for(loop, &a.n_ready, 1);
    open_queue(&b, loop, "b", SHORT_MS);
    wait_for(loop, &b.n_standby, 1);
    queue_destroy(&a.queue); // without a word
    wait_for(loop, &b.n_ready, 1);
    assert_int_equal(b.term, 2);
    open_queue(&a, loop, "a", SHORT_MS); // it comes back
    wait_for(loop, &a.n_standby, 1);
    assert_string_equal(a.leader, "b");
    queue_destroy(&b.queue);
    open_queue(&b, loop, "b", SHORT_MS); // at once, under its own name
    wait_for(loop, &b.n_ready, 1);
    assert_true(b.term == 3 && a.n_ready == 0);
    queue_destroy(&a.queue);
    queue_destroy(&b.queue);
    zloop_destroy(&loop);
}

static void a_pause_of_redis_leaves_the_leader_where_it_is(void **state)
{
    (void) state;
    struct bench a, b;
    zloop_t *loop = new_loop();
    open_queue(&a, loop, "a", 8000);
    wait_for(loop, &a.n_ready, 1);
    open_queue(&b, loop, "b", 8000);
    wait_for(loop, &b.n_standby, 1);
    test_redis_kill(&server);
    wait_for(loop, &a.n_down, 1);
    wait_for(loop, &b.n_down, 1);
    test_redis_restart(&server);
    redisFree(redis);
    redis = test_redis_connect(&server);
    // The lease has ended while Redis was away; the standby does not snatch it.
    redisReply *r = redisCommand(redis, "DEL ps:{%s}:lead", tag);
    freeReplyObject(r);
    wait_for(loop, &b.n_standby, 2);
    wait_for(loop, &a.n_ready, 2);
    assert_true(a.term == 1 && b.n_ready == 0 && a.n_refused == 0);
    queue_destroy(&a.queue);
    queue_destroy(&b.queue);
    zloop_destroy(&loop);
}

// --- the pure part

static enum status answer(struct queue_lead *l, const char *bytes, bool *changed)
{
    redisReader *reader = redisReaderCreate();
    void *reply = NULL;
    struct error e = {0};
    redisReaderFeed(reader, bytes, strlen(bytes));
    redisReaderGetReply(reader, &reply);
    assert_non_null(reply);
    enum status status = queue_lead_answered(l, reply, 1000, changed, &e);
    freeReplyObject(reply);
    redisReaderFree(reader);
    return status;
}

#define LEADS "*4\r\n$4\r\nlead\r\n$1\r\n5\r\n$1\r\na\r\n$4\r\n5000\r\n"
#define STANDS_BY "*4\r\n$7\r\nstandby\r\n$1\r\n5\r\n$1\r\nb\r\n$4\r\n4000\r\n"

static void when_it_asks(void **state)
{
    (void) state;
    struct queue_lead l = {.owner = "a", .lease_ms = 5000};
    bool changed;
    assert_true(queue_lead_connected(&l, 0) && queue_lead_due(&l, 0));
    assert_int_equal(answer(&l, STANDS_BY, &changed), OK);
    assert_true(changed && l.term == 0 && l.rules == 5);
    assert_int_equal(answer(&l, STANDS_BY, &changed), OK);
    assert_false(changed);
    assert_false(queue_lead_due(&l, 1249));
    assert_true(queue_lead_due(&l, 1250));
    l.asking = true;
    assert_false(queue_lead_due(&l, 99999));
    assert_false(queue_lead_connected(&l, 2000)); // the leader comes back first
    assert_false(queue_lead_due(&l, 6999));
    assert_true(queue_lead_due(&l, 7000));
    assert_int_equal(answer(&l, LEADS, &changed), OK);
    assert_true(changed && l.term == 5);
    assert_false(queue_lead_due(&l, 2665));
    assert_true(queue_lead_due(&l, 2666));
    assert_true(queue_lead_connected(&l, 3000)); // a leader asks at once
    l.resigned = true;
    assert_false(queue_lead_due(&l, 99999));
}

static void answers_of_another_form(void **state)
{
    (void) state;
    static const char *const replies[] = {
        "+OK\r\n", "*0\r\n", "-ERR no\r\n", ":5\r\n",
        "*3\r\n$4\r\nlead\r\n$1\r\n5\r\n$1\r\na\r\n",
        "*4\r\n$4\r\nlead\r\n:5\r\n$1\r\na\r\n$4\r\n5000\r\n",
        "*4\r\n$4\r\nlead\r\n$1\r\n0\r\n$1\r\na\r\n$4\r\n5000\r\n",
    };
    for (size_t i = 0; i < sizeof replies / sizeof *replies; i++) {
        struct queue_lead l = {.owner = "a", .lease_ms = 5000};
        bool changed;
        if (answer(&l, replies[i], &changed) == OK) fail_msg("reply %zu is taken", i);
        assert_true(l.term == 0 && !changed && l.ask_ms == 1250); // it is asked again
    }
    struct queue_lead l = {.owner = "a", .lease_ms = 5000, .term = 5};
    bool changed;
    assert_int_equal(answer(&l, STANDS_BY, &changed), ERR_IO); // a leader is told STALETERM
}

// --- all

static int group_start(void **state)
{
    (void) state;
    test_redis_start(&server, NULL);
    redis = test_redis_connect(&server);
    redisReply *r = redisCommand(redis, "FUNCTION LOAD REPLACE %b", queue_lua, queue_lua_size);
    assert_string_equal(r->str, QUEUE_LIBRARY);
    freeReplyObject(r);
    return 0;
}

static int group_stop(void **state)
{
    (void) state;
    redisFree(redis);
    test_redis_stop(&server);
    return 0;
}

static int start(void **state)
{
    (void) state;
    static int n;
    snprintf(tag, sizeof tag, "q%d", n++);
    return 0;
}

#define test(f) cmocka_unit_test_setup(f, start)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(the_lease_goes_to_one_and_comes_back_to_its_owner),
        test(a_lease_that_ended_is_renewed_unless_another_took_it),
        test(what_the_leader_says_is_read_with_its_lease),
        test(bad_arguments_change_nothing),
        test(a_second_broker_stands_by_until_the_first_resigns),
        test(a_leader_that_is_gone_is_replaced_when_its_lease_ends),
        test(a_pause_of_redis_leaves_the_leader_where_it_is),
        test(when_it_asks),
        test(answers_of_another_form),
    };
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
