#include "workers/control.h"

#include "tests/support/sockets.h"
#include "tests/support/wire_examples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

static void *context;
static struct wire_socket broker;
static char endpoint[ENDPOINT_BYTES];
static char peer[32]; // the group, as the broker sees it
static size_t n_peer;
static struct control control;
static struct error e;

static void open_both(bool tcp)
{
    context = zmq_ctx_new();
    wire_socket_init(&broker, sockets_bind(context, ZMQ_ROUTER, tcp, "broker", endpoint), true);
    assert_int_equal(control_open(&control, context,
                                  &(struct control_options){.endpoint = endpoint}, &e), OK);
    sockets_wait(control.socket, ZMQ_POLLOUT);
}

static void close_broker(void)
{
    void *socket = broker.socket;
    wire_socket_deinit(&broker);
    zmq_close(socket);
}

static void close_both(void)
{
    control_close(&control, 0);
    close_broker();
    zmq_ctx_term(context);
}

static int setup(void **state)
{
    (void) state;
    e = (struct error){0};
    return 0;
}

// The next message at the broker.
static struct wire_message next_at_broker(void)
{
    struct wire_message m;
    const void *id;
    assert_int_equal(sockets_receive(&broker, &id, &n_peer, &m, &e), OK);
    assert_true(n_peer <= sizeof peer);
    memcpy(peer, id, n_peer);
    return m;
}

static void say(enum wire_command command, uint64_t term)
{
    struct wire_message m = wire_example(command, false);
    m.term = term;
    assert_int_equal(wire_socket_send(&broker, peer, n_peer, &m, &e), OK);
}

// The group's next message that control_receive lets through.
static struct wire_message next_at_group(int64_t now_ms)
{
    struct wire_message m;
    do sockets_wait(control.socket, ZMQ_POLLIN);
    while (!control_receive(&control, &m, now_ms));
    return m;
}

static void meet(void)
{
    struct wire_message hello = wire_example(WIRE_HELLO, false);
    assert_true(control_send(&control, &hello));
    struct wire_message got = next_at_broker();
    assert_int_equal(got.command, WIRE_HELLO);
    wire_message_deinit(&got);
}

static void a_group_says_hello_and_follows_the_term(void **state)
{
    (void) state;
    for (int tcp = 0; tcp < 2; tcp++) {
        open_both(tcp);
        meet();
        say(WIRE_STANDBY, 4);
        struct wire_message m = next_at_group(1234);
        assert_true(m.command == WIRE_STANDBY && control.term == 4);
        assert_int_equal(control.heard_ms, 1234);
        m = wire_example(WIRE_BYE, false);
        m.term = 99; // the term is stamped, whatever the message says
        assert_true(control_send(&control, &m));
        assert_int_equal(next_at_broker().term, 4);
        assert_false(control_receive(&control, &m, 2000));
        assert_int_equal(control.heard_ms, 1234); // nothing was heard since
        close_both();
    }
}

static void an_older_term_is_answered_and_skipped(void **state)
{
    (void) state;
    open_both(false);
    meet();
    say(WIRE_PING, 5);
    assert_int_equal(next_at_group(1).command, WIRE_PING);
    say(WIRE_DRAIN, 4);
    say(WIRE_STANDBY, 5);
    assert_int_equal(next_at_group(2).command, WIRE_STANDBY);
    struct wire_message answer = next_at_broker();
    assert_int_equal(answer.command, WIRE_ERROR);
    assert_string_equal(answer.error.code, "stale_term");
    assert_int_equal(answer.term, 5);
    say(WIRE_DRAIN, 6); // a newer one is followed
    assert_int_equal(next_at_group(3).command, WIRE_DRAIN);
    assert_int_equal(control.term, 6);
    close_both();
}

static void what_is_malformed_is_answered_and_skipped(void **state)
{
    (void) state;
    open_both(false);
    meet();
    static const struct {
        const char *frames[4];
        const char *code; // NULL: no answer, an ERROR is never answered by one
    } table[] = {
        {{"PSTK\x01", "DRAIN", "\x80"}, "bad_frame"},
        {{"PSTK\x01", "DRAIN", "\xc1", ""}, "bad_msgpack"},
        {{"PSTK\x02", "DRAIN", "\x81\xa4term\x09", ""}, "bad_version"},
        {{"PSTK\x01", "WHAT", "\x81\xa4term\x09", ""}, "unknown_command"},
        {{"PSTK\x01", "ERROR", "\x80", ""}, NULL},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const char *const *f = table[i].frames;
        assert_int_equal(zmq_send(broker.socket, peer, n_peer, ZMQ_SNDMORE), n_peer);
        sockets_send(broker.socket, f[0], f[1], f[2], f[3], NULL);
        say(WIRE_PING, 3);
        assert_int_equal(next_at_group(1).command, WIRE_PING);
        assert_int_equal(control.term, 3); // not what a refused frame says
        if (table[i].code == NULL) continue;
        struct wire_message answer = next_at_broker();
        assert_int_equal(answer.command, WIRE_ERROR);
        assert_string_equal(answer.error.code, table[i].code);
    }
    say(WIRE_ERROR, 1); // stale, and an ERROR
    say(WIRE_PING, 3);
    assert_int_equal(next_at_group(1).command, WIRE_PING);
    struct wire_message m;
    const void *id;
    assert_int_equal(wire_socket_receive(&broker, &id, &n_peer, &m, &e), ERR_UNAVAILABLE);
    close_both();
}

static void the_same_error_is_news_once(void **state)
{
    (void) state;
    open_both(false);
    meet();
    struct wire_error refused = wire_error_message("too_small", "1 of 2 bytes").error;
    assert_true(control_error_is_new(&control, &refused));
    assert_false(control_error_is_new(&control, &refused));
    struct wire_error other = wire_error_message("too_small", "1 of 3 bytes").error;
    assert_true(control_error_is_new(&control, &other));
    assert_true(control_error_is_new(&control, &refused));
    say(WIRE_PING, 5);
    struct wire_message m = next_at_group(100);
    wire_message_deinit(&m);
    assert_false(control_error_is_new(&control, &refused));
    say(WIRE_ASSIGN, 5); // it was let in meanwhile
    m = next_at_group(100);
    wire_message_deinit(&m);
    assert_true(control_error_is_new(&control, &refused));
    close_both();
}

static void what_finds_no_broker_is_dropped_and_counted(void **state)
{
    (void) state;
    open_both(true);
    meet();
    char old[ENDPOINT_BYTES];
    strcpy(old, endpoint);
    close_broker();
    struct wire_message ping = wire_example(WIRE_PING, false);
    // The connection's end takes a moment to be noticed; what is sent until then is lost with it.
    while (control_send(&control, &ping)) {
        zmq_pollitem_t item = {.socket = control.socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, 1);
    }
    assert_int_equal(control.n_dropped, 1);
    assert_false(control_send(&control, &ping));
    assert_int_equal(control.n_dropped, 2);
    // A broker on the same port is found again, and hears nothing of what was dropped.
    void *again = zmq_socket(context, ZMQ_ROUTER);
    int zero = 0;
    zmq_setsockopt(again, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_bind(again, old), 0);
    wire_socket_init(&broker, again, true);
    sockets_wait(control.socket, ZMQ_POLLOUT);
    meet();
    close_both();
}

static void what_cannot_be_encoded_is_not_sent(void **state)
{
    (void) state;
    open_both(false);
    struct wire_message bad = wire_example(WIRE_TOKENS, true);
    bad.tokens.offset = -1;
    assert_false(control_send(&control, &bad));
    assert_int_equal(control.n_dropped, 0);
    meet();
    close_both();
}

static void an_endpoint_that_is_none_is_named(void **state)
{
    (void) state;
    context = zmq_ctx_new();
    const struct control_options nonsense = {.endpoint = "nonsense"};
    assert_int_equal(control_open(&control, context, &nonsense, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_endpoint");
    assert_non_null(strstr(e.text, "nonsense"));
    assert_null(control.socket);
    control_close(&control, 0); // harmless
    zmq_ctx_term(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_group_says_hello_and_follows_the_term, setup),
        cmocka_unit_test_setup(an_older_term_is_answered_and_skipped, setup),
        cmocka_unit_test_setup(what_is_malformed_is_answered_and_skipped, setup),
        cmocka_unit_test_setup(the_same_error_is_news_once, setup),
        cmocka_unit_test_setup(what_finds_no_broker_is_dropped_and_counted, setup),
        cmocka_unit_test_setup(what_cannot_be_encoded_is_not_sent, setup),
        cmocka_unit_test_setup(an_endpoint_that_is_none_is_named, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
