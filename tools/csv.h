// The table of a benchmark as CSV, where --csv names a file for it.
#ifndef PENSTOCK_TOOLS_CSV_H
#define PENSTOCK_TOOLS_CSV_H

#include "common/options.h"
#include "common/status.h"

#include <stdio.h>

// A row of a table of options.
#define CSV_FLAG_ROW(path)                                                                         \
    {.name = "csv", .kind = OPTION_STRING, .value = &(path), .argument = "FILE",                   \
     .help = "Writes the table as CSV too."}

// *out is NULL where path is. ERR_IO.
enum status csv_open(FILE **out, const char *path, struct error *e);

// Closes `out`, which may be NULL. Returns `status`, which e tells of, or if that is OK and the
// file could not be written, ERR_IO.
enum status csv_close(FILE *out, const char *path, enum status status, struct error *e);

#endif
