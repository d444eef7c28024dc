#include "broker/allow.h"

#include "broker/peers.h"
#include "tests/support/folder.h"
#include "tests/support/sockets.h"
#include "tests/support/wire_examples.h"
#include "workers/control.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { PATIENCE = 6000, TURN_MS = 10 };

static char folder[FOLDER_SIZE], endpoint[ENDPOINT_BYTES];
static void *context, *zap, *router;
static struct allow allow;
static struct peers peers;
static struct curve_pair server, member, stranger;
static struct control group;
static int64_t now_ms;
static struct error e;

static const char *path(const char *name)
{
    static char p[128];
    snprintf(p, sizeof p, "%s/%s", folder, name);
    return p;
}

static void put(const char *name, const char *key)
{
    FILE *f = fopen(path(name), "w");
    assert_non_null(f);
    fprintf(f, "public = %s\n", key);
    fclose(f);
}

static int setup(void **state)
{
    (void) state;
    size_t n = sizeof endpoint;
    e = (struct error){0};
    now_ms = 1000;
    assert_int_equal(curve_make(&server, &e) + curve_make(&member, &e) + curve_make(&stranger, &e),
                     OK);
    put("member.pub", member.public_key);
    assert_int_equal(allow_init(&allow, folder, &e), OK);
    context = zmq_ctx_new();
    zap = zmq_socket(context, ZMQ_REP);
    assert_int_equal(zmq_bind(zap, ALLOW_ENDPOINT), 0);
    router = zmq_socket(context, ZMQ_ROUTER);
    assert_int_equal(curve_apply(router, &server, NULL, &e), OK);
    peers_init(&peers, router, 1);
    peers.allow = &allow;
    assert_int_equal(zmq_bind(router, "tcp://127.0.0.1:*"), 0);
    zmq_getsockopt(router, ZMQ_LAST_ENDPOINT, endpoint, &n);
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    control_close(&group, 0);
    peers_deinit(&peers);
    zmq_close(router);
    zmq_close(zap);
    zmq_ctx_term(context);
    unlink(path("member.pub"));
    unlink(path("stranger.pub"));
    return 0;
}

static void connect_as(const struct curve_pair *p, const char *broker_key)
{
    struct control_options o = {
        .brokers = {{endpoint, broker_key}}, .n_brokers = 1, .pair = p};
    assert_int_equal(control_open(&group, context, &o, &e), OK);
}

// One turn of both sides. True if a message came to the broker.
static bool turn(struct peer *from, struct wire_message *m)
{
    zmq_pollitem_t items[] = {{.socket = zap, .events = ZMQ_POLLIN},
                              {.socket = router, .events = ZMQ_POLLIN},
                              {.socket = group.links[0].monitor, .events = ZMQ_POLLIN}};
    zmq_poll(items, 3, TURN_MS);
    now_ms += TURN_MS;
    while (allow_answer(&allow, zap)) {}
    control_watch(&group, now_ms);
    return peers_receive(&peers, from, m) == PEERS_MESSAGE;
}

// The group says HELLO until the broker has it.
static struct peer met(void)
{
    struct wire_message hello = wire_example(WIRE_HELLO, false), got;
    struct peer from;
    for (int i = 0; i < PATIENCE; i++) {
        control_send(&group, &hello);
        if (!turn(&from, &got)) continue;
        assert_int_equal(got.command, WIRE_HELLO);
        wire_message_deinit(&got);
        return from;
    }
    fail_msg("never met");
    return from;
}

static void a_member_is_known_by_its_key(void **state)
{
    (void) state;
    connect_as(&member, server.public_key);
    struct peer from = met();
    assert_string_equal(from.key, member.public_key);
}

static void a_stranger_gets_in_once_it_is_allowed(void **state)
{
    (void) state;
    struct wire_message hello = wire_example(WIRE_HELLO, false), got;
    struct peer from;
    connect_as(&stranger, server.public_key);
    for (int i = 0; i < PATIENCE && group.links[0].reopen_ms == 0; i++) { // until it knows
        control_send(&group, &hello);
        assert_false(turn(&from, &got));
    }
    assert_true(group.links[0].reopen_ms != 0);
    const struct error why = {.code = "not_allowed"};
    assert_false(refusals_new(&allow.refused, stranger.public_key, "", &why)); // told once
    put("stranger.pub", stranger.public_key);
    assert_true(allow_refresh(&allow));
    assert_false(allow_refresh(&allow)); // no change since
    from = met(); // on a new socket
    assert_string_equal(from.key, stranger.public_key);
    assert_true(refusals_new(&allow.refused, stranger.public_key, "", &why)); // forgotten
}

static void a_key_that_is_taken_out_says_nothing_more(void **state)
{
    (void) state;
    struct wire_message hello = wire_example(WIRE_HELLO, false), got;
    struct peer from;
    connect_as(&member, server.public_key);
    met();
    assert_int_equal(unlink(path("member.pub")), 0);
    assert_true(allow_refresh(&allow));
    assert_false(allow_has(&allow, member.public_key));
    bool told = false;
    for (int i = 0; i < PATIENCE && !told; i++) { // the connection still lives
        control_send(&group, &hello);
        assert_false(turn(&from, &got));
        if (!control_receive(&group, &got, now_ms)) continue;
        told = got.command == WIRE_ERROR && strcmp(got.error.code, "not_allowed") == 0;
        wire_message_deinit(&got);
    }
    assert_true(told);
}

static void no_one_is_met_with_the_wrong_server_key_or_none(void **state)
{
    (void) state;
    for (int plain = 0; plain < 2; plain++) {
        struct wire_message hello = wire_example(WIRE_HELLO, false), got;
        struct peer from;
        connect_as(plain ? NULL : &member, plain ? NULL : stranger.public_key);
        for (int i = 0; i < PATIENCE && group.links[0].told_ms == 0; i++) {
            control_send(&group, &hello);
            assert_false(turn(&from, &got));
        }
        assert_true(group.links[0].told_ms != 0); // a sentence has been logged
        control_close(&group, 0);
    }
}

static void the_folder_is_read_with_care(void **state)
{
    (void) state;
    put("broken.pub", "short");
    put("notes.txt", stranger.public_key);
    put(".hidden.pub", stranger.public_key);
    put("again.pub", member.public_key);
    assert_false(allow_refresh(&allow)); // still one key
    assert_int_equal(allow.n, 1);
    assert_int_equal(allow.n_skipped, 1);
    static const char *const files[] = {"broken.pub", "notes.txt", ".hidden.pub", "again.pub"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) unlink(path(files[i]));
    // A folder that is away is an accident, not the order to send everybody home.
    allow.folder = "/nonexistent/penstock";
    assert_false(allow_refresh(&allow));
    assert_true(allow_has(&allow, member.public_key));
    struct allow other;
    assert_int_equal(allow_init(&other, "/nonexistent/penstock", &e), ERR_IO);
    assert_non_null(strstr(e.text, "/nonexistent/penstock"));
    char name[32];
    for (int i = 0; i <= ALLOW_KEYS_MAX; i++) { // more keys than there is room for
        struct curve_pair p;
        snprintf(name, sizeof name, "k%d.pub", i);
        if (curve_make(&p, &e) == OK) put(name, p.public_key);
    }
    allow.folder = folder;
    allow_refresh(&allow);
    assert_int_equal(allow.n, ALLOW_KEYS_MAX);
    for (int i = 0; i <= ALLOW_KEYS_MAX; i++) {
        snprintf(name, sizeof name, "k%d.pub", i);
        unlink(path(name));
    }
}

static int make_folder(void **state)
{
    (void) state;
    folder_make(folder, "allow");
    return 0;
}

static int remove_folder(void **state)
{
    (void) state;
    folder_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_member_is_known_by_its_key, setup, teardown),
        cmocka_unit_test_setup_teardown(a_stranger_gets_in_once_it_is_allowed, setup, teardown),
        cmocka_unit_test_setup_teardown(a_key_that_is_taken_out_says_nothing_more, setup, teardown),
        cmocka_unit_test_setup_teardown(no_one_is_met_with_the_wrong_server_key_or_none, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_folder_is_read_with_care, setup, teardown),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
