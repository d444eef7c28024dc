// Runs a subcommand of `penstock` in a child process, as main would.
#ifndef PENSTOCK_TESTS_SUPPORT_COMMAND_H
#define PENSTOCK_TESTS_SUPPORT_COMMAND_H

#include "tools/commands.h"

#include <sys/types.h>

enum { COMMAND_TEXT_MAX = 65536 };

struct command {
    pid_t pid;
    int in, out, err; // files
    int status;       // exit status; 128 + signal
    char out_text[COMMAND_TEXT_MAX], err_text[COMMAND_TEXT_MAX]; // after command_wait
};

// words: argv, up to NULL; input: on stdin, NULL for none.
void command_start(struct command *c, command_main *run, const char *const *words,
                   const char *input);

// Waits for its end. Returns the exit status.
int command_wait(struct command *c);

// Both, with the words as arguments.
#define command_run(c, run, input, ...)                                                            \
    (command_start((c), (run), (const char *const[]){__VA_ARGS__, NULL}, (input)), command_wait(c))

#endif
