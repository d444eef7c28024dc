#include "broker/peers.h"

#include "tests/support/sockets.h"
#include "tests/support/wire_examples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

static void *context;
static struct peers peers;
static struct wire_socket group; // a DEALER
static struct fleet fleet;
static struct error e;
static char done[64]; // what the fleet wanted done: a(ssign), l(ink), u(nassign), U(p), D(own)

static void record(char what)
{
    size_t n = strlen(done);
    if (n + 1 < sizeof done) done[n] = what, done[n + 1] = '\0';
}

static void on_assign(void *arg, const struct group *g, const struct fleet_assign *a)
{
    struct wire_assign template = wire_example(WIRE_ASSIGN, false).assign;
    record('a');
    peers_assign(arg, g, &template, a);
}

static void on_link(void *arg, const struct group *g, const struct pipeline *p, const char *next)
{
    record('l');
    assert_true(peers_link(arg, g, p, next[0] != '\0' ? next : "inproc://self"));
}

static void on_unassign(void *arg, const struct group *g, uint64_t pipeline, uint64_t epoch)
{
    record('u');
    peers_unassign(arg, g, pipeline, epoch);
}

static void on_up(void *arg, const struct pipeline *p, const struct group *head, bool adopted)
{
    (void) arg, (void) p, (void) head, (void) adopted;
    record('U');
}

static void on_down(void *arg, const struct pipeline *p, const char *reason)
{
    (void) arg, (void) p, (void) reason;
    record('D');
}

static void on_random(void *arg, void *bytes, size_t n)
{
    (void) arg;
    memset(bytes, 0xab, n);
}

static int setup(void **state)
{
    (void) state;
    static uint64_t epoch;
    static const struct fleet_options options = {
        .n_stages = 1, .layers = {2}, .plan_hash = "c0ffee", .epoch = &epoch, .dead_ms = 5000};
    epoch = 6;
    char endpoint[ENDPOINT_BYTES];
    context = zmq_ctx_new();
    peers_init(&peers, sockets_bind(context, ZMQ_ROUTER, false, "broker", endpoint), 3);
    wire_socket_init(&group, zmq_socket(context, ZMQ_DEALER), false);
    check(zmq_connect(group.socket, endpoint) == 0);
    struct fleet_actions actions = {&peers, on_assign, on_link,  on_unassign,
                                    on_up,  on_down,   on_random};
    fleet_init(&fleet, &options, &actions, 0);
    done[0] = '\0';
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    void *sockets[] = {peers.wire.socket, group.socket};
    peers_deinit(&peers);
    wire_socket_deinit(&group);
    for (int i = 0; i < 2; i++) zmq_close(sockets[i]);
    zmq_ctx_term(context);
    return 0;
}

// The group says m; the broker hands it to the fleet. Returns whether the fleet took it.
static bool tell(const struct wire_message *m, struct peer *from)
{
    struct wire_message got;
    assert_int_equal(wire_socket_send(&group, NULL, 0, m, &e), OK);
    do sockets_wait(peers.wire.socket, ZMQ_POLLIN);
    while (peers_receive(&peers, from, &got) != PEERS_MESSAGE);
    assert_int_equal(got.command, m->command);
    bool taken = peers_to_fleet(&peers, &fleet, from, &got, 100);
    wire_message_deinit(&got);
    return taken;
}

static struct wire_message answer(void)
{
    struct wire_message m;
    assert_int_equal(sockets_receive(&group, NULL, NULL, &m, &e), OK);
    assert_int_equal(m.term, 3); // on every message
    return m;
}

static void a_group_becomes_a_pipeline(void **state)
{
    (void) state;
    struct peer from;
    struct wire_message m = wire_example(WIRE_HELLO, false);
    assert_true(tell(&m, &from));
    fleet_tick(&fleet, 100);
    m = answer();
    assert_int_equal(m.command, WIRE_ASSIGN);
    assert_true(m.assign.epoch >= 7 && m.assign.stage == 0 && m.assign.n_stages == 1);
    assert_true(m.assign.first == 0 && m.assign.last == 2);
    assert_int_equal(m.assign.kv_blocks, 64); // from the template
    assert_int_equal(m.assign.token[0], 0xab);
    uint64_t pipeline = m.assign.pipeline, epoch = m.assign.epoch;
    m = wire_example(WIRE_READY, false);
    m.ready.pipeline = pipeline, m.ready.epoch = epoch, m.ready.stage = 0;
    assert_true(tell(&m, &from));
    fleet_tick(&fleet, 100);
    m = answer();
    assert_int_equal(m.command, WIRE_LINK);
    assert_true(m.link.epoch == epoch);
    assert_string_equal(m.link.endpoint, "inproc://self");
    m = wire_example(WIRE_LINKED, false);
    m.stage.pipeline = pipeline, m.stage.epoch = epoch;
    assert_true(tell(&m, &from));
    fleet_tick(&fleet, 100);
    assert_string_equal(done, "alU");
    const struct group *head = fleet_find(&fleet, &from);
    assert_ptr_equal(fleet_head(&fleet, fleet_pipeline(&fleet, head)), head);
    m = wire_example(WIRE_BYE, false);
    assert_true(tell(&m, &from));
    assert_int_equal(fleet_n_pipelines(&fleet, PIPELINE_SERVING), 0);
    assert_null(fleet_find(&fleet, &from));
}

static void other_commands_are_for_others(void **state)
{
    (void) state;
    static const enum wire_command fleets[] = {WIRE_HELLO, WIRE_READY, WIRE_LINKED, WIRE_FAILED,
                                               WIRE_BYE, WIRE_DRAIN};
    for (int c = 0; c < WIRE_N_COMMANDS; c++) {
        bool expected = false;
        struct peer from;
        struct wire_message m = wire_example((enum wire_command) c, true);
        for (size_t i = 0; i < sizeof fleets / sizeof *fleets; i++)
            expected |= m.command == fleets[i];
        assert_int_equal(tell(&m, &from), expected);
    }
}

static void a_full_fleet_refuses(void **state)
{
    (void) state;
    struct held_assignment none = {0};
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct peer p = {.bytes = {1, (uint8_t) i, (uint8_t) (i >> 8)}, .n = 3};
        char name[32];
        snprintf(name, sizeof name, "group-%d", i);
        assert_int_equal(fleet_hello(&fleet, &p, name, "node", (uint64_t) i, &none, 0, &e), OK);
    }
    struct peer from;
    struct wire_message m = wire_example(WIRE_HELLO, false);
    assert_true(tell(&m, &from));
    m = answer();
    assert_int_equal(m.command, WIRE_ERROR);
    assert_string_equal(m.error.code, "fleet_full");
}

static void what_is_malformed_is_answered_and_skipped(void **state)
{
    (void) state;
    static const struct {
        const char *frames[4];
        const char *code; // NULL: no answer
    } table[] = {
        {{"GET / HTTP/1.1"}, "bad_frame"},
        {{"PSTK\x01", "BYE", "\xc1", ""}, "bad_msgpack"},
        {{"PSTK\x07", "BYE", "\x81\xa4term\x01", ""}, "bad_version"},
        {{"PSTK\x01", "WHAT", "\x81\xa4term\x01", ""}, "unknown_command"},
        {{"PSTK\x01", "ERROR", "\x80", ""}, NULL},
    };
    struct peer from;
    struct wire_message ping = wire_example(WIRE_PING, false);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const char *const *f = table[i].frames;
        sockets_send(group.socket, f[0], f[1], f[2], f[3], NULL);
        assert_false(tell(&ping, &from)); // comes behind, and is no matter of the fleet's
        if (table[i].code == NULL) continue;
        struct wire_message m = answer();
        assert_int_equal(m.command, WIRE_ERROR);
        assert_string_equal(m.error.code, table[i].code);
    }
    struct wire_message m;
    assert_int_equal(peers_receive(&peers, &from, &m), PEERS_NOTHING);
    assert_int_equal(wire_socket_receive(&group, NULL, NULL, &m, &e), ERR_UNAVAILABLE);
}

static void count(void *arg, const struct peer *from, const struct wire_message *m)
{
    (void) from;
    assert_int_equal(m->command, WIRE_PING);
    ++*(int *) arg;
}

// The frames of a turn are counted, whatever they hold: two turns for twice as many, and the word
// that came behind them is heard in the third.
static void a_flood_of_malformed_frames_ends_a_turn(void **state)
{
    (void) state;
    struct wire_message ping = wire_example(WIRE_PING, false);
    int n = 0, turns = 1;
    for (int i = 0; i < 2 * TURN_MESSAGES_MAX; i++) sockets_send(group.socket, "junk", NULL);
    assert_int_equal(wire_socket_send(&group, NULL, 0, &ping, &e), OK);
    for (; n == 0; turns++) {
        sockets_wait(peers.wire.socket, ZMQ_POLLIN);
        bool over = peers_turn(&peers, count, &n);
        assert_int_equal(over, n > 0);
    }
    assert_int_equal(turns - 1, 3);
}

static void a_peer_that_is_gone_cannot_be_told(void **state)
{
    (void) state;
    struct peer nobody = {.bytes = "gone", .n = 4}, from;
    struct wire_message m = wire_example(WIRE_PING, false), bad = wire_example(WIRE_TOKENS, true);
    assert_false(peers_send(&peers, &nobody, &m));
    assert_false(tell(&m, &from));
    assert_true(peers_send(&peers, &from, &m));
    assert_int_equal(answer().command, WIRE_PING);
    bad.tokens.offset = -1;
    assert_false(peers_send(&peers, &from, &bad));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_group_becomes_a_pipeline, setup, teardown),
        cmocka_unit_test_setup_teardown(other_commands_are_for_others, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_fleet_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_malformed_is_answered_and_skipped, setup, teardown),
        cmocka_unit_test_setup_teardown(a_flood_of_malformed_frames_ends_a_turn, setup, teardown),
        cmocka_unit_test_setup_teardown(a_peer_that_is_gone_cannot_be_told, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
