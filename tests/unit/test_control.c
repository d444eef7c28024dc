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
    struct control_options options = {.brokers = {{.endpoint = endpoint}}, .n_brokers = 1};
    assert_int_equal(control_open(&control, context, &options, &e), OK);
    sockets_wait(control.links[0].socket, ZMQ_POLLOUT);
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
    do sockets_wait(control.links[0].socket, ZMQ_POLLIN);
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
        assert_int_equal(control.links[0].heard_ms, 1234);
        say(WIRE_PING, 4);
        assert_int_equal(next_at_group(1234).command, WIRE_PING);
        m = wire_example(WIRE_BYE, false);
        m.term = 99; // the term is stamped, whatever the message says
        assert_true(control_send(&control, &m));
        assert_int_equal(next_at_broker().term, 4);
        assert_false(control_receive(&control, &m, 2000));
        assert_int_equal(control.links[0].heard_ms, 1234); // nothing was heard since
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
        zmq_pollitem_t item = {.socket = control.links[0].socket, .events = ZMQ_POLLIN};
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
    sockets_wait(control.links[0].socket, ZMQ_POLLOUT);
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
    const struct control_options nonsense = {.brokers = {{.endpoint = "nonsense"}},
                                             .n_brokers = 1};
    assert_int_equal(control_open(&control, context, &nonsense, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_endpoint");
    assert_non_null(strstr(e.text, "nonsense"));
    assert_null(control.links[0].socket);
    control_close(&control, 0); // harmless
    zmq_ctx_term(context);
}

// --- several brokers

enum { BROKERS = 3 };

static struct wire_socket brokers[BROKERS];
static char names[BROKERS][ENDPOINT_BYTES];

static void open_several(void)
{
    struct control_options options = {.n_brokers = BROKERS};
    context = zmq_ctx_new();
    for (int i = 0; i < BROKERS; i++) {
        char name[16];
        snprintf(name, sizeof name, "broker-%d", i);
        wire_socket_init(&brokers[i], sockets_bind(context, ZMQ_ROUTER, false, name, names[i]),
                         true);
        options.brokers[i].endpoint = names[i];
    }
    assert_int_equal(control_open(&control, context, &options, &e), OK);
    for (int i = 0; i < BROKERS; i++) sockets_wait(control.links[i].socket, ZMQ_POLLOUT);
}

static void close_several(void)
{
    control_close(&control, 0);
    for (int i = 0; i < BROKERS; i++) {
        void *socket = brokers[i].socket;
        wire_socket_deinit(&brokers[i]);
        zmq_close(socket);
    }
    zmq_ctx_term(context);
}

// The ids that the ROUTERs gave the group.
static char ids[BROKERS][8];
static size_t n_ids[BROKERS];

static struct wire_message next_at(int i)
{
    struct wire_message m;
    const void *id;
    assert_int_equal(sockets_receive(&brokers[i], &id, &n_ids[i], &m, &e), OK);
    assert_true(n_ids[i] <= sizeof ids[i]);
    memcpy(ids[i], id, n_ids[i]);
    return m;
}

static void nothing_at(int i)
{
    struct wire_message m;
    const void *id;
    size_t n;
    assert_int_equal(wire_socket_receive(&brokers[i], &id, &n, &m, &e), ERR_UNAVAILABLE);
}

static void meet_all(void)
{
    for (int i = 0; i < BROKERS; i++) {
        struct wire_message hello = wire_example(WIRE_HELLO, false);
        assert_true(control_send_to(&control, i, &hello));
        hello = next_at(i);
        assert_int_equal(hello.command, WIRE_HELLO);
        wire_message_deinit(&hello);
    }
}

static void say_as(int i, enum wire_command command, uint64_t term, const char *code)
{
    struct wire_message m = wire_example(command, false);
    if (code != NULL) m = wire_error_message(code, "x");
    m.term = term;
    assert_int_equal(wire_socket_send(&brokers[i], ids[i], n_ids[i], &m, &e), OK);
}

static enum wire_command got_from(int i)
{
    struct wire_message m;
    sockets_wait(control.links[i].socket, ZMQ_POLLIN);
    if (!control_receive(&control, &m, 1)) return WIRE_N_COMMANDS;
    enum wire_command command = m.command;
    wire_message_deinit(&m);
    return command;
}

static void expect_stale(int i, uint64_t term)
{
    struct wire_message m = next_at(i);
    assert_int_equal(m.command, WIRE_ERROR);
    assert_string_equal(m.error.code, "stale_term");
    assert_int_equal(m.term, term);
    wire_message_deinit(&m);
}

static void reports_go_to_the_leader_alone(void **state)
{
    (void) state;
    struct wire_message pong = wire_example(WIRE_PONG, false);
    open_several();
    meet_all();
    assert_false(control_send(&control, &pong)); // nobody leads yet
    assert_int_equal(control.n_dropped, 1);
    say_as(0, WIRE_STANDBY, 4, NULL);
    assert_int_equal(got_from(0), WIRE_STANDBY);
    assert_true(control.term == 4 && control.leader == -1 && control.links[0].stands_by);
    say_as(1, WIRE_PING, 4, NULL);
    assert_int_equal(got_from(1), WIRE_PING);
    assert_int_equal(control.leader, 1);
    assert_true(control_send(&control, &pong));
    assert_int_equal(next_at(1).command, WIRE_PONG);
    nothing_at(0);
    nothing_at(2);
    // Another one of the same term is none, whatever it says.
    say_as(2, WIRE_UNASSIGN, 4, NULL);
    assert_int_equal(got_from(2), WIRE_N_COMMANDS);
    expect_stale(2, 4);
    assert_int_equal(control.leader, 1);
    close_several();
}

static void the_leader_changes(void **state)
{
    (void) state;
    open_several();
    meet_all();
    say_as(1, WIRE_PING, 4, NULL);
    assert_int_equal(got_from(1), WIRE_PING);
    say_as(0, WIRE_ERROR, 6, "unknown_peer"); // it took over
    assert_int_equal(got_from(0), WIRE_ERROR);
    assert_true(control.leader == 0 && control.term == 6);
    say_as(1, WIRE_DRAIN, 4, NULL); // as one that was stopped and goes on
    assert_int_equal(got_from(1), WIRE_N_COMMANDS);
    expect_stale(1, 6);
    // A standby that has not heard of the change yet is one nevertheless.
    say_as(2, WIRE_STANDBY, 4, NULL);
    assert_int_equal(got_from(2), WIRE_STANDBY);
    assert_true(control.leader == 0 && control.term == 6 && control.links[2].stands_by);
    // One that has heard of a newer leadership: this one is over, though it says nothing itself.
    say_as(2, WIRE_STANDBY, 7, NULL);
    assert_int_equal(got_from(2), WIRE_STANDBY);
    assert_true(control.leader == -1 && control.term == 7);
    say_as(0, WIRE_PING, 7, NULL);
    assert_int_equal(got_from(0), WIRE_PING);
    assert_int_equal(control.leader, 0);
    // The leader started again, and stands by now.
    say_as(0, WIRE_STANDBY, 8, NULL);
    assert_int_equal(got_from(0), WIRE_STANDBY);
    assert_true(control.leader == -1 && control.term == 8);
    // A complaint makes nobody the leader; a command does.
    say_as(2, WIRE_ERROR, 8, "bad_frame");
    assert_int_equal(got_from(2), WIRE_ERROR);
    assert_int_equal(control.leader, -1);
    say_as(2, WIRE_PING, 8, NULL);
    assert_int_equal(got_from(2), WIRE_PING);
    assert_int_equal(control.leader, 2);
    close_several();
}

static void silence_is_each_brokers_own(void **state)
{
    (void) state;
    open_several();
    meet_all();
    assert_int_equal(control_leader_silence(&control, 100), INT64_MAX);
    for (int i = 0; i < BROKERS; i++) assert_true(control_silent(&control, i, 5000));
    say_as(1, WIRE_PING, 4, NULL);
    assert_int_equal(got_from(1), WIRE_PING); // at 1
    assert_int_equal(control_leader_silence(&control, 100), 99);
    assert_false(control_silent(&control, 1, 2001));
    assert_true(control_silent(&control, 1, 2002));
    control.links[1].greeted_ms = 2002;
    assert_false(control_silent(&control, 1, 3001));
    assert_true(control_silent(&control, 1, 3002) && control_silent(&control, 0, 3002));
    close_several();
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
        cmocka_unit_test_setup(reports_go_to_the_leader_alone, setup),
        cmocka_unit_test_setup(the_leader_changes, setup),
        cmocka_unit_test_setup(silence_is_each_brokers_own, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
