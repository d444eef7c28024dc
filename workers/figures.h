// What a group has counted since its process began, over all its stages and epochs, and what it
// holds now: the body of PONG. Stages, heads and epochs count for themselves; here it is added up
// before they go. Leader's thread only.
#ifndef PENSTOCK_WORKERS_FIGURES_H
#define PENSTOCK_WORKERS_FIGURES_H

#include "common/wire.h"
#include "workers/epoch.h"
#include "workers/head.h"
#include "workers/stage.h"

struct figures {
    struct wire_figures ended; // of what has gone; no ranks
    struct wire_rank ranks[TP_MAX]; // of stages that have gone
};

// Call these before it is destroyed or closed. NULL: there is none.
void figures_end_stage(struct figures *f, struct stage *s);
void figures_end_head(struct figures *f, const struct head *h);
void figures_end_epoch(struct figures *f, const struct epoch *ep);

// All of it: with what is there (NULL: it is not); of host memory what ranks pin, and no more.
// `ranks` (TP_MAX) is room for those of the tp ranks, and outlives `to`.
void figures_now(const struct figures *f, struct stage *s, const struct head *h,
                 const struct epoch *ep, int tp, struct wire_rank *ranks, struct wire_figures *to);

#endif
