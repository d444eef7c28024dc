// A batch's output or error file: lines are appended as results come, and what an earlier run left
// there says which input lines are answered. One thread; the file is locked while it is open.
#ifndef PENSTOCK_TOOLS_BATCH_OUTPUT_H
#define PENSTOCK_TOOLS_BATCH_OUTPUT_H

#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

// Which input lines are answered: one bit each.
struct batch_answered {
    uint8_t *bits;
    int64_t n_bits;
};

bool batch_is_answered(const struct batch_answered *a, int64_t number);

// ERR_NOMEM.
enum status batch_set_answered(struct batch_answered *a, int64_t number, struct error *e);

struct batch_output {
    int fd; // -1: not open
    const char *path;
    int64_t n_lines; // there are, this run's included
};

// Opens or creates the file, cuts off a last line that was torn by a crash, and marks what the
// others answer. ERR_INPUT other_batch: the file holds something else, which stays as it is.
// ERR_STATE in_use: another run has it open. ERR_IO.
enum status batch_output_open(struct batch_output *o, const char *path, const char *batch_id,
                              struct batch_answered *answered, struct error *e);

// Appends one line with its newline and drops the reference. ERR_IO, ERR_NOMEM.
enum status batch_output_append(struct batch_output *o, json_t *line, struct error *e);

// Brings all of it to the disk, and closes.
enum status batch_output_close(struct batch_output *o, struct error *e);

#endif
