// The lines of a batch's input, one at a time, each within a bound, so that a file of any size is
// never held whole. One thread.
#ifndef PENSTOCK_TOOLS_BATCH_INPUT_H
#define PENSTOCK_TOOLS_BATCH_INPUT_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { BATCH_ID_MAX = 48, BATCH_ID_SIZE = BATCH_ID_MAX + 1 };

struct batch_input {
    FILE *f;
    char *text;    // of the line, terminated, without its newline
    size_t n;
    bool too_long; // text is its beginning only
    int64_t number; // of the line, from 1; blank ones count, but are passed over
};

// Reads the whole file once: its lines that are not blank, and an id that follows from its path and
// content. ERR_IO.
enum status batch_input_survey(const char *path, char id[BATCH_ID_SIZE], int64_t *n_lines,
                               struct error *e);

enum status batch_input_open(struct batch_input *in, const char *path, struct error *e);

// The next line that is not blank. False at the end; ERR_IO through *status.
bool batch_input_next(struct batch_input *in, enum status *status, struct error *e);

void batch_input_close(struct batch_input *in);

#endif
