// Ready jobs of a few tenants and pipelines with credit, for tests of dispatch. One to a program.
#ifndef PENSTOCK_TESTS_UNIT_DISPATCH_WORLD_H
#define PENSTOCK_TESTS_UNIT_DISPATCH_WORLD_H

#include "broker/dispatch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { TENANTS = 3, DEEP = 600, PIPELINES = 3, PLENTY = 1 << 30 };

static struct world {
    struct dispatch d;
    int n_pipelines;
    struct credit credits[PIPELINES];
    uint64_t all_slots[PIPELINES], all_blocks[PIPELINES];
    const struct dispatch_running *running[PIPELINES];
    int n_running[PIPELINES], n_listed[PIPELINES];
    uint64_t seq;
    bool urgent;
    bool alone[PIPELINES];
    struct dispatch_tenant tenants[TENANTS];
    struct ready_job jobs[TENANTS][JOB_CLASSES][DEEP];
    struct ready_queue queues[TENANTS][JOB_CLASSES];
    int64_t now_ms;
} w;

static inline void world(void)
{
    w = (struct world){.now_ms = 1000000, .n_pipelines = 1};
    for (int t = 0; t < TENANTS; t++) {
        w.tenants[t] = (struct dispatch_tenant){1, UINT64_MAX, UINT64_MAX, false};
        for (int c = 0; c < JOB_CLASSES; c++) w.queues[t][c].jobs = w.jobs[t][c];
    }
    for (int i = 0; i < PIPELINES; i++) {
        credit_grant(&w.credits[i], PLENTY, PLENTY);
        w.all_slots[i] = w.all_blocks[i] = PLENTY;
    }
}

static inline void put(int tenant, int class, uint64_t blocks, uint64_t cost)
{
    struct ready_queue *q = &w.queues[tenant][class];
    assert_true(q->n < DEEP);
    w.jobs[tenant][class][q->n++] = (struct ready_job){blocks, cost, w.now_ms, false,
                                                            ++w.seq, cost};
}

static inline int choose(struct dispatch_pick *picks, int most)
{
    struct dispatch_pipeline pipelines[PIPELINES];
    for (int i = 0; i < w.n_pipelines; i++) {
        const struct credit *c = &w.credits[i];
        pipelines[i] = (struct dispatch_pipeline){.id = (uint64_t) i + 1,
                                                  .slots = credit_slots(c),
                                                  .blocks = credit_blocks(c),
                                                  .n_running = w.n_running[i],
                                                  .alone = w.alone[i],
                                                  .all_slots = w.all_slots[i],
                                                  .all_blocks = w.all_blocks[i],
                                                  .running = w.running[i],
                                                  .n_listed = w.n_listed[i]};
    }
    const struct dispatch_view v = {w.n_pipelines, pipelines, TENANTS, w.tenants,
                                    (const void *) w.queues, w.urgent, w.now_ms};
    return dispatch_choose(&w.d, &v, picks, most);
}

// What a pick took leaves its queue.
static inline struct ready_job pull(const struct dispatch_pick *p)
{
    struct ready_queue *q = &w.queues[p->tenant][p->class];
    struct ready_job *at = w.jobs[p->tenant][p->class] + p->nth, taken = *at;
    assert_in_range(p->nth, 0, q->n - 1);
    memmove(at, at + 1, (size_t) (--q->n - p->nth) * sizeof *at);
    return taken;
}

static inline struct dispatch_pick next(void)
{
    struct dispatch_pick p;
    if (choose(&p, 1) == 0) return (struct dispatch_pick){.tenant = -1};
    pull(&p);
    return p;
}

#endif
