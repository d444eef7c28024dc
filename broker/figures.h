// What groups tell of their work in PONG, added up so that no counter falls when a process begins
// anew or its place changes: by group, and by model and stage. Pure: time comes in. The loop's
// thread. Knows no sockets and no fleet.
#ifndef PENSTOCK_BROKER_FIGURES_H
#define PENSTOCK_BROKER_FIGURES_H

#include "common/wire.h"

struct figures_mark {
    int64_t at_ms;
    uint64_t steps, prefill, decode, busy_us; // busy: of all ranks
};

struct figures_rates { // a second, over the last 5 to 10 of them
    double steps, prefill, decode;
    double busy; // share of the time that ranks compute, 0 to 1
};

struct group_figures {
    bool told; // by PONG, since its process began
    uint8_t boot[WIRE_ID_BYTES];
    struct wire_figures ended; // counters of its former processes
    struct wire_figures last;  // what this one told last; its ranks are those below
    struct wire_rank ranks[TP_MAX];
    int stage;                 // that it worked for last; -1: none
    struct figures_mark marks[2]; // older first
};

enum { FIGURES_DECODE, FIGURES_PREFILL, FIGURES_KINDS };

struct model_figures {
    uint64_t prefill_tokens, decode_tokens;
    uint64_t busy_us;  // of all ranks
    double wasted_s;   // device seconds spent on what an earlier attempt had done
    struct histogram steps[PP_MAX][FIGURES_KINDS];
};

// The group says HELLO: another boot id is another process.
void figures_hello(struct group_figures *g, const uint8_t boot[WIRE_ID_BYTES]);

// PONG, of a group that has this stage of the model (-1: none; then its last one counts). The first
// one of a process counts nothing in the model's books: what it did before was told to another
// leader, or has been counted. True: it has done or holds something else than it told before.
bool figures_hear(struct group_figures *g, struct model_figures *model, int stage,
                  const struct wire_figures *f, int64_t now_ms);

// Counters of all its processes, and what the present one holds. Ranks are this process's.
struct wire_figures figures_total(const struct group_figures *g);

// Zeros if it was not heard for long.
struct figures_rates figures_rates(const struct group_figures *g, int64_t now_ms);

#endif
