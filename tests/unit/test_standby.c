// A broker that stands by, over sockets: what it answers, whom it remembers, and what it says when
// it leads.
#include "broker/standby.h"

#include "tests/support/sockets.h"
#include "tests/support/wire_examples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

enum { GROUPS = 3 };

static void *context, *router;
static char endpoint[ENDPOINT_BYTES];
static struct standby standby;
static struct wire_socket groups[GROUPS];
static struct error e;

static int setup(void **state)
{
    (void) state;
    context = zmq_ctx_new();
    router = sockets_bind(context, ZMQ_ROUTER, false, "standby", endpoint);
    standby_init(&standby, router, NULL);
    standby_follow(&standby, 4);
    for (int i = 0; i < GROUPS; i++) {
        void *socket = zmq_socket(context, ZMQ_DEALER);
        assert_int_equal(zmq_connect(socket, endpoint), 0);
        wire_socket_init(&groups[i], socket, false);
    }
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    for (int i = 0; i < GROUPS; i++) {
        void *socket = groups[i].socket;
        wire_socket_deinit(&groups[i]);
        zmq_close(socket);
    }
    standby_deinit(&standby);
    zmq_close(router);
    zmq_ctx_term(context);
    return 0;
}

static void say(int group, enum wire_command command)
{
    struct wire_message m = wire_example(command, false);
    assert_int_equal(wire_socket_send(&groups[group], NULL, 0, &m, &e), OK);
}

// What the standby answers to all that was said.
static void hear(void)
{
    sockets_wait(router, ZMQ_POLLIN);
    standby_receive(&standby);
}

static void expect(int group, enum wire_command command, uint64_t term)
{
    struct wire_message m;
    assert_int_equal(sockets_receive(&groups[group], NULL, NULL, &m, &e), OK);
    assert_string_equal(wire_command_name(m.command), wire_command_name(command));
    assert_int_equal(m.term, term);
    if (command == WIRE_ERROR) assert_string_equal(m.error.code, "unknown_peer");
    wire_message_deinit(&m);
}

static void expect_nothing(int group)
{
    struct wire_message m;
    assert_int_equal(wire_socket_receive(&groups[group], NULL, NULL, &m, &e), ERR_UNAVAILABLE);
}

static void whoever_spoke_is_asked_for_hello_when_it_leads(void **state)
{
    (void) state;
    say(0, WIRE_HELLO);
    hear();
    expect(0, WIRE_STANDBY, 4);
    standby_follow(&standby, 5); // yet another leader
    say(0, WIRE_PING);
    hear();
    expect(0, WIRE_STANDBY, 5);
    say(1, WIRE_RESULT); // meant for a leader; it is kept by its sender
    hear();
    expect(1, WIRE_STANDBY, 5);
    assert_int_equal(standby.n_known, 2);
    standby_ends(&standby, 6);
    expect(0, WIRE_ERROR, 6);
    expect(1, WIRE_ERROR, 6);
    expect_nothing(0);
    expect_nothing(2); // it has said nothing
    assert_int_equal(standby.n_known, 0);
}

static void good_byes_and_errors_are_not_answered(void **state)
{
    (void) state;
    say(0, WIRE_ERROR);
    hear();
    say(0, WIRE_BYE);
    hear();
    assert_int_equal(standby.n_known, 0);
    say(0, WIRE_PING);
    hear();
    expect(0, WIRE_STANDBY, 4);
    expect_nothing(0);
}

static void only_the_latest_are_remembered(void **state)
{
    (void) state;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        standby.known[i] = (struct peer){.bytes = {1, 2, (uint8_t) i, (uint8_t) (i >> 8)}, .n = 4};
    }
    standby.n_known = FLEET_GROUPS_MAX;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < GROUPS; i++) {
            say(i, WIRE_HELLO);
            hear();
            expect(i, WIRE_STANDBY, 4);
        }
    }
    assert_true(standby.n_known == FLEET_GROUPS_MAX && standby.next == GROUPS);
    standby_ends(&standby, 5); // those that are gone do no harm
    for (int i = 0; i < GROUPS; i++) expect(i, WIRE_ERROR, 5);
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(whoever_spoke_is_asked_for_hello_when_it_leads),
        test(good_byes_and_errors_are_not_answered),
        test(only_the_latest_are_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
