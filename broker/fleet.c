#include "broker/fleet.h"

#include <stdio.h>
#include <string.h>

enum { SLEPT_MS = 1000 }; // between two ticks: the process stood still

static bool same_peer(const struct peer *a, const struct peer *b)
{
    return a->n == b->n && memcmp(a->bytes, b->bytes, a->n) == 0;
}

static struct group *find(struct fleet *f, const struct peer *peer)
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        if (f->groups[i].used && same_peer(&f->groups[i].peer, peer)) return &f->groups[i];
    }
    return NULL;
}

static struct group *find_name(struct fleet *f, const char *key, const char *name)
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct group *g = &f->groups[i];
        if (!g->used || strcmp(g->name, name) != 0) continue;
        if (strcmp(g->peer.key, key) == 0) return g;
    }
    return NULL;
}

static int index_of(const struct fleet *f, const struct group *g) { return (int) (g - f->groups); }

static struct group *stage_group(struct fleet *f, int stage)
{
    return f->stages[stage] >= 0 ? &f->groups[f->stages[stage]] : NULL;
}

static void first_last(const struct fleet *f, int stage, int *first, int *last)
{
    *first = 0;
    for (int i = 0; i < stage; i++) *first += f->options.layers[i];
    *last = *first + f->options.layers[stage];
}

void fleet_init(struct fleet *f, const struct fleet_options *o, const struct fleet_actions *actions,
                int64_t now_ms)
{
    check(o->n_stages >= 1 && o->n_stages <= PP_MAX);
    *f = (struct fleet){.options = *o,
                        .actions = *actions,
                        .pipeline = 1,
                        .epoch = o->first_epoch,
                        .adopting = o->adopt_ms > 0,
                        .adopt_until_ms = now_ms + o->adopt_ms,
                        .now_ms = now_ms,
                        .ticked_ms = now_ms};
    for (int i = 0; i < PP_MAX; i++) f->stages[i] = -1;
}

// --- the end of an epoch

static void end_epoch(struct fleet *f, const char *reason)
{
    bool served = f->state == PIPELINE_SERVING;
    for (int i = 0; i < f->options.n_stages; i++) {
        struct group *g = stage_group(f, i);
        f->stages[i] = -1;
        if (g == NULL || !g->used) continue;
        g->state = GROUP_IDLE;
        g->stage = -1;
        f->actions.unassign(f->actions.arg, g, f->epoch);
    }
    f->state = PIPELINE_WAITING;
    f->epoch++;
    if (served) f->actions.down(f->actions.arg, reason);
}

static void remove_group(struct fleet *f, struct group *g, const char *reason)
{
    int stage = g->stage;
    char text[GROUP_NAME_MAX + 64];
    snprintf(text, sizeof text, "group %s %s", g->name, reason);
    if (stage >= 0) f->stages[stage] = -1;
    f->held[index_of(f, g)] = (struct held_assignment){0};
    *g = (struct group){0};
    if (stage >= 0) end_epoch(f, text);
}

// --- assignment

// The idle group for a stage: one that has the weights already, else one that has none, else any.
static struct group *choose(struct fleet *f, int stage)
{
    int first, last, best_rank = 0;
    struct group *best = NULL;
    first_last(f, stage, &first, &last);
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct group *g = &f->groups[i];
        if (!g->used || g->state != GROUP_IDLE || g->stage >= 0 || g->draining) continue;
        bool holds = g->held_last > g->held_first;
        int rank = holds && g->held_first == first && g->held_last == last ? 3 : holds ? 1 : 2;
        if (rank > best_rank) {
            best = g;
            best_rank = rank;
        }
    }
    return best;
}

static void assign(struct fleet *f, int stage, struct group *g)
{
    struct fleet_assign a = {.pipeline = f->pipeline, .epoch = f->epoch, .stage = stage,
                             .n_stages = f->options.n_stages};
    first_last(f, stage, &a.first, &a.last);
    memcpy(a.token, f->token, sizeof a.token);
    f->stages[stage] = index_of(f, g);
    g->state = GROUP_LOADING;
    g->stage = stage;
    g->held_first = a.first;
    g->held_last = a.last;
    f->actions.assign(f->actions.arg, g, &a);
}

// Gives stages to idle groups as soon as there is one for each; weights that are held stay where
// they are, since those groups choose first.
static void try_assign(struct fleet *f)
{
    if (f->adopting || f->state != PIPELINE_WAITING || f->now_ms < f->not_before_ms) return;
    int idle = 0;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct group *g = &f->groups[i];
        idle += g->used && g->state == GROUP_IDLE && g->stage < 0 && !g->draining;
    }
    if (idle < f->options.n_stages) return;
    f->actions.random(f->actions.arg, f->token, sizeof f->token);
    f->state = PIPELINE_LOADING;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < f->options.n_stages; i++) {
            if (f->stages[i] >= 0) continue;
            int first, last;
            first_last(f, i, &first, &last);
            struct group *g = choose(f, i);
            if (pass == 0 && (g->held_first != first || g->held_last != last)) continue;
            assign(f, i, g);
        }
    }
}

static bool all_in(struct fleet *f, enum group_state state)
{
    for (int i = 0; i < f->options.n_stages; i++) {
        struct group *g = stage_group(f, i);
        if (g == NULL || g->state != state) return false;
    }
    return true;
}

static void link_stage(struct fleet *f, int stage)
{
    int n = f->options.n_stages;
    struct group *g = stage_group(f, stage);
    const char *next = n == 1         ? ""
                       : stage + 1 < n ? stage_group(f, stage + 1)->endpoint
                                       : stage_group(f, 0)->tokens_endpoint;
    g->state = GROUP_LINKING;
    f->actions.link(f->actions.arg, g, f->epoch, next);
}

static void link_all(struct fleet *f)
{
    f->state = PIPELINE_LINKING;
    for (int i = 0; i < f->options.n_stages; i++) link_stage(f, i);
}

// --- adoption: a fresh broker finds a pipeline that already runs

static bool adopt_set(struct fleet *f, const struct held_assignment *like)
{
    int stages[PP_MAX];
    for (int s = 0; s < f->options.n_stages; s++) {
        int first, last;
        first_last(f, s, &first, &last);
        stages[s] = -1;
        for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
            const struct held_assignment *h = &f->held[i];
            if (f->groups[i].used && h->some && h->linked && h->stage == s && h->first == first &&
                h->last == last && h->epoch == like->epoch && h->pipeline == like->pipeline) {
                stages[s] = i;
            }
        }
        if (stages[s] < 0) return false;
    }
    for (int s = 0; s < f->options.n_stages; s++) {
        struct group *g = &f->groups[stages[s]];
        f->stages[s] = stages[s];
        g->stage = s;
        g->state = GROUP_LINKED;
        g->held_first = f->held[stages[s]].first;
        g->held_last = f->held[stages[s]].last;
    }
    f->epoch = like->epoch;
    f->state = PIPELINE_SERVING;
    f->adopting = false;
    f->actions.up(f->actions.arg, stage_group(f, 0), true);
    return true;
}

// Whoever still runs something that wasn't adopted is told to stop.
static void end_adoption(struct fleet *f)
{
    f->adopting = false;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct group *g = &f->groups[i];
        if (!g->used || !f->held[i].some || g->stage >= 0) continue;
        f->actions.unassign(f->actions.arg, g, f->held[i].epoch);
        if (f->held[i].epoch >= f->epoch) f->epoch = f->held[i].epoch + 1;
    }
}

static void try_adopt(struct fleet *f)
{
    for (int i = 0; i < FLEET_GROUPS_MAX && f->adopting; i++) {
        const struct held_assignment *h = &f->held[i];
        if (!f->groups[i].used || !h->some || !h->linked) continue;
        if (strcmp(h->plan_hash, f->options.plan_hash) == 0 && adopt_set(f, h)) end_adoption(f);
    }
}

// --- events

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
    for (int i = 0; g == NULL && i < FLEET_GROUPS_MAX; i++) {
        if (f->groups[i].used) continue;
        g = &f->groups[i];
        *g = (struct group){.used = true, .boot = boot, .stage = -1};
        snprintf(g->name, sizeof g->name, "%s", name);
        snprintf(g->node, sizeof g->node, "%s", node);
    }
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
    bool running = held->some && held->linked;
    bool same = g->stage >= 0 && held->some && held->epoch == f->epoch && held->stage == g->stage;
    if (g->stage >= 0 && !same && g->state == GROUP_LOADING) {
        assign(f, g->stage, g); // ASSIGN may have been lost with the connection
    } else if (g->stage >= 0 && !same) {
        end_epoch(f, "a group came back without its stage");
    } else if (g->stage < 0 && running && f->adopting) {
        f->held[index_of(f, g)] = *held;
        try_adopt(f);
    } else if (g->stage < 0 && held->some && !f->adopting) {
        f->actions.unassign(f->actions.arg, g, held->epoch);
    }
    try_assign(f);
    return OK;
}

void fleet_ready(struct fleet *f, const struct peer *peer, uint64_t epoch, const char *endpoint,
                 const char *tokens_endpoint)
{
    struct group *g = find(f, peer);
    if (g == NULL || epoch != f->epoch) return;
    if (g->state == GROUP_LINKING) link_stage(f, g->stage); // said again: it never got LINK
    if (g->state != GROUP_LOADING) return;
    snprintf(g->endpoint, sizeof g->endpoint, "%s", endpoint);
    snprintf(g->tokens_endpoint, sizeof g->tokens_endpoint, "%s", tokens_endpoint);
    g->state = GROUP_READY;
    if (all_in(f, GROUP_READY)) link_all(f);
}

void fleet_linked(struct fleet *f, const struct peer *peer, uint64_t epoch)
{
    struct group *g = find(f, peer);
    if (g == NULL || epoch != f->epoch || g->state != GROUP_LINKING) return;
    g->state = GROUP_LINKED;
    if (!all_in(f, GROUP_LINKED)) return;
    f->state = PIPELINE_SERVING;
    f->actions.up(f->actions.arg, stage_group(f, 0), false);
}

void fleet_failed(struct fleet *f, const struct peer *peer, uint64_t epoch, const char *reason)
{
    struct group *g = find(f, peer);
    if (g == NULL || epoch != f->epoch || g->stage < 0) return;
    end_epoch(f, reason);
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
    g->draining = true;
    // Nothing runs before the pipeline serves: there is nothing to wait for.
    if (g->stage >= 0 && f->state != PIPELINE_SERVING) end_epoch(f, "a group drains");
    if (g->stage < 0) f->actions.unassign(f->actions.arg, g, f->epoch);
    try_assign(f);
}

bool fleet_draining(const struct fleet *f)
{
    for (int i = 0; i < f->options.n_stages; i++) {
        if (f->stages[i] >= 0 && f->groups[f->stages[i]].draining) return true;
    }
    return false;
}

void fleet_drained(struct fleet *f)
{
    end_epoch(f, "a group drains");
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
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct group *g = &f->groups[i];
        g->seen_ms += slept_ms;
        if (g->used && now_ms - g->seen_ms > f->options.dead_ms) {
            remove_group(f, g, "has been silent for too long");
        }
    }
    if (f->adopting && now_ms >= f->adopt_until_ms) end_adoption(f);
    try_assign(f);
}

const struct group *fleet_find(const struct fleet *f, const struct peer *peer)
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        if (f->groups[i].used && same_peer(&f->groups[i].peer, peer)) return &f->groups[i];
    }
    return NULL;
}

const struct group *fleet_head(const struct fleet *f)
{
    return f->state == PIPELINE_SERVING ? &f->groups[f->stages[0]] : NULL;
}
