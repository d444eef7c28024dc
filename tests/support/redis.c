#include "tests/support/redis.h"

#include "common/clock.h"
#include "common/status.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
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

enum { START_MS = 20000, ARGS_MAX = 48 };

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(fd >= 0 && bind(fd, (struct sockaddr *) &a, sizeof a) == 0);
    check(getsockname(fd, (struct sockaddr *) &a, &n) == 0);
    close(fd);
    return ntohs(a.sin_port);
}

static void exec_server(struct test_redis *r)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); // a test that crashes leaves no server behind
    char port[16], options[sizeof r->options];
    const char *args[ARGS_MAX] = {
        "redis-server", "--port", port, "--bind", "127.0.0.1", "--unixsocket", r->socket, "--dir",
        r->dir, "--logfile", "log", "--save", "", "--appendonly", "yes", "--appendfsync", "always",
        "--maxmemory-policy", "noeviction", "--notify-keyspace-events", "Kl"};
    int n = 0;
    while (args[n] != NULL) n++;
    snprintf(port, sizeof port, "%d", r->port);
    snprintf(options, sizeof options, "%s", r->options);
    for (char *save, *word = strtok_r(options, " ", &save); word != NULL && n < ARGS_MAX - 1;
         word = strtok_r(NULL, " ", &save)) {
        args[n++] = word;
    }
    execvp(args[0], (char *const *) (void *) args);
    _exit(127);
}

static bool answers(const struct test_redis *r)
{
    redisContext *c = redisConnectUnix(r->socket);
    redisReply *reply = c != NULL && c->err == 0 ? redisCommand(c, "PING") : NULL;
    // It may want a password, which is an answer; LOADING is not.
    bool yes = reply != NULL && strncmp(reply->str, "LOADING", 7) != 0;
    if (reply != NULL) freeReplyObject(reply);
    if (c != NULL) redisFree(c);
    return yes;
}

void test_redis_restart(struct test_redis *r)
{
    check(r->pid == 0);
    r->pid = fork();
    check(r->pid >= 0);
    if (r->pid == 0) exec_server(r);
    int64_t until = clock_ms() + START_MS;
    while (!answers(r)) {
        check(clock_ms() < until, "redis-server does not answer, see its log in %s", r->dir);
        check(waitpid(r->pid, NULL, WNOHANG) == 0, "redis-server ended, see its log in %s", r->dir);
        poll(NULL, 0, 5); // there is no event for a socket that does not exist yet
    }
}

void test_redis_start(struct test_redis *r, const char *options)
{
    *r = (struct test_redis){.port = free_port()};
    folder_make(r->dir, "test");
    snprintf(r->socket, sizeof r->socket, "%s/socket", r->dir);
    snprintf(r->url, sizeof r->url, "unix://%s", r->socket);
    snprintf(r->tcp_url, sizeof r->tcp_url, "redis://127.0.0.1:%d", r->port);
    snprintf(r->options, sizeof r->options, "%s", options != NULL ? options : "");
    test_redis_restart(r);
}

void test_redis_kill(struct test_redis *r)
{
    check(r->pid > 0 && kill(r->pid, SIGKILL) == 0);
    while (waitpid(r->pid, NULL, 0) < 0) check(errno == EINTR);
    r->pid = 0;
    unlink(r->socket);
}

void test_redis_stop(struct test_redis *r)
{
    if (r->pid != 0) test_redis_kill(r);
    folder_remove(r->dir);
}

struct redisContext *test_redis_connect(const struct test_redis *r)
{
    redisContext *c = redisConnectUnix(r->socket);
    check(c != NULL && c->err == 0, "%s", c != NULL ? c->errstr : "no memory");
    return c;
}
