// How a subcommand ends: a sentence on stderr, with --json one object on stdout, the exit status.
#ifndef PENSTOCK_TOOLS_OUTCOME_H
#define PENSTOCK_TOOLS_OUTCOME_H

#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>

// "PROGRAM: sentence" on stderr; with json also {"error": {"code", "message"}} on stdout.
// EXIT_USAGE for what was wrong with the arguments, else EXIT_FAILED.
int outcome_failed(const char *program, const struct error *e, bool json);

// For arguments that could not be read, --json among them: EXIT_USAGE, and nothing on stdout.
int outcome_usage(const char *program, const struct error *e);

// Prints the object on a line of stdout and drops the reference. EXIT_FAILED without memory, or if
// stdout cannot be written; else `status`.
int outcome_json(json_t *object, int status);

// {"code", "message"}: new reference.
json_t *outcome_error(const struct error *e);

#endif
