#include "broker/dispatch.h"

#include "broker/dispatch_room.h"
#include "common/status.h"

#include <stddef.h>

void credit_grant(struct credit *c, uint64_t slots, uint64_t blocks)
{
    if (slots > c->granted_slots) c->granted_slots = slots;
    if (blocks > c->granted_blocks) c->granted_blocks = blocks;
}

void credit_adopt(struct credit *c, uint64_t total_slots, uint64_t total_blocks,
                  uint64_t used_slots, uint64_t used_blocks)
{
    credit_grant(c, total_slots, total_blocks); // no head has ever granted less
    c->taken_slots = c->granted_slots - (total_slots - used_slots);
    c->taken_blocks = c->granted_blocks - (total_blocks - used_blocks);
}

void credit_take(struct credit *c, uint64_t blocks)
{
    check(credit_slots(c) >= 1 && credit_blocks(c) >= blocks);
    c->taken_slots++;
    c->taken_blocks += blocks;
}

void credit_give_back(struct credit *c, uint64_t blocks)
{
    check(c->taken_slots >= 1 && c->taken_blocks >= blocks);
    c->taken_slots--;
    c->taken_blocks -= blocks;
}

uint64_t credit_slots(const struct credit *c)
{
    return c->granted_slots > c->taken_slots ? c->granted_slots - c->taken_slots : 0;
}

uint64_t credit_blocks(const struct credit *c)
{
    return c->granted_blocks > c->taken_blocks ? c->granted_blocks - c->taken_blocks : 0;
}

// --- who is next

// One choice as it is made. Room only shrinks meanwhile: who found none is not looked at again.
struct round {
    const struct dispatch_view *view;
    int at[TENANTS_MAX][JOB_CLASSES];          // the first job of each queue to look at
    bool taken[TENANTS_MAX][JOB_CLASSES];      // a job of it was chosen
    int end_level; // the best one at which a queue may go on with jobs that are not known
    uint64_t jobs[TENANTS_MAX], blocks[TENANTS_MAX]; // left of the tenants' budgets
    bool idle[TENANTS_MAX];
    bool owed[DISPATCH_LEVELS][TENANTS_MAX]; // jobs of it found no room
    bool both; // class 0 waits, and what age lifted there
    struct rooms rooms;
    int nth[PIPELINES_MAX]; // of the job that holds the pipeline, in its queue
    struct dispatch_hold held[PIPELINES_MAX]; // (n_held) when the choice began
    int n_held;
};

// For each tenant the class whose next job is meant, or -1.
typedef int candidates[TENANTS_MAX];

int dispatch_level(const struct dispatch *d, int class, int64_t ready_ms)
{
    int64_t up = d->age_ms > 0 && ready_ms > 0 ? ready_ms / d->age_ms : 0;
    if (class == 0) return 0;
    return up >= class ? 1 : class - (int) up + 1;
}

static const struct ready_job *first_of(const struct round *r, int tenant, int class)
{
    const struct ready_queue *q = &r->view->queues[tenant][class];
    return r->at[tenant][class] < q->n ? &q->jobs[r->at[tenant][class]] : NULL;
}

static struct room_job room_job(const struct dispatch *d, const struct round *r, int class,
                                const struct ready_job *j)
{
    return (struct room_job){j, class, dispatch_level(d, class, r->view->now_ms - j->since_ms)};
}

static bool within_budget(const struct round *r, int tenant, const struct ready_job *j)
{
    if (r->view->tenants[tenant].weight == 0) return false;
    if (j->need_blocks == 0 || r->idle[tenant]) return true;
    return r->jobs[tenant] >= 1 && r->blocks[tenant] >= j->need_blocks;
}

// Jobs that hold, or did when the choice began, are not chosen once more.
static bool held(const struct round *r, int tenant, int class, const struct ready_job *j)
{
    for (int i = 0; i < r->n_held; i++) {
        const struct dispatch_hold *h = &r->held[i];
        if (h->tenant == tenant && h->class == class && h->seq == j->seq) return true;
    }
    return false;
}

// The next job of a queue that can start, or hold a pipeline. What is over the tenant's budget
// keeps its place, and the jobs behind it wait.
static const struct ready_job *next_of(const struct dispatch *d, struct round *r, int tenant,
                                       int class)
{
    for (const struct ready_job *j; (j = first_of(r, tenant, class)) != NULL;
         r->at[tenant][class]++) {
        if (held(r, tenant, class, j)) continue;
        if (!within_budget(r, tenant, j)) return NULL;
        struct room_job of = room_job(d, r, class, j);
        if (rooms_take_or_hold(&r->rooms, &of)) return j;
        r->owed[of.level][tenant] = true;
    }
    return NULL;
}

// A queue of which jobs were taken has no other that can start, but more than are known: those are
// younger, so their level is no better than the last one's.
static void look_ahead(const struct dispatch *d, struct round *r, int tenant, int class)
{
    const struct ready_queue *q = &r->view->queues[tenant][class];
    if (!q->more || !r->taken[tenant][class] || r->at[tenant][class] < q->n) return;
    int level = dispatch_level(d, class, r->view->now_ms - q->jobs[q->n - 1].since_ms);
    if (level < r->end_level) r->end_level = level;
}

// Who can start or hold at each level; of several classes of a tenant, the job that has waited
// longest.
static void find_candidates(const struct dispatch *d, struct round *r,
                            candidates who[DISPATCH_LEVELS], int n[DISPATCH_LEVELS])
{
    const struct dispatch_view *v = r->view;
    for (int level = 0; level < DISPATCH_LEVELS; level++) {
        n[level] = 0;
        for (int t = 0; t < v->n_tenants; t++) who[level][t] = -1;
    }
    for (int t = 0; t < v->n_tenants; t++) {
        for (int class = 0; class < JOB_CLASSES; class++) {
            const struct ready_job *j = next_of(d, r, t, class);
            if (j == NULL) {
                look_ahead(d, r, t, class);
                continue;
            }
            int level = dispatch_level(d, class, v->now_ms - j->since_ms), *of = &who[level][t];
            n[level] += *of < 0;
            if (*of < 0 || j->since_ms < first_of(r, t, *of)->since_ms) *of = class;
        }
    }
}

// A queue that is empty saves nothing up.
static void reset_idle(struct dispatch *d, const struct round *r, int level, const candidates who)
{
    for (int t = 0; t < r->view->n_tenants; t++) {
        bool waits = who[t] >= 0;
        for (int class = 0; class < JOB_CLASSES; class++) waits |= r->view->queues[t][class].n > 0;
        if (!waits) d->deficit[level][t] = 0;
    }
}

// Turns that all must have before one of them can run its job, less one.
static uint64_t idle_turns(const struct dispatch *d, const struct round *r, int level,
                           const candidates who)
{
    uint64_t least = UINT64_MAX;
    for (int t = 0; t < r->view->n_tenants; t++) {
        if (who[t] < 0) continue;
        uint64_t cost = first_of(r, t, who[t])->cost, has = d->deficit[level][t];
        uint64_t turn = (uint64_t) DISPATCH_QUANTUM * r->view->tenants[t].weight;
        uint64_t turns = cost > has ? (cost - has - 1) / turn : 0;
        if (turns < least) least = turns;
    }
    return least;
}

// Turns of a tenant. One whose jobs find no room saves up what it has not had, within bounds.
static void give_turns(struct dispatch *d, const struct round *r, int level, int tenant,
                       const candidates who, uint64_t turns)
{
    uint64_t weight = r->view->tenants[tenant].weight, *has = &d->deficit[level][tenant];
    uint64_t more = turns * DISPATCH_QUANTUM * weight, most = DISPATCH_OWED_MAX * weight;
    if (who[tenant] >= 0) *has += more;
    else if (r->owed[level][tenant] && *has < most) *has = *has + more < most ? *has + more : most;
}

// Whose turn it is at a level where somebody waits; it may run its job.
static int next_tenant(struct dispatch *d, const struct round *r, int level, const candidates who)
{
    int n = r->view->n_tenants, t = d->turn[level];
    if (t < n && who[t] >= 0 && d->deficit[level][t] >= first_of(r, t, who[t])->cost) return t;
    reset_idle(d, r, level, who);
    uint64_t turns = idle_turns(d, r, level, who);
    for (int i = 0; i < n; i++) give_turns(d, r, level, i, who, turns);
    for (;;) {
        t = (t + 1) % n;
        give_turns(d, r, level, t, who, 1);
        if (who[t] < 0) continue;
        d->turn[level] = t;
        if (d->deficit[level][t] >= first_of(r, t, who[t])->cost) return t;
    }
}

// While class 0 waits: what age lifted there has had less than its part.
static bool aged_is_due(struct dispatch *d, const struct round *r, const candidates who)
{
    int t = next_tenant(d, r, 1, who);
    uint64_t aged = d->aged + first_of(r, t, who[t])->cost;
    return aged * (DISPATCH_AGED_PART - 1) <= d->strict;
}

// The tenant pays when its job starts, or when it gets a hold.
static void charge(struct dispatch *d, const struct round *r, const struct dispatch_pick *p)
{
    d->deficit[p->level][p->tenant] -= p->cost;
    if (r->both && p->level == 0) d->strict += p->cost;
    if (r->both && p->level == 1) d->aged += p->cost;
}

static void spend(uint64_t *left, uint64_t n)
{
    if (*left != UINT64_MAX) *left = *left > n ? *left - n : 0;
}

static void spend_budget(struct round *r, int tenant, const struct ready_job *j)
{
    if (j->need_blocks == 0) return;
    r->idle[tenant] = false;
    spend(&r->jobs[tenant], 1);
    spend(&r->blocks[tenant], j->need_blocks);
}

// --- holds

static void release(struct dispatch *d, struct dispatch_hold *h)
{
    d->deficit[h->level][h->tenant] += h->cost;
    *h = (struct dispatch_hold){0};
}

static void hold(struct dispatch *d, struct round *r, const struct dispatch_pick *p,
                 const struct room_job *j)
{
    int i = rooms_holdable(&r->rooms, j), k = 0;
    check(i >= 0, "a candidate can start or hold");
    if (r->rooms.at[i].hold != NULL) release(d, r->rooms.at[i].hold);
    while (d->holds[k].pipeline != 0) k++;
    check(k < PIPELINES_MAX);
    d->holds[k] = (struct dispatch_hold){.pipeline = r->rooms.at[i].now.id, .tenant = p->tenant,
                                         .class = p->class, .level = p->level, .seq = j->job->seq,
                                         .cost = p->cost};
    rooms_hold(&r->rooms, i, &d->holds[k], j);
    r->nth[i] = p->nth;
    spend_budget(r, p->tenant, j->job);
}

static int pipeline_of(const struct round *r, const struct dispatch_hold *h)
{
    int i = 0;
    while (i < r->rooms.n && r->rooms.at[i].now.id != h->pipeline) i++;
    return i < r->rooms.n ? i : -1;
}

static int find_holder(const struct round *r, const struct dispatch_hold *h)
{
    if (h->tenant >= r->view->n_tenants) return -1;
    const struct ready_queue *q = &r->view->queues[h->tenant][h->class];
    int k = 0;
    while (k < q->n && q->jobs[k].seq != h->seq) k++;
    return k < q->n ? k : -1;
}

// Holds of earlier choices go on while job and pipeline are there.
static void find_holds(struct dispatch *d, struct round *r)
{
    for (int k = 0; k < PIPELINES_MAX; k++) {
        struct dispatch_hold *h = &d->holds[k];
        if (h->pipeline == 0) continue;
        int i = pipeline_of(r, h), nth = find_holder(r, h);
        const struct ready_job *j = nth >= 0 ? &r->view->queues[h->tenant][h->class].jobs[nth]
                                             : NULL;
        if (i < 0 || j == NULL || j->need_blocks == 0 || !within_budget(r, h->tenant, j)) {
            release(d, h);
            continue;
        }
        struct room_job of = room_job(d, r, h->class, j);
        rooms_hold(&r->rooms, i, h, &of);
        r->nth[i] = nth;
        r->held[r->n_held++] = *h;
        spend_budget(r, h->tenant, j);
    }
}

// One that holds, of this level or a better one, and can start now.
static bool next_holder(struct round *r, int level, struct dispatch_pick *p)
{
    for (int i = 0; i < r->rooms.n; i++) {
        struct room *room = &r->rooms.at[i];
        int its = room->hold != NULL ? room->holder.level : DISPATCH_LEVELS;
        if (its == DISPATCH_LEVELS || (its > level && its > 1)) continue;
        if (r->view->urgent && room->hold->class > 0) continue;
        int pipeline = rooms_place_holder(&r->rooms, i);
        if (pipeline < 0) continue;
        const struct dispatch_hold *h = room->hold;
        *p = (struct dispatch_pick){h->tenant, h->class, h->level, r->nth[i], pipeline, h->cost};
        *room->hold = (struct dispatch_hold){0};
        rooms_release(&r->rooms, i);
        rooms_take(&r->rooms, pipeline, &room->holder);
        return true;
    }
    return false;
}

// --- the choice

// The job whose turn it is starts, or holds a pipeline. False: it holds.
static bool start_or_hold(struct dispatch *d, struct round *r, int level, int tenant, int class,
                          struct dispatch_pick *p)
{
    const struct ready_job *job = first_of(r, tenant, class);
    struct room_job j = room_job(d, r, class, job);
    *p = (struct dispatch_pick){tenant, class, level, r->at[tenant][class],
                                rooms_place(&r->rooms, &j), job->cost};
    charge(d, r, p);
    r->at[tenant][class]++;
    if (p->pipeline < 0) {
        hold(d, r, p, &j);
        return false;
    }
    rooms_take(&r->rooms, p->pipeline, &j);
    r->taken[tenant][class] = true;
    spend_budget(r, tenant, job);
    return true;
}

static bool next_pick(struct dispatch *d, struct round *r, struct dispatch_pick *pick)
{
    for (;;) {
        candidates who[DISPATCH_LEVELS];
        int n[DISPATCH_LEVELS], level = 0;
        find_candidates(d, r, who, n);
        while (level < DISPATCH_LEVELS && n[level] == 0) level++;
        if (next_holder(r, level, pick)) return true;
        if (level >= r->end_level) return false; // DISPATCH_LEVELS: nobody waits
        r->both = n[0] > 0 && n[1] > 0;
        if (!r->both) d->strict = d->aged = 0;
        else if (aged_is_due(d, r, who[1])) level = 1;
        if (r->view->urgent && level > 0) return false; // another choice is for those
        int t = next_tenant(d, r, level, who[level]);
        if (start_or_hold(d, r, level, t, who[level][t], pick)) return true;
    }
}

int dispatch_choose(struct dispatch *d, const struct dispatch_view *v, struct dispatch_pick *picks,
                    int most)
{
    struct round r = {.view = v, .end_level = DISPATCH_LEVELS};
    int chosen = 0;
    check(v->n_tenants <= TENANTS_MAX && v->n_pipelines <= PIPELINES_MAX);
    rooms_init(&r.rooms, v, d->urgent_percent);
    for (int t = 0; t < v->n_tenants; t++) {
        r.jobs[t] = v->tenants[t].jobs;
        r.blocks[t] = v->tenants[t].blocks;
        r.idle[t] = v->tenants[t].idle;
    }
    find_holds(d, &r);
    while (chosen < most && rooms_any_free(&r.rooms) && next_pick(d, &r, &picks[chosen])) chosen++;
    return chosen;
}

void dispatch_give_back(struct dispatch *d, const struct dispatch_pick *p)
{
    d->deficit[p->level][p->tenant] += p->cost;
}

void dispatch_forget(struct dispatch *d, int tenant)
{
    for (int k = 0; k < PIPELINES_MAX; k++) {
        if (d->holds[k].tenant == tenant) d->holds[k] = (struct dispatch_hold){0};
    }
    for (int level = 0; level < DISPATCH_LEVELS; level++) d->deficit[level][tenant] = 0;
}
