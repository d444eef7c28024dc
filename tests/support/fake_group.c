#include "tests/support/fake_group.h"

#include "common/clock.h"
#include "common/result.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

enum { AGAIN_MS = 200, SILENCE_MS = 1000 };

static void send(struct fake_group *g, const struct wire_message *m)
{
    struct wire_message stamped = *m;
    struct error e = {0};
    stamped.term = g->term;
    enum status status = wire_socket_send(&g->wire, NULL, 0, &stamped, &e);
    check(status == OK || status == ERR_UNAVAILABLE, "%s", e.text);
}

static void send_hello(struct fake_group *g)
{
    struct wire_device devices[TP_MAX] = {0};
    struct wire_running running[FAKE_JOBS_MAX];
    struct job_key finished[FAKE_JOBS_MAX];
    struct wire_message m = {.command = WIRE_HELLO};
    struct wire_hello *h = &m.hello;
    for (int i = 0; i < g->tp; i++) {
        devices[i] = (struct wire_device){.bytes = g->memory};
        snprintf(devices[i].name, sizeof devices[i].name, "fake:%d", i);
    }
    h->minor = g->minor;
    snprintf(h->version, sizeof h->version, "test");
    snprintf(h->node, sizeof h->node, "node");
    snprintf(h->name, sizeof h->name, "%s", g->name);
    memcpy(h->boot, g->boot, sizeof h->boot);
    h->devices = devices;
    h->n_devices = h->tp = g->tp;
    snprintf(h->model, sizeof h->model, "%s", g->model);
    snprintf(h->precision, sizeof h->precision, "f32");
    h->assigned = g->assigned;
    if (g->assigned) {
        const struct wire_assign *a = &g->assign;
        h->assignment = (struct wire_assignment){.pipeline = a->pipeline, .epoch = a->epoch,
                                                 .stage = a->stage, .n_stages = a->n_stages,
                                                 .first = a->first, .last = a->last,
                                                 .state = g->linked ? WIRE_SERVING : WIRE_LOADED};
        memcpy(h->assignment.plan, a->plan, sizeof h->assignment.plan);
    }
    h->running = running;
    h->finished = finished;
    for (int i = 0; i < g->n_jobs; i++) {
        const struct fake_job *j = &g->jobs[i];
        if (j->running) running[h->n_running++] = (struct wire_running){j->key, j->n_tokens};
        if (j->finished) finished[h->n_finished++] = j->key;
        g->jobs[i].text_told = 0; // all of it again
    }
    g->hello_ms = clock_ms();
    g->n_hellos++;
    send(g, &m);
}

static void connect_to(struct fake_group *g)
{
    int one = 1, retry_ms = 20;
    g->socket = zmq_socket(g->context, ZMQ_DEALER);
    check(g->socket != NULL);
    wire_socket_init(&g->wire, g->socket, false);
    zmq_setsockopt(g->socket, ZMQ_IMMEDIATE, &one, sizeof one);
    zmq_setsockopt(g->socket, ZMQ_RECONNECT_IVL, &retry_ms, sizeof retry_ms);
    check(zmq_connect(g->socket, g->endpoint) == 0);
}

void fake_group_start(struct fake_group *g, void *context, const char *endpoint, const char *name,
                      const char *model)
{
    *g = (struct fake_group){.context = context, .tp = 1, .minor = WIRE_MINOR,
                             .memory = 1ull << 40};
    snprintf(g->endpoint, sizeof g->endpoint, "%s", endpoint);
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(g->model, sizeof g->model, "%s", model);
    check(getrandom(g->boot, sizeof g->boot, 0) == sizeof g->boot);
    connect_to(g);
}

void fake_group_kill(struct fake_group *g)
{
    if (g->socket == NULL) return;
    wire_socket_deinit(&g->wire);
    zmq_close(g->socket);
    g->socket = NULL;
}

// --- jobs

struct fake_job *fake_group_job(struct fake_group *g, const char *id)
{
    for (int i = g->n_jobs - 1; i >= 0; i--) {
        if (strcmp(g->jobs[i].key.id, id) == 0) return &g->jobs[i];
    }
    return NULL;
}

static struct fake_job *find(struct fake_group *g, const struct job_key *key)
{
    for (int i = 0; i < g->n_jobs; i++) {
        if (g->jobs[i].key.attempt == key->attempt) return &g->jobs[i];
    }
    return NULL;
}

static void copy_ids(struct wire_bytes from, int32_t to[FAKE_IDS_MAX])
{
    if (from.n > FAKE_IDS_MAX * sizeof *to) from.n = FAKE_IDS_MAX * sizeof *to;
    wire_ids_copy(from, to);
}

static void on_job(struct fake_group *g, const struct wire_job *job)
{
    struct wire_message m = {.command = WIRE_ACCEPT, .key = job->key};
    if (g->reject != NULL) {
        m = (struct wire_message){.command = WIRE_REJECT};
        m.reject.key = job->key;
        snprintf(m.reject.code, sizeof m.reject.code, "%s", g->reject);
        g->reject = NULL;
        send(g, &m);
        return;
    }
    check(g->n_jobs < FAKE_JOBS_MAX && find(g, &job->key) == NULL);
    check(g->linked && job->epoch == g->assign.epoch);
    struct fake_job *j = &g->jobs[g->n_jobs++];
    *j = (struct fake_job){.key = job->key,
                           .n_prompt = wire_ids_count(job->ids),
                           .n_resume = wire_ids_count(job->resume),
                           .n_tokens = wire_ids_count(job->resume),
                           .max_tokens = job->max_tokens,
                           .attempts = job->attempts,
                           .sampling = job->sampling,
                           .stream = job->stream,
                           .running = true};
    copy_ids(job->ids, j->ids);
    copy_ids(job->resume, j->resume);
    j->n_blocks = (j->n_prompt + j->max_tokens + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS;
    send(g, &m);
}

static void end_job(struct fake_group *g, struct fake_job *j)
{
    if (!j->running) return;
    j->running = false;
    g->granted_slots++;
    g->granted_blocks += (uint64_t) j->n_blocks;
    g->credit_ms = 0;
}

size_t fake_group_text(char to[FAKE_TEXT_MAX], int n)
{
    char text[FAKE_TEXT_MAX] = "";
    size_t length = 0;
    for (int i = 0; i < n; i++) {
        length += (size_t) snprintf(text + length, sizeof text - length, "\xe4\xb8\xad%d ", i);
        check(length < sizeof text);
    }
    if (to != NULL) memcpy(to, text, sizeof text);
    return length;
}

void fake_group_tokens(struct fake_group *g, struct fake_job *job, int n)
{
    int32_t ids[FAKE_IDS_MAX];
    char text[FAKE_TEXT_MAX];
    struct wire_message m = {.command = WIRE_TOKENS};
    check(n <= FAKE_IDS_MAX);
    for (int i = 0; i < n; i++) ids[i] = job->n_tokens + i;
    m.tokens = (struct wire_tokens){.key = job->key, .offset = job->n_tokens,
                                    .ids = {ids, (size_t) n * sizeof *ids}, .text = {"", 0}};
    job->n_tokens += n;
    if (job->stream) {
        size_t end = fake_group_text(text, job->n_tokens);
        size_t told = fake_group_text(NULL, job->text_told);
        m.tokens.text_offset = (int) told;
        m.tokens.text = (struct wire_bytes){text + told, end - told};
        job->text_told = job->n_tokens;
    }
    send(g, &m);
}

static enum result_status status_of(const struct fake_job *job)
{
    if (!job->cancelled) return RESULT_OK;
    return job->reason == WIRE_REASON_EXPIRED ? RESULT_EXPIRED : RESULT_CANCELLED;
}

static void send_result(struct fake_group *g, struct fake_job *job)
{
    int32_t tokens[FAKE_IDS_MAX];
    char text[FAKE_TEXT_MAX];
    struct result r = {.status = status_of(job),
                       .finish_reason = job->cancelled ? RESULT_NO_FINISH : RESULT_LENGTH,
                       .tokens = tokens,
                       .n_tokens = job->n_tokens,
                       .max_tokens = job->max_tokens,
                       .usage = {job->n_prompt, 0, job->n_tokens},
                       .attempts = job->attempts,
                       .resumed = job->n_resume};
    struct wire_message m = {.command = WIRE_RESULT};
    struct buffer bytes;
    struct error e;
    if (job->cancelled) {
        snprintf(r.error.code, sizeof r.error.code, "%s", wire_reason_name(job->reason));
        snprintf(r.error.message, sizeof r.error.message, "it was asked to end");
    }
    for (int i = 0; i < job->n_tokens; i++) tokens[i] = i;
    memcpy(r.id, job->key.id, sizeof r.id);
    r.text = job->stream ? text : NULL;
    r.text_bytes = job->stream ? fake_group_text(text, job->n_tokens) : 0;
    buffer_init(&bytes, 1 << 16);
    check(result_encode(&r, &bytes, &e) == OK, "%s", e.text);
    m.result.key = job->key;
    m.result.result = (struct wire_bytes){bytes.data, bytes.n};
    send(g, &m);
    buffer_deinit(&bytes);
    job->result_ms = clock_ms();
}

void fake_group_finish(struct fake_group *g, struct fake_job *job)
{
    if (job->n_tokens < job->max_tokens && !job->cancelled) {
        fake_group_tokens(g, job, job->max_tokens - job->n_tokens);
    }
    job->finished = true;
    send_result(g, job);
    end_job(g, job);
}

// --- the stage

static void on_assign(struct fake_group *g, const struct wire_assign *a)
{
    struct wire_message m = {.command = WIRE_READY};
    // An ASSIGN may be said again when HELLO crossed it; it changes nothing.
    if (!g->assigned || g->assign.epoch != a->epoch) g->n_assigns++;
    g->assign = *a;
    g->assigned = true;
    g->linked = false;
    g->granted_slots = (uint64_t) a->slots;
    g->granted_blocks = (uint64_t) a->kv_blocks;
    m.ready.pipeline = a->pipeline;
    m.ready.epoch = a->epoch;
    m.ready.stage = a->stage;
    if (a->stage > 0) snprintf(m.ready.endpoint, sizeof m.ready.endpoint, "in-%d", a->stage);
    if (a->stage == 0) snprintf(m.ready.tokens_endpoint, sizeof m.ready.tokens_endpoint, "tokens");
    send(g, &m);
}

static void on_unassign(struct fake_group *g)
{
    g->assigned = g->linked = false;
    g->n_unassigns++;
    for (int i = 0; i < g->n_jobs; i++) g->jobs[i].running = g->jobs[i].finished = false;
}

static void on_link(struct fake_group *g, const struct wire_link *l)
{
    struct wire_message m = {.command = WIRE_LINKED};
    memcpy(g->next, l->endpoint, sizeof g->next);
    g->linked = true;
    g->credit_ms = 0;
    m.stage = (struct wire_stage){g->assign.pipeline, g->assign.epoch, g->assign.stage};
    send(g, &m);
}

static void on_message(struct fake_group *g, const struct wire_message *m)
{
    struct wire_message answer = {.command = WIRE_PONG};
    struct fake_job *j;
    switch (m->command) {
    case WIRE_ASSIGN: on_assign(g, &m->assign); break;
    case WIRE_UNASSIGN: on_unassign(g); break;
    case WIRE_LINK: on_link(g, &m->link); break;
    case WIRE_JOB: on_job(g, &m->job); break;
    case WIRE_PING:
        answer.pong.seq = m->ping.seq;
        send(g, &answer);
        break;
    case WIRE_CANCEL:
        j = find(g, &m->cancel.key);
        if (j == NULL || !j->running || g->deaf) break;
        j->cancelled = true;
        j->reason = m->cancel.reason;
        fake_group_finish(g, j);
        break;
    case WIRE_COMMITTED:
        j = find(g, &m->committed.key);
        if (j == NULL) break;
        j->committed = true;
        j->finished = false;
        j->outcome = m->committed.outcome;
        break;
    case WIRE_ERROR:
        if (strcmp(m->error.code, "unknown_peer") == 0) send_hello(g);
        else memcpy(g->error, m->error.code, sizeof g->error);
        break;
    default: break;
    }
}

static void say_due(struct fake_group *g)
{
    int64_t now_ms = clock_ms();
    struct wire_message m = {.command = WIRE_CREDIT};
    bool silent = now_ms - g->heard_ms > SILENCE_MS || g->n_hellos == 0;
    if (silent && now_ms - g->hello_ms > AGAIN_MS) send_hello(g);
    if (g->linked && g->assign.stage == 0 && now_ms - g->credit_ms > AGAIN_MS) {
        m.credit = (struct wire_credit){g->assign.pipeline, g->assign.epoch, g->granted_slots,
                                        g->granted_blocks};
        g->credit_ms = now_ms;
        send(g, &m);
    }
    for (int i = 0; i < g->n_jobs; i++) {
        struct fake_job *j = &g->jobs[i];
        if (j->finished && now_ms - j->result_ms > AGAIN_MS) send_result(g, j);
    }
    if (g->drain && g->assigned) {
        m = (struct wire_message){.command = WIRE_DRAIN};
        send(g, &m);
    }
}

void fake_group_turn(struct fake_group *g, int wait_ms)
{
    zmq_pollitem_t item = {.socket = g->socket, .events = ZMQ_POLLIN};
    struct wire_message m;
    struct error e;
    zmq_poll(&item, 1, wait_ms);
    for (;;) {
        enum status status = wire_socket_receive(&g->wire, NULL, NULL, &m, &e);
        if (status == ERR_UNAVAILABLE) break;
        check(status == OK, "%s", e.text);
        if (m.term > g->term) g->term = m.term;
        g->heard_ms = clock_ms();
        on_message(g, &m);
        wire_message_deinit(&m);
    }
    say_due(g);
}
