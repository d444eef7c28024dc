#include "broker/fleet.h"

#include <stdio.h>
#include <string.h>

enum { SLEPT_MS = 1000 }; // between two ticks: the process stood still

bool fleet_same_peer(const struct peer *a, const struct peer *b)
{
    return a->n == b->n && memcmp(a->bytes, b->bytes, a->n) == 0;
}

static int find_index(const struct fleet *f, const struct peer *peer)
{
    for (int i = 0; i < f->n_groups; i++) {
        if (f->groups[i].used && fleet_same_peer(&f->groups[i].peer, peer)) return i;
    }
    return -1;
}

static struct group *find(struct fleet *f, const struct peer *peer)
{
    int i = find_index(f, peer);
    return i >= 0 ? &f->groups[i] : NULL;
}

static struct group *find_name(struct fleet *f, const char *key, const char *name)
{
    for (int i = 0; i < f->n_groups; i++) {
        struct group *g = &f->groups[i];
        if (!g->used || strcmp(g->name, name) != 0) continue;
        if (strcmp(g->peer.key, key) == 0) return g;
    }
    return NULL;
}

static int index_of(const struct fleet *f, const struct group *g) { return (int) (g - f->groups); }

static struct pipeline *pipeline_of(struct fleet *f, const struct group *g)
{
    return g->pipeline >= 0 ? &f->pipelines[g->pipeline] : NULL;
}

static struct group *stage_group(struct fleet *f, const struct pipeline *p, int stage)
{
    return p->stages[stage] >= 0 ? &f->groups[p->stages[stage]] : NULL;
}

static void first_last(const struct fleet *f, int stage, int *first, int *last)
{
    *first = 0;
    for (int i = 0; i < stage; i++) *first += f->options.layers[i];
    *last = *first + f->options.layers[stage];
}

static bool is_idle(const struct group *g)
{
    return g->used && g->state == GROUP_IDLE && g->stage < 0 && !g->draining;
}

void fleet_init(struct fleet *f, const struct fleet_options *o, const struct fleet_actions *actions,
                int64_t now_ms)
{
    check(o->n_stages >= 1 && o->n_stages <= PP_MAX && o->n_pipelines <= PIPELINES_MAX);
    *f = (struct fleet){.options = *o,
                        .actions = *actions,
                        .adopting = o->adopt_ms > 0,
                        .adopt_until_ms = now_ms + o->adopt_ms,
                        .now_ms = now_ms,
                        .ticked_ms = now_ms};
    if (f->options.n_pipelines == 0) f->options.n_pipelines = PIPELINES_MAX;
}

// --- the end of an epoch

static void end_epoch(struct fleet *f, struct pipeline *p, const char *reason)
{
    bool served = p->state == PIPELINE_SERVING;
    for (int i = 0; i < f->options.n_stages; i++) {
        struct group *g = stage_group(f, p, i);
        p->stages[i] = -1;
        if (g == NULL || !g->used) continue;
        g->state = GROUP_IDLE;
        g->pipeline = g->stage = -1;
        f->actions.unassign(f->actions.arg, g, p->id, p->epoch);
    }
    p->state = PIPELINE_WAITING;
    if (served) f->actions.down(f->actions.arg, p, reason);
}

static void remove_group(struct fleet *f, struct group *g, const char *reason)
{
    struct pipeline *p = pipeline_of(f, g);
    char text[GROUP_NAME_MAX + 64];
    snprintf(text, sizeof text, "group %s %s", g->name, reason);
    if (p != NULL) p->stages[g->stage] = -1;
    f->held[index_of(f, g)] = (struct held_assignment){0};
    *g = (struct group){0};
    if (p != NULL) end_epoch(f, p, text);
}

// --- assignment

// The idle group for a stage: one that has the weights already, else one that has none, else any;
// and one that just failed to load only for want of others.
static struct group *choose(struct fleet *f, int stage)
{
    int first, last, best_rank = 0;
    struct group *best = NULL;
    first_last(f, stage, &first, &last);
    for (int i = 0; i < f->n_groups; i++) {
        struct group *g = &f->groups[i];
        if (!is_idle(g)) continue;
        bool holds = g->held_last > g->held_first;
        int rank = holds && g->held_first == first && g->held_last == last ? 4 : holds ? 2 : 3;
        if (g->failed) rank = 1;
        if (rank > best_rank) {
            best = g;
            best_rank = rank;
        }
    }
    return best;
}

static void assign(struct fleet *f, struct pipeline *p, int stage, struct group *g)
{
    struct fleet_assign a = {.pipeline = p->id, .epoch = p->epoch, .stage = stage,
                             .n_stages = f->options.n_stages};
    first_last(f, stage, &a.first, &a.last);
    memcpy(a.token, p->token, sizeof a.token);
    p->stages[stage] = index_of(f, g);
    g->state = GROUP_LOADING;
    g->pipeline = (int) (p - f->pipelines);
    g->stage = stage;
    g->held_first = a.first;
    g->held_last = a.last;
    f->actions.assign(f->actions.arg, g, &a);
}

// Gives each stage to an idle group. Weights that are held stay where they are, since those groups
// choose first.
static void form(struct fleet *f, struct pipeline *p)
{
    f->actions.random(f->actions.arg, p->token, sizeof p->token);
    p->epoch = ++*f->options.epoch;
    p->state = PIPELINE_LOADING;
    for (int i = 0; i < PP_MAX; i++) p->stages[i] = -1;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < f->options.n_stages; i++) {
            if (p->stages[i] >= 0) continue;
            int first, last;
            first_last(f, i, &first, &last);
            struct group *g = choose(f, i);
            bool holds = g->held_first == first && g->held_last == last && !g->failed;
            if (pass == 0 && !holds) continue;
            assign(f, p, i, g);
        }
    }
}

static struct pipeline *find_pipeline(struct fleet *f, uint64_t id)
{
    for (int i = 0; i < f->options.n_pipelines; i++) {
        struct pipeline *p = &f->pipelines[i];
        if (p->state != PIPELINE_NONE && p->id == id) return p;
    }
    return NULL;
}

// The first pipeline in a state, or NULL.
static struct pipeline *first_in(struct fleet *f, enum pipeline_state state)
{
    for (int i = 0; i < f->options.n_pipelines; i++) {
        if (f->pipelines[i].state == state) return &f->pipelines[i];
    }
    return NULL;
}

// One that lost a stage goes first; a further one leaves the spares alone.
static void try_assign(struct fleet *f)
{
    if (f->adopting || f->now_ms < f->not_before_ms) return;
    int idle = 0;
    for (int i = 0; i < f->n_groups; i++) idle += is_idle(&f->groups[i]);
    for (; idle >= f->options.n_stages; idle -= f->options.n_stages) {
        struct pipeline *p = first_in(f, PIPELINE_WAITING);
        if (p == NULL) {
            p = first_in(f, PIPELINE_NONE);
            if (p == NULL || idle < f->options.n_stages + f->options.n_spares) return;
            for (p->id = 1; find_pipeline(f, p->id) != NULL;) p->id++;
        }
        form(f, p);
    }
}

static bool all_in(struct fleet *f, const struct pipeline *p, enum group_state state)
{
    for (int i = 0; i < f->options.n_stages; i++) {
        const struct group *g = stage_group(f, p, i);
        if (g == NULL || g->state != state) return false;
    }
    return true;
}

static void link_stage(struct fleet *f, const struct pipeline *p, int stage)
{
    int n = f->options.n_stages;
    struct group *g = stage_group(f, p, stage);
    const char *next = n == 1         ? ""
                       : stage + 1 < n ? stage_group(f, p, stage + 1)->endpoint
                                       : stage_group(f, p, 0)->tokens_endpoint;
    g->state = GROUP_LINKING;
    f->actions.link(f->actions.arg, g, p, next);
}

static void link_all(struct fleet *f, struct pipeline *p)
{
    p->state = PIPELINE_LINKING;
    for (int i = 0; i < f->options.n_stages; i++) link_stage(f, p, i);
}

// --- adoption: a fresh broker finds pipelines that already run

// The group that says it runs this stage of the same pipeline, or -1.
static int held_by(const struct fleet *f, const struct held_assignment *like, int stage)
{
    int first, last;
    first_last(f, stage, &first, &last);
    for (int i = 0; i < f->n_groups; i++) {
        const struct held_assignment *h = &f->held[i];
        if (f->groups[i].used && f->groups[i].stage < 0 && h->some && h->linked &&
            h->stage == stage && h->first == first && h->last == last && h->epoch == like->epoch &&
            h->pipeline == like->pipeline && strcmp(h->plan_hash, f->options.plan_hash) == 0) {
            return i;
        }
    }
    return -1;
}

static void adopt_set(struct fleet *f, const struct held_assignment *like)
{
    int stages[PP_MAX];
    struct pipeline *p = first_in(f, PIPELINE_NONE);
    if (p == NULL || find_pipeline(f, like->pipeline) != NULL) return;
    for (int s = 0; s < f->options.n_stages; s++) {
        stages[s] = held_by(f, like, s);
        if (stages[s] < 0) return;
    }
    for (int s = 0; s < f->options.n_stages; s++) {
        struct group *g = &f->groups[stages[s]];
        p->stages[s] = stages[s];
        g->pipeline = (int) (p - f->pipelines);
        g->stage = s;
        g->state = GROUP_LINKED;
        g->held_first = f->held[stages[s]].first;
        g->held_last = f->held[stages[s]].last;
    }
    p->id = like->pipeline;
    p->epoch = like->epoch;
    p->state = PIPELINE_SERVING;
    f->actions.up(f->actions.arg, p, stage_group(f, p, 0), true);
}

// Whoever still runs something that wasn't adopted is told to stop.
static void end_adoption(struct fleet *f)
{
    f->adopting = false;
    for (int i = 0; i < f->n_groups; i++) {
        struct group *g = &f->groups[i];
        const struct held_assignment *h = &f->held[i];
        if (!g->used || !h->some || g->stage >= 0) continue;
        f->actions.unassign(f->actions.arg, g, h->pipeline, h->epoch);
        if (h->epoch > *f->options.epoch) *f->options.epoch = h->epoch;
    }
}

// There may be more than those that have been heard of, unless all that are wanted are there.
static void try_adopt(struct fleet *f)
{
    for (int i = 0; i < f->n_groups; i++) {
        const struct held_assignment *h = &f->held[i];
        if (f->groups[i].used && f->groups[i].stage < 0 && h->some) adopt_set(f, h);
    }
    if (first_in(f, PIPELINE_NONE) == NULL) end_adoption(f);
}

// --- events

static struct group *add_group(struct fleet *f, const char *name, const char *node, uint64_t boot)
{
    int i = 0;
    while (i < f->n_groups && f->groups[i].used) i++;
    if (i == FLEET_GROUPS_MAX) return NULL;
    if (i == f->n_groups) f->n_groups++;
    struct group *g = &f->groups[i];
    *g = (struct group){.used = true, .boot = boot, .pipeline = -1, .stage = -1};
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(g->node, sizeof g->node, "%s", node);
    return g;
}

enum status fleet_hello(struct fleet *f, const struct peer *peer, const char *name,
                        const char *node, uint64_t boot, const struct held_assignment *held,
                        int64_t now_ms, struct error *e)
{
    f->now_ms = now_ms;
    struct group *g = find_name(f, peer->key, name);
    if (g != NULL && g->boot != boot) {
        remove_group(f, g, "has been started again");
        g = NULL;
    }
    if (g == NULL) g = add_group(f, name, node, boot);
    if (g == NULL) {
        return error_set(e, ERR_LIMIT, "fleet_full", "the broker knows %d groups already",
                         FLEET_GROUPS_MAX);
    }
    g->peer = *peer; // the same life on a new connection keeps its stage
    g->seen_ms = now_ms;
    if (held->some) {
        g->held_first = held->first;
        g->held_last = held->last;
    }
    struct pipeline *p = pipeline_of(f, g);
    // 0 stands for none; and no broker has come so far, but would by counting on from there.
    bool given = held->epoch > 0 && held->epoch < FLEET_EPOCH_MAX;
    bool running = held->some && held->linked && given;
    bool same = p != NULL && held->some && held->epoch == p->epoch && held->stage == g->stage;
    if (p != NULL && !same && g->state == GROUP_LOADING) {
        assign(f, p, g->stage, g); // ASSIGN may have been lost with the connection
    } else if (p != NULL && !same) {
        end_epoch(f, p, "a group came back without its stage");
    } else if (p == NULL && running && f->adopting) {
        f->held[index_of(f, g)] = *held;
        try_adopt(f);
    } else if (p == NULL && held->some) { // it will not be adopted
        f->actions.unassign(f->actions.arg, g, held->pipeline, held->epoch);
    }
    try_assign(f);
    return OK;
}

void fleet_ready(struct fleet *f, const struct peer *peer, uint64_t epoch, const char *endpoint,
                 const char *tokens_endpoint)
{
    struct group *g = find(f, peer);
    struct pipeline *p = g != NULL ? pipeline_of(f, g) : NULL;
    if (p == NULL || epoch != p->epoch) return;
    if (g->state == GROUP_LINKING) link_stage(f, p, g->stage); // said again: it never got LINK
    if (g->state != GROUP_LOADING) return;
    snprintf(g->endpoint, sizeof g->endpoint, "%s", endpoint);
    snprintf(g->tokens_endpoint, sizeof g->tokens_endpoint, "%s", tokens_endpoint);
    g->state = GROUP_READY;
    g->failed = false;
    if (all_in(f, p, GROUP_READY)) link_all(f, p);
}

void fleet_linked(struct fleet *f, const struct peer *peer, uint64_t epoch)
{
    struct group *g = find(f, peer);
    struct pipeline *p = g != NULL ? pipeline_of(f, g) : NULL;
    if (p == NULL || epoch != p->epoch || g->state != GROUP_LINKING) return;
    g->state = GROUP_LINKED;
    if (!all_in(f, p, GROUP_LINKED)) return;
    p->state = PIPELINE_SERVING;
    f->actions.up(f->actions.arg, p, stage_group(f, p, 0), false);
}

void fleet_failed(struct fleet *f, const struct peer *peer, uint64_t epoch, const char *reason)
{
    struct group *g = find(f, peer);
    struct pipeline *p = g != NULL ? pipeline_of(f, g) : NULL;
    if (p == NULL || epoch != p->epoch) return;
    g->failed = g->state == GROUP_LOADING; // of a link that broke it may be the innocent end
    end_epoch(f, p, reason);
    f->not_before_ms = f->now_ms + f->options.retry_ms;
    try_assign(f);
}

void fleet_bye(struct fleet *f, const struct peer *peer)
{
    struct group *g = find(f, peer);
    if (g == NULL) return;
    remove_group(f, g, "has left");
    try_assign(f);
}

void fleet_drain(struct fleet *f, const struct peer *peer)
{
    struct group *g = find(f, peer);
    if (g == NULL) return;
    struct pipeline *p = pipeline_of(f, g);
    if (p == NULL && f->adopting && f->held[index_of(f, g)].some) return; // it says so again
    g->draining = true;
    // Nothing runs before the pipeline serves: there is nothing to wait for.
    if (p == NULL) f->actions.unassign(f->actions.arg, g, 0, *f->options.epoch);
    else if (p->state != PIPELINE_SERVING) end_epoch(f, p, "a group drains");
    try_assign(f);
}

void fleet_drained(struct fleet *f, uint64_t epoch)
{
    for (int i = 0; i < f->options.n_pipelines; i++) {
        struct pipeline *p = &f->pipelines[i];
        if (p->state == PIPELINE_SERVING && p->epoch == epoch) end_epoch(f, p, "a group drains");
    }
    try_assign(f);
}

bool fleet_seen(struct fleet *f, const struct peer *peer, int64_t now_ms)
{
    struct group *g = find(f, peer);
    f->now_ms = now_ms;
    if (g != NULL) g->seen_ms = now_ms;
    return g != NULL;
}

void fleet_tick(struct fleet *f, int64_t now_ms)
{
    int64_t slept_ms = now_ms - f->ticked_ms > SLEPT_MS ? now_ms - f->ticked_ms : 0;
    f->now_ms = f->ticked_ms = now_ms;
    for (int i = 0; i < f->n_groups; i++) {
        struct group *g = &f->groups[i];
        g->seen_ms += slept_ms;
        if (g->used && now_ms - g->seen_ms > f->options.dead_ms) {
            remove_group(f, g, "has been silent for too long");
        }
    }
    if (f->adopting && now_ms >= f->adopt_until_ms) end_adoption(f);
    try_assign(f);
}

// --- what others see

const char *fleet_state_name(enum group_state state)
{
    static const char *const names[] = {"idle", "loading", "ready", "linking", "linked"};
    return names[state];
}

const struct group *fleet_find(const struct fleet *f, const struct peer *peer)
{
    int i = find_index(f, peer);
    return i >= 0 ? &f->groups[i] : NULL;
}

const struct pipeline *fleet_pipeline(const struct fleet *f, const struct group *group)
{
    return group->pipeline >= 0 ? &f->pipelines[group->pipeline] : NULL;
}

const struct group *fleet_head(const struct fleet *f, const struct pipeline *p)
{
    return p->state == PIPELINE_SERVING ? &f->groups[p->stages[0]] : NULL;
}

int fleet_n_groups(const struct fleet *f)
{
    int n = 0;
    for (int i = 0; i < f->n_groups; i++) n += f->groups[i].used;
    return n;
}

int fleet_n_pipelines(const struct fleet *f, enum pipeline_state state)
{
    int n = 0;
    for (int i = 0; i < PIPELINES_MAX; i++) n += f->pipelines[i].state == state;
    return n;
}
