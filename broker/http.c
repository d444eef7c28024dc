#include "broker/http.h"

#include "broker/loop.h"
#include "common/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 64, TURNS = 4, ENDPOINT_SIZE = INET6_ADDRSTRLEN + 16 };

struct http {
    zloop_t *loop;
    struct MHD_Daemon *daemon;
    int poll_fd; // of its epoll set
    http_fn *fn;
    void *arg;
    char endpoint[ENDPOINT_SIZE];
    struct MHD_Response *shared; // of this version; NULL: none yet
    uint64_t version;
};

// --- addresses

struct place {
    struct sockaddr_storage at;
    socklen_t n;
};

static enum status bad_address(const char *address, struct error *e)
{
    return error_set(e, ERR_INPUT, "bad_usage",
                     "\"%s\" is no place to listen: PORT, IP:PORT or [IP]:PORT are", address);
}

static enum status read_place(const char *address, struct place *p, struct error *e)
{
    char host[INET6_ADDRSTRLEN + 1] = "127.0.0.1";
    const char *colon = strrchr(address, ':'), *port = colon != NULL ? colon + 1 : address;
    const char *from = address;
    char *end;
    unsigned long number = strtoul(port, &end, 10);
    *p = (struct place){.n = 0};
    if (*port < '0' || *port > '9' || *end != '\0' || number > UINT16_MAX) {
        return bad_address(address, e);
    }
    bool six = colon != NULL && address[0] == '[';
    if (six && colon[-1] != ']') return bad_address(address, e);
    if (colon != NULL) {
        size_t n = (size_t) (colon - address) - (six ? 2 : 0);
        if (n == 0 || n >= sizeof host) return bad_address(address, e);
        if (six) from++;
        memcpy(host, from, n);
        host[n] = '\0';
    }
    struct sockaddr_in *four_at = (struct sockaddr_in *) &p->at;
    struct sockaddr_in6 *six_at = (struct sockaddr_in6 *) &p->at;
    if (!six && inet_pton(AF_INET, host, &four_at->sin_addr) == 1) {
        four_at->sin_family = AF_INET;
        four_at->sin_port = htons((uint16_t) number);
        p->n = sizeof *four_at;
    } else if (six && inet_pton(AF_INET6, host, &six_at->sin6_addr) == 1) {
        six_at->sin6_family = AF_INET6;
        six_at->sin6_port = htons((uint16_t) number);
        p->n = sizeof *six_at;
    }
    return p->n > 0 ? OK : bad_address(address, e);
}

enum status http_check(const char *address, struct error *e)
{
    struct place p;
    return read_place(address, &p, e);
}

static void name_endpoint(int fd, char to[ENDPOINT_SIZE])
{
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    char host[INET6_ADDRSTRLEN] = "";
    if (getsockname(fd, (struct sockaddr *) &at, &n) != 0) return;
    if (at.ss_family == AF_INET6) {
        const struct sockaddr_in6 *a = (const struct sockaddr_in6 *) &at;
        inet_ntop(AF_INET6, &a->sin6_addr, host, sizeof host);
        snprintf(to, ENDPOINT_SIZE, "[%s]:%d", host, ntohs(a->sin6_port));
    } else {
        const struct sockaddr_in *a = (const struct sockaddr_in *) &at;
        inet_ntop(AF_INET, &a->sin_addr, host, sizeof host);
        snprintf(to, ENDPOINT_SIZE, "%s:%d", host, ntohs(a->sin_port));
    }
}

static enum status bind_place(const char *address, int *fd, struct error *e)
{
    struct place p;
    int one = 1;
    try(read_place(address, &p, e));
    *fd = socket(p.at.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd >= 0) setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (*fd >= 0 && bind(*fd, (struct sockaddr *) &p.at, p.n) == 0 && listen(*fd, BACKLOG) == 0) {
        return OK;
    }
    int why = errno;
    if (*fd >= 0) close(*fd);
    if (why == EADDRINUSE) {
        return error_set(e, ERR_IO, "port_taken",
                         "%s is taken: choose another port for the metrics", address);
    }
    return error_set(e, ERR_IO, "cannot_listen", "cannot listen on %s: %s", address,
                     strerror(why));
}

enum status http_free(const char *address, struct error *e)
{
    int fd;
    try(bind_place(address, &fd, e));
    close(fd);
    return OK;
}

// --- requests

static struct MHD_Response *make_response(const struct http_answer *a)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(
        a->n, (void *) (uintptr_t) (a->n > 0 ? a->body : ""), MHD_RESPMEM_MUST_COPY);
    if (r == NULL) return NULL;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, a->type);
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    return r;
}

// The library counts who still reads it: dropped here, it lives until the last of them is done.
static void drop_shared(struct http *h)
{
    if (h->shared != NULL) MHD_destroy_response(h->shared);
    h->shared = NULL;
}

static enum MHD_Result send_shared(struct http *h, struct MHD_Connection *c,
                                   const struct http_answer *a)
{
    if (h->shared == NULL || h->version != a->version) {
        drop_shared(h);
        h->shared = make_response(a);
        h->version = a->version;
    }
    return h->shared != NULL ? MHD_queue_response(c, (unsigned) a->status, h->shared) : MHD_NO;
}

static enum MHD_Result send_own(struct MHD_Connection *c, const struct http_answer *a,
                                const char *allow)
{
    struct MHD_Response *r = make_response(a);
    if (r == NULL) return MHD_NO;
    if (allow != NULL) MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, allow);
    enum MHD_Result result = MHD_queue_response(c, (unsigned) a->status, r);
    MHD_destroy_response(r);
    return result;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *c, const char *path,
                                  const char *method, const char *version, const char *data,
                                  size_t *n_data, void **state)
{
    static int begun;
    struct http *h = arg;
    struct http_answer a = {.status = 404, .type = "text/plain; charset=utf-8"};
    (void) version, (void) data;
    bool reads = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    if (!reads) {
        a.status = 405;
        return send_own(c, &a, "GET, HEAD");
    }
    if (*state == NULL) { // the headers are there; an answer now would end the connection
        *state = &begun;
        return MHD_YES;
    }
    if (*n_data > 0) { // nobody asked for it
        *n_data = 0;
        return MHD_YES;
    }
    h->fn(h->arg, path, &a);
    return a.version != 0 ? send_shared(h, c, &a) : send_own(c, &a, NULL);
}

static void on_trouble(void *arg, const char *format, va_list args)
{
    char text[256];
    (void) arg;
    if (!log_enabled(LOG_DEBUG)) return;
    vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = '\0';
    log_line(LOG_DEBUG, "http_trouble", log_str("error", text));
}

// Whoever asks without end gets a few turns; the loop comes by again.
static void turn(struct http *h)
{
    MHD_UNSIGNED_LONG_LONG ms;
    for (int i = 0; i < TURNS; i++) {
        MHD_run(h->daemon);
        if (MHD_get_timeout(h->daemon, &ms) != MHD_YES || ms > 0) return;
    }
}

static int on_ready(zloop_t *loop, zmq_pollitem_t *item, void *arg)
{
    (void) loop, (void) item;
    turn(arg);
    return 0;
}

void http_tick(struct http *h) { turn(h); }

const char *http_endpoint(const struct http *h) { return h->endpoint; }

// --- life

static enum status start(struct http *h, int fd, struct error *e)
{
    h->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, h,
        MHD_OPTION_EXTERNAL_LOGGER, on_trouble, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned) HTTP_CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned) HTTP_TIMEOUT_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t) HTTP_REQUEST_MAX, MHD_OPTION_END);
    if (h->daemon == NULL) close(fd);
    const union MHD_DaemonInfo *info =
        h->daemon != NULL ? MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
    if (info == NULL) return error_set(e, ERR_IO, "cannot_listen", "no HTTP server can be started");
    h->poll_fd = info->epoll_fd;
    zmq_pollitem_t item = {.fd = h->poll_fd, .events = ZMQ_POLLIN};
    check(zloop_poller(h->loop, &item, on_ready, h) == 0);
    log_line(LOG_INFO, "http", log_str("endpoint", h->endpoint));
    return OK;
}

enum status http_create(struct http **self, zloop_t *loop, const char *address, http_fn *fn,
                        void *arg, struct error *e)
{
    int fd;
    *self = NULL;
    try(bind_place(address, &fd, e));
    struct http *h = calloc(1, sizeof *h);
    if (h == NULL) {
        close(fd);
        return error_set(e, ERR_NOMEM, NULL, "no memory for the HTTP server");
    }
    *h = (struct http){.loop = loop, .fn = fn, .arg = arg, .poll_fd = -1};
    name_endpoint(fd, h->endpoint);
    *self = h;
    enum status status = start(h, fd, e);
    if (status != OK) http_destroy(self);
    return status;
}

void http_destroy(struct http **self)
{
    struct http *h = *self;
    if (h == NULL) return;
    *self = NULL;
    if (h->poll_fd >= 0) {
        zmq_pollitem_t item = {.fd = h->poll_fd, .events = ZMQ_POLLIN};
        zloop_poller_end(h->loop, &item);
    }
    drop_shared(h);
    if (h->daemon != NULL) MHD_stop_daemon(h->daemon); // closes what it listens to
    free(h);
}
