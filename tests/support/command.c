#include "tests/support/command.h"

#include "common/status.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void run_child(const struct command *c, command_main *run, const char *const *words)
{
    char *argv[64];
    int argc = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    check(dup2(c->in, 0) == 0 && dup2(c->out, 1) == 1 && dup2(c->err, 2) == 2);
    for (; words[argc] != NULL; argc++) argv[argc] = strdup(words[argc]);
    argv[argc] = NULL;
    int status = run(argc, argv);
    fflush(NULL);
    _exit(status);
}

void command_start(struct command *c, command_main *run, const char *const *words,
                   const char *input)
{
    memset(c, 0, sizeof *c);
    c->in = memfd_create("in", 0);
    c->out = memfd_create("out", 0);
    c->err = memfd_create("err", 0);
    check(c->in >= 0 && c->out >= 0 && c->err >= 0);
    size_t n = input != NULL ? strlen(input) : 0;
    check(write(c->in, input != NULL ? input : "", n) == (ssize_t) n && lseek(c->in, 0, 0) == 0);
    fflush(NULL);
    c->pid = fork();
    check(c->pid >= 0);
    if (c->pid == 0) run_child(c, run, words);
}

static void read_text(int fd, char *text)
{
    ssize_t n = pread(fd, text, COMMAND_TEXT_MAX - 1, 0);
    check(n >= 0);
    text[n] = '\0';
    close(fd);
}

int command_wait(struct command *c)
{
    int status;
    while (waitpid(c->pid, &status, 0) < 0) check(errno == EINTR);
    c->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    read_text(c->out, c->out_text);
    read_text(c->err, c->err_text);
    close(c->in);
    return c->status;
}
