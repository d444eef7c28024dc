#include "broker/groups.h"

#include "broker/site.h"
#include "common/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MUSTER_MS = 1500,  // groups of an earlier broker need so long to find this one
    EPOCH_BITS = 20,   // epochs of one term
};

struct groups {
    struct groups_options options;
    struct peers peers;
    bool started;
    int64_t started_ms, muster_ms;
    uint64_t epoch; // given last
    int64_t now_ms, pinged_ms;
    uint64_t pings;
    int n_sites;
    struct site sites[]; // one a model
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

static void refuse_model(struct groups *g, const struct peer *from, const struct wire_hello *h)
{
    struct error e = {0};
    char served[256];
    models_list(g->options.models, true, served, sizeof served);
    error_set(&e, ERR_INPUT, "bad_model",
              "the group has another checkpoint (manifest %s) than the broker serves (%s)",
              h->model, served);
    peers_refuse(&g->peers, from, h->name, &e);
}

// Its first PONG says from where on its work is this leader's: asked before it gets any.
static void ask_figures(struct groups *g, const struct peer *from)
{
    struct wire_message m = {.command = WIRE_PING, .ping.seq = g->pings};
    groups_send(g, from, &m);
}

static void on_hello(struct groups *g, const struct peer *from, const struct wire_message *m)
{
    for (int i = 0; i < g->n_sites; i++) {
        struct site *s = &g->sites[i];
        if (strcmp(m->hello.model, s->model->hash) != 0) continue;
        site_hello(s, from, m, g->muster_ms, g->now_ms);
        if (site_seen(s, from, g->now_ms)) ask_figures(g, from);
        return;
    }
    refuse_model(g, from, &m->hello);
}

static struct site *site_of(struct groups *g, const struct peer *from)
{
    for (int i = 0; i < g->n_sites; i++) {
        if (site_seen(&g->sites[i], from, g->now_ms)) return &g->sites[i];
    }
    return NULL;
}

static void count(struct groups *g, const struct site *s, const struct peer *from,
                  const struct wire_pong *pong)
{
    const struct group *group = fleet_find(&s->fleet, from);
    int stage = group != NULL ? group->stage : -1;
    if (g->options.record == NULL) return;
    fleet_record_count(g->options.record, from, s->index, stage, pong, g->now_ms);
}

static void on_message(void *arg, const struct peer *from, const struct wire_message *m)
{
    struct groups *g = arg;
    if (g->options.record != NULL) fleet_record_hear(g->options.record, from, m, g->now_ms);
    if (m->command == WIRE_ERROR) {
        log_line(LOG_WARN, "group_error", log_str("code", m->error.code),
                 log_str("error", m->error.message));
        return;
    }
    if (m->command == WIRE_HELLO) {
        on_hello(g, from, m);
        return;
    }
    struct site *s = site_of(g, from);
    if (s == NULL) {
        if (m->command != WIRE_BYE) answer(g, from, "unknown_peer", "say HELLO");
        return;
    }
    if (m->command == WIRE_PING) {
        struct wire_message pong = {.command = WIRE_PONG, .pong.seq = m->ping.seq};
        groups_send(g, from, &pong);
        return;
    }
    if (m->command == WIRE_PONG) count(g, s, from, &m->pong);
    if (m->command == WIRE_PONG || site_message(s, from, m)) return;
    g->options.message(g->options.arg, from, m);
}

bool groups_receive(struct groups *g, int64_t now_ms)
{
    g->now_ms = now_ms;
    return !g->started || peers_turn(&g->peers, on_message, g);
}

// --- time

void groups_recheck(struct groups *g)
{
    for (int i = 0; i < g->n_sites; i++) site_recheck(&g->sites[i]);
}

void groups_tick(struct groups *g, int64_t now_ms)
{
    g->now_ms = now_ms;
    if (!g->started) return;
    for (int i = 0; i < g->n_sites; i++) site_tick(&g->sites[i], g->muster_ms, now_ms);
    if (now_ms - g->pinged_ms < HEARTBEAT_MS) return;
    g->pinged_ms = now_ms;
    g->pings++;
    for (int i = 0; i < g->n_sites; i++) site_ping(&g->sites[i], g->pings);
}

void groups_start(struct groups *g, uint64_t term, int64_t now_ms)
{
    g->started = true;
    g->started_ms = now_ms;
    g->muster_ms = term > 1 ? now_ms + MUSTER_MS : 0;
    g->peers.term = term;
    g->epoch = term << EPOCH_BITS;
}

void groups_drained(struct groups *g, uint64_t epoch)
{
    for (int i = 0; i < g->n_sites; i++) {
        if (g->sites[i].planned) fleet_drained(&g->sites[i].fleet, epoch);
    }
}

bool groups_adopting(const struct groups *g, int64_t now_ms)
{
    if (!g->started || now_ms - g->started_ms < ADOPT_MS) return true;
    for (int i = 0; i < g->n_sites; i++) {
        if (g->sites[i].planned && g->sites[i].fleet.adopting) return true;
    }
    return false;
}

const struct site *groups_site(const struct groups *g, int model) { return &g->sites[model]; }

// --- life

enum status groups_create(struct groups **groups, const struct groups_options *o, struct error *e)
{
    int n = o->models->n;
    struct groups *g = calloc(1, sizeof *g + (size_t) n * sizeof *g->sites);
    *groups = g;
    if (g == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the fleet");
    g->options = *o;
    g->n_sites = n;
    peers_init(&g->peers, o->socket, 0);
    g->peers.allow = o->allow;
    enum status status = OK;
    for (int i = 0; i < n && status == OK; i++) {
        status = site_init(&g->sites[i], &g->options, i, &g->peers, &g->epoch, e);
    }
    if (status != OK) groups_destroy(groups);
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
