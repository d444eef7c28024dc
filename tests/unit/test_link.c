#include "workers/link.h"

#include "tests/support/sockets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DEPTH = 4, MOST_BYTES = 1 << 20 };

static void *context;
static struct link_in in;
static struct link_out out;
static struct error e;

static int setup(void **state)
{
    (void) state;
    context = zmq_ctx_new();
    e = (struct error){0};
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    link_out_close(&out);
    link_in_close(&in);
    zmq_ctx_term(context);
    return 0;
}

static void open_link(bool tcp)
{
    const char *endpoint = tcp ? "tcp://127.0.0.1:*" : "inproc://stage-1";
    assert_int_equal(link_in_open(&in, context, endpoint, DEPTH, MOST_BYTES, &e), OK);
    assert_int_equal(link_out_open(&out, context, in.endpoint, DEPTH, &e), OK);
    sockets_wait(out.socket, ZMQ_POLLOUT);
    assert_true(link_out_connected(&out));
}

static void close_link(void)
{
    link_out_close(&out);
    link_in_close(&in);
}

// Sends copies of messages that hold these bytes.
static enum status send_bytes(const char *header, size_t n_header, const void *payload,
                              size_t n_payload, struct error *why)
{
    zmq_msg_t h, p;
    zmq_msg_init_size(&h, n_header);
    zmq_msg_init_size(&p, n_payload);
    memcpy(zmq_msg_data(&h), header, n_header);
    if (n_payload > 0) memcpy(zmq_msg_data(&p), payload, n_payload);
    enum status status = link_send(&out, &h, n_payload > 0 ? &p : NULL, why);
    zmq_msg_close(&h);
    zmq_msg_close(&p);
    return status;
}

// The next message is this header and payload.
static void expect(const char *header, const char *payload)
{
    struct link_message m;
    sockets_wait(in.socket, ZMQ_POLLIN);
    assert_int_equal(link_receive(&in, &m, &e), OK);
    assert_int_equal(zmq_msg_size(&m.frames[0]), strlen(header));
    assert_memory_equal(zmq_msg_data(&m.frames[0]), header, strlen(header));
    assert_int_equal(zmq_msg_size(&m.frames[1]), strlen(payload));
    assert_memory_equal(zmq_msg_data(&m.frames[1]), payload, strlen(payload));
    link_message_close(&m);
}

static void a_header_and_a_payload_arrive_in_order(void **state)
{
    (void) state;
    for (int tcp = 0; tcp < 2; tcp++) {
        struct link_message m;
        open_link(tcp);
        assert_int_equal(link_receive(&in, &m, &e), ERR_UNAVAILABLE);
        assert_int_equal(send_bytes("step 1", 6, "rows", 4, &e), OK);
        assert_int_equal(send_bytes("step 2", 6, NULL, 0, &e), OK);
        expect("step 1", "rows");
        expect("step 2", "");
        assert_int_equal(link_receive(&in, &m, &e), ERR_UNAVAILABLE);
        close_link();
    }
}

static void a_wildcard_port_is_told_and_a_taken_one_named(void **state)
{
    (void) state;
    struct link_in second;
    assert_int_equal(link_in_open(&in, context, "tcp://127.0.0.1:*", DEPTH, MOST_BYTES, &e), OK);
    assert_memory_equal(in.endpoint, "tcp://127.0.0.1:", 16);
    assert_true(atoi(in.endpoint + 16) > 0);
    assert_int_equal(link_in_open(&second, context, in.endpoint, DEPTH, MOST_BYTES, &e), ERR_IO);
    assert_string_equal(e.code, "port_taken");
    assert_non_null(strstr(e.text, in.endpoint));
    assert_null(second.socket);
    assert_int_equal(link_in_open(&second, context, "nonsense", DEPTH, MOST_BYTES, &e), ERR_IO);
    assert_int_equal(link_out_open(&out, context, "nonsense", DEPTH, &e), ERR_IO);
    assert_null(out.socket);
}

static void messages_of_other_shapes_are_dropped_whole(void **state)
{
    (void) state;
    for (int tcp = 0; tcp < 2; tcp++) {
        static const char *const shapes[][5] = {
            {"one"}, {"one", "two", "three"}, {"1", "2", "3", "4", "5"}, {""}};
        struct link_message m;
        open_link(tcp);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const char *const *s = shapes[i];
            sockets_send(out.socket, s[0], s[1], s[2], s[3], s[4], NULL);
            assert_int_equal(send_bytes("good", 4, "rows", 4, &e), OK);
            sockets_wait(in.socket, ZMQ_POLLIN);
            assert_int_equal(link_receive(&in, &m, &e), ERR_INPUT);
            assert_string_equal(e.code, "bad_frames");
            expect("good", "rows");
        }
        close_link();
    }
}

static void a_full_queue_is_a_lost_link(void **state)
{
    (void) state;
    for (int tcp = 0; tcp < 2; tcp++) {
        char *payload = calloc(1, MOST_BYTES);
        int sent = 0;
        open_link(tcp);
        // Over tcp the kernel's buffers come on top of the queues of both sides.
        while (sent < 10000 && send_bytes("step", 4, payload, MOST_BYTES, &e) == OK) sent++;
        assert_in_range(sent, DEPTH, tcp ? 9999 : 2 * DEPTH);
        assert_int_equal(send_bytes("step", 4, NULL, 0, &e), ERR_UNAVAILABLE);
        assert_string_equal(e.code, "link_lost");
        for (; sent > 0; sent--) { // nothing of what was taken is lost or torn
            struct link_message m;
            sockets_wait(in.socket, ZMQ_POLLIN);
            assert_int_equal(link_receive(&in, &m, &e), OK);
            assert_int_equal(zmq_msg_size(&m.frames[1]), MOST_BYTES);
            link_message_close(&m);
        }
        free(payload);
        close_link();
    }
}

static void nothing_is_queued_for_a_stage_that_is_not_there(void **state)
{
    (void) state;
    // A port that is taken, and where nobody listens.
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    int taken = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(taken, (struct sockaddr *) &address, n), 0);
    assert_int_equal(getsockname(taken, (struct sockaddr *) &address, &n), 0);
    char endpoint[ENDPOINT_MAX];
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", ntohs(address.sin_port));
    assert_false(link_out_connected(&out));
    assert_int_equal(link_out_open(&out, context, endpoint, DEPTH, &e), OK);
    assert_false(link_out_connected(&out));
    assert_int_equal(send_bytes("step", 4, NULL, 0, &e), ERR_UNAVAILABLE);
    assert_string_equal(e.code, "link_lost");
    close(taken);
}

// Waits for an event of the socket itself, as `monitor` reports it.
static void wait_for_event(void *monitor, uint16_t wanted)
{
    uint16_t event = 0;
    while (event != wanted) {
        zmq_msg_t frame;
        sockets_wait(monitor, ZMQ_POLLIN);
        zmq_msg_init(&frame);
        assert_true(zmq_msg_recv(&frame, monitor, 0) >= 0);
        memcpy(&event, zmq_msg_data(&frame), sizeof event);
        zmq_msg_close(&frame);
        zmq_msg_init(&frame);
        assert_true(zmq_msg_recv(&frame, monitor, 0) >= 0); // the address
        zmq_msg_close(&frame);
    }
}

static void *open_monitor(void *socket, int events)
{
    assert_int_equal(zmq_socket_monitor(socket, "inproc://monitor", events), 0);
    void *monitor = zmq_socket(context, ZMQ_PAIR);
    assert_int_equal(zmq_connect(monitor, "inproc://monitor"), 0);
    return monitor;
}

static void a_stage_that_goes_away_is_noticed(void **state)
{
    (void) state;
    open_link(true);
    void *monitor = open_monitor(out.socket, ZMQ_EVENT_CONNECT_RETRIED); // the pipe is gone by then
    link_in_close(&in);
    wait_for_event(monitor, ZMQ_EVENT_CONNECT_RETRIED);
    assert_false(link_out_connected(&out));
    assert_int_equal(send_bytes("step", 4, NULL, 0, &e), ERR_UNAVAILABLE);
    assert_string_equal(e.code, "link_lost");
    zmq_socket_monitor(out.socket, NULL, 0);
    zmq_close(monitor);
}

static void a_message_beyond_the_limit_ends_the_connection(void **state)
{
    (void) state;
    char *payload = calloc(1, MOST_BYTES + 1);
    open_link(true);
    void *monitor = open_monitor(out.socket, ZMQ_EVENT_DISCONNECTED);
    assert_int_equal(send_bytes("step", 4, payload, MOST_BYTES, &e), OK);
    assert_int_equal(send_bytes("step", 4, payload, MOST_BYTES + 1, &e), OK);
    wait_for_event(monitor, ZMQ_EVENT_DISCONNECTED);
    struct link_message m;
    sockets_wait(in.socket, ZMQ_POLLIN);
    assert_int_equal(link_receive(&in, &m, &e), OK); // the one that may be
    assert_int_equal(zmq_msg_size(&m.frames[1]), MOST_BYTES);
    link_message_close(&m);
    assert_int_equal(link_receive(&in, &m, &e), ERR_UNAVAILABLE);
    zmq_socket_monitor(out.socket, NULL, 0);
    zmq_close(monitor);
    free(payload);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_header_and_a_payload_arrive_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(a_wildcard_port_is_told_and_a_taken_one_named, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(messages_of_other_shapes_are_dropped_whole, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_full_queue_is_a_lost_link, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_queued_for_a_stage_that_is_not_there, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_stage_that_goes_away_is_noticed, setup, teardown),
        cmocka_unit_test_setup_teardown(a_message_beyond_the_limit_ends_the_connection, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
