// The program that `penstock conformance producer` tries: a child process that is given wishes as
// JSON lines and replies with one line each (PROTOCOL.md, Conformance). One thread.
#ifndef PENSTOCK_TOOLS_CONFORMANCE_PROGRAM_H
#define PENSTOCK_TOOLS_CONFORMANCE_PROGRAM_H

#include "common/status.h"

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

struct json_t;

struct conformance_program {
    pid_t pid; // 0: not running
    int in, out;
    char *line; // bytes of replies that were read and not yet used
    size_t n, room;
};

// Whether there is such a program, at this path or in $PATH. ERR_INPUT bad_usage.
enum status conformance_program_find(const char *name, struct error *e);

// Starts argv with PENSTOCK_REDIS, PENSTOCK_QUEUE and PENSTOCK_TENANT set. Its stderr is ours.
enum status conformance_program_start(struct conformance_program *p, char **argv, const char *url,
                                      const char *queue, struct error *e);

// Closes its input, waits up to 5 s for its end, then kills it.
void conformance_program_stop(struct conformance_program *p);

// Writes a wish (which is let go). While the program doesn't read, turn(arg) goes on.
typedef enum status conformance_turn(void *arg, struct error *e);
enum status conformance_program_ask(struct conformance_program *p, struct json_t *wish,
                                    conformance_turn *turn, void *arg, struct error *e);

// Waits up to wait_ms for output, then looks for a whole reply: new reference; *reply NULL: not
// yet. ERR_IO: the program has ended; ERR_INPUT: a line is no JSON object.
enum status conformance_program_reply(struct conformance_program *p, int wait_ms,
                                      struct json_t **reply, struct error *e);

#endif
