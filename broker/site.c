#include "broker/site.h"

#include "common/kv_block.h"
#include "common/log.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

enum {
    RETRY_MS = 1000,   // after a group could not load or lost a link
    PLAN_AGAIN_MS = 5000,
};

static void answer(struct site *s, const struct peer *to, const char *code, const char *text)
{
    struct wire_message m = wire_error_message(code, text);
    peers_send(s->peers, to, &m);
}

static void ask_for_hello(struct site *s, const struct peer *to)
{
    answer(s, to, "unknown_peer", "say HELLO");
}

// --- the fleet's actions

static void do_assign(void *arg, const struct group *group, const struct fleet_assign *a)
{
    struct site *s = arg;
    log_line(LOG_INFO, "assign", log_str("group", group->name), log_int("stage", a->stage),
             log_int("first", a->first), log_int("last", a->last), log_int("epoch", a->epoch),
             log_int("pipeline", a->pipeline), log_str("model", s->model->name));
    peers_assign(s->peers, group, &s->template, a);
}

static void do_link(void *arg, const struct group *group, const struct pipeline *p,
                    const char *next)
{
    struct site *s = arg;
    peers_link(s->peers, group, p, next);
}

static void do_unassign(void *arg, const struct group *group, uint64_t pipeline, uint64_t epoch)
{
    struct site *s = arg;
    log_line(LOG_INFO, "unassign", log_str("group", group->name), log_int("epoch", epoch),
             log_int("pipeline", pipeline), log_str("model", s->model->name));
    peers_unassign(s->peers, group, pipeline, epoch);
}

static void do_up(void *arg, const struct pipeline *p, const struct group *head, bool adopted)
{
    struct site *s = arg;
    log_line(LOG_INFO, "serving", log_str("model", s->model->name), log_int("pipeline", p->id),
             log_int("stages", s->plan.pp), log_int("tp", s->plan.tp),
             log_int("slots", s->plan.slots), log_int("kv_blocks", s->plan.kv_blocks),
             log_int("max_context", s->plan.max_context), log_str("head", head->name),
             log_int("epoch", p->epoch), log_int("adopted", adopted));
    s->up_epoch = p->epoch;
    s->options->up(s->options->arg, s->index, &s->plan, p, head, adopted);
    // What it runs was in a HELLO that came before it was known to be the head.
    if (adopted) ask_for_hello(s, &head->peer);
}

static void do_down(void *arg, const struct pipeline *p, const char *reason)
{
    struct site *s = arg;
    log_line(LOG_WARN, "pipeline_down", log_str("model", s->model->name),
             log_int("pipeline", p->id), log_int("epoch", p->epoch), log_str("reason", reason));
    s->options->down(s->options->arg, p->epoch);
}

static void do_random(void *arg, void *bytes, size_t n)
{
    (void) arg;
    ssize_t got = getrandom(bytes, n, 0);
    check(got == (ssize_t) n, "no random numbers");
}

// --- the plan

// With devices as this candidate has.
static bool plan_with(struct site *s, const struct candidate *like, int tp, bool f32,
                      struct plan *plan, char hash[PLAN_HASH_SIZE], struct error *e)
{
    const struct groups_options *o = s->options;
    struct plan_request r = {.config = &s->model->config,
                             .types = &s->model->types,
                             .device = like->device,
                             .pp = s->model->pp,
                             .tp = tp,
                             .f32 = f32,
                             .fp8_kv = o->fp8_kv,
                             .slots = o->slots,
                             .max_context = o->max_context,
                             .max_rows = o->max_rows,
                             .chunk = o->chunk,
                             .kv_blocks = o->kv_blocks};
    memcpy(r.layers, s->model->layers, sizeof r.layers);
    for (int i = 0; i < s->model->pp; i++) r.device_bytes[i] = like->bytes;
    if (plan_make(plan, &r, e) != OK) return false;
    if (!plan->fits) {
        error_set(e, ERR_NOMEM, "does_not_fit", "%s", plan->reason);
        return false;
    }
    plan_hash(plan, s->model->hash, f32, o->fp8_kv, hash);
    return true;
}

static bool is_fresh(const struct site *s, const struct candidate *c)
{
    return c->used && s->now_ms - c->seen_ms <= DEAD_AFTER_MS;
}

// The plan that the running stages were loaded for, if these groups and options can give it.
static bool plan_again(struct site *s, int tp, struct plan *plan, bool *f32,
                       char hash[PLAN_HASH_SIZE])
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *held = &s->candidates[i];
        if (!is_fresh(s, held) || held->plan[0] == '\0') continue;
        for (int k = 0; k < 2 * FLEET_GROUPS_MAX; k++) {
            const struct candidate *c = &s->candidates[k / 2];
            struct error e;
            *f32 = k % 2 == 1;
            if (!is_fresh(s, c)) continue;
            if (s->options->precision == (*f32 ? GROUPS_BF16 : GROUPS_F32)) continue;
            if (plan_with(s, c, tp, *f32, plan, hash, &e) && strcmp(hash, held->plan) == 0) {
                return true;
            }
        }
    }
    return false;
}

// Whether all stages of a pipeline that an earlier broker set up are there.
static bool holds_whole(const struct site *s)
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *head = &s->candidates[i];
        bool there[PP_MAX] = {false};
        int n = 0;
        if (!is_fresh(s, head) || head->plan[0] == '\0' || head->stage != 0) continue;
        for (int k = 0; k < FLEET_GROUPS_MAX; k++) {
            const struct candidate *c = &s->candidates[k];
            if (!is_fresh(s, c) || c->plan[0] == '\0' || c->epoch != head->epoch) continue;
            n += !there[c->stage];
            there[c->stage] = true;
        }
        if (n == head->n_stages) return true;
    }
    return false;
}

static void log_plan(const struct site *s)
{
    const struct plan *p = &s->plan;
    char layers[PLAN_LAYERS_TEXT_MAX];
    uint64_t most = 0;
    for (int i = 0; i < p->pp; i++) {
        if (ledger_total(&p->stages[i]) > most) most = ledger_total(&p->stages[i]);
    }
    plan_print_layers(p, layers, sizeof layers);
    log_line(LOG_INFO, "plan", log_str("model", s->model->name), log_str("layers", layers),
             log_int("tp", p->tp), log_str("precision", s->f32 ? "f32" : "bf16"),
             log_str("kv", kv_name(s->f32, s->options->fp8_kv)), log_int("slots", p->slots),
             log_int("kv_blocks", p->kv_blocks),
             log_int("max_context", p->max_context), log_int("max_rows", p->max_rows),
             log_int("device_bytes", most), log_str("hash", s->plan_hash),
             log_str("note", p->reason));
}

static void start_fleet(struct site *s)
{
    bool held = false;
    struct fleet_actions actions = {s, do_assign, do_link, do_unassign, do_up, do_down, do_random};
    struct fleet_options o = {.n_stages = s->plan.pp,
                              .n_pipelines = s->options->n_pipelines,
                              .n_spares = s->options->n_spares,
                              .epoch = s->epoch,
                              .dead_ms = DEAD_AFTER_MS,
                              .retry_ms = RETRY_MS};
    memcpy(o.layers, s->plan.layers, sizeof o.layers);
    snprintf(o.plan_hash, sizeof o.plan_hash, "%s", s->plan_hash);
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &s->candidates[i];
        held = held || (is_fresh(s, c) && strcmp(c->plan, s->plan_hash) == 0);
    }
    o.adopt_ms = held ? ADOPT_MS : 0;
    fleet_init(&s->fleet, &o, &actions, s->now_ms);
    s->planned = true;
    s->options->planned(s->options->arg, s->index, &s->plan);
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        if (is_fresh(s, &s->candidates[i])) ask_for_hello(s, &s->candidates[i].peer);
    }
}

static void try_plan(struct site *s, int64_t muster_ms)
{
    int n = 0, tp = 0;
    const struct candidate *smallest = NULL;
    bool f32 = s->options->precision == GROUPS_F32;
    bool early = s->now_ms < muster_ms;
    if (s->planned || s->now_ms < s->plan_ms || (early && !holds_whole(s))) return;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &s->candidates[i];
        if (!is_fresh(s, c)) continue;
        n++;
        tp = c->tp;
        if (smallest == NULL || c->bytes < smallest->bytes) smallest = c;
        if (c->wants_f32 && s->options->precision == GROUPS_AUTO) f32 = true;
    }
    if (n < s->model->pp || smallest == NULL) return;
    char hash[PLAN_HASH_SIZE];
    struct error e = {0};
    struct plan plan;
    bool held_f32;
    if (plan_again(s, tp, &plan, &held_f32, hash)) {
        f32 = held_f32;
    } else if (early) { // the group whose memory made the plan may still come
        s->plan_ms = muster_ms;
        return;
    } else if (!plan_with(s, smallest, tp, f32, &plan, hash, &e)) {
        log_line(LOG_ERROR, "plan_refused", log_str("model", s->model->name),
                 log_str("code", e.code), log_str("error", e.text));
        s->plan_ms = s->now_ms + PLAN_AGAIN_MS;
        s->refused = e;
        return;
    }
    s->plan = plan;
    s->refused = (struct error){0};
    s->f32 = f32;
    snprintf(s->plan_hash, sizeof s->plan_hash, "%s", hash);
    log_plan(s);
    s->template = peers_template(&s->plan, hash, s->f32, s->options->fp8_kv, false);
    s->template.fill_ms = s->options->fill_ms;
    s->template.step_ms = s->options->step_ms;
    start_fleet(s);
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

// A device's name begins with its kind, as in "cuda:1"; what is not known is planned as a CPU.
static enum device_kind kind_of(const struct wire_hello *h)
{
    char kind[WIRE_NAME_MAX + 1] = "";
    if (h->n_devices > 0) {
        snprintf(kind, sizeof kind, "%.*s", (int) strcspn(h->devices[0].name, ":"),
                 h->devices[0].name);
    }
    enum device_kind found = device_kind_named(kind);
    return found < N_DEVICE_KINDS ? found : DEVICE_CPU;
}

static bool is_candidate(const struct candidate *c, const char *key, const char *name)
{
    return c->used && strcmp(c->name, name) == 0 && strcmp(c->peer.key, key) == 0;
}

// The tp that all groups must have: as asked for, the plan's, or that of those that came first. 0:
// any.
static int tp_wanted(const struct site *s, const char *key, const char *name)
{
    if (s->options->tp > 0) return s->options->tp;
    if (s->planned) return s->plan.tp;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &s->candidates[i];
        if (is_fresh(s, c) && !is_candidate(c, key, name)) return c->tp;
    }
    return 0;
}

static enum status check_hello(const struct site *s, const char *key, const struct wire_hello *h,
                               struct error *e)
{
    int tp = tp_wanted(s, key, h->name);
    uint64_t bytes = smallest_device(h), needs = 0;
    if (h->minor < WIRE_MINOR_LEAST) {
        return error_set(e, ERR_UNSUPPORTED, "old_minor",
                         "the group (version %s) speaks minor version %d of the protocol, and must "
                         "speak %d: update penstock-worker there", h->version, h->minor,
                         WIRE_MINOR_LEAST);
    }
    if (s->options->fp8_kv && h->minor < WIRE_MINOR_FP8_KV) {
        return error_set(e, ERR_UNSUPPORTED, "old_minor",
                         "the group (version %s) speaks minor version %d of the protocol, and "
                         "KV in FP8 wants %d: update penstock-worker there", h->version, h->minor,
                         WIRE_MINOR_FP8_KV);
    }
    if (h->tp < 1 || (tp > 0 && h->tp != tp)) {
        return error_set(e, ERR_INPUT, "bad_tp", "the group has %d ranks, %s %d", h->tp,
                         s->options->tp > 0 ? "the broker's --tp says" : "the others have", tp);
    }
    for (int i = 0; s->planned && i < s->plan.pp; i++) {
        uint64_t total = ledger_total(&s->plan.stages[i]);
        if (total > needs) needs = total;
    }
    if (bytes >= needs) return OK;
    return error_set(e, ERR_INPUT, "too_small",
                     "a device of the group has %llu bytes, the plan needs %llu on each",
                     (unsigned long long) bytes, (unsigned long long) needs);
}

static struct candidate *candidate_for(struct site *s, const char *key, const char *name)
{
    struct candidate *spare = NULL;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct candidate *c = &s->candidates[i];
        if (is_candidate(c, key, name)) return c;
        if (!is_fresh(s, c)) spare = c;
    }
    return spare;
}

static void note_candidate(struct site *s, const struct peer *from, const struct wire_hello *h)
{
    struct candidate *c = candidate_for(s, from->key, h->name);
    if (c == NULL) {
        struct error e = {0};
        error_set(&e, ERR_LIMIT, "fleet_full", "the broker knows too many groups already");
        peers_refuse(s->peers, from, h->name, &e);
        return;
    }
    refusals_forget(&s->peers->refusals, from->key, h->name);
    bool known = is_candidate(c, from->key, h->name);
    *c = (struct candidate){.used = true,
                            .peer = *from,
                            .bytes = smallest_device(h),
                            .device = kind_of(h),
                            .tp = h->tp,
                            .wants_f32 = strcmp(h->precision, "bf16") != 0,
                            .seen_ms = s->now_ms};
    snprintf(c->name, sizeof c->name, "%s", h->name);
    if (h->assigned) {
        snprintf(c->plan, sizeof c->plan, "%.*s", PLAN_HASH_MAX, h->assignment.plan);
        c->epoch = h->assignment.epoch;
        c->stage = h->assignment.stage;
        c->n_stages = h->assignment.n_stages;
    }
    if (!known) {
        log_line(LOG_INFO, "group", log_str("group", h->name), log_str("node", h->node),
                 log_int("tp", h->tp), log_int("device_bytes", c->bytes));
        s->plan_ms = 0;
    }
}

// The pipeline that serves under this peer, or NULL.
static const struct pipeline *headed_by(const struct site *s, const struct peer *peer)
{
    const struct group *group = fleet_find(&s->fleet, peer);
    const struct pipeline *p = group != NULL ? fleet_pipeline(&s->fleet, group) : NULL;
    return p != NULL && fleet_head(&s->fleet, p) == group ? p : NULL;
}

// Nothing runs, and there are too few groups for the plan.
static bool plan_is_stuck(const struct site *s)
{
    const struct fleet *f = &s->fleet;
    int n_idle = fleet_n_pipelines(f, PIPELINE_NONE) + fleet_n_pipelines(f, PIPELINE_WAITING);
    return n_idle == PIPELINES_MAX && fleet_n_groups(f) < s->plan.pp && !f->adopting;
}

// Another plan may fit those that are there.
static void forget_plan(struct site *s)
{
    log_line(LOG_WARN, "plan_forgotten", log_str("model", s->model->name),
             log_str("reason", "a group has too little memory for it"));
    s->planned = false;
    s->plan_ms = 0;
    memset(s->candidates, 0, sizeof s->candidates);
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        if (s->fleet.groups[i].used) ask_for_hello(s, &s->fleet.groups[i].peer);
    }
}

// What a head runs counts if it was said to this leader. HELLOs of before wait by the dozen where a
// broker listened and could not lead yet: jobs of theirs have ended since, and another leader may
// have their results.
static void to_fleet(struct site *s, const struct peer *from, const struct wire_message *m)
{
    bool asked = fleet_find(&s->fleet, from) != NULL; // this connection, or it will be
    s->up_epoch = 0;
    peers_to_fleet(s->peers, &s->fleet, from, m, s->now_ms);
    const struct pipeline *p = headed_by(s, from);
    // What has come up just now by this HELLO asks for another one.
    if (p == NULL || p->epoch == s->up_epoch) return;
    if (m->term == s->peers->term) {
        s->options->head_hello(s->options->arg, p->epoch, from, &m->hello);
    } else if (!asked) {
        ask_for_hello(s, from);
    }
}

void site_hello(struct site *s, const struct peer *from, const struct wire_message *m,
                int64_t muster_ms, int64_t now_ms)
{
    struct error e;
    s->now_ms = now_ms;
    enum status status = check_hello(s, from->key, &m->hello, &e);
    if (status != OK && s->planned && strcmp(e.code, "too_small") == 0 && plan_is_stuck(s)) {
        forget_plan(s);
        status = check_hello(s, from->key, &m->hello, &e);
    }
    if (status != OK) {
        peers_refuse(s->peers, from, m->hello.name, &e);
    } else if (s->planned) {
        to_fleet(s, from, m);
    } else {
        note_candidate(s, from, &m->hello);
        try_plan(s, muster_ms);
    }
}

// --- what else groups say

bool site_seen(struct site *s, const struct peer *from, int64_t now_ms)
{
    s->now_ms = now_ms;
    return s->planned && fleet_seen(&s->fleet, from, now_ms);
}

// Logged once, though the group says it again and again.
static void on_drain(struct site *s, const struct group *group)
{
    if (!group->draining) {
        log_line(LOG_INFO, "draining", log_str("group", group->name),
                 log_int("stage", group->stage), log_str("model", s->model->name));
    }
    fleet_drain(&s->fleet, &group->peer);
    const struct pipeline *p = fleet_pipeline(&s->fleet, group);
    if (p != NULL && group->draining) s->options->draining(s->options->arg, p->epoch);
}

static struct ledger carved(const struct ledger *l)
{
    struct ledger c = *l;
    for (int i = 0; i < LEDGER_LINES; i++) {
        if (!ledger_is_carved((enum ledger_line) i)) c.bytes[i] = 0;
    }
    return c;
}

// A group carves what was planned, to the byte; if not, one of the two counts wrongly.
static void check_ledger(const struct site *s, const struct group *group,
                         const struct wire_ready *r)
{
    if (group == NULL || !r->by_line || r->stage >= s->plan.pp) return;
    struct ledger planned = carved(&s->plan.stages[r->stage]), has = carved(&r->ledger);
    char text[LEDGER_TEXT_MAX];
    if (ledger_equal(&planned, "the plan", &has, "the group", text, sizeof text)) return;
    log_line(LOG_WARN, "ledger_differs", log_str("group", group->name),
             log_int("stage", r->stage), log_str("model", s->model->name), log_str("lines", text));
}

bool site_message(struct site *s, const struct peer *from, const struct wire_message *m)
{
    if (m->command == WIRE_READY && s->planned) {
        check_ledger(s, fleet_find(&s->fleet, from), &m->ready);
    }
    if (m->command == WIRE_FAILED) {
        log_line(LOG_ERROR, "group_failed", log_int("stage", m->failed.stage),
                 log_int("pipeline", m->failed.pipeline), log_str("model", s->model->name),
                 log_str("code", m->failed.code), log_str("error", m->failed.message));
    }
    if (m->command != WIRE_DRAIN) return peers_to_fleet(s->peers, &s->fleet, from, m, s->now_ms);
    on_drain(s, fleet_find(&s->fleet, from));
    return true;
}

// --- time

void site_tick(struct site *s, int64_t muster_ms, int64_t now_ms)
{
    s->now_ms = now_ms;
    try_plan(s, muster_ms);
    if (s->planned) fleet_tick(&s->fleet, now_ms);
}

// Who waits for a plan is pinged, too: or it would take the broker for dead.
void site_ping(struct site *s, uint64_t seq)
{
    struct wire_message m = {.command = WIRE_PING, .ping.seq = seq};
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &s->candidates[i];
        const struct group *group = &s->fleet.groups[i];
        if (!s->planned && is_fresh(s, c)) peers_send(s->peers, &c->peer, &m);
        if (s->planned && group->used) peers_send(s->peers, &group->peer, &m);
    }
}

void site_recheck(struct site *s)
{
    const struct allow *allow = s->options->allow;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct candidate *c = &s->candidates[i];
        if (c->used && !allow_has(allow, c->peer.key)) *c = (struct candidate){0};
        const struct group *group = &s->fleet.groups[i];
        if (!s->planned || !group->used || allow_has(allow, group->peer.key)) continue;
        log_line(LOG_WARN, "key_removed", log_str("group", group->name),
                 log_int("stage", group->stage), log_str("key", group->peer.key));
        struct peer peer = group->peer;
        answer(s, &peer, "not_allowed", "the broker does not allow this group's key any more");
        fleet_bye(&s->fleet, &peer);
    }
}

// --- life

enum status site_init(struct site *s, const struct groups_options *o, int index,
                      struct peers *peers, uint64_t *epoch, struct error *e)
{
    const struct model *model = &o->models->at[index];
    s->options = o; // the rest is zeros, and too large for the stack
    s->model = model;
    s->index = index;
    s->peers = peers;
    s->epoch = epoch;
    struct plan plan;
    struct plan_request r = {.config = &model->config, .types = &model->types, .pp = model->pp,
                             .tp = o->tp > 0 ? o->tp : 1, .slots = o->slots,
                             .max_context = o->max_context, .max_rows = o->max_rows,
                             .chunk = o->chunk, .kv_blocks = o->kv_blocks};
    memcpy(r.layers, model->layers, sizeof r.layers);
    for (int i = 0; i < PP_MAX; i++) r.device_bytes[i] = UINT64_MAX / 4;
    try(plan_make(&plan, &r, e));
    o->planned(o->arg, index, &plan);
    return OK;
}
