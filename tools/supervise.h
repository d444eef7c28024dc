// Child processes of `penstock up`: started, watched line by line, started again when they die,
// stopped in order. Children are in process groups of their own, so that Ctrl-C reaches only the
// supervisor, and die with it (PR_SET_PDEATHSIG). One thread; signals come through signalfd.
#ifndef PENSTOCK_TOOLS_SUPERVISE_H
#define PENSTOCK_TOOLS_SUPERVISE_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    CHILDREN_MAX = 128,
    CHILD_ARGS_MAX = 256,
    CHILD_LINE_MAX = 4096,
    QUICK_DEATHS_MAX = 5, // in a row, each within QUICK_MS: then the supervisor gives up
    QUICK_MS = 5000,
};

struct child {
    char name[64];
    char *argv[CHILD_ARGS_MAX]; // owned, NULL at the end
    int n_args;
    int stop_ms;      // how long SIGTERM may take before SIGKILL
    pid_t pid;        // 0: not running
    int out;          // its stdout and stderr; -1: none
    char line[CHILD_LINE_MAX];
    size_t n_line;
    int64_t started_ms, restart_ms;
    int n_quick, n_starts;
    bool refused;     // it ended with EXIT_USAGE: a new start would end the same
};

struct supervisor {
    struct child children[CHILDREN_MAX];
    int n_children;
    int signals;      // signalfd: SIGINT, SIGTERM, SIGCHLD
    int n_stops;      // SIGINT or SIGTERM received
    void *arg;
    // A line of a child's output, without its newline.
    void (*line)(void *arg, struct child *c, const char *line);
    void (*started)(void *arg, struct child *c);
    void (*ended)(void *arg, struct child *c, int status); // waitpid's status
};

enum status supervisor_init(struct supervisor *s, struct error *e);
void supervisor_deinit(struct supervisor *s);

// A child to run; add its arguments, argv[0] first (found through PATH unless it holds a slash).
struct child *supervisor_add(struct supervisor *s, const char *name, int stop_ms);
void child_arg(struct child *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Starts what does not run and is due, handles signals and output; returns after at most
// timeout_ms. ERR_STATE child_failed: a child refused its arguments, or died QUICK_DEATHS_MAX times
// in a row soon after its start.
enum status supervisor_turn(struct supervisor *s, int timeout_ms, struct error *e);

// Sends SIGTERM to children [first, first + n) and waits until they have ended; SIGKILL after their
// time, or when the supervisor is asked to stop once more.
void supervisor_stop(struct supervisor *s, int first, int n);

#endif
