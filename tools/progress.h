// A progress bar on a terminal, plain lines elsewhere. One thread.
#ifndef PENSTOCK_TOOLS_PROGRESS_H
#define PENSTOCK_TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool terminal;
    int64_t started_ms, drawn_ms;
    int64_t total;  // 0: unknown
    int64_t before; // ended before the start: they tell nothing of the speed
    int drawn_width;
};

// Draws on stderr. `total` is the number of jobs, 0 if unknown; `before` of them have ended
// already.
void progress_init(struct progress *p, int64_t total, int64_t before);

// Shows the state if enough time has passed since the last drawing (0.1 s on a terminal, 5 s else)
// or `last` is set, which also ends the line. tokens: generated so far.
void progress_update(struct progress *p, int64_t done, int64_t failed, int64_t tokens, bool last);

// A line of its own, between drawings.
void progress_note(struct progress *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
