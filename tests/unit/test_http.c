// The HTTP server, by its own turns: what is answered, to whom, and that a page is held once.
#include "broker/http.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/loop.h"
#include "common/log.h"

enum { PAGE = 8 << 20, READERS = 16 }; // more than the sockets hold

static struct {
    zloop_t *loop;
    struct http *http;
    char *page;
    char fill; // what the page is made of
    uint64_t version;
} t;

static void give_page(void *arg, const char *path, struct http_answer *a)
{
    (void) arg;
    if (strcmp(path, "/page") != 0) return;
    memset(t.page, t.fill, PAGE);
    *a = (struct http_answer){200, "text/plain", t.page, PAGE, t.version};
}

static int setup(void **state)
{
    (void) state;
    struct error e;
    t.loop = zloop_new();
    t.page = malloc(PAGE);
    assert_int_equal(http_create(&t.http, t.loop, "0", give_page, NULL, &e), OK);
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    http_destroy(&t.http);
    zloop_destroy(&t.loop);
    free(t.page);
    return 0;
}

static int ask(const char *method, const char *path)
{
    char text[128];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    at.sin_port = htons((uint16_t) atoi(strrchr(http_endpoint(t.http), ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *) &at, sizeof at), 0);
    int n = snprintf(text, sizeof text, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                     method, path);
    assert_int_equal(write(fd, text, (size_t) n), n);
    return fd;
}

// The whole answer, until the server closes; the caller frees it.
static char *answer_of(int fd, size_t *n)
{
    size_t room = PAGE + 4096;
    char *text = malloc(room + 1);
    ssize_t got;
    *n = 0;
    while ((got = recv(fd, text + *n, room - *n, MSG_DONTWAIT)) != 0) {
        if (got < 0) assert_true(errno == EAGAIN);
        else *n += (size_t) got;
        http_tick(t.http);
    }
    close(fd);
    text[*n] = '\0';
    return text;
}

static void expect_page(int fd, char fill)
{
    size_t n;
    char *text = answer_of(fd, &n), *body = strstr(text, "\r\n\r\n");
    assert_non_null(body);
    assert_memory_equal(text, "HTTP/1.1 200", 12);
    assert_non_null(strstr(text, "no-store"));
    assert_int_equal(n - (size_t) (body + 4 - text), PAGE);
    for (size_t i = 0; i < PAGE; i++) {
        if (body[4 + i] != fill) fail_msg("byte %zu is %c, not %c", i, body[4 + i], fill);
    }
    free(text);
}

// Nobody reads until all have asked: each has part of the page in its socket.
static void readers_of_a_version_share_its_first_copy(void **state)
{
    (void) state;
    int fds[READERS];
    t.version = 1;
    for (int i = 0; i < READERS; i++) {
        char begun;
        t.fill = (char) ('a' + i); // a copy of its own would have this
        fds[i] = ask("GET", "/page");
        while (recv(fds[i], &begun, 1, MSG_PEEK | MSG_DONTWAIT) != 1) http_tick(t.http);
    }
    t.version = 2;
    t.fill = 'Z';
    expect_page(ask("GET", "/page"), 'Z');
    for (int i = READERS; i-- > 0;) expect_page(fds[i], 'a');
    t.version = 0; // nothing is shared
    for (char fill = '0'; fill < '3'; fill++) {
        t.fill = fill;
        expect_page(ask("GET", "/page"), fill);
    }
}

// One that reads nothing any more when the server ends.
static void what_is_not_read_is_freed_at_the_end(void **state)
{
    char begun;
    t.version = 3;
    int fd = ask("GET", "/page");
    while (recv(fd, &begun, 1, MSG_PEEK | MSG_DONTWAIT) != 1) http_tick(t.http);
    teardown(state);
    close(fd);
    setup(state);
}

static void other_requests_are_refused(void **state)
{
    (void) state;
    size_t n;
    char *text = answer_of(ask("GET", "/other"), &n);
    assert_memory_equal(text, "HTTP/1.1 404", 12);
    free(text);
    text = answer_of(ask("DELETE", "/page"), &n);
    assert_memory_equal(text, "HTTP/1.1 405", 12);
    assert_non_null(strstr(text, "Allow: GET, HEAD"));
    free(text);
    t.version = 4;
    text = answer_of(ask("HEAD", "/page"), &n);
    assert_memory_equal(text, "HTTP/1.1 200", 12);
    assert_non_null(strstr(text, "Content-Length: 8388608"));
    assert_string_equal(strstr(text, "\r\n\r\n"), "\r\n\r\n");
    free(text);
}

int main(void)
{
    log_init("test", LOG_ERROR, false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_of_a_version_share_its_first_copy),
        cmocka_unit_test(what_is_not_read_is_freed_at_the_end),
        cmocka_unit_test(other_requests_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
