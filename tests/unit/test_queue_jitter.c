// Full jitter: how long the queue client and the function library let a job wait that failed for a
// reason that may pass. Delays must be drawn evenly from 0 to min(base * 2^failures, most).
#include "broker/queue.h"

#include "common/clock.h"
#include "tests/support/redis.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <czmq.h>
#include <hiredis/hiredis.h>
#include <math.h>

enum { SAMPLES = 500, PATIENCE_MS = 60000 };

static struct test_redis server;
static zloop_t *loop;
static struct queue *queue;
static int n_ready, n_delays;
static double delays[SAMPLES]; // of the longest that it might be

static void on_ready(void *arg, uint64_t term)
{
    (void) arg, (void) term;
    n_ready++;
}

static void on_standby(void *arg, const char *leader, uint64_t term)
{
    (void) arg, (void) term;
    fail_msg("%s leads", leader);
}

static void on_trouble(void *arg, const struct error *why)
{
    (void) arg;
    fail_msg("%s: %s", why->code, why->text);
}

static void on_inbox(void *arg, const char *tenant) { (void) arg, (void) tenant; }

static void on_failed(void *arg, const struct queue_reply *r)
{
    const double *most = arg;
    assert_int_equal(r->error.status, OK);
    assert_int_equal(r->word, QUEUE_RETRY);
    delays[n_delays++] = (double) r->number / *most;
}

struct waiting {
    const int *n;
    int wanted;
    int64_t until_ms;
};

static int look(zloop_t *of, int timer, void *arg)
{
    const struct waiting *w = arg;
    (void) of, (void) timer;
    if (clock_ms() > w->until_ms) fail_msg("waited in vain: %d of %d", *w->n, w->wanted);
    return *w->n >= w->wanted ? -1 : 0;
}

static void wait_for(const int *n, int wanted)
{
    struct waiting w = {n, wanted, clock_ms() + PATIENCE_MS};
    int timer = zloop_timer(loop, 1, 0, look, &w);
    zloop_start(loop);
    zloop_timer_end(loop, timer);
}

static int start(void **state)
{
    (void) state;
    struct queue_options o = {.url = server.url, .name = "q", .owner = "b-1"};
    struct queue_events events = {NULL, on_ready, on_standby, on_trouble, on_trouble, on_inbox};
    struct error e;
    test_redis_start(&server, NULL);
    o.url = server.url;
    loop = zloop_new();
    zloop_set_nonstop(loop, true);
    check(queue_create(&queue, loop, &o, &events, &e) == OK, "%s", e.text);
    wait_for(&n_ready, 1);
    return 0;
}

static int stop(void **state)
{
    (void) state;
    queue_destroy(&queue);
    zloop_destroy(&loop);
    test_redis_stop(&server);
    return 0;
}

// Running jobs that have failed so often before.
static void make_running(int fails)
{
    redisContext *c = test_redis_connect(&server);
    for (int i = 1; i <= SAMPLES; i++) {
        redisAppendCommand(c, "HSET ps:{q}:j:default:j%d state running attempt %d seq %d class 0 "
                              "max 20 fails %d ttl 60000", i, i, i, fails);
    }
    for (int i = 1; i <= SAMPLES; i++) {
        redisReply *r;
        assert_int_equal(redisGetReply(c, (void **) &r), REDIS_OK);
        assert_int_not_equal(r->type, REDIS_REPLY_ERROR);
        freeReplyObject(r);
    }
    redisFree(c);
}

static void fail_all(double most)
{
    static char ids[SAMPLES][16];
    static double longest;
    longest = most;
    n_delays = 0;
    for (int i = 0; i < SAMPLES; i++) {
        snprintf(ids[i], sizeof ids[i], "j%d", i + 1);
        struct queue_attempt a = {"default", ids[i], (uint64_t) i + 1};
        struct queue_failure f = {.code = "c", .text = "t", .retryable = true};
        assert_int_equal(queue_fail(queue, &a, &f, on_failed, &longest), OK);
    }
    wait_for(&n_delays, SAMPLES);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return x < y ? -1 : x > y;
}

// Kolmogorov and Smirnov's distance between what was drawn and an even spread over 0..1; beyond
// 2.7 / sqrt(n) for one in a million of honest draws.
static double distance(void)
{
    double most = 0;
    qsort(delays, SAMPLES, sizeof *delays, by_size);
    for (int i = 0; i < SAMPLES; i++) {
        most = fmax(most, fabs(delays[i] - (double) i / SAMPLES));
        most = fmax(most, fabs(delays[i] - (double) (i + 1) / SAMPLES));
    }
    return most;
}

static void test_delays_are_spread_evenly_from_zero(void **state)
{
    (void) state;
    static const struct {
        int fails; // before
        double most;
    } table[] = {
        {0, (double) RETRY_BASE_MS},
        {1, 2 * (double) RETRY_BASE_MS},
        {5, 32 * (double) RETRY_BASE_MS},
        {9, (double) RETRY_MOST_MS}, // 512 s
        {18, (double) RETRY_MOST_MS},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        make_running(table[i].fails);
        fail_all(table[i].most);
        double d = distance(); // sorts
        if (delays[0] < 0 || delays[SAMPLES - 1] > 1 || d > 2.7 / sqrt(SAMPLES)) {
            fail_msg("after %d failures: from %g to %g of %g ms, distance %g", table[i].fails,
                     delays[0], delays[SAMPLES - 1], table[i].most, d);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_delays_are_spread_evenly_from_zero),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
