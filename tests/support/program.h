// A program of ours as a child process whose log lines are read. It dies with the test.
#ifndef PENSTOCK_TESTS_SUPPORT_PROGRAM_H
#define PENSTOCK_TESTS_SUPPORT_PROGRAM_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct program {
    pid_t pid; // 0: not running
    int fd;    // of its stderr
    size_t n;
    char log[1 << 18]; // what it wrote; the end of it
};

// args: argv, ends with NULL.
void program_start(struct program *p, const char *const *args);

// Reads what is there.
void program_read(struct program *p);

// The rest of the log behind the first `text`, or NULL.
const char *program_said(struct program *p, const char *text);

// Waits until the log holds `text`; ends the test, with the log, if that takes too long.
const char *program_wait(struct program *p, const char *text);

void program_kill(struct program *p); // SIGKILL
int program_stop(struct program *p);  // SIGTERM; its exit status
int program_ended(struct program *p); // waits for its end; the exit status

#endif
