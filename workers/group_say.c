#include "workers/group_state.h"

#include "common/log.h"

#include <stdio.h>
#include <string.h>

bool group_say_hello(struct group *g, int link)
{
    const struct group_options *o = &g->options;
    struct wire_device devices[TP_MAX];
    struct wire_message m = {.command = WIRE_HELLO};
    struct wire_hello *h = &m.hello;
    for (int i = 0; i < o->tp; i++) {
        devices[i] = (struct wire_device){.bytes = o->memory_bytes};
        snprintf(devices[i].name, sizeof devices[i].name, "%s:%d", o->backend->name, i);
    }
    h->minor = WIRE_MINOR;
    snprintf(h->version, sizeof h->version, "%s", PENSTOCK_VERSION);
    snprintf(h->node, sizeof h->node, "%s", o->node);
    snprintf(h->name, sizeof h->name, "%s", o->name);
    memcpy(h->boot, g->boot, sizeof h->boot);
    h->devices = devices;
    h->n_devices = h->tp = o->tp;
    snprintf(h->model, sizeof h->model, "%s", o->model_hash);
    snprintf(h->precision, sizeof h->precision, "%s", precision_name(o->precision));
    snprintf(h->data, sizeof h->data, "%s", o->data);
    h->assigned = g->assigned;
    if (g->assigned) {
        const struct wire_assign *a = &g->assign;
        h->assignment = (struct wire_assignment){a->pipeline, a->epoch, a->stage, a->n_stages,
                                                 a->first, a->last, "", g->state};
        snprintf(h->assignment.plan, sizeof h->assignment.plan, "%s", a->plan);
    }
    if (g->head != NULL) {
        h->running = g->running;
        h->n_running = head_list_running(g->head, g->running, SLOTS_MAX);
        h->finished = g->kept;
        h->n_finished = head_list_kept(g->head, g->kept, SLOTS_MAX);
        if (link == g->control.leader) head_report_again(g->head);
    }
    return control_send_to(&g->control, link, &m);
}

void group_greet(struct group *g, int64_t now_ms)
{
    struct wire_message ping = {.command = WIRE_PING};
    for (int i = 0; i < g->control.n_links; i++) {
        struct control_link *l = &g->control.links[i];
        if (!control_silent(&g->control, i, now_ms)) continue;
        bool told = l->stands_by ? control_send_to(&g->control, i, &ping) : group_say_hello(g, i);
        if (told) l->greeted_ms = now_ms;
    }
}

void group_say_ready(struct group *g)
{
    struct wire_message m = {.command = WIRE_READY};
    struct ledger ledger = stage_ledger(g->stage);
    uint64_t total = ledger_total(&ledger), kv = ledger.bytes[LEDGER_KV];
    uint64_t weights = ledger_weights(&ledger) + ledger.bytes[LEDGER_PACKING];
    m.ready = (struct wire_ready){.pipeline = g->assign.pipeline,
                                  .epoch = g->assign.epoch,
                                  .stage = g->assign.stage,
                                  .weights_bytes = weights,
                                  .kv_bytes = kv,
                                  .buffers_bytes = total - weights - kv,
                                  .total_bytes = total,
                                  .by_line = true,
                                  .ledger = ledger};
    snprintf(m.ready.endpoint, sizeof m.ready.endpoint, "%s", g->epoch.in.endpoint);
    snprintf(m.ready.tokens_endpoint, sizeof m.ready.tokens_endpoint, "%s",
             g->epoch.tokens_in.endpoint);
    control_send(&g->control, &m);
}

void group_say_linked(struct group *g)
{
    struct wire_message m = {.command = WIRE_LINKED};
    m.stage = (struct wire_stage){g->assign.pipeline, g->assign.epoch, g->assign.stage};
    control_send(&g->control, &m);
}

void group_say_failed(struct group *g, const struct error *why)
{
    struct wire_message m = {.command = WIRE_FAILED};
    m.failed.pipeline = g->assign.pipeline;
    m.failed.epoch = g->assign.epoch;
    m.failed.stage = g->assign.stage;
    snprintf(m.failed.code, sizeof m.failed.code, "%s", why->code);
    snprintf(m.failed.message, sizeof m.failed.message, "%s", why->text);
    log_line(LOG_ERROR, "epoch_failed", log_int("stage", g->assign.stage),
             log_str("code", why->code), log_str("error", why->text));
    control_send(&g->control, &m);
}

void group_say_credit(struct group *g, int64_t now_ms)
{
    struct wire_message m = {.command = WIRE_CREDIT};
    m.credit = (struct wire_credit){g->assign.pipeline, g->assign.epoch, g->head->granted_slots,
                                    g->head->granted_blocks};
    if (!control_send(&g->control, &m)) return;
    g->credit_ms = now_ms;
    g->credit_slots = g->head->granted_slots;
    g->credit_blocks = g->head->granted_blocks;
}

void group_say(struct group *g, enum wire_command command)
{
    struct wire_message m = {.command = command};
    control_send(&g->control, &m);
}

static bool say_tokens(void *arg, const struct wire_tokens *t)
{
    struct group *g = arg;
    struct wire_message m = {.command = WIRE_TOKENS, .tokens = *t};
    return control_send(&g->control, &m);
}

static bool say_result(void *arg, const struct kept_result *r)
{
    struct group *g = arg;
    struct wire_message m = {.command = WIRE_RESULT};
    m.result.key = r->key;
    m.result.result = (struct wire_bytes){r->bytes.data, r->bytes.n};
    return control_send(&g->control, &m);
}

static void say_logits(void *arg, const struct wire_logits *l)
{
    struct group *g = arg;
    struct wire_message m = {.command = WIRE_LOGITS, .logits = *l};
    control_send(&g->control, &m);
}

struct head_events group_head_events(struct group *g)
{
    return (struct head_events){g, say_tokens, say_result, say_logits};
}
