// What people see of a stage that loads: a bar on a terminal (common/bars.h), else a line now and
// then, and at the end what it holds and what it compared. The leader's thread.
#ifndef PENSTOCK_WORKERS_LOADING_H
#define PENSTOCK_WORKERS_LOADING_H

#include "workers/stage.h"

struct loading {
    const char *name; // of the group; NULL while nothing loads
    int64_t said_ms;
};

// Once a turn of the loop while the stage loads. `name` lives until loading_end.
void loading_turn(struct loading *l, const char *name, int stage_number, const struct stage *stage,
                  int64_t now_ms);

// It loads no longer, whatever became of it. Does nothing if it did not.
void loading_end(struct loading *l);

// The line of a stage that is READY. `manifest` NULL: there is none.
void loading_report(int stage_number, const struct stage *stage, const struct manifest *manifest,
                    const char *file);

#endif
