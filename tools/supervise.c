#include "tools/supervise.h"

#include "common/clock.h"
#include "tools/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RESTART_LEAST_MS = 100, RESTART_MOST_MS = 5000 };

static void signal_set(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGCHLD);
}

enum status supervisor_init(struct supervisor *s, struct error *e)
{
    sigset_t set;
    *s = (struct supervisor){0};
    signal_set(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    s->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (s->signals < 0) return error_set(e, ERR_IO, NULL, "no signalfd: %s", strerror(errno));
    return OK;
}

void supervisor_deinit(struct supervisor *s)
{
    for (int i = 0; i < s->n_children; i++) {
        for (int k = 0; k < s->children[i].n_args; k++) free(s->children[i].argv[k]);
        if (s->children[i].out >= 0) close(s->children[i].out);
    }
    if (s->signals >= 0) close(s->signals);
}

struct child *supervisor_add(struct supervisor *s, const char *name, int stop_ms)
{
    check(s->n_children < CHILDREN_MAX);
    struct child *c = &s->children[s->n_children++];
    *c = (struct child){.stop_ms = stop_ms, .out = -1};
    snprintf(c->name, sizeof c->name, "%s", name);
    return c;
}

void child_arg(struct child *c, const char *format, ...)
{
    va_list args;
    check(c->n_args < CHILD_ARGS_MAX - 1);
    va_start(args, format);
    int n = vasprintf(&c->argv[c->n_args++], format, args);
    va_end(args);
    check(n >= 0, "no memory for an argument");
}

// --- start and end

static void run_child(struct child *c, int out, pid_t parent)
{
    sigset_t set;
    sigemptyset(&set);
    sigprocmask(SIG_SETMASK, &set, NULL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1); // it died before the line above
    int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execvp(c->argv[0], c->argv);
    fprintf(stderr, "cannot run %s: %s\n", c->argv[0], strerror(errno));
    _exit(127);
}

static enum status start(struct supervisor *s, struct child *c, struct error *e)
{
    int ends[2];
    pid_t parent = getpid();
    if (c->out >= 0) close(c->out);
    c->out = -1;
    if (pipe2(ends, O_CLOEXEC) != 0) return error_set(e, ERR_IO, NULL, "pipe: %s", strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    fflush(NULL);
    c->pid = fork();
    if (c->pid == 0) run_child(c, ends[1], parent);
    close(ends[1]);
    if (c->pid < 0) {
        close(ends[0]);
        c->pid = 0;
        return error_set(e, ERR_IO, NULL, "cannot start %s: %s", c->name, strerror(errno));
    }
    c->out = ends[0];
    c->n_line = 0;
    c->started_ms = clock_ms();
    c->n_starts++;
    if (s->started != NULL) s->started(s->arg, c);
    return OK;
}

static void read_output(struct supervisor *s, struct child *c)
{
    for (;;) {
        ssize_t n = read(c->out, c->line + c->n_line, sizeof c->line - 1 - c->n_line);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            close(c->out);
            c->out = -1;
            return;
        }
        if (n < 0) return;
        c->n_line += (size_t) n;
        c->line[c->n_line] = 0;
        char *from = c->line, *end;
        while ((end = strchr(from, '\n')) != NULL) {
            *end = 0;
            if (s->line != NULL) s->line(s->arg, c, from);
            from = end + 1;
        }
        c->n_line = strlen(from);
        memmove(c->line, from, c->n_line + 1);
        if (c->n_line == sizeof c->line - 1) c->n_line = 0; // no such line is expected
    }
}

static void reap(struct supervisor *s)
{
    for (int i = 0; i < s->n_children; i++) {
        struct child *c = &s->children[i];
        int status;
        if (c->pid == 0 || waitpid(c->pid, &status, WNOHANG) != c->pid) continue;
        int64_t now_ms = clock_ms();
        if (c->out >= 0) read_output(s, c);
        c->pid = 0;
        c->n_quick = now_ms - c->started_ms < QUICK_MS ? c->n_quick + 1 : 0;
        c->refused = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_USAGE;
        int64_t pause = RESTART_LEAST_MS << (c->n_quick < 6 ? c->n_quick : 6);
        c->restart_ms = now_ms + (pause < RESTART_MOST_MS ? pause : RESTART_MOST_MS);
        if (s->ended != NULL) s->ended(s->arg, c, status);
    }
}

// --- the loop

static void read_signals(struct supervisor *s)
{
    struct signalfd_siginfo info;
    while (read(s->signals, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo != SIGCHLD) s->n_stops++;
    }
    reap(s);
}

static void wait_for_events(struct supervisor *s, int timeout_ms)
{
    struct pollfd fds[CHILDREN_MAX + 1] = {{.fd = s->signals, .events = POLLIN}};
    struct child *owner[CHILDREN_MAX + 1];
    int n = 1;
    for (int i = 0; i < s->n_children; i++) {
        if (s->children[i].out < 0) continue;
        owner[n] = &s->children[i];
        fds[n++] = (struct pollfd){.fd = s->children[i].out, .events = POLLIN};
    }
    if (poll(fds, (nfds_t) n, timeout_ms) <= 0) return;
    for (int i = 1; i < n; i++) {
        if (fds[i].revents != 0) read_output(s, owner[i]);
    }
    if (fds[0].revents != 0) read_signals(s);
}

enum status supervisor_turn(struct supervisor *s, int timeout_ms, struct error *e)
{
    int64_t now_ms = clock_ms();
    for (int i = 0; i < s->n_children && s->n_stops == 0; i++) {
        struct child *c = &s->children[i];
        if (c->pid != 0) continue;
        if (c->refused) {
            return error_set(e, ERR_INPUT, "bad_usage",
                             "%s cannot run with these options; it said why above", c->name);
        }
        if (c->n_quick >= QUICK_DEATHS_MAX) {
            return error_set(e, ERR_STATE, "child_failed",
                             "%s ended %d times in a row soon after its start; it said why above",
                             c->name, c->n_quick);
        }
        if (now_ms >= c->restart_ms) {
            try(start(s, c, e));
        } else if (c->restart_ms - now_ms < timeout_ms) {
            timeout_ms = (int) (c->restart_ms - now_ms);
        }
    }
    wait_for_events(s, timeout_ms);
    return OK;
}

void supervisor_stop(struct supervisor *s, int first, int n)
{
    int64_t begin_ms = clock_ms();
    int stops = s->n_stops, left;
    for (int i = first; i < first + n; i++) {
        if (s->children[i].pid > 0) kill(s->children[i].pid, SIGTERM);
    }
    do {
        left = 0;
        int64_t now_ms = clock_ms();
        for (int i = first; i < first + n; i++) {
            struct child *c = &s->children[i];
            if (c->pid == 0) continue;
            left++;
            if (now_ms - begin_ms > c->stop_ms || s->n_stops > stops) kill(c->pid, SIGKILL);
        }
        if (left > 0) wait_for_events(s, 100);
    } while (left > 0);
}
