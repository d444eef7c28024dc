#include "workers/group.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/seal.h"
#include "workers/group_state.h"

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
        if (g->control.leader >= 0) group_say_hello(g, g->control.leader);
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
        group_end_epoch(g);
    }
    if (g->stop > 0 && !g->assigned) g->leave = true;
}

static void on_message(struct group *g, const struct wire_message *m, int64_t now_ms)
{
    switch (m->command) {
    case WIRE_ASSIGN: group_assign(g, &m->assign); break;
    case WIRE_LINK: group_link(g, &m->link, now_ms); break;
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
    group_greet(g, now_ms);
    if (now_ms - g->said_ms < HEARTBEAT_MS) return;
    g->said_ms = now_ms;
    if (g->state == WIRE_LOADED && !g->linking) group_say_ready(g);
    if (g->state == WIRE_SERVING) group_say_linked(g);
    if (g->stop > 0) group_say(g, WIRE_DRAIN);
}

static void stop_turn(struct group *g, int64_t now_ms)
{
    uint64_t times;
    if (read(g->options.stop_fd, &times, sizeof times) == sizeof times) {
        if (g->stop == 0) {
            log_line(LOG_INFO, "draining", log_int("running",
                                                   g->head != NULL ? g->head->n_running : 0));
            g->stop_ms = now_ms;
            group_say(g, WIRE_DRAIN);
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
        group_fail_epoch(g, e);
        if (device_failed) return status;
        *e = (struct error){0};
        return OK;
    }
    if (g->head == NULL) return OK;
    g->report_ms = head_report(g->head, now_ms, RESULT_AGAIN_MS);
    if (g->head->granted_slots != g->credit_slots || g->head->granted_blocks != g->credit_blocks ||
        now_ms - g->credit_ms >= CREDIT_AGAIN_MS) {
        group_say_credit(g, now_ms);
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
        group_settle(g);
        group_try_ready(g, now_ms);
        group_try_linked(g, now_ms);
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
        group_greet(g, clock_ms());
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
