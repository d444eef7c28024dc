// Bars of what is under way, several on one line of a terminal: which group has loaded how much.
// One line for the process; any thread. Nothing is drawn where stderr is no terminal. Log lines and
// bars_clear take the line's place, until it is drawn again.
#ifndef PENSTOCK_COMMON_BARS_H
#define PENSTOCK_COMMON_BARS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BARS_MAX = 128, BAR_NAME_MAX = 32 };

struct bar {
    char name[BAR_NAME_MAX + 1];
    uint64_t done, total; // bytes
    double rate;          // bytes a second since it began
};

// The line for n bars in `width` columns, "group-0 [####    ]  50% 1.20 GB/s  group-1 ...": the
// cells are equally wide and lose, in this order, the bar and the rate; what has no room is counted
// ("+3"). Returns its length; `text` has room for width + 1 bytes.
size_t bars_print(const struct bar *bars, int n, int width, char *text);

// Shows how far `name` is, at most ten times a second. With done == total its bar goes.
void bars_show(const char *name, uint64_t done, uint64_t total, int64_t now_ms);

// `name` is no longer under way.
void bars_drop(const char *name);

// Empties the line, for somebody else's text.
void bars_clear(void);

#endif
