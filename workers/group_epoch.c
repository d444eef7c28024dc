#include "workers/group_state.h"

#include "common/log.h"

#include <stdio.h>
#include <string.h>

static void drop_epoch(struct group *g)
{
    figures_end_epoch(&g->figures, &g->epoch);
    epoch_close(&g->epoch);
}

static void drop_stage(struct group *g)
{
    figures_end_stage(&g->figures, g->stage);
    stage_destroy(&g->stage);
}

void group_end_epoch(struct group *g)
{
    g->ending = g->open;
    g->linking = false;
    g->assigned = false;
    g->state = WIRE_IDLE;
    figures_end_head(&g->figures, g->head);
    head_destroy(&g->head);
}

void group_settle(struct group *g)
{
    if (!g->ending || !stage_idle(g->stage)) return;
    drop_epoch(g);
    stage_reset(g->stage);
    g->open = g->ending = false;
}

void group_fail_epoch(struct group *g, const struct error *why)
{
    g->trouble = *why;
    group_say_failed(g, why);
    group_end_epoch(g);
}

static struct stage_shape shape_of(const struct group *g, const struct wire_assign *a,
                                   enum precision precision)
{
    struct stage_shape shape;
    memset(&shape, 0, sizeof shape); // compared as bytes
    shape.first = a->first;
    shape.last = a->last;
    shape.steps_in_flight = a->steps_in_flight;
    shape.precision = precision;
    shape.limits.max_rows = a->max_rows;
    shape.limits.slots = a->slots;
    shape.limits.max_blocks = a->max_blocks;
    shape.limits.n_blocks = a->kv_blocks;
    shape.limits.fp8_kv = a->fp8_kv;
    shape.limits.max_out = a->max_out;
    shape.limits.vocab_size = g->options.config->vocab_size;
    shape.limits.score = a->score;
    return shape;
}

static enum status check_assign(const struct group *g, const struct wire_assign *a,
                                enum precision *precision, struct error *e)
{
    const struct model_config *c = g->options.config;
    const char *bf16 = precision_name(PRECISION_BF16), *f32 = precision_name(PRECISION_F32);
    if (strcmp(a->precision, bf16) != 0 && strcmp(a->precision, f32) != 0) {
        return error_set(e, ERR_UNSUPPORTED, "bad_assign", "there is no precision \"%s\"",
                         a->precision);
    }
    *precision = strcmp(a->precision, f32) == 0 ? PRECISION_F32 : PRECISION_BF16;
    if (a->tp != g->options.tp) {
        return error_set(e, ERR_INPUT, "bad_tp", "the plan wants %d ranks, this group has %d",
                         a->tp, g->options.tp);
    }
    if (a->first < 0 || a->first >= a->last || a->last > c->n_layers || a->stage >= a->n_stages ||
        (a->first == 0) != (a->stage == 0) ||
        (a->last == c->n_layers) != (a->stage + 1 == a->n_stages)) {
        return error_set(e, ERR_INPUT, "bad_assign", "stage %d of %d with layers [%d, %d) of %d",
                         a->stage, a->n_stages, a->first, a->last, c->n_layers);
    }
    if (a->kv_blocks < 1 || a->slots < 1 || a->max_blocks < 1 || a->max_rows < 1 ||
        a->max_out < 1 || a->steps_in_flight < 1 || a->max_context < 1 ||
        a->max_context > (int64_t) a->max_blocks * KV_BLOCK_ROWS) {
        return error_set(e, ERR_INPUT, "bad_assign", "a limit of the assignment is out of range");
    }
    return OK;
}

static struct epoch_options epoch_options(const struct group *g)
{
    const struct wire_assign *a = &g->assign;
    struct epoch_options o = {.zmq = g->options.zmq,
                              .data = g->options.data,
                              .name = g->options.name,
                              .link = {.pipeline = a->pipeline, .epoch = a->epoch},
                              .stage = a->stage,
                              .n_stages = a->n_stages,
                              .steps_in_flight = a->steps_in_flight,
                              .config = g->options.config,
                              .precision = g->shape.precision,
                              .limits = g->shape.limits,
                              .step_deadline_ms = g->options.step_deadline_ms,
                              .memory = g->host.links,
                              .arena = g->host.arena};
    memcpy(o.link.token, a->token, sizeof o.link.token);
    return o;
}

static enum status build_stage(struct group *g, const struct stage_shape *shape, struct error *e)
{
    const struct group_options *o = &g->options;
    const struct wire_assign *a = &g->assign;
    struct stage_options options = {.config = o->config,
                                    .checkpoint = o->checkpoint,
                                    .backend = o->backend,
                                    .first = a->first,
                                    .last = a->last,
                                    .head = a->stage == 0,
                                    .tail = a->stage + 1 == a->n_stages,
                                    .tp = o->tp,
                                    .gpu = o->gpu,
                                    .n_gpus = o->n_gpus,
                                    .n_threads = o->n_threads,
                                    .precision = shape->precision,
                                    .memory_bytes = o->memory_bytes,
                                    .limits = shape->limits,
                                    .n_steps = a->steps_in_flight,
                                    .collective_deadline_ms = o->step_deadline_ms};
    if (o->coarse_sums && shape->precision != PRECISION_F32) {
        options.sums.coarse_least = COMM_COARSE_LEAST;
    }
    if (g->stage != NULL && memcmp(shape, &g->shape, sizeof *shape) == 0) return OK;
    drop_stage(g);
    if (g->open) drop_epoch(g); // now that the ranks don't read its frames any more
    g->open = g->ending = false;
    host_release(&g->host);
    manifest_close(&g->manifest);
    g->shape = *shape;
    struct epoch_options epoch = epoch_options(g);
    try(host_create(&g->host, &options, &epoch, e));
    if (g->options.manifest != NULL) {
        try(manifest_open(&g->manifest, g->options.manifest, g->options.model_hash, e));
    }
    options.memory = g->host.steps;
    options.staging = g->host.staging;
    options.comm = g->host.comm;
    options.manifest = g->manifest;
    log_line(LOG_INFO, "loading", log_int("stage", a->stage), log_int("first", a->first),
             log_int("last", a->last), log_int("ranks", o->tp));
    return stage_create(&g->stage, &options, e);
}

void group_assign(struct group *g, const struct wire_assign *a)
{
    struct error e = {0};
    enum precision precision = PRECISION_F32;
    if (g->assigned && a->pipeline == g->assign.pipeline && a->epoch == g->assign.epoch) {
        g->said_ms = 0; // said again: so is what became of it, and the endpoint stays what it was
        return;
    }
    group_end_epoch(g);
    g->assign = *a;
    g->assigned = true;
    g->state = WIRE_LOADING;
    enum status status = check_assign(g, a, &precision, &e);
    if (status == OK) {
        struct stage_shape shape = shape_of(g, a, precision);
        status = build_stage(g, &shape, &e);
    }
    if (status != OK) group_fail_epoch(g, &e);
}

static enum status open_head(struct group *g, const struct step_limits *limits, struct error *e)
{
    const struct wire_assign *a = &g->assign;
    struct head_options o = {.config = g->options.config,
                             .tokenizer = g->options.tokenizer,
                             .limits = *limits,
                             .max_context = a->max_context,
                             .chunk = a->chunk,
                             .steps_in_flight = a->steps_in_flight,
                             .stages = a->n_stages,
                             .fill_ms = a->fill_ms,
                             .step_ms = a->step_ms,
                             .rates = device_rates_of(g->options.backend->kind),
                             .tp = a->tp,
                             .f32 = g->shape.precision == PRECISION_F32,
                             .model_hash = g->options.model_hash,
                             .plan_hash = a->plan,
                             .report_tokens = g->options.report_tokens,
                             .report_ms = g->options.report_ms,
                             .memory = g->host.sequences};
    struct head_events events = group_head_events(g);
    g->credit_ms = 0;
    return head_create(&g->head, &o, &events, e);
}

static enum status open_epoch(struct group *g, struct error *e)
{
    struct epoch_options o = epoch_options(g);
    if (o.stage == 0) try(open_head(g, &o.limits, e));
    try(epoch_open(&g->epoch, &o, g->stage, g->head, e));
    g->open = true;
    return OK;
}

void group_try_ready(struct group *g, int64_t now_ms)
{
    struct error e = {0};
    if (g->state != WIRE_LOADING || g->ending) return;
    enum stage_state state = stage_state(g->stage, &e);
    if (state == STAGE_LOADING) return;
    if (state == STAGE_FAILED) {
        drop_stage(g);
        group_fail_epoch(g, &e);
    } else if (open_epoch(g, &e) != OK) {
        group_fail_epoch(g, &e);
    } else {
        g->state = WIRE_LOADED;
        g->said_ms = now_ms;
        loading_report(g->assign.stage, g->stage, g->manifest, g->options.manifest);
        manifest_close(&g->manifest);
        group_say_ready(g);
    }
}

void group_link(struct group *g, const struct wire_link *l, int64_t now_ms)
{
    struct error e = {0};
    if (g->state != WIRE_LOADED || l->epoch != g->assign.epoch || g->linking) return;
    if (epoch_link(&g->epoch, l->endpoint, &e) != OK) {
        group_fail_epoch(g, &e);
        return;
    }
    g->linking = true;
    g->link_ms = now_ms;
    snprintf(g->next, sizeof g->next, "%s", l->endpoint);
}

void group_try_linked(struct group *g, int64_t now_ms)
{
    struct error e;
    if (!g->linking) return;
    if (!epoch_linked(&g->epoch)) {
        if (now_ms - g->link_ms <= g->options.step_deadline_ms) return;
        error_set(&e, ERR_UNAVAILABLE, "link_lost", "no connection to the next stage at %s within "
                  "%lld ms", g->next, (long long) g->options.step_deadline_ms);
        group_fail_epoch(g, &e);
        return;
    }
    g->linking = false;
    g->state = WIRE_SERVING;
    g->trouble = (struct error){0};
    g->said_ms = now_ms;
    log_line(LOG_INFO, "linked", log_int("stage", g->assign.stage),
             log_int("epoch", g->assign.epoch));
    group_say_linked(g);
}
