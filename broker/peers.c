#include "broker/peers.h"

#include "common/clock.h"
#include "common/log.h"

#include <stdio.h>
#include <string.h>

enum { TELL_AGAIN_MS = 10000 };

void peers_init(struct peers *p, void *socket, uint64_t term)
{
    *p = (struct peers){.term = term};
    wire_socket_init(&p->wire, socket, true);
}

void peers_deinit(struct peers *p) { wire_socket_deinit(&p->wire); }

bool peers_send(struct peers *p, const struct peer *to, const struct wire_message *m)
{
    struct wire_message stamped = *m;
    struct error e = {0};
    stamped.term = p->term;
    enum status status = wire_socket_send(&p->wire, to->bytes, to->n, &stamped, &e);
    if (status != OK && status != ERR_UNAVAILABLE) {
        log_line(LOG_ERROR, "not_sent", log_str("command", wire_command_name(m->command)),
                 log_str("code", e.code), log_str("error", e.text));
    }
    return status == OK;
}

// A peer that sends nothing else must not fill the log.
static void log_malformed(struct peers *p, const struct error *e)
{
    int64_t now_ms = clock_ms();
    if (p->told_ms != 0 && now_ms - p->told_ms < TELL_AGAIN_MS) {
        p->n_quiet++;
        return;
    }
    log_line(LOG_WARN, "bad_frames", log_str("code", e->code), log_str("error", e->text),
             log_int("more", p->n_quiet));
    p->told_ms = now_ms;
    p->n_quiet = 0;
}

enum peers_got peers_receive(struct peers *p, struct peer *from, struct wire_message *m)
{
    struct error e = {0};
    const void *id = NULL;
    size_t n = 0;
    enum status status = wire_socket_receive(&p->wire, &id, &n, m, &e);
    if (status == ERR_UNAVAILABLE) return PEERS_NOTHING;
    bool fits = n > 0 && n <= PEER_MAX; // ids that libzmq makes have 5 bytes; nobody sets one
    if (fits) {
        from->n = (uint8_t) n;
        memcpy(from->bytes, id, n);
        snprintf(from->key, sizeof from->key, "%s", wire_socket_key(&p->wire));
    }
    bool allowed = p->allow == NULL || (fits && allow_has(p->allow, from->key));
    if (status == OK && fits && allowed) return PEERS_MESSAGE;
    wire_message_deinit(m);
    if (!allowed) error_set(&e, ERR_INPUT, "not_allowed", "the broker does not allow this key");
    log_malformed(p, &e);
    struct wire_message answer = wire_error_message(e.code, e.text);
    if (fits && m->command != WIRE_ERROR) peers_send(p, from, &answer);
    return PEERS_REFUSED;
}

bool peers_turn(struct peers *p,
                void (*fn)(void *arg, const struct peer *from, const struct wire_message *m),
                void *arg)
{
    struct peer from;
    struct wire_message m;
    for (int i = 0; i < TURN_MESSAGES_MAX; i++) {
        enum peers_got got = peers_receive(p, &from, &m);
        if (got == PEERS_NOTHING) return true;
        if (got == PEERS_REFUSED) continue;
        fn(arg, &from, &m);
        wire_message_deinit(&m);
    }
    return false;
}

void peers_refuse(struct peers *p, const struct peer *from, const char *name,
                  const struct error *why)
{
    struct wire_message answer = wire_error_message(why->code, why->text);
    if (refusals_new(&p->refusals, from->key, name, why)) {
        log_line(LOG_WARN, "group_refused", log_str("group", name), log_str("code", why->code),
                 log_str("error", why->text));
    }
    peers_send(p, from, &answer);
}

struct wire_assign peers_template(const struct plan *p, const char *plan_hash, bool f32,
                                  bool fp8_kv, bool score)
{
    struct wire_assign a = {.tp = p->tp,
                            .kv_blocks = p->kv_blocks,
                            .slots = p->slots,
                            .max_blocks = p->max_blocks,
                            .max_rows = p->max_rows,
                            .max_out = p->max_out,
                            .steps_in_flight = p->steps_in_flight,
                            .max_context = p->max_context,
                            .chunk = p->chunk,
                            .score = score,
                            .fp8_kv = fp8_kv};
    snprintf(a.plan, sizeof a.plan, "%s", plan_hash);
    snprintf(a.precision, sizeof a.precision, "%s", f32 ? "f32" : "bf16");
    return a;
}

bool peers_assign(struct peers *p, const struct group *g, const struct wire_assign *template,
                  const struct fleet_assign *a)
{
    struct wire_message m = {.command = WIRE_ASSIGN, .assign = *template};
    m.assign.pipeline = a->pipeline;
    m.assign.epoch = a->epoch;
    m.assign.stage = a->stage;
    m.assign.n_stages = a->n_stages;
    m.assign.first = a->first;
    m.assign.last = a->last;
    memcpy(m.assign.token, a->token, sizeof m.assign.token);
    return peers_send(p, &g->peer, &m);
}

bool peers_link(struct peers *p, const struct group *g, const struct pipeline *pipeline,
                const char *next)
{
    struct wire_message m = {.command = WIRE_LINK};
    m.link.pipeline = pipeline->id;
    m.link.epoch = pipeline->epoch;
    snprintf(m.link.endpoint, sizeof m.link.endpoint, "%s", next);
    return peers_send(p, &g->peer, &m);
}

bool peers_unassign(struct peers *p, const struct group *g, uint64_t pipeline, uint64_t epoch)
{
    struct wire_message m = {.command = WIRE_UNASSIGN};
    m.stage.pipeline = pipeline;
    m.stage.epoch = epoch;
    return peers_send(p, &g->peer, &m);
}

static void on_hello(struct peers *p, struct fleet *f, const struct peer *from,
                     const struct wire_hello *h, int64_t now_ms)
{
    struct held_assignment held = {.some = h->assigned,
                                   .pipeline = h->assignment.pipeline,
                                   .epoch = h->assignment.epoch,
                                   .stage = h->assignment.stage,
                                   .first = h->assignment.first,
                                   .last = h->assignment.last,
                                   .linked = h->assignment.state == WIRE_SERVING};
    struct error e = {0};
    uint64_t boot;
    memcpy(&boot, h->boot, sizeof boot);
    snprintf(held.plan_hash, sizeof held.plan_hash, "%.*s", PLAN_HASH_MAX, h->assignment.plan);
    if (fleet_hello(f, from, h->name, h->node, boot, &held, now_ms, &e) == OK) {
        refusals_forget(&p->refusals, from->key, h->name);
    } else {
        peers_refuse(p, from, h->name, &e);
    }
}

bool peers_to_fleet(struct peers *p, struct fleet *f, const struct peer *from,
                    const struct wire_message *m, int64_t now_ms)
{
    switch (m->command) {
    case WIRE_HELLO: on_hello(p, f, from, &m->hello, now_ms); return true;
    case WIRE_READY:
        fleet_ready(f, from, m->ready.epoch, m->ready.endpoint, m->ready.tokens_endpoint);
        return true;
    case WIRE_LINKED: fleet_linked(f, from, m->stage.epoch); return true;
    case WIRE_FAILED: fleet_failed(f, from, m->failed.epoch, m->failed.message); return true;
    case WIRE_BYE: fleet_bye(f, from); return true;
    case WIRE_DRAIN: fleet_drain(f, from); return true;
    default: return false;
    }
}
