// The queue client in a zloop against a real redis-server that is killed, stopped and
// misconfigured.
#include "broker/queue.h"

#include "common/clock.h"
#include "common/result.h"
#include "tests/support/redis.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <czmq.h>
#include <hiredis/hiredis.h>
#include <signal.h>

enum { PATIENCE_MS = 30000, COPY_MAX = 4096 };

static struct test_redis server;

// --- a loop with a queue in it

struct bench {
    zloop_t *loop;
    struct queue *queue;
    int n_ready, n_down, n_refused, n_inbox;
    uint64_t term;
    struct error why;
    char pushed[TENANT_MAX + 1];
    // The last reply, and how many there were.
    int n_replies, n_unknown, n_aborted;
    struct error error;
    enum queue_word word;
    uint64_t number;
    size_t n;
    char text[COPY_MAX]; // the reply's entries, for comparing
    int64_t until_ms;
    const int *wanted; // the loop ends when *wanted reaches `count`
    int count;
};

static void on_ready(void *arg, uint64_t term)
{
    struct bench *b = arg;
    b->n_ready++;
    b->term = term;
}

static void on_standby(void *arg, const char *leader, uint64_t term)
{
    (void) arg;
    fail_msg("%s leads under %llu", leader, (unsigned long long) term);
}

static void on_down(void *arg, const struct error *why)
{
    struct bench *b = arg;
    assert_int_equal(queue_open_calls(b->queue), 0);
    b->n_down++;
    b->why = *why;
}

static void on_refused(void *arg, const struct error *why)
{
    struct bench *b = arg;
    b->n_refused++;
    b->why = *why;
}

static void on_inbox(void *arg, const char *tenant)
{
    struct bench *b = arg;
    b->n_inbox++;
    snprintf(b->pushed, sizeof b->pushed, "%s", tenant);
}

static int on_look(zloop_t *loop, int timer, void *arg)
{
    struct bench *b = arg;
    (void) loop, (void) timer;
    if (*b->wanted >= b->count) return -1;
    if (clock_ms() > b->until_ms) fail_msg("waited in vain; last: %s %s", b->why.code, b->why.text);
    return 0;
}

static void wait_for(struct bench *b, const int *wanted, int count)
{
    b->wanted = wanted;
    b->count = count;
    b->until_ms = clock_ms() + PATIENCE_MS;
    int timer = zloop_timer(b->loop, 1, 0, on_look, b);
    zloop_start(b->loop);
    zloop_timer_end(b->loop, timer);
}

static void open_queue(struct bench *b, const char *url, const char *name, bool accept_loss,
                       int64_t timeout_ms)
{
    struct queue_options o = {.url = url, .name = name, .owner = "b-1",
                              .accept_loss = accept_loss, .timeout_ms = timeout_ms};
    struct queue_events events = {b, on_ready, on_standby, on_down, on_refused, on_inbox};
    struct error e;
    *b = (struct bench){.loop = zloop_new()};
    zloop_set_nonstop(b->loop, true);
    assert_int_equal(queue_create(&b->queue, b->loop, &o, &events, &e), OK);
}

static void open_ready(struct bench *b, const char *name)
{
    open_queue(b, server.url, name, false, 0);
    wait_for(b, &b->n_ready, 1);
}

static void close_queue(struct bench *b)
{
    queue_destroy(&b->queue);
    zloop_destroy(&b->loop);
}

// --- calls

static void print(struct bench *b, const char *format, ...)
{
    size_t n = strlen(b->text);
    va_list args;
    va_start(args, format);
    vsnprintf(b->text + n, sizeof b->text - n, format, args);
    va_end(args);
}

static void print_job(struct bench *b, const struct queue_job *j)
{
    print(b, "[%s %s %s", queue_word_name(j->word), j->tenant, j->id);
    if (j->word == QUEUE_OK) {
        print(b, " attempt %llu seq %llu \"%.*s\" \"%.*s\" %u %u %u class %d %llu %llu %llu %s %s",
              (unsigned long long) j->attempt, (unsigned long long) j->seq, (int) j->n_bytes,
              j->bytes, (int) j->n_checkpoint, j->checkpoint, j->starts, j->fails, j->lost,
              j->class, (unsigned long long) j->need_blocks, (unsigned long long) j->n_prompt,
              (unsigned long long) j->max_tokens, j->custom_id, j->batch);
    }
    print(b, "]");
}

static void on_reply(void *arg, const struct queue_reply *r)
{
    struct bench *b = arg;
    b->n_replies++;
    b->n_unknown += r->error.status == ERR_UNAVAILABLE;
    b->n_aborted += r->error.status == ERR_ABORTED;
    b->error = r->error;
    b->word = r->word;
    b->number = r->number;
    b->n = r->n;
    b->text[0] = '\0';
    for (size_t i = 0; i < r->n; i++) {
        const struct queue_message *m = r->messages + i;
        const struct queue_header *h = r->headers + i;
        const struct queue_verdict *v = r->verdicts + i;
        if (r->messages != NULL) {
            print(b, "[%s %llu %.*s]", m->tenant, (unsigned long long) m->seq,
                  m->bytes != NULL ? (int) m->n_bytes : 0, m->bytes);
        } else if (r->headers != NULL) {
            print(b, "[%s %llu %llu %u%s]", h->id, (unsigned long long) h->seq,
                  (unsigned long long) h->need_blocks, h->starts, h->poison ? " poison" : "");
        } else if (r->jobs != NULL) {
            print_job(b, r->jobs + i);
        } else if (r->verdicts != NULL) {
            print(b, "[%s %s %s %llu]", queue_word_name(v->word), v->tenant, v->id,
                  (unsigned long long) v->attempt);
        } else {
            print(b, "[%s %u]", r->tenants[i].name, r->tenants[i].weight);
        }
    }
    if (r->owner != NULL) print(b, "owner %s", r->owner);
}

// Waits for the reply of one call.
#define run(b, call)                                                                               \
    do {                                                                                           \
        int before_ = (b)->n_replies;                                                              \
        assert_int_equal(call, OK);                                                                \
        wait_for((b), &(b)->n_replies, before_ + 1);                                               \
    } while (0)

#define expect_word(b, wanted, call)                                                               \
    do {                                                                                           \
        run(b, call);                                                                              \
        assert_string_equal((b)->error.text, "");                                                  \
        assert_string_equal(queue_word_name((b)->word), queue_word_name(wanted));                  \
    } while (0)

#define expect_text(b, wanted, call)                                                               \
    do {                                                                                           \
        run(b, call);                                                                              \
        assert_string_equal((b)->error.text, "");                                                  \
        assert_string_equal((b)->text, wanted);                                                    \
    } while (0)

static void redis(const char *format, ...)
{
    redisContext *c = test_redis_connect(&server);
    va_list args;
    va_start(args, format);
    redisReply *r = redisvCommand(c, format, args);
    va_end(args);
    assert_non_null(r);
    assert_int_not_equal(r->type, REDIS_REPLY_ERROR);
    freeReplyObject(r);
    redisFree(c);
}

static struct queue_admit admit_of(const char *id, uint64_t seq)
{
    return (struct queue_admit){.tenant = "default", .id = id, .seq = seq, .class = 1,
                                .model = "m", .body_hash = "h", .need_blocks = 3, .n_prompt = 100,
                                .max_tokens = 20, .attempts = 3};
}

static void make_job(struct bench *b, const char *queue, const char *id, uint64_t seq)
{
    struct queue_admit job = admit_of(id, seq);
    redis("RPUSH ps:{%s}:in:default %s", queue, id);
    run(b, queue_take(b->queue, "default", 1, 1000, 0, on_reply, b));
    expect_word(b, QUEUE_OK, queue_admit(b->queue, &job, on_reply, b));
}

// As attempt `attempt`.
static struct queue_attempt make_running(struct bench *b, const char *queue, const char *id,
                                         uint64_t attempt)
{
    struct queue_key key = {"head", "default", id};
    make_job(b, queue, id, attempt);
    run(b, queue_claim(b->queue, attempt, 30000, 1000, &key, 1, on_reply, b));
    assert_int_equal(b->n, 1);
    return (struct queue_attempt){"default", id, attempt};
}

static void the_life_of_a_job(void **state)
{
    (void) state;
    struct bench b;
    open_ready(&b, "life");
    assert_int_equal(queue_term(b.queue), 1);
    redis("RPUSH ps:{life}:in:default message");
    expect_text(&b, "[default 1 message]",
                queue_take(b.queue, "default", 10, 1000, 0, on_reply, &b));
    struct queue_admit job = admit_of("a", 1);
    job.custom_id = "custom";
    expect_word(&b, QUEUE_OK, queue_admit(b.queue, &job, on_reply, &b));
    expect_text(&b, "[a 1 3 0]", queue_window(b.queue, 1, "default", "m", 0, 10, on_reply, &b));
    struct queue_key keys[] = {{"head", "default", "a"}, {"head", "default", "nobody"}};
    expect_text(&b, "[ok default a attempt 1 seq 1 \"message\" \"\" 1 0 0 class 1 3 100 20 custom ]"
                    "[gone default nobody]",
                queue_claim(b.queue, 1, 30000, 1000, keys, 2, on_reply, &b));
    struct queue_attempt a = {"default", "a", 1};
    expect_word(&b, QUEUE_OK,
                queue_checkpoint(b.queue, &a, 0, (const uint8_t *) "abcd", 4, on_reply, &b));
    assert_int_equal(b.number, 4);
    expect_text(&b, "[ok default a 1]", queue_renew(b.queue, 30000, &a, 1, on_reply, &b));
    struct queue_outcome o = {QUEUE_END_DONE, (const uint8_t *) "result", 6, {0}};
    expect_word(&b, QUEUE_OK, queue_done(b.queue, &a, &o, on_reply, &b));
    run(&b, queue_stats(b.queue, on_reply, &b));
    assert_int_equal(b.error.status, OK);
    close_queue(&b);
}

static void every_other_call(void **state)
{
    (void) state;
    struct bench b;
    open_ready(&b, "calls");
    expect_text(&b, "[default 1]", queue_tenants(b.queue, on_reply, &b));
    redis("RPUSH ps:{calls}:in:default one two three");
    run(&b, queue_take(b.queue, "default", 2, 1000, 0, on_reply, &b));
    assert_int_equal(b.number, 1); // left in the inbox
    expect_text(&b, "[default 2 two]", queue_recover(b.queue, 1, 10, 1000, on_reply, &b));
    struct queue_reject r = {.tenant = "default", .seq = 1, .code = "bad_job", .text = "no good"};
    expect_word(&b, QUEUE_DEAD, queue_reject(b.queue, &r, on_reply, &b));
    expect_word(&b, QUEUE_DEAD, queue_reject(b.queue, &r, on_reply, &b));
    expect_word(&b, QUEUE_UNKNOWN, queue_cancel(b.queue, "default", 2, "nobody", on_reply, &b));
    run(&b, queue_take(b.queue, "default", 2, 1000, 0, on_reply, &b));
    struct queue_admit job = admit_of("a", 3);
    expect_word(&b, QUEUE_OK, queue_admit(b.queue, &job, on_reply, &b));
    struct queue_key key = {"head", "default", "a"};
    run(&b, queue_claim(b.queue, 1, 30000, 1000, &key, 1, on_reply, &b));
    struct queue_attempt a = {"default", "a", 1};
    expect_word(&b, QUEUE_READY, queue_nack(b.queue, &a, true, on_reply, &b));
    run(&b, queue_claim(b.queue, 2, 30000, 1000, &key, 1, on_reply, &b));
    a.attempt = 2;
    struct queue_failure f = {.code = "no_memory", .text = "none left", .retryable = true};
    expect_word(&b, QUEUE_RETRY, queue_fail(b.queue, &a, &f, on_reply, &b));
    assert_in_range(b.number, 0, RETRY_BASE_MS);
    expect_word(&b, QUEUE_STALE, queue_fail(b.queue, &a, &f, on_reply, &b));
    redis("ZADD ps:{calls}:dly 1 default:a");
    expect_text(&b, "[ready default a 2]", queue_promote(b.queue, 10, on_reply, &b));
    run(&b, queue_claim(b.queue, 3, 30000, 1000, &key, 1, on_reply, &b));
    expect_word(&b, QUEUE_RUNNING, queue_cancel(b.queue, "default", 0, "a", on_reply, &b));
    assert_int_equal(b.number, 3);
    assert_string_equal(b.text, "owner head");
    redis("ZADD ps:{calls}:ls 1 default:a");
    expect_text(&b, "[cancelled default a 3]", queue_reap(b.queue, 10, on_reply, &b));
    close_queue(&b);
}

static void a_sentence_that_was_cut_ends_with_a_character(void **state)
{
    (void) state;
    struct bench b;
    struct result result;
    struct error e;
    open_ready(&b, "sentences");
    redis("RPUSH ps:{sentences}:in:default one");
    run(&b, queue_take(b.queue, "default", 2, 1000, 0, on_reply, &b));
    struct queue_admit job = admit_of("a", 1);
    expect_word(&b, QUEUE_OK, queue_admit(b.queue, &job, on_reply, &b));
    struct queue_key key = {"head", "default", "a"};
    run(&b, queue_claim(b.queue, 1, 30000, 1000, &key, 1, on_reply, &b));
    struct queue_attempt a = {"default", "a", 1};
    struct queue_failure f = {.code = "bad", .text = "cut within \xe4\xb8\xad\xe4\xb8"};
    expect_word(&b, QUEUE_DEAD, queue_fail(b.queue, &a, &f, on_reply, &b));
    redisContext *c = test_redis_connect(&server);
    redisReply *r = redisCommand(c, "GET ps:{sentences}:r:default:a");
    if (result_decode(&result, r->str, r->len, &e) != OK) fail_msg("%s", e.text);
    assert_string_equal(result.error.message, "cut within \xe4\xb8\xad");
    result_deinit(&result);
    freeReplyObject(r);
    redisFree(c);
    close_queue(&b);
}

static void many_calls_are_pipelined_in_order(void **state)
{
    (void) state;
    enum { N = 2000 };
    struct bench b;
    open_ready(&b, "many");
    struct queue_attempt a = make_running(&b, "many", "a", 1);
    int before = b.n_replies;
    for (int i = 0; i < N; i++) {
        assert_int_equal(queue_checkpoint(b.queue, &a, (uint64_t) i, (const uint8_t *) "x", 1,
                                          on_reply, &b), OK);
    }
    assert_int_equal(queue_open_calls(b.queue), N);
    wait_for(&b, &b.n_replies, before + N);
    assert_int_equal(b.word, QUEUE_OK);
    assert_int_equal(b.number, N);
    close_queue(&b);
}

static void renews_thousands_of_leases_in_one_call(void **state)
{
    (void) state;
    enum { N = 5000 };
    static struct queue_attempt a[N];
    struct bench b;
    open_ready(&b, "leases");
    for (int i = 0; i < N; i++) a[i] = (struct queue_attempt){"default", "nobody", 1};
    run(&b, queue_renew(b.queue, 1000, a, N, on_reply, &b));
    assert_int_equal(b.n, N);
    close_queue(&b);
}

static void a_full_buffer_refuses_calls(void **state)
{
    (void) state;
    struct bench b;
    open_ready(&b, "full");
    struct queue_attempt a = {"default", "a", 1};
    size_t n = 20 * (size_t) MIB, accepted = 0;
    uint8_t *result = calloc(1, n);
    struct queue_outcome o = {QUEUE_END_DONE, result, n, {0}};
    while (queue_done(b.queue, &a, &o, on_reply, &b) == OK) accepted++;
    assert_in_range(accepted, 1, 4);
    wait_for(&b, &b.n_replies, (int) accepted);
    assert_int_equal(b.word, QUEUE_UNKNOWN);
    free(result);
    close_queue(&b);
}

static void a_push_to_an_inbox_is_told(void **state)
{
    (void) state;
    struct bench b;
    open_ready(&b, "inbox");
    // The subscription takes its own time: push until it is there.
    for (int i = 1; b.n_inbox == 0; i++) {
        redis("RPUSH ps:{inbox}:in:some-tenant m");
        wait_for(&b, &i, i); // a turn of the loop
    }
    assert_string_equal(b.pushed, "some-tenant");
    close_queue(&b);
}

// --- outages

static void redis_is_killed_in_the_middle_of_calls_and_comes_back(void **state)
{
    (void) state;
    enum { N = 200 };
    struct bench b;
    open_ready(&b, "kill");
    struct queue_attempt a = make_running(&b, "kill", "a", 1);
    uint64_t term = b.term;
    int before = b.n_replies;
    for (int i = 0; i < N; i++) {
        assert_int_equal(queue_checkpoint(b.queue, &a, (uint64_t) i, (const uint8_t *) "x", 1,
                                          on_reply, &b), OK);
    }
    test_redis_kill(&server);
    wait_for(&b, &b.n_down, 1);
    assert_int_equal(b.n_replies, before + N); // each just once
    assert_true(b.n_unknown > 0);
    assert_int_equal(queue_promote(b.queue, 1, on_reply, &b), ERR_UNAVAILABLE);
    test_redis_restart(&server);
    wait_for(&b, &b.n_ready, 2);
    assert_int_equal(b.n_down, 1); // once an outage
    assert_int_equal(b.term, term);
    // Whatever was executed, the same calls again do no harm.
    for (int i = 0; i < N; i++) {
        assert_int_equal(queue_checkpoint(b.queue, &a, (uint64_t) i, (const uint8_t *) "x", 1,
                                          on_reply, &b), OK);
    }
    wait_for(&b, &b.n_replies, before + 2 * N);
    assert_int_equal(b.word, QUEUE_OK);
    assert_int_equal(b.number, N);
    close_queue(&b);
}

static void a_redis_that_hangs_is_given_up(void **state)
{
    (void) state;
    struct bench b;
    open_queue(&b, server.url, "hang", false, 200);
    wait_for(&b, &b.n_ready, 1);
    kill(server.pid, SIGSTOP);
    run(&b, queue_promote(b.queue, 1, on_reply, &b));
    assert_int_equal(b.error.status, ERR_UNAVAILABLE);
    wait_for(&b, &b.n_down, 1);
    assert_string_equal(b.why.code, "redis_timeout");
    kill(server.pid, SIGCONT);
    wait_for(&b, &b.n_ready, 2);
    close_queue(&b);
}

static void a_redis_that_is_not_there_is_waited_for(void **state)
{
    (void) state;
    struct bench b;
    test_redis_kill(&server);
    open_queue(&b, server.tcp_url, "late", false, 0);
    wait_for(&b, &b.n_down, 1);
    assert_string_equal(b.why.code, "redis_unavailable");
    test_redis_restart(&server);
    wait_for(&b, &b.n_ready, 1);
    assert_int_equal(b.n_down, 1);
    close_queue(&b);
}

static void a_library_that_was_removed_is_loaded_again(void **state)
{
    (void) state;
    struct bench b;
    open_ready(&b, "library");
    redis("FUNCTION FLUSH");
    run(&b, queue_promote(b.queue, 1, on_reply, &b));
    assert_string_equal(b.error.code, "no_library");
    wait_for(&b, &b.n_ready, 2);
    run(&b, queue_promote(b.queue, 1, on_reply, &b));
    assert_int_equal(b.error.status, OK);
    close_queue(&b);
}

static void open_calls_are_aborted_by_destroy(void **state)
{
    (void) state;
    struct bench b;
    open_ready(&b, "abort");
    for (int i = 0; i < 10; i++) assert_int_equal(queue_promote(b.queue, 1, on_reply, &b), OK);
    close_queue(&b);
    assert_int_equal(b.n_aborted, 10);
    assert_int_equal(b.n_down, 0);
}

// A server that answers anything but Redis' protocol.
static int on_stranger(zloop_t *loop, zmq_pollitem_t *item, void *arg)
{
    static const char garbage[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
    (void) loop, (void) arg;
    int fd = accept(item->fd, NULL, NULL);
    if (fd >= 0) {
        ssize_t n = write(fd, garbage, sizeof garbage - 1);
        assert_true(n > 0);
        close(fd);
    }
    return 0;
}

static void a_server_that_is_no_redis_is_no_danger(void **state)
{
    (void) state;
    struct bench b;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *) &a, sizeof a), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *) &a, &n), 0);
    char url[64];
    snprintf(url, sizeof url, "redis://127.0.0.1:%d", ntohs(a.sin_port));
    open_queue(&b, url, "stranger", false, 0);
    zmq_pollitem_t item = {.fd = fd, .events = ZMQ_POLLIN};
    zloop_poller(b.loop, &item, on_stranger, NULL);
    wait_for(&b, &b.n_down, 1);
    assert_int_equal(b.why.status, ERR_UNAVAILABLE);
    close_queue(&b);
    close(fd);
}

// --- servers that are refused

static void unsafe_settings_are_refused_by_name(void **state)
{
    (void) state;
    static const char *const cases[][2] = {
        {"appendonly", "no"}, {"appendfsync", "everysec"}, {"maxmemory-policy", "allkeys-lru"}};
    static const char *const safe[] = {"yes", "always", "noeviction"};
    for (int i = 0; i < 3; i++) {
        struct bench b;
        redis("CONFIG SET %s %s", cases[i][0], cases[i][1]);
        open_queue(&b, server.url, "unsafe", false, 0);
        wait_for(&b, &b.n_refused, 1);
        assert_string_equal(b.why.code, "redis_unsafe");
        assert_non_null(strstr(b.why.text, cases[i][0]));
        assert_non_null(strstr(b.why.text, cases[i][1]));
        assert_non_null(strstr(b.why.text, "--accept-loss"));
        assert_int_equal(b.n_ready + b.n_down, 0);
        close_queue(&b);
        open_queue(&b, server.url, "unsafe", true, 0);
        wait_for(&b, &b.n_ready, 1);
        close_queue(&b);
        redis("CONFIG SET %s %s", cases[i][0], safe[i]);
    }
}

static void logins_and_rights(void **state)
{
    (void) state;
    redis("ACL SETUSER good on >secret ~* &* +@all");
    redis("ACL SETUSER poor on >secret ~* &* +@all -xadd");
    redis("ACL SETUSER blind on >secret ~* &* +@all -config");
    redis("ACL SETUSER mute on >secret ~* &* +@all -function");
    static const struct {
        const char *login, *code;
    } cases[] = {
        {"good:secret", NULL},
        {"good:wrong", "redis_login"},
        {"poor:secret", "redis_forbidden"},
        {"blind:secret", "redis_settings"},
        {"mute:secret", "redis_forbidden"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bench b;
        char url[128];
        snprintf(url, sizeof url, "redis://%s@127.0.0.1:%d/2", cases[i].login, server.port);
        open_queue(&b, url, "rights", false, 0);
        wait_for(&b, cases[i].code != NULL ? &b.n_refused : &b.n_ready, 1);
        if (cases[i].code != NULL) assert_string_equal(b.why.code, cases[i].code);
        assert_null(strstr(b.why.text, "secret"));
        close_queue(&b);
    }
    redis("ACL DELUSER good poor blind mute");
}

static void a_password_that_is_missing(void **state)
{
    (void) state;
    struct bench b;
    redis("CONFIG SET requirepass secret");
    open_queue(&b, server.url, "password", false, 0);
    wait_for(&b, &b.n_refused, 1);
    assert_string_equal(b.why.code, "redis_login");
    close_queue(&b);
    redisContext *c = test_redis_connect(&server);
    freeReplyObject(redisCommand(c, "AUTH secret"));
    freeReplyObject(redisCommand(c, "CONFIG SET requirepass %s", ""));
    redisFree(c);
}

static void bad_options_are_refused(void **state)
{
    (void) state;
    static const char *const cases[][4] = {
        {"http://127.0.0.1", "default", "bad_redis_url", "b"},
        {"redis://127.0.0.1:x", "default", "bad_redis_url", "b"},
        {"redis://127.0.0.1", "a b", "bad_name", "b"},
        {"redis://127.0.0.1", "", "bad_name", "b"},
        {"redis://127.0.0.1", "default", "bad_name", ""},
        {"redis://127.0.0.1", "default", "bad_name", "a b"},
    };
    struct queue_events events = {NULL, on_ready, on_standby, on_down, on_refused, on_inbox};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct queue_options o = {.url = cases[i][0], .name = cases[i][1],
                                  .owner = cases[i][3]};
        struct queue *q;
        struct error e;
        assert_int_equal(queue_create(&q, NULL, &o, &events, &e), ERR_INPUT);
        assert_string_equal(e.code, cases[i][2]);
        assert_null(q);
    }
}

static int start(void **state)
{
    (void) state;
    signal(SIGPIPE, SIG_IGN);
    zsys_handler_set(NULL);
    test_redis_start(&server, NULL);
    return 0;
}

static int stop(void **state)
{
    (void) state;
    test_redis_stop(&server);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_life_of_a_job),
        cmocka_unit_test(every_other_call),
        cmocka_unit_test(a_sentence_that_was_cut_ends_with_a_character),
        cmocka_unit_test(many_calls_are_pipelined_in_order),
        cmocka_unit_test(renews_thousands_of_leases_in_one_call),
        cmocka_unit_test(a_full_buffer_refuses_calls),
        cmocka_unit_test(a_push_to_an_inbox_is_told),
        cmocka_unit_test(redis_is_killed_in_the_middle_of_calls_and_comes_back),
        cmocka_unit_test(a_redis_that_hangs_is_given_up),
        cmocka_unit_test(a_redis_that_is_not_there_is_waited_for),
        cmocka_unit_test(a_library_that_was_removed_is_loaded_again),
        cmocka_unit_test(open_calls_are_aborted_by_destroy),
        cmocka_unit_test(a_server_that_is_no_redis_is_no_danger),
        cmocka_unit_test(unsafe_settings_are_refused_by_name),
        cmocka_unit_test(logins_and_rights),
        cmocka_unit_test(a_password_that_is_missing),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
