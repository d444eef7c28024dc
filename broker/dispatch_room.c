#include "broker/dispatch_room.h"

#include <stddef.h>

// After any change.
static void sum_up(struct rooms *r)
{
    r->most_blocks = 0;
    r->worst = -1;
    for (int i = 0; i < r->n; i++) {
        const struct room *room = &r->at[i];
        int level = room->hold != NULL ? room->holder.level : DISPATCH_LEVELS;
        if (room->now.slots > 0 && room->now.blocks > r->most_blocks) {
            r->most_blocks = room->now.blocks;
        }
        if (level > r->worst) r->worst = level;
    }
}

void rooms_init(struct rooms *r, const struct dispatch_view *v, int urgent_percent)
{
    r->urgent_percent = urgent_percent;
    r->n = v->n_pipelines;
    for (int i = 0; i < r->n; i++) r->at[i] = (struct room){.now = v->pipelines[i]};
    sum_up(r);
}

// --- one pipeline

// Slots or blocks that a job below class 0, which needs so many, leaves free for class 0: it goes
// past those that run for long. A job that cannot leave so much is bound by nothing.
static uint64_t kept(const struct rooms *r, uint64_t all, uint64_t need)
{
    uint64_t n = all * (uint64_t) r->urgent_percent / 100;
    if (r->urgent_percent == 0 || all < DISPATCH_KEEP_LEAST) return 0;
    if (n == 0) n = 1;
    return need + n > all ? 0 : n;
}

static bool fits(const struct rooms *r, const struct dispatch_pipeline *p, const struct room_job *j)
{
    uint64_t need = j->job->need_blocks;
    if (p->alone || (j->job->poison && p->n_running > 0)) return false;
    uint64_t slots = j->class > 0 ? kept(r, p->all_slots, 1) : 0;
    uint64_t blocks = j->class > 0 ? kept(r, p->all_blocks, need) : 0;
    return p->slots >= 1 + slots && p->blocks >= need + blocks;
}

static bool fits_when_empty(const struct rooms *r, const struct dispatch_pipeline *p,
                            const struct room_job *j)
{
    struct dispatch_pipeline empty = {.slots = p->all_slots, .blocks = p->all_blocks,
                                      .all_slots = p->all_slots, .all_blocks = p->all_blocks};
    return fits(r, &empty, j);
}

static void add(struct dispatch_pipeline *p, const struct ready_job *j)
{
    p->slots--;
    p->blocks -= j->need_blocks;
    p->n_running++;
    p->alone = j->poison;
}

// What the pipeline has after so many steps, if nothing starts there.
static struct dispatch_pipeline after(const struct dispatch_pipeline *p, uint64_t steps)
{
    struct dispatch_pipeline then = *p;
    for (int i = 0; i < p->n_listed; i++) {
        if (p->running[i].steps > steps) continue;
        then.slots++;
        then.blocks += p->running[i].blocks;
        then.n_running--;
    }
    then.alone = p->alone && then.n_running > 0;
    return then;
}

// When the holder fits. Unknown while the books of head and jobs differ, a moment after an end.
static void foresee(const struct rooms *r, struct room *room)
{
    const struct dispatch_pipeline *p = &room->now;
    uint64_t low = 0, high = 0;
    for (int i = 0; i < p->n_listed; i++) {
        if (p->running[i].steps > high) high = p->running[i].steps;
    }
    room->then = after(p, high);
    room->steps = 0;
    if (!fits(r, &room->then, &room->holder)) return;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        struct dispatch_pipeline then = after(p, middle);
        if (fits(r, &then, &room->holder)) high = middle;
        else low = middle + 1;
    }
    room->steps = low;
    room->then = after(p, low);
}

// Class 0, and what age lifted there, leave each other alone: dispatch gives each its part.
static bool is_better(int level, int than)
{
    return (level > 1 ? level : 1) < (than > 1 ? than : 1);
}

static bool delays_holder(const struct rooms *r, const struct room *room, const struct room_job *j)
{
    if (room->hold == NULL || is_better(j->level, room->holder.level)) return false;
    if (room->hold->skipped >= DISPATCH_SKIPS_MAX) return true;
    if (j->job->steps <= room->steps) return false;
    struct dispatch_pipeline then = room->then;
    if (then.slots < 1 || then.blocks < j->job->need_blocks) return true;
    add(&then, j->job);
    return !fits(r, &then, &room->holder);
}

static bool may_hold(const struct rooms *r, const struct room *room, const struct room_job *j)
{
    if (room->hold != NULL && !is_better(j->level, room->holder.level)) return false;
    return fits_when_empty(r, &room->now, j);
}

// --- all of them

static bool has_more(const struct dispatch_pipeline *p, const struct dispatch_pipeline *than)
{
    return p->slots > than->slots || (p->slots == than->slots && p->blocks > than->blocks);
}

int rooms_place(const struct rooms *r, const struct room_job *j)
{
    int best = -1;
    if (j->job->need_blocks == 0) return 0;
    for (int i = 0; i < r->n; i++) {
        const struct room *room = &r->at[i];
        if (!fits(r, &room->now, j) || delays_holder(r, room, j)) continue;
        if (best < 0 || has_more(&room->now, &r->at[best].now)) best = i;
    }
    return best;
}

bool rooms_take_or_hold(const struct rooms *r, const struct room_job *j)
{
    if (j->job->need_blocks == 0) return true;
    if (j->job->need_blocks > r->most_blocks && !is_better(j->level, r->worst)) return false;
    for (int i = 0; i < r->n; i++) {
        const struct room *room = &r->at[i];
        if (fits(r, &room->now, j) && !delays_holder(r, room, j)) return true;
        if (may_hold(r, room, j)) return true;
    }
    return false;
}

int rooms_holdable(const struct rooms *r, const struct room_job *j)
{
    int best = -1;
    for (int i = 0; i < r->n; i++) {
        const struct room *room = &r->at[i];
        if (!may_hold(r, room, j)) continue;
        if (best < 0 || room->now.blocks > r->at[best].now.blocks) best = i;
    }
    return best;
}

void rooms_hold(struct rooms *r, int pipeline, struct dispatch_hold *hold, const struct room_job *j)
{
    struct room *room = &r->at[pipeline];
    room->hold = hold;
    room->holder = *j;
    foresee(r, room);
    sum_up(r);
}

void rooms_release(struct rooms *r, int pipeline)
{
    r->at[pipeline].hold = NULL;
    sum_up(r);
}

int rooms_place_holder(const struct rooms *r, int pipeline)
{
    const struct room *room = &r->at[pipeline];
    return fits(r, &room->now, &room->holder) ? pipeline : rooms_place(r, &room->holder);
}

void rooms_take(struct rooms *r, int pipeline, const struct room_job *j)
{
    struct room *room = &r->at[pipeline];
    if (j->job->need_blocks == 0) return;
    add(&room->now, j->job);
    sum_up(r);
    if (room->hold == NULL) return;
    if (!is_better(j->level, room->holder.level)) room->hold->skipped++;
    if (j->job->steps <= room->steps) return;
    // A better class may take what the holder counts on: the next choice foresees anew.
    bool enough = room->then.slots >= 1 && room->then.blocks >= j->job->need_blocks;
    if (enough) add(&room->then, j->job);
    else room->then.slots = 0;
}

bool rooms_any_free(const struct rooms *r)
{
    for (int i = 0; i < r->n; i++) {
        if (r->at[i].now.slots > 0 && !r->at[i].now.alone) return true;
    }
    return false;
}
