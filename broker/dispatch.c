#include "broker/dispatch.h"

#include "common/status.h"

#include <stddef.h>

void credit_reset(struct credit *c) { *c = (struct credit){0}; }

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

// One choice as it is made.
struct round {
    const struct dispatch_view *view;
    int at[TENANTS_MAX][JOB_CLASSES];          // jobs taken of each queue
    uint64_t jobs[TENANTS_MAX], blocks[TENANTS_MAX]; // left of the tenants' budgets
    bool idle[TENANTS_MAX];
    bool both; // class 0 waits, and what age lifted there
    struct dispatch_pipeline pipelines[PIPELINES_MAX];
};

// For each tenant the class whose first job is meant, or -1.
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

static bool within_budget(const struct round *r, int tenant, const struct ready_job *j)
{
    if (r->view->tenants[tenant].weight == 0) return false;
    if (j->need_blocks == 0 || r->idle[tenant]) return true;
    return r->jobs[tenant] >= 1 && r->blocks[tenant] >= j->need_blocks;
}

// Who waits at each level; of several classes of a tenant, the job that has waited longest.
static void find_candidates(const struct dispatch *d, const struct round *r,
                            candidates who[DISPATCH_LEVELS], int n[DISPATCH_LEVELS])
{
    const struct dispatch_view *v = r->view;
    for (int level = 0; level < DISPATCH_LEVELS; level++) {
        n[level] = 0;
        for (int t = 0; t < v->n_tenants; t++) who[level][t] = -1;
    }
    for (int t = 0; t < v->n_tenants; t++) {
        for (int class = 0; class < JOB_CLASSES; class++) {
            const struct ready_job *j = first_of(r, t, class);
            if (j == NULL || !within_budget(r, t, j)) continue;
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
        for (int class = 0; class < JOB_CLASSES; class++) waits |= first_of(r, t, class) != NULL;
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

// Whose turn it is at a level where somebody waits; it may run its job.
static int next_tenant(struct dispatch *d, const struct round *r, int level, const candidates who)
{
    int n = r->view->n_tenants, t = d->turn[level];
    if (t < n && who[t] >= 0 && d->deficit[level][t] >= first_of(r, t, who[t])->cost) return t;
    reset_idle(d, r, level, who);
    uint64_t turns = idle_turns(d, r, level, who);
    for (int i = 0; i < n; i++) {
        if (who[i] >= 0) {
            d->deficit[level][i] += turns * DISPATCH_QUANTUM * r->view->tenants[i].weight;
        }
    }
    for (;;) {
        t = (t + 1) % n;
        if (who[t] < 0) continue;
        d->deficit[level][t] += (uint64_t) DISPATCH_QUANTUM * r->view->tenants[t].weight;
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

static bool next_job(struct dispatch *d, struct round *r, struct dispatch_pick *pick)
{
    candidates who[DISPATCH_LEVELS];
    int n[DISPATCH_LEVELS], level = 0;
    find_candidates(d, r, who, n);
    while (level < DISPATCH_LEVELS && n[level] == 0) level++;
    if (level == DISPATCH_LEVELS) return false;
    r->both = n[0] > 0 && n[1] > 0;
    if (!r->both) d->strict = d->aged = 0;
    else if (aged_is_due(d, r, who[1])) level = 1;
    int t = next_tenant(d, r, level, who[level]);
    *pick = (struct dispatch_pick){.tenant = t, .class = who[level][t], .level = level,
                                   .cost = first_of(r, t, who[level][t])->cost};
    return true;
}

// Slots or blocks that a job below class 0, which needs so many, leaves free for class 0: it goes
// past those that run for long. A job that cannot leave so much is bound by nothing.
static uint64_t kept(const struct dispatch *d, uint64_t all, uint64_t need)
{
    uint64_t n = all * (uint64_t) d->urgent_percent / 100;
    if (d->urgent_percent == 0 || all < DISPATCH_KEEP_LEAST) return 0;
    if (n == 0) n = 1;
    return need + n > all ? 0 : n;
}

static bool fits(const struct dispatch *d, const struct dispatch_pipeline *p,
                 const struct ready_job *j, int class)
{
    if (p->alone || (j->poison && p->n_running > 0)) return false;
    uint64_t slots = class > 0 ? kept(d, p->all_slots, 1) : 0;
    uint64_t blocks = class > 0 ? kept(d, p->all_blocks, j->need_blocks) : 0;
    return p->slots >= 1 + slots && p->blocks >= j->need_blocks + blocks;
}

// The least loaded pipeline that can take the job now, or -1.
static int place(const struct dispatch *d, const struct round *r, const struct ready_job *j,
                 int class)
{
    int best = -1;
    if (j->need_blocks == 0) return 0;
    for (int i = 0; i < r->view->n_pipelines; i++) {
        const struct dispatch_pipeline *p = &r->pipelines[i];
        const struct dispatch_pipeline *b = best >= 0 ? &r->pipelines[best] : NULL;
        if (!fits(d, p, j, class)) continue;
        bool better = b == NULL || p->slots > b->slots ||
                      (p->slots == b->slots && p->blocks > b->blocks);
        if (better) best = i;
    }
    return best;
}

static bool any_free(const struct round *r)
{
    for (int i = 0; i < r->view->n_pipelines; i++) {
        if (r->pipelines[i].slots > 0 && !r->pipelines[i].alone) return true;
    }
    return false;
}

static void spend(uint64_t *left, uint64_t n)
{
    if (*left != UINT64_MAX) *left = *left > n ? *left - n : 0;
}

static void take(struct dispatch *d, struct round *r, const struct dispatch_pick *p)
{
    const struct ready_job *j = first_of(r, p->tenant, p->class);
    d->deficit[p->level][p->tenant] -= p->cost;
    if (r->both && p->level == 0) d->strict += p->cost;
    if (r->both && p->level == 1) d->aged += p->cost;
    r->at[p->tenant][p->class]++;
    if (j->need_blocks == 0) return;
    struct dispatch_pipeline *to = &r->pipelines[p->pipeline];
    to->slots--;
    to->blocks -= j->need_blocks;
    to->n_running++;
    to->alone = j->poison;
    r->idle[p->tenant] = false;
    spend(&r->jobs[p->tenant], 1);
    spend(&r->blocks[p->tenant], j->need_blocks);
}

int dispatch_choose(struct dispatch *d, const struct dispatch_view *v, struct dispatch_pick *picks,
                    int most)
{
    struct round r = {.view = v};
    int chosen = 0;
    check(v->n_tenants <= TENANTS_MAX && v->n_pipelines <= PIPELINES_MAX);
    for (int i = 0; i < v->n_pipelines; i++) r.pipelines[i] = v->pipelines[i];
    for (int t = 0; t < v->n_tenants; t++) {
        r.jobs[t] = v->tenants[t].jobs;
        r.blocks[t] = v->tenants[t].blocks;
        r.idle[t] = v->tenants[t].idle;
    }
    while (chosen < most && any_free(&r) && next_job(d, &r, &picks[chosen])) {
        struct dispatch_pick *p = &picks[chosen];
        p->pipeline = place(d, &r, first_of(&r, p->tenant, p->class), p->class);
        if (p->pipeline < 0) break;
        take(d, &r, p);
        chosen++;
    }
    return chosen;
}

void dispatch_give_back(struct dispatch *d, const struct dispatch_pick *p)
{
    d->deficit[p->level][p->tenant] += p->cost;
}

void dispatch_forget(struct dispatch *d, int tenant)
{
    for (int level = 0; level < DISPATCH_LEVELS; level++) d->deficit[level][tenant] = 0;
}
