#include "common/wire_socket.h"

#include "tests/support/sockets.h"
#include "tests/support/wire_examples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

// A broker's ROUTER and a group's DEALER.
struct pair {
    void *context;
    struct wire_socket broker, group;
    char endpoint[ENDPOINT_BYTES];
    char id[32]; // of the group, as the broker sees it
    size_t n_id;
};

static void open_pair(struct pair *p, bool tcp)
{
    *p = (struct pair){.context = zmq_ctx_new()};
    void *router = sockets_bind(p->context, ZMQ_ROUTER, tcp, "broker", p->endpoint);
    void *dealer = zmq_socket(p->context, ZMQ_DEALER);
    wire_socket_init(&p->broker, router, true);
    wire_socket_init(&p->group, dealer, false);
    check(zmq_connect(dealer, p->endpoint) == 0);
}

static void close_pair(struct pair *p)
{
    void *sockets[] = {p->broker.socket, p->group.socket};
    wire_socket_deinit(&p->broker);
    wire_socket_deinit(&p->group);
    for (int i = 0; i < 2; i++) zmq_close(sockets[i]);
    zmq_ctx_term(p->context);
}

static void to_broker(struct pair *p, const struct wire_message *m, struct wire_message *got)
{
    struct error e = {0};
    const void *id;
    assert_int_equal(wire_socket_send(&p->group, NULL, 0, m, &e), OK);
    assert_int_equal(sockets_receive(&p->broker, &id, &p->n_id, got, &e), OK);
    assert_true(p->n_id > 0 && p->n_id <= sizeof p->id);
    memcpy(p->id, id, p->n_id);
}

static void a_group_asks_and_the_broker_answers(void **state)
{
    (void) state;
    for (int tcp = 0; tcp < 2; tcp++) {
        struct pair p;
        struct error e = {0};
        struct wire_message ping = {.command = WIRE_PING, .ping.seq = 7}, got;
        open_pair(&p, tcp);
        to_broker(&p, &ping, &got);
        assert_true(got.command == WIRE_PING && got.ping.seq == 7);
        struct wire_message pong = {.command = WIRE_PONG, .term = 3, .pong.seq = got.ping.seq};
        assert_int_equal(wire_socket_send(&p.broker, p.id, p.n_id, &pong, &e), OK);
        assert_int_equal(sockets_receive(&p.group, NULL, NULL, &got, &e), OK);
        assert_true(got.command == WIRE_PONG && got.term == 3 && got.pong.seq == 7);
        close_pair(&p);
    }
}

static void every_command_travels_both_ways(void **state)
{
    (void) state;
    for (int tcp = 0; tcp < 2; tcp++) {
        struct pair p;
        struct error e = {0};
        open_pair(&p, tcp);
        for (int c = 0; c < WIRE_N_COMMANDS; c++) {
            struct wire_message m = wire_example((enum wire_command) c, true), got;
            to_broker(&p, &m, &got);
            assert_true(got.command == m.command && got.term == m.term);
            wire_message_deinit(&got);
            assert_int_equal(wire_socket_send(&p.broker, p.id, p.n_id, &m, &e), OK);
            assert_int_equal(sockets_receive(&p.group, NULL, NULL, &got, &e), OK);
            assert_true(got.command == m.command && got.term == m.term);
            wire_message_deinit(&got);
        }
        close_pair(&p);
    }
}

static void nothing_blocks(void **state)
{
    (void) state;
    struct pair p;
    struct error e = {0};
    struct wire_message m = {.command = WIRE_PING}, got;
    const void *id;
    size_t n;
    open_pair(&p, true);
    assert_int_equal(wire_socket_receive(&p.broker, &id, &n, &got, &e), ERR_UNAVAILABLE);
    assert_string_equal(e.code, "none");
    assert_int_equal(wire_socket_receive(&p.group, NULL, NULL, &got, &e), ERR_UNAVAILABLE);
    assert_int_equal(wire_socket_send(&p.broker, "nobody", 6, &m, &e), ERR_UNAVAILABLE);
    assert_string_equal(e.code, "peer_away");
    // A group that is connected to nobody.
    struct wire_socket alone;
    wire_socket_init(&alone, zmq_socket(p.context, ZMQ_DEALER), false);
    assert_int_equal(wire_socket_send(&alone, NULL, 0, &m, &e), ERR_UNAVAILABLE);
    assert_string_equal(e.code, "peer_away");
    zmq_close(alone.socket);
    wire_socket_deinit(&alone);
    close_pair(&p);
}

// After each, the next message is whole: nothing of a bad one is left in the socket.
static void bad_messages_are_refused_one_by_one(void **state)
{
    (void) state;
    for (int tcp = 0; tcp < 2; tcp++) {
        struct pair p;
        struct error e = {0};
        struct wire_message ping = {.command = WIRE_PING, .ping.seq = 7}, got;
        const void *id;
        size_t n_id;
        open_pair(&p, tcp);
        to_broker(&p, &ping, &got);
        static const struct {
            const char *frames[8];
            const char *code;
        } table[] = {
            {{""}, "bad_frame"},
            {{"PSTK\x01"}, "bad_frame"},
            {{"PSTK\x01", "BYE", "\x81\xa4term\x01"}, "bad_frame"},
            {{"PSTK\x01", "BYE", "\x81\xa4term\x01", "", ""}, "bad_frame"},
            {{"PSTK\x01", "BYE", "\x81\xa4term\x01", "", "", "", "more"}, "bad_frame"},
            {{"HTTP", "BYE", "\x81\xa4term\x01", ""}, "bad_frame"},
            {{"PSTK\x02", "BYE", "\x81\xa4term\x01", ""}, "bad_version"},
            {{"PSTK\x01", "HALLO", "\x81\xa4term\x01", ""}, "unknown_command"},
            {{"PSTK\x01", "BYE", "\xc1", ""}, "bad_msgpack"},
            {{"PSTK\x01", "BYE", "\x80", ""}, "bad_frame"},
        };
        for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
            const char *const *f = table[i].frames;
            sockets_send(p.group.socket, f[0], f[1], f[2], f[3], f[4], f[5], f[6], NULL);
            assert_int_not_equal(sockets_receive(&p.broker, &id, &n_id, &got, &e), OK);
            assert_string_equal(e.code, table[i].code);
            assert_int_equal(n_id, p.n_id); // so that it can be answered
            assert_memory_equal(id, p.id, n_id);
            wire_message_deinit(&got);
            to_broker(&p, &ping, &got);
            assert_int_equal(got.ping.seq, 7);
        }
        close_pair(&p);
    }
}

static void a_message_that_cannot_be_encoded_leaves_nothing_behind(void **state)
{
    (void) state;
    struct pair p;
    struct error e = {0};
    struct wire_message ping = {.command = WIRE_PING, .ping.seq = 7}, got, bad;
    open_pair(&p, false);
    bad = wire_example(WIRE_TOKENS, true);
    bad.tokens.offset = -1;
    assert_int_equal(wire_socket_send(&p.group, NULL, 0, &bad, &e), ERR_INPUT);
    to_broker(&p, &ping, &got);
    assert_int_equal(got.command, WIRE_PING);
    close_pair(&p);
}

static void sockets_are_bounded(void **state)
{
    (void) state;
    struct pair p;
    open_pair(&p, false);
    void *sockets[] = {p.broker.socket, p.group.socket};
    for (int i = 0; i < 2; i++) {
        int64_t most = 0;
        int linger = -1;
        size_t n = sizeof most, n_linger = sizeof linger;
        assert_int_equal(zmq_getsockopt(sockets[i], ZMQ_MAXMSGSIZE, &most, &n), 0);
        assert_int_equal(most, WIRE_BODY_MAX);
        assert_int_equal(zmq_getsockopt(sockets[i], ZMQ_LINGER, &linger, &n_linger), 0);
        assert_int_equal(linger, 0);
    }
    close_pair(&p);
}

static void an_error_message_is_cut_to_its_size(void **state)
{
    (void) state;
    char text[1000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    struct wire_message m = wire_error_message("unknown_peer", "say HELLO");
    assert_int_equal(m.command, WIRE_ERROR);
    assert_string_equal(m.error.code, "unknown_peer");
    assert_string_equal(m.error.message, "say HELLO");
    m = wire_error_message(text, text);
    assert_int_equal(strlen(m.error.code), ERROR_CODE_SIZE - 1);
    assert_int_equal(strlen(m.error.message), ERROR_TEXT_SIZE - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_group_asks_and_the_broker_answers),
        cmocka_unit_test(every_command_travels_both_ways),
        cmocka_unit_test(nothing_blocks),
        cmocka_unit_test(bad_messages_are_refused_one_by_one),
        cmocka_unit_test(a_message_that_cannot_be_encoded_leaves_nothing_behind),
        cmocka_unit_test(sockets_are_bounded),
        cmocka_unit_test(an_error_message_is_cut_to_its_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
