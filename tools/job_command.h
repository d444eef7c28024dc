// A subcommand about one job: `penstock NAME ID`, with the queue's flags and --json.
#ifndef PENSTOCK_TOOLS_JOB_COMMAND_H
#define PENSTOCK_TOOLS_JOB_COMMAND_H

#include "broker/queue_sync.h"

#include <stdbool.h>

struct job_command {
    const char *program; // "penstock NAME"
    const char *about;
    // The id is one that a job may have. Returns the exit status.
    int (*run)(const char *program, struct queue_sync *q, const char *tenant, const char *id,
               bool json);
};

// Reads the arguments, connects and runs it. The exit status.
int job_command_main(const struct job_command *c, int argc, char **argv);

#endif
