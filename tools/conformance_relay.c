#include "tools/conformance_relay.h"

#include "broker/redis.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAIRS_MAX = 64, CHUNK = 1 << 16, NOTHING = 0, ARMED, LOST };

// A connection of the program and ours to Redis.
struct pair {
    int client, server;
    bool pushes; // the answer is to be lost
};

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t) port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static bool send_all(int fd, const char *bytes, ssize_t n)
{
    while (n > 0) {
        ssize_t sent = send(fd, bytes, (size_t) n, MSG_NOSIGNAL);
        if (sent <= 0) return false;
        bytes += sent;
        n -= sent;
    }
    return true;
}

// False: the pair has come to its end.
static bool to_server(struct pair *p, int *lose)
{
    char bytes[CHUNK];
    ssize_t n = recv(p->client, bytes, sizeof bytes, 0);
    if (n <= 0) return false;
    bool push = memmem(bytes, (size_t) n, "RPUSH", 5) != NULL ||
                memmem(bytes, (size_t) n, "rpush", 5) != NULL;
    if (push && __atomic_load_n(lose, __ATOMIC_ACQUIRE) == ARMED) p->pushes = true;
    return send_all(p->server, bytes, n);
}

static bool to_client(struct pair *p, int *lose)
{
    char bytes[CHUNK];
    ssize_t n = recv(p->server, bytes, sizeof bytes, 0);
    if (n <= 0) return false;
    if (!p->pushes) return send_all(p->client, bytes, n);
    __atomic_store_n(lose, LOST, __ATOMIC_RELEASE);
    return false;
}

static bool join(struct pair *p, int listener, int port)
{
    struct sockaddr_in to = loopback(port);
    *p = (struct pair){.client = accept4(listener, NULL, NULL, SOCK_CLOEXEC),
                       .server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (p->client >= 0 && p->server >= 0 &&
        connect(p->server, (struct sockaddr *) &to, sizeof to) == 0) {
        return true;
    }
    if (p->client >= 0) close(p->client);
    if (p->server >= 0) close(p->server);
    return false;
}

static void relay(int listener, int port, int *lose)
{
    static struct pair pairs[PAIRS_MAX];
    struct pollfd fds[1 + 2 * PAIRS_MAX];
    int n = 0;
    for (;;) {
        // A full table leaves new ones waiting.
        fds[0] = (struct pollfd){.fd = n < PAIRS_MAX ? listener : -1, .events = POLLIN};
        for (int i = 0; i < n; i++) {
            fds[1 + 2 * i] = (struct pollfd){.fd = pairs[i].client, .events = POLLIN};
            fds[2 + 2 * i] = (struct pollfd){.fd = pairs[i].server, .events = POLLIN};
        }
        poll(fds, (nfds_t) (1 + 2 * n), -1);
        for (int i = n; i-- > 0;) { // backwards: the last one takes the place of one that ends
            bool goes_on = (fds[1 + 2 * i].revents == 0 || to_server(&pairs[i], lose)) &&
                           (fds[2 + 2 * i].revents == 0 || to_client(&pairs[i], lose));
            if (goes_on) continue;
            close(pairs[i].client);
            close(pairs[i].server);
            pairs[i] = pairs[--n];
        }
        if (fds[0].revents != 0 && join(&pairs[n], listener, port)) n++;
    }
}

enum status conformance_relay_start(struct conformance_relay *r, const char *text, struct error *e)
{
    struct redis_url url;
    struct sockaddr_in at = loopback(0);
    socklen_t size = sizeof at;
    *r = (struct conformance_relay){0};
    try(redis_url_parse(text, &url, e));
    int *shared = mmap(NULL, sizeof *r->lose, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                       -1, 0);
    if (shared == MAP_FAILED) return error_set(e, ERR_NOMEM, NULL, "no memory for a relay");
    r->lose = shared;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *) &at, sizeof at) != 0 ||
        getsockname(listener, (struct sockaddr *) &at, &size) != 0 || listen(listener, 16) != 0 ||
        (r->pid = fork()) < 0) {
        if (listener >= 0) close(listener);
        r->pid = 0;
        conformance_relay_stop(r);
        return error_set(e, ERR_IO, NULL, "no port or process for a relay: %m");
    }
    if (r->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        relay(listener, url.port, r->lose);
    }
    close(listener);
    snprintf(r->url, sizeof r->url, "redis://127.0.0.1:%d", ntohs(at.sin_port));
    return OK;
}

void conformance_relay_stop(struct conformance_relay *r)
{
    if (r->pid > 0) {
        kill(r->pid, SIGKILL);
        waitpid(r->pid, NULL, 0);
    }
    if (r->lose != NULL) munmap(r->lose, sizeof *r->lose);
    *r = (struct conformance_relay){0};
}

void conformance_relay_lose(struct conformance_relay *r)
{
    __atomic_store_n(r->lose, ARMED, __ATOMIC_RELEASE);
}

bool conformance_relay_lost(const struct conformance_relay *r)
{
    return __atomic_load_n(r->lose, __ATOMIC_ACQUIRE) == LOST;
}
