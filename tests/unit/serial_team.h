// A team of one real thread for tests of ops: deals the pieces out backwards, each to the next of
// n_threads pretended threads, so that an order or a thread's scratch that matters shows. Stands in
// for kernels/cpu/team.c where that is not linked.
#ifndef PENSTOCK_TESTS_SERIAL_TEAM_H
#define PENSTOCK_TESTS_SERIAL_TEAM_H

#include "kernels/cpu/team.h"

#include <stdlib.h>

struct team {
    int n_threads;
};

enum status team_create(struct team **team, int n_threads, struct error *e)
{
    (void) e;
    *team = malloc(sizeof **team);
    (*team)->n_threads = n_threads;
    return OK;
}

void team_destroy(struct team **team)
{
    free(*team);
    *team = NULL;
}

int team_threads(const struct team *t) { return t->n_threads; }

void team_run(struct team *t, team_work *work, void *arg, int n, int grain)
{
    for (int piece = (n + grain - 1) / grain - 1; piece >= 0; piece--) {
        int begin = piece * grain, end = n - begin < grain ? n : begin + grain;
        work(arg, begin, end, piece % t->n_threads);
    }
}

#endif
