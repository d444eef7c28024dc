// A worker group under a broker that the test plays: ASSIGN to READY, and what must not upset it.
#include "workers/group.h"

#include "tests/support/sockets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct model_config config;
static struct checkpoint *checkpoint;
static void *context;
static struct wire_socket broker;
static char endpoint[ENDPOINT_BYTES];
static char peer[32]; // the group, as the broker sees it
static size_t n_peer;
static struct group_options options;
static pthread_t thread;

static void *run_group(void *arg)
{
    struct error e = {0};
    (void) arg;
    return (void *) (intptr_t) group_run(&options, &e);
}

// Waits for a message of this kind; others are dropped.
static struct wire_message next_of(enum wire_command command)
{
    for (;;) {
        struct wire_message m;
        struct error e = {0};
        const void *id;
        assert_int_equal(sockets_receive(&broker, &id, &n_peer, &m, &e), OK);
        assert_true(n_peer <= sizeof peer);
        memcpy(peer, id, n_peer);
        if (m.command == command) return m;
        wire_message_deinit(&m);
    }
}

static void say(const struct wire_message *m)
{
    struct wire_message stamped = *m;
    struct error e = {0};
    stamped.term = 1;
    assert_int_equal(wire_socket_send(&broker, peer, n_peer, &stamped, &e), OK);
}

static void start_group(int64_t step_deadline_ms)
{
    context = zmq_ctx_new();
    wire_socket_init(&broker, sockets_bind(context, ZMQ_ROUTER, true, "broker", endpoint), true);
    options = (struct group_options){.zmq = context,
                                     .control = {.brokers = {{.endpoint = endpoint}},
                                                 .n_brokers = 1},
                                     .config = &config,
                                     .checkpoint = checkpoint,
                                     .model_hash = "hash",
                                     .backend = backend_cpu(),
                                     .name = "group",
                                     .node = "node",
                                     .data = "tcp://127.0.0.1:*",
                                     .tp = 1,
                                     .n_threads = 1,
                                     .precision = PRECISION_F32,
                                     .memory_bytes = 64 << 20,
                                     .step_deadline_ms = step_deadline_ms,
                                     .stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    assert_int_equal(pthread_create(&thread, NULL, run_group, NULL), 0);
    struct wire_message m = next_of(WIRE_HELLO);
    assert_string_equal(m.hello.name, "group");
    assert_false(m.hello.assigned);
    wire_message_deinit(&m);
}

static void stop_group(void)
{
    void *socket = broker.socket, *status;
    uint64_t at_once = 2;
    assert_int_equal(write(options.stop_fd, &at_once, sizeof at_once), sizeof at_once);
    pthread_join(thread, &status);
    assert_int_equal((intptr_t) status, OK);
    close(options.stop_fd);
    wire_socket_deinit(&broker);
    zmq_close(socket);
    zmq_ctx_term(context);
}

// The last of two stages.
static void say_assign(uint64_t epoch)
{
    struct wire_message m = {.command = WIRE_ASSIGN};
    m.assign = (struct wire_assign){.pipeline = 1,
                                    .epoch = epoch,
                                    .stage = 1,
                                    .n_stages = 2,
                                    .first = 2,
                                    .last = config.n_layers,
                                    .tp = 1,
                                    .kv_blocks = 4,
                                    .slots = 2,
                                    .max_blocks = 2,
                                    .max_rows = 16,
                                    .max_out = 2,
                                    .steps_in_flight = 3,
                                    .max_context = 128,
                                    .chunk = 16,
                                    .plan = "plan",
                                    .precision = "f32"};
    say(&m);
}

static void an_assignment_becomes_ready(void **state)
{
    (void) state;
    start_group(60000);
    say_assign(7);
    struct wire_message m = next_of(WIRE_READY);
    assert_int_equal(m.ready.epoch, 7);
    assert_int_equal(m.ready.stage, 1);
    assert_true(strncmp(m.ready.endpoint, "tcp://127.0.0.1:", 16) == 0);
    assert_true(m.ready.weights_bytes > 0);
    wire_message_deinit(&m);
    stop_group();
}

// A HELLO and an ASSIGN that cross make the broker say ASSIGN again. The endpoint that READY told
// must stay what it is: the stage before connects to it.
static void an_assignment_said_again_changes_nothing(void **state)
{
    (void) state;
    start_group(60000);
    say_assign(7);
    struct wire_message first = next_of(WIRE_READY);
    say_assign(7);
    struct wire_message again = next_of(WIRE_READY);
    assert_string_equal(again.ready.endpoint, first.ready.endpoint);
    wire_message_deinit(&first);
    wire_message_deinit(&again);
    say_assign(8); // this one is new
    do {
        again = next_of(WIRE_READY);
    } while (again.ready.epoch == 7);
    assert_int_equal(again.ready.epoch, 8);
    wire_message_deinit(&again);
    stop_group();
}

static void a_link_that_never_connects_ends_the_epoch(void **state)
{
    (void) state;
    start_group(200);
    say_assign(7);
    struct wire_message m = next_of(WIRE_READY);
    wire_message_deinit(&m);
    struct wire_message link = {.command = WIRE_LINK};
    link.link = (struct wire_link){.pipeline = 1, .epoch = 7, .endpoint = "tcp://127.0.0.1:1"};
    say(&link);
    m = next_of(WIRE_FAILED);
    assert_string_equal(m.failed.code, "link_lost");
    assert_non_null(strstr(m.failed.message, "tcp://127.0.0.1:1"));
    wire_message_deinit(&m);
    stop_group();
}

static int open_model(void **state)
{
    struct error e = {0};
    (void) state;
    check(model_config_load(&config, FIXTURES "/tiny-bf16", &e) == OK, "%s", e.text);
    check(checkpoint_open(&checkpoint, FIXTURES "/tiny-bf16", &e) == OK, "%s", e.text);
    return 0;
}

static int close_model(void **state)
{
    (void) state;
    checkpoint_close(&checkpoint);
    return 0;
}

static struct wire_message pong(void)
{
    struct wire_message ping = {.command = WIRE_PING, .ping.seq = 5};
    say(&ping);
    return next_of(WIRE_PONG);
}

// What PONG counts outlives the epoch, and the stage.
static void a_pong_tells_what_was_done(void **state)
{
    (void) state;
    int32_t ids[] = {1, 2, 3, 4, 5};
    start_group(60000);
    struct wire_message m = {.command = WIRE_ASSIGN};
    m.assign = (struct wire_assign){.pipeline = 1, .epoch = 7, .n_stages = 1,
                                    .last = config.n_layers, .tp = 1, .kv_blocks = 4, .slots = 2,
                                    .max_blocks = 2, .max_rows = 16, .max_out = 2,
                                    .steps_in_flight = 1, .max_context = 128, .chunk = 16,
                                    .plan = "plan", .precision = "f32"};
    say(&m);
    m = next_of(WIRE_READY);
    uint64_t total = m.ready.total_bytes;
    wire_message_deinit(&m);
    m = (struct wire_message){.command = WIRE_LINK, .link = {.pipeline = 1, .epoch = 7}};
    say(&m);
    m = next_of(WIRE_LINKED);
    wire_message_deinit(&m);
    m = (struct wire_message){.command = WIRE_JOB};
    m.job = (struct wire_job){.key = {"default", "job", 1}, .pipeline = 1, .epoch = 7,
                              .max_tokens = 4, .sampling = sampling_default(), .ignore_eos = true,
                              .attempts = 2, .ids = {ids, sizeof ids}};
    say(&m);
    m = next_of(WIRE_RESULT);
    wire_message_deinit(&m);
    m = pong();
    const struct wire_figures *f = &m.pong.figures;
    assert_true(m.pong.counted);
    assert_true(f->prefill_tokens == 5 && f->again_tokens == 5 && f->decode_tokens == 4);
    assert_true(f->rows == 8 && f->sampler_rows == 4); // the last token is no row
    assert_int_equal(histogram_count(&f->prefill_steps, HISTOGRAM_BUCKETS - 1), 1);
    assert_int_equal(histogram_count(&f->decode_steps, HISTOGRAM_BUCKETS - 1), 3);
    assert_int_equal(m.pong.steps, 4);
    assert_true(f->slots == 2 && f->running == 0 && f->kv_blocks == 4 && f->kv_reserved == 0);
    assert_true(f->n_ranks == 1 && f->ranks[0].busy_us > 0);
    assert_true(ledger_total(&f->ranks[0].memory) == total);
    assert_true(f->memory.bytes[LEDGER_SEQUENCES] > 0);
    wire_message_deinit(&m);
    m = (struct wire_message){.command = WIRE_UNASSIGN, .stage = {1, 7, 0}};
    say(&m);
    say_assign(8); // another stage
    m = next_of(WIRE_READY);
    wire_message_deinit(&m);
    m = pong();
    assert_true(f->prefill_tokens == 5 && f->decode_tokens == 4 && f->rows == 8);
    assert_int_equal(histogram_count(&f->decode_steps, HISTOGRAM_BUCKETS - 1), 3);
    assert_true(f->slots == 0 && f->kv_blocks == 0);
    wire_message_deinit(&m);
    stop_group();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_assignment_becomes_ready),
        cmocka_unit_test(an_assignment_said_again_changes_nothing),
        cmocka_unit_test(a_link_that_never_connects_ends_the_epoch),
        cmocka_unit_test(a_pong_tells_what_was_done),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
