#include "tools/conformance_server.h"

#include "broker/redis_tls.h"
#include "common/clock.h"

#include <arpa/inet.h>
#include <hiredis/hiredis.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { START_MS = 10000 };

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *) &a, sizeof a) == 0 &&
              getsockname(fd, (struct sockaddr *) &a, &n) == 0;
    if (fd >= 0) close(fd);
    return ok ? ntohs(a.sin_port) : -1;
}

static void run_server(const struct conformance_server *r, const char *port)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", r->dir,
           "--save", "", "--appendonly", "no", "--logfile", "/dev/null", "--daemonize", "no",
           (char *) NULL);
    _exit(127);
}

void conformance_server_stop(struct conformance_server *r)
{
    if (r->pid == 0) return;
    kill(r->pid, SIGKILL);
    waitpid(r->pid, NULL, 0);
    rmdir(r->dir);
    r->pid = 0;
}

enum status conformance_server_start(struct conformance_server *r, struct error *e)
{
    int port = free_port();
    char text[16];
    snprintf(text, sizeof text, "%d", port);
    snprintf(r->url, sizeof r->url, "redis://127.0.0.1:%d", port);
    const char *in = getenv("TMPDIR");
    int n = snprintf(r->dir, sizeof r->dir, "%s/penstock-conformance-XXXXXX",
                     in != NULL ? in : "/tmp");
    if (n >= (int) sizeof r->dir) {
        return error_set(e, ERR_INPUT, NULL, "TMPDIR is too long a name for redis-server's folder");
    }
    if (port < 0 || mkdtemp(r->dir) == NULL) {
        return error_set(e, ERR_IO, NULL, "no port or folder for redis-server: %m");
    }
    r->pid = fork();
    if (r->pid == 0) run_server(r, text);
    for (int64_t until = clock_ms() + START_MS; clock_ms() < until; poll(NULL, 0, 5)) {
        redisContext *c = redisConnect("127.0.0.1", port);
        bool up = c != NULL && c->err == 0;
        if (c != NULL) redisFree(c);
        if (up) return OK;
        if (waitpid(r->pid, NULL, WNOHANG) != 0) {
            r->pid = 0;
            rmdir(r->dir);
            return error_set(e, ERR_IO, NULL, "redis-server does not run: is it installed?");
        }
    }
    conformance_server_stop(r);
    return error_set(e, ERR_TIMEOUT, NULL, "redis-server does not answer");
}

enum status conformance_server_connect(const char *text, redisContext **c, struct error *e)
{
    struct redis_url url;
    try(redis_url_parse(text, &url, e));
    try(redis_connect(c, &url, START_MS, START_MS, e));
    if (url.password[0] == 0) return OK;
    redisReply *r = url.user[0] != 0 ? redisCommand(*c, "AUTH %s %s", url.user, url.password)
                                     : redisCommand(*c, "AUTH %s", url.password);
    enum status status = redis_reply_check(r, e);
    if (r != NULL) freeReplyObject(r);
    if (status == OK) return OK;
    redisFree(*c);
    *c = NULL;
    return status;
}

// --- what clients do

enum status conformance_server_watch(const char *url, redisContext **c, struct error *e)
{
    try(conformance_server_connect(url, c, e));
    redisReply *r = redisCommand(*c, "MONITOR");
    enum status status = redis_reply_check(r, e);
    if (r != NULL) freeReplyObject(r);
    if (status == OK) return OK;
    redisFree(*c);
    *c = NULL;
    return status;
}

// A line that has been read whole and names both; *line is let go.
static bool names(redisReply *line, const char *word, const char *other)
{
    bool found = line->str != NULL && strstr(line->str, word) != NULL &&
                 strstr(line->str, other) != NULL;
    freeReplyObject(line);
    return found;
}

bool conformance_server_saw(redisContext *watch, const char *word, const char *other, int wait_ms)
{
    int64_t until = clock_ms() + wait_ms;
    for (;;) {
        void *line = NULL;
        while (redisGetReplyFromReader(watch, &line) == REDIS_OK && line != NULL) {
            if (names(line, word, other)) return true;
        }
        int64_t left = until - clock_ms();
        struct pollfd fd = {.fd = watch->fd, .events = POLLIN};
        if (watch->err != 0 || poll(&fd, 1, left > 0 ? (int) left : 0) <= 0) return false;
        if (redisBufferRead(watch) != REDIS_OK) return false;
    }
}
