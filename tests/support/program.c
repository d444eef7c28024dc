#include "tests/support/program.h"

#include "common/clock.h"
#include "common/status.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE_MS = 30000 };

void program_start(struct program *p, const char *const *args)
{
    int fds[2];
    *p = (struct program){0};
    check(pipe2(fds, O_CLOEXEC) == 0);
    p->pid = fork();
    check(p->pid >= 0);
    if (p->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(fds[1], STDERR_FILENO);
        execv(args[0], (char *const *) (void *) args);
        _exit(127);
    }
    close(fds[1]);
    p->fd = fds[0];
    fcntl(p->fd, F_SETFL, O_NONBLOCK);
}

void program_read(struct program *p)
{
    for (;;) {
        if (p->n > sizeof p->log - 4096) {
            memmove(p->log, p->log + sizeof p->log / 2, p->n - sizeof p->log / 2);
            p->n -= sizeof p->log / 2;
        }
        ssize_t n = read(p->fd, p->log + p->n, sizeof p->log - 1 - p->n);
        if (n <= 0) break;
        p->n += (size_t) n;
    }
    p->log[p->n] = '\0';
}

const char *program_said(struct program *p, const char *text)
{
    program_read(p);
    const char *at = strstr(p->log, text);
    return at != NULL ? at + strlen(text) : NULL;
}

const char *program_wait(struct program *p, const char *text)
{
    int64_t until = clock_ms() + PATIENCE_MS;
    for (;;) {
        const char *at = program_said(p, text);
        if (at != NULL) return at;
        check(clock_ms() < until, "\"%s\" was never logged:\n%s", text, p->log);
        struct pollfd fd = {.fd = p->fd, .events = POLLIN};
        poll(&fd, 1, 100);
        check(fd.revents != POLLHUP, "it ended before it logged \"%s\":\n%s", text, p->log);
    }
}

int program_ended(struct program *p)
{
    int status = 0;
    int64_t until = clock_ms() + PATIENCE_MS;
    while (waitpid(p->pid, &status, WNOHANG) == 0) {
        check(clock_ms() < until, "the program does not end:\n%s", p->log);
        struct pollfd fd = {.fd = p->fd, .events = POLLIN};
        poll(&fd, 1, 10);
        program_read(p);
    }
    program_read(p);
    close(p->fd);
    p->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void program_kill(struct program *p)
{
    if (p->pid == 0) return;
    check(kill(p->pid, SIGKILL) == 0);
    program_ended(p);
}

int program_stop(struct program *p)
{
    check(kill(p->pid, SIGTERM) == 0);
    return program_ended(p);
}
