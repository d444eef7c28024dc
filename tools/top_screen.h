// A terminal that a page is shown on, whole and without flicker: the alternate screen, keys at
// once, its size, signals. However the program ends, the terminal is as it was. Main thread; one
// screen a process. Knows nothing of what is shown.
#ifndef PENSTOCK_TOOLS_TOP_SCREEN_H
#define PENSTOCK_TOOLS_TOP_SCREEN_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct screen {
    int columns, rows;
    int signals; // signalfd
    int scroll;  // lines of the page above the first one shown
};

enum screen_event {
    SCREEN_NOTHING, // time has passed
    SCREEN_DRAW,    // the size or the place in the page has changed
    SCREEN_WOKEN,   // `wake_fd` is readable
    SCREEN_QUIT,    // q, or a signal
};

// Standard input and output must be terminals. Call it before any other thread begins: signals
// are read by screen_wait from then on. ERR_INPUT bad_usage, ERR_IO.
enum status screen_open(struct screen *s, struct error *e);
void screen_close(struct screen *s);

// Shows a page, n bytes of whole lines (top_page.h): the first n_fixed lines stay, the others can
// be scrolled. One write.
void screen_show(struct screen *s, const char *page, size_t n, int n_fixed);

// Waits for a key, a signal, wake_fd, or until timeout_ms have passed.
enum screen_event screen_wait(struct screen *s, int wake_fd, int timeout_ms);

// Columns of the terminal that standard output is; else COLUMNS of the environment; else 80.
int screen_columns(void);

#endif
