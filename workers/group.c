#include "workers/group.h"

#include "common/clock.h"
#include "common/health.h"
#include "common/log.h"
#include "common/seal.h"
#include "workers/figures.h"
#include "workers/host.h"
#include "workers/loading.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <zmq.h>

enum {
    LEAVE_LINGER_MS = 500,  // how long BYE may take
    CREDIT_AGAIN_MS = 250,  // CREDIT is absolute, so repeating it only heals
    RESULT_AGAIN_MS = 2000, // a RESULT without COMMITTED is sent again
    TURN_MS = 100,          // longest sleep of the loop
    LINK_TURN_MS = 5,       // while it waits for a link to connect
};

// What the ranks were built for: another ASSIGN of the same shape keeps their weights.
struct stage_shape {
    int first, last, steps_in_flight;
    enum precision precision;
    struct step_limits limits;
};

struct group {
    struct group_options options;
    struct control control;
    uint8_t boot[WIRE_ID_BYTES];
    struct stage *stage;
    struct stage_shape shape; // of `stage`
    struct host host;         // of `stage` and its epochs
    struct manifest *manifest; // while it loads; NULL: none
    bool assigned;
    struct wire_assign assign;
    enum wire_state state;    // WIRE_IDLE without an assignment
    bool open;                // `epoch` is
    bool ending;              // the epoch is over; its steps are not yet out of the ranks
    bool linking;             // LINK came; waits for the connection
    int64_t link_ms;          // since when
    char next[ENDPOINT_MAX + 1]; // where to
    struct epoch epoch;
    struct head *head;
    int stop;                 // times it was asked to
    int64_t stop_ms;
    int64_t said_ms, credit_ms;
    int64_t report_ms;        // TOKENS are due then
    uint64_t credit_slots, credit_blocks; // told last
    uint64_t steps;           // through this group, ever
    uint64_t heap_calls;      // under the seal (common/seal.h), as far as noticed
    struct figures figures;
    struct health_writer health;
    struct error trouble;     // why it has no stage
    struct loading loading;   // what people see of it
    bool leave;
    struct wire_running running[SLOTS_MAX];
    struct job_key kept[SLOTS_MAX];
};

// --- what the group says

static bool send_hello(struct group *g, int link)
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

// A broker that is silent is told of this group: HELLO, or of one that stands by only a sign of
// life, since it asks for HELLO when it leads.
static void greet(struct group *g, int64_t now_ms)
{
    struct wire_message ping = {.command = WIRE_PING};
    for (int i = 0; i < g->control.n_links; i++) {
        struct control_link *l = &g->control.links[i];
        if (!control_silent(&g->control, i, now_ms)) continue;
        bool told = l->stands_by ? control_send_to(&g->control, i, &ping) : send_hello(g, i);
        if (told) l->greeted_ms = now_ms;
    }
}

static void send_ready(struct group *g)
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

static void send_linked(struct group *g)
{
    struct wire_message m = {.command = WIRE_LINKED};
    m.stage = (struct wire_stage){g->assign.pipeline, g->assign.epoch, g->assign.stage};
    control_send(&g->control, &m);
}

static void send_failed(struct group *g, const struct error *why)
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

static void send_credit(struct group *g, int64_t now_ms)
{
    struct wire_message m = {.command = WIRE_CREDIT};
    m.credit = (struct wire_credit){g->assign.pipeline, g->assign.epoch, g->head->granted_slots,
                                    g->head->granted_blocks};
    if (!control_send(&g->control, &m)) return;
    g->credit_ms = now_ms;
    g->credit_slots = g->head->granted_slots;
    g->credit_blocks = g->head->granted_blocks;
}

static void send_plain(struct group *g, enum wire_command command)
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

// --- the life of an epoch

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

static void end_epoch(struct group *g)
{
    g->ending = g->open;
    g->linking = false;
    g->assigned = false;
    g->state = WIRE_IDLE;
    figures_end_head(&g->figures, g->head);
    head_destroy(&g->head);
}

// The steps of an ended epoch have left the ranks: its frames may go.
static void settle(struct group *g)
{
    if (!g->ending || !stage_idle(g->stage)) return;
    drop_epoch(g);
    stage_reset(g->stage);
    g->open = g->ending = false;
}

static void fail_epoch(struct group *g, const struct error *why)
{
    g->trouble = *why;
    send_failed(g, why);
    end_epoch(g);
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

static void on_assign(struct group *g, const struct wire_assign *a)
{
    struct error e = {0};
    enum precision precision = PRECISION_F32;
    if (g->assigned && a->pipeline == g->assign.pipeline && a->epoch == g->assign.epoch) {
        g->said_ms = 0; // said again: so is what became of it, and the endpoint stays what it was
        return;
    }
    end_epoch(g);
    g->assign = *a;
    g->assigned = true;
    g->state = WIRE_LOADING;
    enum status status = check_assign(g, a, &precision, &e);
    if (status == OK) {
        struct stage_shape shape = shape_of(g, a, precision);
        status = build_stage(g, &shape, &e);
    }
    if (status != OK) fail_epoch(g, &e);
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
    struct head_events events = {g, say_tokens, say_result, say_logits};
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

// Loading has ended, and what an earlier epoch left has settled.
static void try_ready(struct group *g, int64_t now_ms)
{
    struct error e = {0};
    if (g->state != WIRE_LOADING || g->ending) return;
    enum stage_state state = stage_state(g->stage, &e);
    if (state == STAGE_LOADING) return;
    if (state == STAGE_FAILED) {
        drop_stage(g);
        fail_epoch(g, &e);
    } else if (open_epoch(g, &e) != OK) {
        fail_epoch(g, &e);
    } else {
        g->state = WIRE_LOADED;
        g->said_ms = now_ms;
        loading_report(g->assign.stage, g->stage, g->manifest, g->options.manifest);
        manifest_close(&g->manifest);
        send_ready(g);
    }
}

static void on_link(struct group *g, const struct wire_link *l, int64_t now_ms)
{
    struct error e = {0};
    if (g->state != WIRE_LOADED || l->epoch != g->assign.epoch || g->linking) return;
    if (epoch_link(&g->epoch, l->endpoint, &e) != OK) {
        fail_epoch(g, &e);
        return;
    }
    g->linking = true;
    g->link_ms = now_ms;
    snprintf(g->next, sizeof g->next, "%s", l->endpoint);
}

static void try_linked(struct group *g, int64_t now_ms)
{
    struct error e;
    if (!g->linking) return;
    if (!epoch_linked(&g->epoch)) {
        if (now_ms - g->link_ms <= g->options.step_deadline_ms) return;
        error_set(&e, ERR_UNAVAILABLE, "link_lost", "no connection to the next stage at %s within "
                  "%lld ms", g->next, (long long) g->options.step_deadline_ms);
        fail_epoch(g, &e);
        return;
    }
    g->linking = false;
    g->state = WIRE_SERVING;
    g->trouble = (struct error){0};
    g->said_ms = now_ms;
    log_line(LOG_INFO, "linked", log_int("stage", g->assign.stage),
             log_int("epoch", g->assign.epoch));
    send_linked(g);
}

// --- what the broker says

static void on_job(struct group *g, const struct wire_job *job, int64_t now_ms)
{
    struct error e = {0};
    struct wire_message m = {.command = WIRE_ACCEPT, .key = job->key};
    if (g->head == NULL || g->state != WIRE_SERVING || job->epoch != g->assign.epoch) {
        error_set(&e, ERR_STATE, "stale_epoch", "this group does not serve epoch %llu",
                  (unsigned long long) job->epoch);
    } else {
        head_accept(g->head, job, now_ms, &e);
    }
    if (e.status != OK) {
        struct job_key key = job->key;
        m = (struct wire_message){.command = WIRE_REJECT};
        m.reject.key = key;
        snprintf(m.reject.code, sizeof m.reject.code, "%s", e.code);
        snprintf(m.reject.message, sizeof m.reject.message, "%s", e.text);
    }
    control_send(&g->control, &m);
}

static void on_ping(struct group *g, const struct wire_ping *ping)
{
    struct wire_message m = {.command = WIRE_PONG};
    m.pong = (struct wire_pong){.seq = ping->seq, .steps = g->steps, .state = g->state};
    if (g->stage != NULL) {
        stage_progress(g->stage, &m.pong.loaded_bytes, &m.pong.load_bytes);
    }
    struct wire_rank ranks[TP_MAX];
    m.pong.counted = true;
    figures_now(&g->figures, g->stage, g->head, g->open ? &g->epoch : NULL, g->options.tp, ranks,
                &m.pong.figures);
    ledger_add(&m.pong.figures.memory, &g->host.ledger);
    control_send(&g->control, &m);
}

static void on_error(struct group *g, const struct wire_error *error)
{
    if (strcmp(error->code, "unknown_peer") == 0) {
        if (g->control.leader >= 0) send_hello(g, g->control.leader);
        return;
    }
    if (g->state == WIRE_IDLE) {
        error_set(&g->trouble, ERR_STATE, error->code, "the broker says: %s", error->message);
    }
    if (!control_error_is_new(&g->control, error)) return;
    log_line(LOG_WARN, "broker_error", log_str("code", error->code),
             log_str("error", error->message));
}

static void on_unassign(struct group *g, const struct wire_stage *s)
{
    if (g->assigned && s->epoch >= g->assign.epoch) {
        log_line(LOG_INFO, "unassigned", log_int("epoch", g->assign.epoch));
        end_epoch(g);
    }
    if (g->stop > 0 && !g->assigned) g->leave = true;
}

static void on_message(struct group *g, const struct wire_message *m, int64_t now_ms)
{
    switch (m->command) {
    case WIRE_ASSIGN: on_assign(g, &m->assign); break;
    case WIRE_LINK: on_link(g, &m->link, now_ms); break;
    case WIRE_UNASSIGN: on_unassign(g, &m->stage); break;
    case WIRE_JOB: on_job(g, &m->job, now_ms); break;
    case WIRE_CANCEL:
        if (g->head != NULL) head_cancel(g->head, &m->cancel.key, m->cancel.reason, now_ms);
        break;
    case WIRE_COMMITTED:
        if (g->head != NULL) head_committed(g->head, &m->committed.key);
        break;
    case WIRE_PING: on_ping(g, &m->ping); break;
    case WIRE_ERROR: on_error(g, &m->error); break;
    case WIRE_STANDBY: break; // it listens; another one leads
    default:
        log_line(LOG_WARN, "unexpected_command",
                 log_str("command", wire_command_name(m->command)));
    }
}

// --- the loop

// Whatever may have been lost is said again once a heartbeat.
static void say_again(struct group *g, int64_t now_ms)
{
    greet(g, now_ms);
    if (now_ms - g->said_ms < HEARTBEAT_MS) return;
    g->said_ms = now_ms;
    if (g->state == WIRE_LOADED && !g->linking) send_ready(g);
    if (g->state == WIRE_SERVING) send_linked(g);
    if (g->stop > 0) send_plain(g, WIRE_DRAIN);
}

static void stop_turn(struct group *g, int64_t now_ms)
{
    uint64_t times;
    if (read(g->options.stop_fd, &times, sizeof times) == sizeof times) {
        if (g->stop == 0) {
            log_line(LOG_INFO, "draining", log_int("running",
                                                   g->head != NULL ? g->head->n_running : 0));
            g->stop_ms = now_ms;
            send_plain(g, WIRE_DRAIN);
        }
        g->stop += (int) (times < 2 ? times : 2);
    }
    if (g->stop == 0) return;
    bool idle = g->head == NULL || (g->head->n_running == 0 && g->head->n_kept == 0);
    bool nobody = control_leader_silence(&g->control, now_ms) > DEAD_AFTER_MS;
    if (g->stop > 1 || now_ms - g->stop_ms > g->options.drain_ms ||
        (idle && (nobody || !g->assigned))) {
        g->leave = true;
    }
}

static enum status serve(struct group *g, int64_t now_ms, struct error *e)
{
    bool device_failed;
    uint64_t before = g->epoch.n_out;
    enum status status = epoch_turn(&g->epoch, now_ms, &device_failed, e);
    g->steps += g->epoch.n_out - before;
    if (status != OK) {
        fail_epoch(g, e);
        if (device_failed) return status;
        *e = (struct error){0};
        return OK;
    }
    if (g->head == NULL) return OK;
    g->report_ms = head_report(g->head, now_ms, RESULT_AGAIN_MS);
    if (g->head->granted_slots != g->credit_slots || g->head->granted_blocks != g->credit_blocks ||
        now_ms - g->credit_ms >= CREDIT_AGAIN_MS) {
        send_credit(g, now_ms);
    }
    return OK;
}

// How long the loop may sleep: TOKENS that are due next are not left lying, nor a step that waited
// for more rows.
static long turn_ms(const struct group *g)
{
    if (g->linking) return LINK_TURN_MS;
    if (g->head == NULL || g->state != WIRE_SERVING) return TURN_MS;
    int64_t next = head_plan_due(g->head) < g->report_ms ? head_plan_due(g->head) : g->report_ms;
    if (next == INT64_MAX) return TURN_MS;
    int64_t left = next - clock_ms();
    return left < 1 ? 1 : left < TURN_MS ? (long) left : TURN_MS;
}

// The rule of workers/README.md was broken: said once for each time that it is noticed.
static void watch_seal(struct group *g)
{
    struct seal_counts counts = seal_counts();
    if (counts.broken == g->heap_calls) return;
    g->heap_calls = counts.broken;
    char where[24];
    snprintf(where, sizeof where, "%p", counts.first);
    log_line(LOG_WARN, "heap_call", log_int("heap_calls", counts.broken), log_str("first", where),
             log_str("note", "a sealed thread used the heap: please report this"));
}

static void say_health(struct group *g, int64_t now_ms)
{
    static const enum health_state states[] = {
        [WIRE_IDLE] = HEALTH_IDLE, [WIRE_LOADING] = HEALTH_LOADING, [WIRE_LOADED] = HEALTH_LOADED,
        [WIRE_SERVING] = HEALTH_SERVING};
    if (!health_due(&g->health, now_ms)) return;
    struct health h = {.state = states[g->state],
                       .heard = control_leader_silence(&g->control, now_ms) <= DEAD_AFTER_MS,
                       .stage = g->assigned ? g->assign.stage : -1,
                       .work = (g->open && epoch_busy(&g->epoch)) ||
                               (g->head != NULL && g->head->n_running > 0),
                       .steps = g->steps,
                       .patience_ms = g->options.step_deadline_ms / 2, // before the group gives up
                       .trouble = g->trouble};
    if (g->stage != NULL) stage_progress(g->stage, &h.loaded_bytes, &h.load_bytes);
    health_write(&g->health, &h, now_ms);
}

static void wait_for_events(struct group *g)
{
    zmq_pollitem_t items[BROKERS_MAX + 4] = {{.fd = g->options.stop_fd, .events = ZMQ_POLLIN}};
    int n = 1;
    for (int i = 0; i < g->control.n_links; i++) {
        items[n++] = (zmq_pollitem_t){.socket = g->control.links[i].socket, .events = ZMQ_POLLIN};
    }
    if (g->stage != NULL) {
        items[n++] = (zmq_pollitem_t){.fd = stage_fd(g->stage), .events = ZMQ_POLLIN};
    }
    if (g->open && !g->ending && g->epoch.in.socket != NULL) {
        items[n++] = (zmq_pollitem_t){.socket = g->epoch.in.socket, .events = ZMQ_POLLIN};
    }
    if (g->open && !g->ending && g->epoch.tokens_in.socket != NULL) {
        items[n++] = (zmq_pollitem_t){.socket = g->epoch.tokens_in.socket, .events = ZMQ_POLLIN};
    }
    zmq_poll(items, n, turn_ms(g));
    uint64_t times;
    if (g->stage != NULL && read(stage_fd(g->stage), &times, sizeof times) < 0) {
        check(errno == EAGAIN || errno == EINTR, "eventfd: %s", strerror(errno));
    }
}

static enum status loop(struct group *g, struct error *e)
{
    while (!g->leave) {
        wait_for_events(g);
        int64_t now_ms = clock_ms();
        struct wire_message m;
        control_watch(&g->control, now_ms);
        while (!g->leave && control_receive(&g->control, &m, now_ms)) {
            on_message(g, &m, now_ms);
            wire_message_deinit(&m);
        }
        settle(g);
        try_ready(g, now_ms);
        try_linked(g, now_ms);
        if (g->state == WIRE_SERVING) try(serve(g, now_ms, e));
        say_again(g, now_ms);
        if (g->state == WIRE_LOADING && g->stage != NULL) {
            loading_turn(&g->loading, g->options.name, g->assign.stage, g->stage, now_ms);
        } else {
            loading_end(&g->loading);
        }
        say_health(g, now_ms);
        watch_seal(g);
        stop_turn(g, now_ms);
    }
    return OK;
}

enum status group_run(const struct group_options *o, struct error *e)
{
    struct group *g = calloc(1, sizeof *g);
    if (g == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a group");
    g->options = *o;
    g->health.path = o->status;
    check(getrandom(g->boot, sizeof g->boot, 0) == sizeof g->boot, "no random numbers");
    enum status status = control_open(&g->control, o->zmq, &o->control, e);
    if (status == OK) {
        greet(g, clock_ms());
        status = loop(g, e);
        struct wire_message bye = {.command = WIRE_BYE};
        for (int i = 0; i < g->control.n_links; i++) control_send_to(&g->control, i, &bye);
        control_close(&g->control, LEAVE_LINGER_MS);
    }
    loading_end(&g->loading);
    health_end(&g->health);
    head_destroy(&g->head);
    stage_destroy(&g->stage);
    if (g->open) epoch_close(&g->epoch);
    host_release(&g->host);
    manifest_close(&g->manifest);
    free(g);
    return status;
}
