#include "broker/groups.h"

#include "broker/peers.h"
#include "common/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    MUSTER_MS = 1500,  // groups of an earlier broker need so long to find this one
    ADOPT_MS = 6000,   // how long all stages of a pipeline that runs are waited for
    RETRY_MS = 1000,   // after a group could not load or lost a link
    PLAN_AGAIN_MS = 5000,
    EPOCH_BITS = 20,   // epochs of one term
};

// A group that has said HELLO before there was a plan.
struct candidate {
    bool used;
    struct peer peer;
    char name[GROUP_NAME_MAX + 1];
    uint64_t bytes; // of its smallest device
    int tp;
    bool wants_f32;
    char plan[PLAN_HASH_MAX + 1]; // of the stage it runs; empty: none
    int64_t seen_ms;
};

struct groups {
    struct groups_options options;
    struct peers peers;
    bool started;
    int64_t started_ms;
    struct candidate candidates[FLEET_GROUPS_MAX];
    int64_t plan_ms; // not planned earlier
    bool planned;
    struct plan plan;
    bool f32;
    struct wire_assign template; // of ASSIGN
    struct fleet fleet;          // once there is a plan
    uint64_t next_epoch;         // of the next plan's fleet
    int64_t now_ms, pinged_ms;
    uint64_t pings;
};

// --- talking

bool groups_send(struct groups *g, const struct peer *to, const struct wire_message *m)
{
    return peers_send(&g->peers, to, m);
}

static void answer(struct groups *g, const struct peer *to, const char *code, const char *text)
{
    struct wire_message m = wire_error_message(code, text);
    peers_send(&g->peers, to, &m);
}

static void ask_for_hello(struct groups *g, const struct peer *to)
{
    answer(g, to, "unknown_peer", "say HELLO");
}

// --- the fleet's actions

static void do_assign(void *arg, const struct group *group, const struct fleet_assign *a)
{
    struct groups *g = arg;
    log_line(LOG_INFO, "assign", log_str("group", group->name), log_int("stage", a->stage),
             log_int("first", a->first), log_int("last", a->last), log_int("epoch", a->epoch));
    peers_assign(&g->peers, group, &g->template, a);
}

static void do_link(void *arg, const struct group *group, uint64_t epoch, const char *next)
{
    struct groups *g = arg;
    peers_link(&g->peers, group, g->fleet.pipeline, epoch, next);
}

static void do_unassign(void *arg, const struct group *group, uint64_t epoch)
{
    struct groups *g = arg;
    log_line(LOG_INFO, "unassign", log_str("group", group->name), log_int("epoch", epoch));
    peers_unassign(&g->peers, group, g->fleet.pipeline, epoch);
}

static void do_up(void *arg, const struct group *head, bool adopted)
{
    struct groups *g = arg;
    log_line(LOG_INFO, "serving", log_str("model", g->options.model->name),
             log_int("stages", g->plan.pp), log_int("tp", g->plan.tp),
             log_int("slots", g->plan.slots), log_int("kv_blocks", g->plan.kv_blocks),
             log_int("max_context", g->plan.max_context), log_str("head", head->name),
             log_int("epoch", g->fleet.epoch), log_int("adopted", adopted));
    g->options.up(g->options.arg, head, g->fleet.pipeline, g->fleet.epoch, adopted);
    // What it runs was in a HELLO that came before it was known to be the head.
    if (adopted) ask_for_hello(g, &head->peer);
}

static void do_down(void *arg, const char *reason)
{
    struct groups *g = arg;
    log_line(LOG_WARN, "pipeline_down", log_str("reason", reason));
    g->options.down(g->options.arg);
}

static void do_random(void *arg, void *bytes, size_t n)
{
    (void) arg;
    ssize_t got = getrandom(bytes, n, 0);
    check(got == (ssize_t) n, "no random numbers");
}

// --- the plan

static bool plan_with(struct groups *g, uint64_t bytes, int tp, bool f32, struct plan *plan,
                      char hash[PLAN_HASH_SIZE], struct error *e)
{
    const struct groups_options *o = &g->options;
    struct plan_request r = {.config = &o->model->config,
                             .pp = o->pp,
                             .tp = tp,
                             .f32 = f32,
                             .slots = o->slots,
                             .max_context = o->max_context,
                             .max_rows = o->max_rows,
                             .chunk = o->chunk,
                             .kv_blocks = o->kv_blocks};
    memcpy(r.layers, o->layers, sizeof r.layers);
    for (int i = 0; i < o->pp; i++) r.device_bytes[i] = bytes;
    if (plan_make(plan, &r, e) != OK) return false;
    if (!plan->fits) {
        error_set(e, ERR_NOMEM, "does_not_fit", "%s", plan->reason);
        return false;
    }
    plan_hash(plan, o->model->hash, f32, hash);
    return true;
}

static bool is_fresh(const struct groups *g, const struct candidate *c)
{
    return c->used && g->now_ms - c->seen_ms <= DEAD_AFTER_MS;
}

// The plan that the running stages were loaded for, if these groups and options can give it.
static bool plan_again(struct groups *g, int tp, struct plan *plan, bool *f32,
                       char hash[PLAN_HASH_SIZE])
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *held = &g->candidates[i];
        if (!is_fresh(g, held) || held->plan[0] == '\0') continue;
        for (int k = 0; k < 2 * FLEET_GROUPS_MAX; k++) {
            const struct candidate *c = &g->candidates[k / 2];
            struct error e;
            *f32 = k % 2 == 1;
            if (!is_fresh(g, c)) continue;
            if (g->options.precision == (*f32 ? GROUPS_BF16 : GROUPS_F32)) continue;
            if (plan_with(g, c->bytes, tp, *f32, plan, hash, &e) && strcmp(hash, held->plan) == 0) {
                return true;
            }
        }
    }
    return false;
}

static void log_plan(const struct plan *p, const char *hash, bool f32)
{
    char layers[PP_MAX * 5 + 1] = "";
    size_t n = 0;
    uint64_t most = 0;
    for (int i = 0; i < p->pp; i++) {
        n += (size_t) snprintf(layers + n, sizeof layers - n, i > 0 ? ",%d" : "%d", p->layers[i]);
        if (p->stages[i].total > most) most = p->stages[i].total;
    }
    log_line(LOG_INFO, "plan", log_str("layers", layers), log_int("tp", p->tp),
             log_str("precision", f32 ? "f32" : "bf16"), log_int("slots", p->slots),
             log_int("kv_blocks", p->kv_blocks), log_int("max_context", p->max_context),
             log_int("max_rows", p->max_rows), log_int("device_bytes", most),
             log_str("hash", hash), log_str("note", p->reason));
}

static void start_fleet(struct groups *g, const char *hash)
{
    bool held = false;
    struct fleet_actions actions = {g, do_assign, do_link, do_unassign, do_up, do_down, do_random};
    struct fleet_options o = {.n_stages = g->plan.pp,
                              .first_epoch = g->next_epoch,
                              .dead_ms = DEAD_AFTER_MS,
                              .retry_ms = RETRY_MS};
    memcpy(o.layers, g->plan.layers, sizeof o.layers);
    snprintf(o.plan_hash, sizeof o.plan_hash, "%s", hash);
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &g->candidates[i];
        held = held || (is_fresh(g, c) && strcmp(c->plan, hash) == 0);
    }
    o.adopt_ms = held ? ADOPT_MS : 0;
    fleet_init(&g->fleet, &o, &actions, g->now_ms);
    g->planned = true;
    g->options.planned(g->options.arg, &g->plan);
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        if (is_fresh(g, &g->candidates[i])) ask_for_hello(g, &g->candidates[i].peer);
    }
}

static void try_plan(struct groups *g)
{
    int n = 0, tp = 0;
    uint64_t least = UINT64_MAX;
    bool f32 = g->options.precision == GROUPS_F32;
    int64_t muster_ms = g->peers.term > 1 ? g->started_ms + MUSTER_MS : 0;
    if (g->planned || g->now_ms < muster_ms || g->now_ms < g->plan_ms) return;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &g->candidates[i];
        if (!is_fresh(g, c)) continue;
        n++;
        tp = c->tp;
        if (c->bytes < least) least = c->bytes;
        if (c->wants_f32 && g->options.precision == GROUPS_AUTO) f32 = true;
    }
    if (n < g->options.pp) return;
    char hash[PLAN_HASH_SIZE];
    struct error e = {0};
    struct plan plan;
    bool held_f32;
    if (plan_again(g, tp, &plan, &held_f32, hash)) {
        f32 = held_f32;
    } else if (!plan_with(g, least, tp, f32, &plan, hash, &e)) {
        log_line(LOG_ERROR, "plan_refused", log_str("code", e.code), log_str("error", e.text));
        g->plan_ms = g->now_ms + PLAN_AGAIN_MS;
        return;
    }
    g->plan = plan;
    g->f32 = f32;
    log_plan(&plan, hash, f32);
    g->template = peers_template(&g->plan, hash, g->f32, false);
    start_fleet(g, hash);
}

// --- HELLO

static uint64_t smallest_device(const struct wire_hello *h)
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < h->n_devices; i++) {
        if (h->devices[i].bytes < least) least = h->devices[i].bytes;
    }
    return h->n_devices > 0 ? least : 0;
}

static bool is_candidate(const struct candidate *c, const char *key, const char *name)
{
    return c->used && strcmp(c->name, name) == 0 && strcmp(c->peer.key, key) == 0;
}

// The tp that all groups must have: the plan's, or that of those that came first. 0: any.
static int tp_wanted(const struct groups *g, const char *key, const char *name)
{
    if (g->planned) return g->plan.tp;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &g->candidates[i];
        if (is_fresh(g, c) && !is_candidate(c, key, name)) return c->tp;
    }
    return 0;
}

static enum status check_hello(const struct groups *g, const char *key, const struct wire_hello *h,
                               struct error *e)
{
    int tp = tp_wanted(g, key, h->name);
    uint64_t bytes = smallest_device(h), needs = 0;
    if (strcmp(h->model, g->options.model->hash) != 0) {
        return error_set(e, ERR_INPUT, "bad_model",
                         "the group has another checkpoint (manifest %s) than the broker serves "
                         "(%s)", h->model, g->options.model->hash);
    }
    if (h->tp < 1 || (tp > 0 && h->tp != tp)) {
        return error_set(e, ERR_INPUT, "bad_tp", "the group has %d ranks, the others have %d",
                         h->tp, tp);
    }
    for (int i = 0; g->planned && i < g->plan.pp; i++) {
        if (g->plan.stages[i].total > needs) needs = g->plan.stages[i].total;
    }
    if (bytes >= needs) return OK;
    return error_set(e, ERR_INPUT, "too_small",
                     "a device of the group has %llu bytes, the plan needs %llu on each",
                     (unsigned long long) bytes, (unsigned long long) needs);
}

static struct candidate *candidate_for(struct groups *g, const char *key, const char *name)
{
    struct candidate *spare = NULL;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct candidate *c = &g->candidates[i];
        if (is_candidate(c, key, name)) return c;
        if (!is_fresh(g, c)) spare = c;
    }
    return spare;
}

static void note_candidate(struct groups *g, const struct peer *from, const struct wire_hello *h)
{
    struct candidate *c = candidate_for(g, from->key, h->name);
    if (c == NULL) {
        struct error e = {0};
        error_set(&e, ERR_LIMIT, "fleet_full", "the broker knows too many groups already");
        peers_refuse(&g->peers, from, h->name, &e);
        return;
    }
    refusals_forget(&g->peers.refusals, from->key, h->name);
    bool known = is_candidate(c, from->key, h->name);
    *c = (struct candidate){.used = true,
                            .peer = *from,
                            .bytes = smallest_device(h),
                            .tp = h->tp,
                            .wants_f32 = strcmp(h->precision, "bf16") != 0,
                            .seen_ms = g->now_ms};
    snprintf(c->name, sizeof c->name, "%s", h->name);
    if (h->assigned) snprintf(c->plan, sizeof c->plan, "%.*s", PLAN_HASH_MAX, h->assignment.plan);
    if (!known) {
        log_line(LOG_INFO, "group", log_str("group", h->name), log_str("node", h->node),
                 log_int("tp", h->tp), log_int("device_bytes", c->bytes));
        g->plan_ms = 0;
    }
}

static bool is_head(const struct groups *g, const struct peer *peer)
{
    const struct group *head = fleet_head(&g->fleet);
    return head != NULL && head == fleet_find(&g->fleet, peer);
}

// Nothing runs, and there are too few groups for the plan.
static bool plan_is_stuck(const struct groups *g)
{
    int n = 0;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) n += g->fleet.groups[i].used;
    return n < g->plan.pp && g->fleet.state == PIPELINE_WAITING && !g->fleet.adopting;
}

// Another plan may fit those that are there.
static void forget_plan(struct groups *g)
{
    log_line(LOG_WARN, "plan_forgotten", log_str("reason", "a group has too little memory for it"));
    g->planned = false;
    g->plan_ms = 0;
    g->next_epoch = g->fleet.epoch + 1;
    memset(g->candidates, 0, sizeof g->candidates);
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        if (g->fleet.groups[i].used) ask_for_hello(g, &g->fleet.groups[i].peer);
    }
}

static void on_hello(struct groups *g, const struct peer *from, const struct wire_message *m)
{
    struct error e;
    enum status status = check_hello(g, from->key, &m->hello, &e);
    if (status != OK && strcmp(e.code, "too_small") == 0 && plan_is_stuck(g)) {
        forget_plan(g);
        status = check_hello(g, from->key, &m->hello, &e);
    }
    if (status != OK) {
        peers_refuse(&g->peers, from, m->hello.name, &e);
        return;
    }
    if (!g->planned) {
        note_candidate(g, from, &m->hello);
        try_plan(g);
        return;
    }
    uint64_t epoch = g->fleet.epoch;
    bool served = fleet_head(&g->fleet) != NULL;
    peers_to_fleet(&g->peers, &g->fleet, from, m, g->now_ms);
    // An adoption asks for another HELLO by itself.
    bool same = served && epoch == g->fleet.epoch;
    if (same && is_head(g, from)) g->options.head_hello(g->options.arg, from, &m->hello);
}

// Said once, though the group says it again and again.
static void log_drain(const struct group *group)
{
    if (group->draining) return;
    log_line(LOG_INFO, "draining", log_str("group", group->name), log_int("stage", group->stage));
}

static void on_message(void *arg, const struct peer *from, const struct wire_message *m)
{
    struct groups *g = arg;
    if (m->command == WIRE_ERROR) {
        log_line(LOG_WARN, "group_error", log_str("code", m->error.code),
                 log_str("error", m->error.message));
        return;
    }
    if (m->command == WIRE_HELLO) {
        on_hello(g, from, m);
        return;
    }
    if (!g->planned || !fleet_seen(&g->fleet, from, g->now_ms)) {
        if (m->command != WIRE_BYE) ask_for_hello(g, from);
        return;
    }
    if (m->command == WIRE_FAILED) {
        log_line(LOG_ERROR, "group_failed", log_int("stage", m->failed.stage),
                 log_str("code", m->failed.code), log_str("error", m->failed.message));
    }
    if (m->command == WIRE_PING) {
        struct wire_message pong = {.command = WIRE_PONG, .pong.seq = m->ping.seq};
        groups_send(g, from, &pong);
        return;
    }
    if (m->command == WIRE_PONG) return;
    if (m->command == WIRE_DRAIN) log_drain(fleet_find(&g->fleet, from));
    if (peers_to_fleet(&g->peers, &g->fleet, from, m, g->now_ms)) return;
    g->options.message(g->options.arg, from, m);
}

bool groups_receive(struct groups *g, int64_t now_ms)
{
    g->now_ms = now_ms;
    return !g->started || peers_turn(&g->peers, on_message, g);
}

// --- time

// Who waits for a plan is pinged, too: or it would take the broker for dead.
static void ping_all(struct groups *g)
{
    struct wire_message m = {.command = WIRE_PING, .ping.seq = ++g->pings};
    g->pinged_ms = g->now_ms;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &g->candidates[i];
        if (!g->planned && is_fresh(g, c)) groups_send(g, &c->peer, &m);
        if (g->planned && g->fleet.groups[i].used) groups_send(g, &g->fleet.groups[i].peer, &m);
    }
}

void groups_recheck(struct groups *g)
{
    const struct allow *allow = g->options.allow;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct candidate *c = &g->candidates[i];
        if (c->used && !allow_has(allow, c->peer.key)) *c = (struct candidate){0};
        const struct group *group = &g->fleet.groups[i];
        if (!g->planned || !group->used || allow_has(allow, group->peer.key)) continue;
        log_line(LOG_WARN, "key_removed", log_str("group", group->name),
                 log_int("stage", group->stage), log_str("key", group->peer.key));
        struct peer peer = group->peer;
        answer(g, &peer, "not_allowed", "the broker does not allow this group's key any more");
        fleet_bye(&g->fleet, &peer);
    }
}

void groups_tick(struct groups *g, int64_t now_ms)
{
    g->now_ms = now_ms;
    if (!g->started) return;
    try_plan(g);
    if (g->planned) fleet_tick(&g->fleet, now_ms);
    if (now_ms - g->pinged_ms >= HEARTBEAT_MS) ping_all(g);
}

void groups_start(struct groups *g, uint64_t term, int64_t now_ms)
{
    g->started = true;
    g->started_ms = now_ms;
    g->peers.term = term;
    g->next_epoch = (term << EPOCH_BITS) + 1;
}

bool groups_draining(const struct groups *g)
{
    return g->planned && fleet_head(&g->fleet) != NULL && fleet_draining(&g->fleet);
}

void groups_drained(struct groups *g) { fleet_drained(&g->fleet); }

bool groups_adopting(const struct groups *g, int64_t now_ms)
{
    if (!g->started || (g->planned && g->fleet.adopting)) return true;
    return now_ms - g->started_ms < ADOPT_MS;
}

// --- life

enum status groups_create(struct groups **groups, const struct groups_options *o, struct error *e)
{
    struct groups *g = calloc(1, sizeof *g);
    *groups = g;
    if (g == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the fleet");
    g->options = *o;
    peers_init(&g->peers, o->socket, 0);
    g->peers.allow = o->allow;
    // What the options alone break is said at once, for a machine without limits.
    struct plan plan;
    struct plan_request r = {.config = &o->model->config, .pp = o->pp, .tp = 1, .slots = o->slots,
                             .max_context = o->max_context, .max_rows = o->max_rows,
                             .chunk = o->chunk, .kv_blocks = o->kv_blocks};
    memcpy(r.layers, o->layers, sizeof r.layers);
    for (int i = 0; i < PP_MAX; i++) r.device_bytes[i] = UINT64_MAX / 4;
    enum status status = plan_make(&plan, &r, e);
    if (status == OK) {
        g->options.planned(g->options.arg, &plan);
    } else {
        groups_destroy(groups);
    }
    return status;
}

void groups_destroy(struct groups **groups)
{
    struct groups *g = *groups;
    if (g == NULL) return;
    *groups = NULL;
    peers_deinit(&g->peers);
    free(g);
}
