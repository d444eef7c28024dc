#include "broker/fleet_record.h"

#include "broker/groups.h"
#include "broker/site.h"
#include "common/clock.h"
#include "common/kv_block.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LOOK_MS = 500, FIGURES_MS = 1000, AGAIN_MS = 10000 };
_Static_assert(2 * AGAIN_MS < FLEET_RECORD_MS, "a record does not end while it is renewed");

void fleet_record_deinit(struct fleet_record *r)
{
    json_decref(r->said);
    r->said = NULL;
}

// --- what groups report

static struct fleet_report *report_of(struct fleet_record *r, const struct peer *peer)
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        if (r->at[i].used && fleet_same_peer(&r->at[i].peer, peer)) return &r->at[i];
    }
    return NULL;
}

// A new connection of a group that is known takes its place; else a free one, or that of the group
// that was heard longest ago.
static struct fleet_report *place_for(struct fleet_record *r, const struct peer *from,
                                      const char *name)
{
    struct fleet_report *best = &r->at[0];
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct fleet_report *p = &r->at[i];
        bool same = p->used && strcmp(p->name, name) == 0;
        if (same && strcmp(p->peer.key, from->key) == 0) return p;
        if (best->used && (!p->used || p->heard_ms < best->heard_ms)) best = p;
    }
    return best;
}

static void on_hello(struct fleet_record *r, const struct peer *from, const struct wire_hello *h,
                     int64_t now_ms)
{
    struct fleet_report *p = place_for(r, from, h->name);
    struct fleet_report before = *p;
    bool known = before.used && strcmp(before.name, h->name) == 0 &&
                 strcmp(before.peer.key, from->key) == 0;
    if (!known) *p = (struct fleet_report){0};
    p->used = true;
    p->peer = *from;
    p->heard_ms = now_ms;
    figures_hello(&p->figures, h->boot);
    p->n_ranks = h->tp;
    p->device_bytes = h->n_devices > 0 ? UINT64_MAX : 0;
    for (int i = 0; i < h->n_devices; i++) {
        if (h->devices[i].bytes < p->device_bytes) p->device_bytes = h->devices[i].bytes;
    }
    snprintf(p->name, sizeof p->name, "%s", h->name);
}

void fleet_record_hear(struct fleet_record *r, const struct peer *from,
                       const struct wire_message *m, int64_t now_ms)
{
    if (m->command == WIRE_HELLO) {
        on_hello(r, from, &m->hello, now_ms);
        return;
    }
    bool tells = m->command == WIRE_READY || m->command == WIRE_PONG || m->command == WIRE_FAILED;
    struct fleet_report *p = tells ? report_of(r, from) : NULL;
    if (p == NULL) return;
    if (m->command == WIRE_PONG) {
        p->heard_ms = now_ms;
        p->loaded_bytes = m->pong.loaded_bytes;
        p->load_bytes = m->pong.load_bytes;
    } else if (m->command == WIRE_READY) {
        p->ready = true;
        p->ledger = m->ready;
        p->code[0] = p->text[0] = '\0';
    } else {
        snprintf(p->code, sizeof p->code, "%s", m->failed.code);
        snprintf(p->text, sizeof p->text, "%s", m->failed.message);
    }
}

const struct fleet_report *fleet_record_of(const struct fleet_record *r, const struct peer *peer)
{
    return report_of((struct fleet_record *) r, peer);
}

void fleet_record_count(struct fleet_record *r, const struct peer *from, int model, int stage,
                        const struct wire_pong *pong, int64_t now_ms)
{
    struct fleet_report *p = report_of(r, from);
    if (p == NULL || !pong->counted) return;
    bool changed = figures_hear(&p->figures, &r->models[model], stage, &pong->figures, now_ms);
    r->news = r->news || changed || figures_rates(&p->figures, now_ms).steps > 0;
}

// --- as JSON

static json_t *number(uint64_t n) { return json_integer((json_int_t) n); }

// What is not there is 0.
static json_t *ledger_json(const struct ledger *l)
{
    json_t *lines = json_object();
    for (int i = 0; i < LEDGER_LINES; i++) {
        if (l->bytes[i] == 0) continue;
        json_object_set_new(lines, ledger_name((enum ledger_line) i), number(l->bytes[i]));
    }
    return lines;
}

// A figure of a rate, for people.
static json_t *rate(double x) { return json_real(round(x * 10) / 10); }

static json_t *times_json(const struct histogram *h)
{
    return json_pack("{s:o,s:o,s:o}", "n", number(histogram_count(h, HISTOGRAM_BUCKETS - 1)),
                     "median_us", number(histogram_quantile_us(h, 0.5)), "p99_us",
                     number(histogram_quantile_us(h, 0.99)));
}

static json_t *figures_json(const struct group_figures *g, int64_t now_ms)
{
    struct wire_figures f = figures_total(g);
    struct figures_rates r = figures_rates(g, now_ms);
    json_t *ranks = json_array();
    for (int i = 0; i < f.n_ranks; i++) {
        json_array_append_new(ranks, json_pack("{s:o}", "memory", ledger_json(&f.ranks[i].memory)));
    }
    json_t *j = json_pack("{s:o,s:o,s:o,s:o,s:o}", "rows", number(f.rows), "steps_per_s",
                          rate(r.steps), "busy", json_real(round(r.busy * 100) / 100),
                          "decode_steps", times_json(&f.decode_steps), "prefill_steps",
                          times_json(&f.prefill_steps));
    json_object_set_new(j, "stale_frames", number(f.stale_frames));
    json_object_set_new(j, "heap_calls", number(f.heap_calls));
    json_object_set_new(j, "sampler", json_pack("{s:o,s:o,s:o}", "rows", number(f.sampler_rows),
                                                "fallbacks", number(f.sampler_fallbacks), "hosted",
                                                number(f.sampler_hosted)));
    json_object_set_new(j, "memory", ledger_json(&f.memory));
    json_object_set_new(j, "ranks", ranks);
    if (f.slots == 0) return j; // not a head
    json_t *tokens = json_pack("{s:o,s:o,s:o,s:o}", "prefill", number(f.prefill_tokens), "decode",
                               number(f.decode_tokens), "prefill_per_s", rate(r.prefill),
                               "decode_per_s", rate(r.decode));
    json_object_set_new(j, "tokens", tokens);
    json_object_set_new(j, "slots", number(f.slots));
    json_object_set_new(j, "running", number(f.running));
    json_object_set_new(j, "kv", json_pack("{s:o,s:o,s:o}", "blocks", number(f.kv_blocks),
                                           "reserved", number(f.kv_reserved), "used",
                                           number(f.kv_used)));
    return j;
}

static json_t *plan_json(const struct site *s)
{
    const struct plan *p = &s->plan;
    if (!s->planned) return json_null();
    json_t *layers = json_array(), *bytes = json_array(), *ledgers = json_array();
    for (int i = 0; i < p->pp; i++) {
        json_array_append_new(layers, json_integer(p->layers[i]));
        json_array_append_new(bytes, number(ledger_total(&p->stages[i])));
        json_array_append_new(ledgers, ledger_json(&p->stages[i]));
    }
    return json_pack("{s:s,s:o,s:i,s:s,s:s,s:i,s:i,s:i,s:i,s:o,s:o}", "hash", s->plan_hash,
                     "layers", layers, "tp", p->tp, "precision", s->f32 ? "f32" : "bf16", "kv",
                     kv_name(s->f32, s->options->fp8_kv), "slots", p->slots,
                     "kv_blocks", p->kv_blocks, "max_context", (int) p->max_context, "max_rows",
                     p->max_rows, "stage_bytes", bytes, "stage_ledgers", ledgers);
}

static json_t *pipeline_json(const struct site *s, const struct pipeline *p,
                             const struct fleet_loads *loads)
{
    static const char *const states[] = {"none", "waiting", "loading", "linking", "serving"};
    json_t *stages = json_array();
    for (int i = 0; i < s->plan.pp; i++) {
        const struct group *g = p->stages[i] >= 0 ? &s->fleet.groups[p->stages[i]] : NULL;
        json_array_append_new(stages, g != NULL ? json_string(g->name) : json_null());
    }
    json_t *j = json_pack("{s:o,s:o,s:s,s:o}", "id", number(p->id), "epoch", number(p->epoch),
                          "state", states[p->state], "stages", stages);
    // Only where somebody waits for it: whatever changes is written to Redis.
    int load = loads->paused_load(loads->arg, p->epoch);
    if (load < 0) return j;
    json_object_set_new(j, "paused", json_true());
    json_object_set_new(j, "running", json_integer(load));
    return j;
}

static json_t *report_json(const char *name, const char *node, const struct peer *peer,
                           const struct fleet_report *r)
{
    json_t *j = json_pack("{s:s,s:s,s:s}", "name", name, "node", node, "key", peer->key);
    if (r == NULL) return j;
    json_object_set_new(j, "ranks", json_integer(r->n_ranks));
    json_object_set_new(j, "device_bytes", number(r->device_bytes));
    json_object_set_new(j, "loaded_bytes", number(r->loaded_bytes));
    json_object_set_new(j, "load_bytes", number(r->load_bytes));
    if (r->code[0] != '\0') {
        json_object_set_new(j, "failure",
                            json_pack("{s:s,s:s}", "code", r->code, "message", r->text));
    }
    return j;
}

static json_t *group_json(const struct fleet_record *r, const struct site *s,
                          const struct group *g, bool figures)
{
    const struct fleet_report *told = fleet_record_of(r, &g->peer);
    const struct pipeline *p = fleet_pipeline(&s->fleet, g);
    json_t *j = report_json(g->name, g->node, &g->peer, told);
    json_object_set_new(j, "state", json_string(fleet_state_name(g->state)));
    json_object_set_new(j, "pipeline", p != NULL ? number(p->id) : json_null());
    json_object_set_new(j, "stage", g->stage >= 0 ? json_integer(g->stage) : json_null());
    json_object_set_new(j, "draining", json_boolean(g->draining));
    if (figures && told != NULL && told->figures.told) {
        json_object_set_new(j, "figures", figures_json(&told->figures, r->looked_ms));
    }
    // What it reserved, as READY had it for the stage that it has now.
    if (told == NULL || !told->ready || p == NULL || told->ledger.epoch != p->epoch) return j;
    const struct wire_ready *l = &told->ledger;
    json_t *reserved = json_pack("{s:o,s:o,s:o,s:o}", "weights", number(l->weights_bytes), "kv",
                                 number(l->kv_bytes), "buffers", number(l->buffers_bytes), "total",
                                 number(l->total_bytes));
    if (l->by_line) json_object_set_new(reserved, "ledger", ledger_json(&l->ledger));
    json_object_set_new(j, "reserved", reserved);
    return j;
}

// Groups that said HELLO before there was a plan.
static void add_candidates(const struct fleet_record *r, const struct site *s, json_t *groups)
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct candidate *c = &s->candidates[i];
        if (!c->used || s->now_ms - c->seen_ms > DEAD_AFTER_MS) continue;
        const struct fleet_report *told = fleet_record_of(r, &c->peer);
        json_t *j = report_json(c->name, "", &c->peer, told);
        json_object_set_new(j, "state", json_string("no plan"));
        json_array_append_new(groups, j);
    }
}

static json_t *site_json(const struct fleet_record *r, const struct site *s,
                         const struct fleet_loads *loads, bool figures)
{
    json_t *pipelines = json_array(), *groups = json_array();
    for (int i = 0; s->planned && i < PIPELINES_MAX; i++) {
        const struct pipeline *p = &s->fleet.pipelines[i];
        if (p->state == PIPELINE_NONE) continue;
        json_array_append_new(pipelines, pipeline_json(s, p, loads));
    }
    for (int i = 0; s->planned && i < s->fleet.n_groups; i++) {
        const struct group *g = &s->fleet.groups[i];
        if (g->used) json_array_append_new(groups, group_json(r, s, g, figures));
    }
    if (!s->planned) add_candidates(r, s, groups);
    json_t *j = json_pack("{s:s,s:s,s:i,s:o,s:o,s:o}", "name", s->model->name, "hash",
                          s->model->hash, "stages_wanted", s->model->pp, "plan", plan_json(s),
                          "pipelines", pipelines, "groups", groups);
    if (!s->planned && s->refused.status != OK) {
        json_object_set_new(j, "refused", json_pack("{s:s,s:s}", "code", s->refused.code,
                                                    "message", s->refused.text));
    }
    return j;
}

// What is said of it. figures: with what the groups count, which changes all the time.
static json_t *record_json(const struct fleet_record *r, const struct fleet_leader *leader,
                           const struct groups *g, int n_models, const struct fleet_loads *loads,
                           bool figures)
{
    json_t *models = json_array();
    for (int i = 0; i < n_models; i++) {
        json_array_append_new(models, site_json(r, groups_site(g, i), loads, figures));
    }
    json_t *all = json_pack("{s:i,s:{s:s,s:o,s:s,s:o},s:o}", "v", 1, "leader", "name",
                            leader->name, "term", number(leader->term), "endpoint",
                            leader->endpoint, "since", number((uint64_t) leader->since_ms),
                            "models", models);
    check(all != NULL, "the record cannot be packed");
    return all;
}

static bool is_figures_due(const struct fleet_record *r, int64_t now_ms)
{
    int64_t every_ms = (int64_t) r->n_said * 1000 / FIGURES_RATE;
    if (every_ms < FIGURES_MS) every_ms = FIGURES_MS;
    return r->news && now_ms - r->said_ms >= every_ms;
}

char *fleet_record_due(struct fleet_record *r, const struct fleet_leader *leader,
                       const struct groups *g, int n_models, const struct fleet_loads *loads,
                       int64_t now_ms)
{
    if (now_ms - r->looked_ms < LOOK_MS) return NULL;
    r->looked_ms = now_ms;
    json_t *all = record_json(r, leader, g, n_models, loads, false);
    if (json_equal(all, r->said) && !is_figures_due(r, now_ms) && now_ms - r->said_ms < AGAIN_MS) {
        json_decref(all);
        return NULL;
    }
    json_t *dated = record_json(r, leader, g, n_models, loads, true);
    json_object_set_new(dated, "at", json_integer((json_int_t) clock_wall_ms()));
    char *text = json_dumps(dated, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(dated);
    json_decref(r->said);
    r->said = all;
    r->said_ms = now_ms;
    r->n_said = text != NULL ? strlen(text) : 0;
    r->news = false;
    return text;
}
