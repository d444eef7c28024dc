#include "tools/conformance_program.h"

#include "common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REPLY_MAX = 1 << 26, READ_BYTES = 1 << 16, STOP_MS = 5000, ASK_MS = 30000 };

enum status conformance_program_find(const char *name, struct error *e)
{
    const char *folders = strchr(name, '/') != NULL ? "" : getenv("PATH");
    while (folders != NULL) {
        char path[PATH_MAX];
        size_t n = strcspn(folders, ":");
        snprintf(path, sizeof path, "%.*s%s%s", (int) n, folders, n > 0 ? "/" : "", name);
        if (access(path, X_OK) == 0) return OK;
        folders = folders[n] == ':' ? folders + n + 1 : NULL;
    }
    return error_set(e, ERR_INPUT, "bad_usage", "cannot run %s: there is no such program", name);
}

static void become(char **argv, const int in[2], const int out[2], const char *url,
                   const char *queue)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_DFL);
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    setenv("PENSTOCK_REDIS", url, 1);
    setenv("PENSTOCK_QUEUE", queue, 1);
    setenv("PENSTOCK_TENANT", "default", 1);
    execvp(argv[0], argv);
    fprintf(stderr, "penstock conformance: cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

enum status conformance_program_start(struct conformance_program *p, char **argv, const char *url,
                                      const char *queue, struct error *e)
{
    int in[2], out[2];
    *p = (struct conformance_program){.in = -1, .out = -1};
    if (pipe2(in, O_CLOEXEC) != 0) return error_set(e, ERR_IO, NULL, "no pipe: %m");
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        return error_set(e, ERR_IO, NULL, "no pipe: %m");
    }
    p->pid = fork();
    if (p->pid == 0) become(argv, in, out, url, queue);
    close(in[0]);
    close(out[1]);
    p->in = in[1];
    p->out = out[0];
    fcntl(p->in, F_SETFL, O_NONBLOCK);
    if (p->pid > 0) return OK;
    p->pid = 0;
    conformance_program_stop(p);
    return error_set(e, ERR_IO, NULL, "no process: %m");
}

void conformance_program_stop(struct conformance_program *p)
{
    if (p->in >= 0) close(p->in);
    if (p->out >= 0) close(p->out);
    free(p->line);
    int64_t until = clock_ms() + STOP_MS;
    while (p->pid > 0 && waitpid(p->pid, NULL, WNOHANG) == 0) {
        if (clock_ms() > until) kill(p->pid, SIGKILL);
        poll(NULL, 0, 5); // its end has no descriptor here
    }
    *p = (struct conformance_program){.in = -1, .out = -1};
}

static enum status write_all(struct conformance_program *p, const char *text, size_t n,
                             conformance_turn *turn, void *arg, struct error *e)
{
    int64_t until = clock_ms() + ASK_MS;
    while (n > 0) {
        ssize_t wrote = write(p->in, text, n);
        if (wrote > 0) {
            text += wrote;
            n -= (size_t) wrote;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR) {
            return error_set(e, ERR_IO, "program_ended", "the program does not read: %m");
        }
        if (clock_ms() > until) {
            return error_set(e, ERR_TIMEOUT, "program_hangs", "the program does not read");
        }
        try(turn(arg, e));
        struct pollfd fd = {.fd = p->in, .events = POLLOUT};
        poll(&fd, 1, 2);
    }
    return OK;
}

enum status conformance_program_ask(struct conformance_program *p, json_t *wish,
                                    conformance_turn *turn, void *arg, struct error *e)
{
    char *text = json_dumps(wish, JSON_COMPACT);
    json_decref(wish);
    if (text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a wish");
    size_t n = strlen(text);
    text[n] = '\n'; // in place of the zero
    enum status status = write_all(p, text, n + 1, turn, arg, e);
    free(text);
    return status;
}

static enum status grow(struct conformance_program *p, struct error *e)
{
    if (p->n + READ_BYTES <= p->room) return OK;
    if (p->n > REPLY_MAX) return error_set(e, ERR_LIMIT, "too_large", "a reply without an end");
    char *more = realloc(p->line, p->room * 2 + READ_BYTES);
    if (more == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a reply");
    p->line = more;
    p->room = p->room * 2 + READ_BYTES;
    return OK;
}

static enum status first_line(struct conformance_program *p, json_t **reply, struct error *e)
{
    char *end = p->n > 0 ? memchr(p->line, '\n', p->n) : NULL;
    if (end == NULL) return OK;
    size_t n = (size_t) (end - p->line);
    *reply = json_loadb(p->line, n, 0, NULL);
    enum status status = OK;
    if (!json_is_object(*reply)) {
        json_decref(*reply);
        *reply = NULL;
        status = error_set(e, ERR_INPUT, "bad_reply", "no JSON object: %.*s",
                           n < 200 ? (int) n : 200, p->line);
    }
    p->n -= n + 1;
    memmove(p->line, end + 1, p->n);
    return status;
}

enum status conformance_program_reply(struct conformance_program *p, int wait_ms, json_t **reply,
                                      struct error *e)
{
    *reply = NULL;
    struct pollfd fd = {.fd = p->out, .events = POLLIN};
    if (poll(&fd, 1, wait_ms) > 0) {
        try(grow(p, e));
        ssize_t n = read(p->out, p->line + p->n, READ_BYTES);
        if (n == 0) return error_set(e, ERR_IO, "program_ended", "the program has ended");
        if (n > 0) p->n += (size_t) n;
    }
    return first_line(p, reply, e);
}
