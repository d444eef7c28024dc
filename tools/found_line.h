// A line of our programs' logs as it is found: alone, behind what a supervisor writes before it
// (docker compose logs, journalctl), or inside the JSON object that Docker's json-file driver makes
// of each line. Any thread. Knows the form of our lines, not what they say.
#ifndef PENSTOCK_TOOLS_FOUND_LINE_H
#define PENSTOCK_TOOLS_FOUND_LINE_H

#include <stdbool.h>

struct found_line {
    const char *shown; // with what stands before it; in `text`
    const char *said;  // from its own beginning on
    long long t_ms, attempt; // attempt 0: of none
    int step;                // in an attempt's life, where it is one; lines of the same time go so
};

// False: it is none of ours. `text` ends with a newline or not; it is changed where it must be.
bool found_line_read(char *text, struct found_line *to);

// Whether it says name=value, in either form.
bool found_line_says(const struct found_line *l, const char *name, const char *value);

#endif
