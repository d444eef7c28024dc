#include "broker/broker.h"

#include "broker/claims.h"
#include "broker/door.h"
#include "broker/fleet_record.h"
#include "broker/ingest.h"
#include "broker/jobs.h"
#include "broker/joins.h"
#include "broker/loop.h"
#include "broker/pauses.h"
#include "broker/queue.h"
#include "broker/scrape.h"
#include "broker/standby.h"
#include "common/clock.h"
#include "common/health.h"
#include "common/log.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum {
    TICK_MS = 50,
    INGEST_MS = 100,
    PROMOTE_MS = 250,
    REAP_MS = 1000,
    TENANTS_MS = 1000,
    ALLOW_MS = 1000,
    STOP_MS = 2000, // open calls get so long after a signal
    LIMIT = 100,    // jobs of one promote or reap
};

struct broker {
    struct broker_options options;
    struct models models;
    struct door door;
    zloop_t *loop;
    int signals; // signalfd
    struct queue *queue;
    struct ingest *ingest;
    struct joins *joins;
    struct claims *claims[MODELS_MAX]; // one a model
    struct jobs *jobs;
    struct groups *groups;
    struct standby standby; // until it leads
    struct fleet_record record;
    struct scrape scrape;
    int64_t since_ms; // it leads; wall clock
    struct tenants tenants;
    struct pauses pauses;
    bool hears, stood_by, led, resigned;
    struct health_writer health;
    char name[BROKER_NAME_MAX + 1];
    int64_t ingest_ms, promote_ms, reap_ms, tenants_ms, allow_ms;
    bool asking_tenants, promoting, reaping;
    int64_t stop_ms; // 0: not asked to
    struct error why; // of the end
};

// The name must be the same in the broker's next life, which may then lead without waiting.
static void choose_name(struct broker *b)
{
    char host[BROKER_NAME_MAX / 2] = "broker";
    const char *endpoint = b->door.endpoint;
    const char *where = strrchr(endpoint, strncmp(endpoint, "tcp:", 4) == 0 ? ':' : '/');
    if (b->options.name != NULL) {
        snprintf(b->name, sizeof b->name, "%.*s", BROKER_NAME_MAX, b->options.name);
        return;
    }
    gethostname(host, sizeof host - 1);
    snprintf(b->name, sizeof b->name, "%s:%.60s", host, where != NULL ? where + 1 : endpoint);
}

// Who connects before this broker leads is answered by the standby.
static enum status listen_on(struct broker *b, struct error *e)
{
    standby_init(&b->standby, b->door.socket, door_allow(&b->door));
    return door_listen(&b->door, &b->options.door, e);
}

// --- Redis' side

static void set_tenants(struct broker *b, const struct tenants *now, size_t n)
{
    static struct tenants before;
    before = b->tenants;
    if (!tenants_merge(&b->tenants, now) || n > TENANTS_MAX) {
        log_line(LOG_ERROR, "too_many_tenants", log_int("tenants", n),
                 log_int("served", TENANTS_MAX));
    }
    if (memcmp(&before, &b->tenants, sizeof before) == 0) return;
    log_line(LOG_INFO, "tenants", log_int("tenants", n), log_int("paused", b->tenants.paused));
    ingest_set_tenants(b->ingest, &b->tenants);
    for (int i = 0; i < b->models.n; i++) claims_set_tenants(b->claims[i], &b->tenants);
}

static void on_tenants(void *arg, const struct queue_reply *r)
{
    struct broker *b = arg;
    static struct tenants now; // too large for the stack
    b->asking_tenants = false;
    if (r->error.status != OK) return;
    memset(&now, 0, sizeof now);
    now.paused = r->number == 1;
    for (size_t i = 0; i < r->n && now.n < TENANTS_MAX; i++) {
        const struct queue_tenant *t = &r->tenants[i];
        struct tenant *to = &now.at[now.n++];
        *to = (struct tenant){.weight = t->weight,
                              .max_bytes = t->max_bytes,
                              .max_jobs = t->max_jobs,
                              .max_tokens = t->max_tokens,
                              .paused = t->paused};
        snprintf(to->name, sizeof to->name, "%s", t->name);
    }
    set_tenants(b, &now, r->n);
}

static bool is_paused(void *arg, int model, uint64_t pipeline)
{
    return pauses_has(&((struct broker *) arg)->pauses, model, pipeline);
}

static void on_pauses(void *arg)
{
    struct broker *b = arg;
    jobs_set_paused(b->jobs, is_paused, b);
    for (int i = 0; i < b->models.n; i++) claims_wake(b->claims[i]);
}

// The tenants come behind the pauses: nothing starts before it is known where it must not.
static void ask_tenants(struct broker *b)
{
    if (b->asking_tenants) return;
    b->tenants_ms = clock_ms();
    pauses_ask(&b->pauses);
    b->asking_tenants = queue_tenants(b->queue, on_tenants, b) == OK;
}

static int on_socket(zloop_t *loop, zmq_pollitem_t *item, void *arg)
{
    struct broker *b = arg;
    (void) loop, (void) item;
    if (!b->led) {
        standby_receive(&b->standby);
        return 0;
    }
    groups_receive(b->groups, clock_ms());
    return 0;
}

// Nobody is listened to before it is known who leads: what is not read must not wake the loop.
static void hear(struct broker *b)
{
    zmq_pollitem_t socket = {.socket = b->door.socket, .events = ZMQ_POLLIN};
    if (b->hears) return;
    check(zloop_poller(b->loop, &socket, on_socket, b) == 0);
    b->hears = true;
}

static void on_standby(void *arg, const char *leader, uint64_t term)
{
    struct broker *b = arg;
    log_line(LOG_INFO, "standby", log_str("name", b->name), log_str("leader", leader),
             log_int("term", term));
    b->stood_by = true;
    standby_follow(&b->standby, term);
    hear(b);
}

static void lead(struct broker *b, uint64_t term, int64_t now_ms)
{
    groups_start(b->groups, term, now_ms);
    standby_ends(&b->standby, term);
    hear(b);
    b->since_ms = clock_wall_ms();
    b->led = true;
}

static void on_ready(void *arg, uint64_t term)
{
    struct broker *b = arg;
    int64_t now_ms = clock_ms();
    log_line(LOG_INFO, b->led ? "redis_back" : b->stood_by ? "takes_over" : "ready",
             log_str("endpoint", b->door.endpoint), log_str("queue", b->options.queue),
             log_str("model", b->models.at[0].name), log_str("name", b->name),
             log_int("term", term));
    if (!b->led) lead(b, term, now_ms);
    if (b->stop_ms != 0) return;
    ask_tenants(b);
    jobs_ready(b->jobs, now_ms);
    ingest_ready(b->ingest);
    for (int i = 0; i < b->models.n; i++) claims_ready(b->claims[i]);
}

static void on_down(void *arg, const struct error *why)
{
    struct broker *b = arg;
    log_line(LOG_WARN, "redis_down", log_str("code", why->code), log_str("error", why->text));
    ingest_down(b->ingest);
}

static void on_refused(void *arg, const struct error *why)
{
    struct broker *b = arg;
    if (b->resigned) return; // another one leads, as it was meant to be
    b->why = *why;
}

static void on_inbox(void *arg, const char *tenant)
{
    struct broker *b = arg;
    if (b->stop_ms == 0) ingest_pushed(b->ingest, tenant);
}

// Some job of it is ready, whatever its model.
static void wake_tenant(struct broker *b, const char *tenant)
{
    for (int i = 0; i < b->models.n; i++) claims_changed(b->claims[i], tenant, -1);
}

static void on_verdicts(struct broker *b, const struct queue_reply *r, const char *event)
{
    for (size_t i = 0; i < r->n; i++) {
        const struct queue_verdict *v = &r->verdicts[i];
        log_line(LOG_INFO, event, log_str("tenant", v->tenant), log_str("id", v->id),
                 log_int("attempt", v->attempt), log_str("word", queue_word_name(v->word)));
        if (v->word == QUEUE_READY) wake_tenant(b, v->tenant);
    }
}

// Where as many as were asked for came, more may be due: they are not left for the next time.
static void promote(struct broker *b);
static void reap(struct broker *b);

static void on_promoted(void *arg, const struct queue_reply *r)
{
    struct broker *b = arg;
    b->promoting = false;
    on_verdicts(b, r, "due");
    for (size_t i = 0; i < r->n; i++) {
        const struct queue_verdict *v = &r->verdicts[i];
        if (v->word == QUEUE_CANCEL) jobs_cancel(b->jobs, v->attempt, WIRE_REASON_EXPIRED);
        if (v->word == QUEUE_RUNNING) jobs_cancel(b->jobs, v->attempt, WIRE_REASON_CANCELLED);
    }
    if (r->n >= LIMIT && b->stop_ms == 0) promote(b);
}

static void on_reaped(void *arg, const struct queue_reply *r)
{
    struct broker *b = arg;
    b->reaping = false;
    b->scrape.metrics.leases_expired += r->n;
    on_verdicts(b, r, "lease_ended");
    for (size_t i = 0; i < r->n; i++) jobs_forget(b->jobs, r->verdicts[i].attempt);
    if (r->n >= LIMIT && b->stop_ms == 0) reap(b);
}

static void promote(struct broker *b)
{
    b->promoting = queue_promote(b->queue, LIMIT, on_promoted, b) == OK;
}

static void reap(struct broker *b)
{
    b->reaping = queue_reap(b->queue, LIMIT, on_reaped, b) == OK;
}

// --- the groups' side

static bool on_send(void *arg, const struct peer *to, const struct wire_message *m)
{
    struct broker *b = arg;
    return groups_send(b->groups, to, m);
}

static void on_freed(void *arg)
{
    struct broker *b = arg;
    for (int i = 0; b->stop_ms == 0 && i < b->models.n; i++) claims_wake(b->claims[i]);
}

static void on_returned(void *arg, const char *tenant)
{
    struct broker *b = arg;
    if (b->stop_ms == 0) wake_tenant(b, tenant);
}

static void on_admitted(void *arg, const char *tenant, int class, int model,
                        const struct queue_header *header)
{
    struct broker *b = arg;
    if (b->stop_ms == 0) claims_admitted(b->claims[model], tenant, class, header);
}

static void on_waiting(void *arg)
{
    struct broker *b = arg;
    if (b->stop_ms == 0) joins_wake(b->joins);
}

static void on_cancel(void *arg, const char *tenant, const char *id, uint64_t attempt)
{
    struct broker *b = arg;
    (void) tenant, (void) id;
    jobs_cancel(b->jobs, attempt, WIRE_REASON_CANCELLED);
}

// What counts against the tenants' budgets.
static void each_active(void *arg, claims_active_fn *fn, void *fn_arg)
{
    struct broker *b = arg;
    jobs_each_active(b->jobs, fn, fn_arg);
    for (int i = 0; i < b->models.n; i++) claims_each_chosen(b->claims[i], fn, fn_arg);
}

static void on_planned(void *arg, int model, const struct plan *plan)
{
    struct broker *b = arg;
    int blocks = plan->max_blocks < plan->kv_blocks ? plan->max_blocks : plan->kv_blocks;
    int64_t context = (int64_t) blocks * KV_BLOCK_ROWS;
    if (context > plan->max_context) context = plan->max_context;
    ingest_set_max_context(b->ingest, model, (int) context);
    // Before it leads no group was heard: chunks would be cut for memory that nobody has.
    if (b->led) joins_set_max_context(b->joins, model, (int) context);
    claims_set_limits(b->claims[model], (int) context, (uint64_t) blocks);
}

static void on_up(void *arg, int model, const struct plan *plan, const struct pipeline *p,
                  const struct group *head, bool adopted)
{
    struct broker *b = arg;
    const struct jobs_pipeline up = {.model = model, .id = p->id, .epoch = p->epoch,
                                     .head = head->peer, .name = head->name, .slots = plan->slots,
                                     .blocks = plan->kv_blocks, .adopted = adopted,
                                     .paused = is_paused(b, model, p->id)};
    jobs_up(b->jobs, &up);
    claims_wake(b->claims[model]);
}

static void on_pipeline_down(void *arg, uint64_t epoch)
{
    struct broker *b = arg;
    jobs_down(b->jobs, epoch);
}

static void on_draining(void *arg, uint64_t epoch)
{
    struct broker *b = arg;
    jobs_close(b->jobs, epoch);
}

static void on_head_hello(void *arg, uint64_t epoch, const struct peer *head,
                          const struct wire_hello *h)
{
    struct broker *b = arg;
    jobs_hello(b->jobs, epoch, head, h);
}

static void on_message(void *arg, const struct peer *from, const struct wire_message *m)
{
    struct broker *b = arg;
    if (jobs_message(b->jobs, from, m)) return;
    log_line(LOG_DEBUG, "unexpected_command", log_str("command", wire_command_name(m->command)));
}

static int on_zap(zloop_t *loop, zmq_pollitem_t *item, void *arg)
{
    struct broker *b = arg;
    (void) loop, (void) item;
    while (allow_answer(&b->door.allow, b->door.zap)) {}
    return 0;
}

// --- time

static bool is_due(int64_t *last_ms, int64_t every_ms, int64_t now_ms)
{
    if (now_ms - *last_ms < every_ms) return false;
    *last_ms = now_ms;
    return true;
}

static void on_told(void *arg, const struct queue_reply *r)
{
    struct broker *b = arg;
    if (r->error.status != OK) b->record.said_ms = 0; // it is said again
}

static int paused_load(void *arg, uint64_t epoch)
{
    return jobs_paused_load(((struct broker *) arg)->jobs, epoch);
}

static void tell_fleet(struct broker *b, int64_t now_ms)
{
    const struct fleet_loads loads = {b, paused_load};
    struct fleet_leader leader = {b->name, b->door.endpoint, queue_term(b->queue), b->since_ms};
    char *text = fleet_record_due(&b->record, &leader, b->groups, b->models.n, &loads,
                                  now_ms);
    if (text == NULL) return;
    size_t n = strlen(text);
    if (queue_fleet(b->queue, FLEET_RECORD_MS, text, n, on_told, b) != OK) b->record.said_ms = 0;
    free(text);
}

static void tend_queue(struct broker *b, int64_t now_ms)
{
    if (!queue_ready(b->queue)) return;
    tell_fleet(b, now_ms);
    if (is_due(&b->tenants_ms, TENANTS_MS, now_ms)) ask_tenants(b);
    if (is_due(&b->ingest_ms, INGEST_MS, now_ms)) {
        ingest_tick(b->ingest, now_ms);
        joins_tick(b->joins);
    }
    if (!b->promoting && is_due(&b->promote_ms, PROMOTE_MS, now_ms)) promote(b);
    // Leases that an earlier broker kept are renewed first, once the groups said what they run.
    bool may_reap = !b->reaping && !groups_adopting(b->groups, now_ms);
    if (may_reap && is_due(&b->reap_ms, REAP_MS, now_ms)) reap(b);
}

static void say_health(struct broker *b, int64_t now_ms)
{
    if (!health_due(&b->health, now_ms)) return;
    struct health h = {.state = b->led        ? HEALTH_LEADING
                                : b->stood_by ? HEALTH_STANDBY
                                              : HEALTH_WAITING,
                       .redis = queue_ready(b->queue) || queue_stands_by(b->queue)};
    health_write(&b->health, &h, now_ms);
}

static void tend_scrape(struct broker *b, int64_t now_ms)
{
    struct scrape *s = &b->scrape;
    struct metrics *m = &s->metrics;
    m->leads = b->led;
    m->redis = queue_ready(b->queue) || queue_stands_by(b->queue);
    m->term = queue_term(b->queue);
    m->jobs = b->led ? b->jobs : NULL;
    m->groups = b->led ? b->groups : NULL;
    m->record = b->led ? &b->record : NULL;
    s->well = m->redis && (b->led || b->stood_by);
    s->state = !m->redis      ? "Redis is away\n"
               : b->led       ? "leads\n"
               : b->stood_by  ? "stands by\n"
                              : "starts\n";
    scrape_tick(s, now_ms);
}

static bool all_idle(const struct broker *b)
{
    bool idle = true;
    for (int i = 0; i < b->models.n; i++) idle = idle && claims_idle(b->claims[i]);
    return idle;
}

static void on_resigned(void *arg, const struct queue_reply *r) { (void) arg, (void) r; }

// A standby leads as soon as what was begun here has ended.
static bool is_stopped(struct broker *b, int64_t now_ms)
{
    if (now_ms - b->stop_ms > STOP_MS) return true;
    if (!all_idle(b) || queue_open_calls(b->queue) > 0) return false;
    if (!b->led || b->resigned) return true;
    b->resigned = true;
    return queue_resign(b->queue, on_resigned, b) != OK;
}

static int on_tick(zloop_t *loop, int timer, void *arg)
{
    struct broker *b = arg;
    int64_t now_ms = clock_ms();
    (void) loop, (void) timer;
    say_health(b, now_ms);
    tend_scrape(b, now_ms);
    if (b->why.status != OK) return -1;
    if (b->stop_ms != 0) return is_stopped(b, now_ms) ? -1 : 0;
    bool keys_due = b->door.zap != NULL && is_due(&b->allow_ms, ALLOW_MS, now_ms);
    if (keys_due && allow_refresh(&b->door.allow)) {
        groups_recheck(b->groups);
    }
    groups_tick(b->groups, now_ms);
    uint64_t drained = jobs_drained(b->jobs);
    if (drained != 0) groups_drained(b->groups, drained);
    jobs_tick(b->jobs, now_ms);
    tend_queue(b, now_ms);
    for (int i = 0; i < b->models.n; i++) claims_tick(b->claims[i], now_ms);
    return 0;
}

static int on_signal(zloop_t *loop, zmq_pollitem_t *item, void *arg)
{
    struct broker *b = arg;
    struct signalfd_siginfo info;
    (void) loop;
    if (read(item->fd, &info, sizeof info) != sizeof info) return 0;
    if (b->stop_ms != 0) return -1; // asked twice
    log_line(LOG_INFO, "stopping", log_int("signal", info.ssi_signo),
             log_int("running", jobs_n_active(b->jobs)));
    b->stop_ms = clock_ms();
    for (int i = 0; i < b->models.n; i++) claims_stop(b->claims[i]);
    ingest_down(b->ingest);
    jobs_release(b->jobs);
    // What groups say from here on is for the next leader, to which they say it again.
    zmq_pollitem_t socket = {.socket = b->door.socket, .events = ZMQ_POLLIN};
    if (b->hears) zloop_poller_end(b->loop, &socket);
    return 0;
}

// --- life

static enum status open_sockets(struct broker *b, struct error *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &set, NULL); // before any thread, so that all of them have it
    zsys_handler_set(NULL);
    b->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    b->loop = zloop_new();
    if (b->signals >= 0 && b->loop != NULL) return door_init(&b->door, &b->options.door, e);
    return error_set(e, ERR_IO, NULL, "no sockets: %s", strerror(errno));
}

static enum status create_queue(struct broker *b, struct error *e)
{
    const struct queue_options o = {.url = b->options.redis,
                                    .name = b->options.queue,
                                    .owner = b->name,
                                    .accept_loss = b->options.accept_loss};
    const struct queue_events events = {b, on_ready, on_standby, on_down, on_refused, on_inbox};
    return queue_create(&b->queue, b->loop, &o, &events, e);
}

static enum status create_claims(struct broker *b, const struct prompt_limits *limits,
                                 struct error *e)
{
    struct claims_options o = {.loop = b->loop, .queue = b->queue, .jobs = b->jobs,
                               .models = &b->models, .limits = *limits,
                               .n_threads = b->options.pool_threads, .age_ms = b->options.age_ms,
                               .urgent_percent = b->options.urgent_percent,
                               .arg = b, .each_active = each_active};
    for (o.model = 0; o.model < b->models.n; o.model++) {
        try(claims_create(&b->claims[o.model], &o, e));
    }
    return OK;
}

static enum status create_groups(struct broker *b, struct error *e)
{
    const struct broker_options *o = &b->options;
    struct groups_options groups = {.models = &b->models,
                                    .socket = b->door.socket,
                                    .allow = door_allow(&b->door),
                                    .record = &b->record,
                                    .precision = o->precision,
                                    .fp8_kv = o->fp8_kv,
                                    .n_pipelines = o->pipelines,
                                    .n_spares = o->spares,
                                    .tp = o->tp,
                                    .slots = o->slots,
                                    .max_context = o->max_context,
                                    .max_rows = o->max_rows,
                                    .chunk = o->chunk,
                                    .kv_blocks = o->kv_blocks,
                                    .fill_ms = o->fill_ms,
                                    .step_ms = o->step_ms,
                                    .arg = b,
                                    .planned = on_planned,
                                    .up = on_up,
                                    .down = on_pipeline_down,
                                    .draining = on_draining,
                                    .head_hello = on_head_hello,
                                    .message = on_message};
    return groups_create(&b->groups, &groups, e);
}

static enum status create_scrape(struct broker *b, struct error *e)
{
    b->scrape = (struct scrape){.queue = b->queue,
                                .metrics = {.queue = b->options.queue,
                                            .name = b->name,
                                            .models = &b->models}};
    if (b->options.metrics == NULL) return OK;
    return scrape_open(&b->scrape, b->loop, b->options.metrics, e);
}

static enum status create_parts(struct broker *b, struct error *e)
{
    const struct broker_options *o = &b->options;
    struct prompt_limits limits = {.default_max_tokens = o->default_max_tokens};
    for (int i = 0; i < b->models.n; i++) {
        limits.max_context[i] = b->models.at[i].config.max_position_embeddings;
    }
    choose_name(b);
    try(create_queue(b, e));
    b->pauses = (struct pauses){
        .queue = b->queue, .models = &b->models, .arg = b, .changed = on_pauses};
    struct jobs_options jobs = {b->queue, b, on_send, on_freed, on_returned};
    try(jobs_create(&b->jobs, &jobs, e));
    try(create_claims(b, &limits, e));
    struct ingest_options ingest = {.loop = b->loop, .queue = b->queue, .models = &b->models,
                                    .limits = limits, .n_threads = o->pool_threads, .arg = b,
                                    .admitted = on_admitted, .waiting = on_waiting,
                                    .cancel = on_cancel,
                                    .max_queued_bytes = (uint64_t) o->max_queued_bytes};
    try(ingest_create(&b->ingest, &ingest, e));
    struct joins_options joins = {b->loop, b->queue, &b->models, o->default_max_tokens, b,
                                  on_returned};
    try(joins_create(&b->joins, &joins, e));
    try(create_groups(b, e));
    return create_scrape(b, e);
}

static enum status run_loop(struct broker *b, struct error *e)
{
    zmq_pollitem_t signals = {.fd = b->signals, .events = ZMQ_POLLIN};
    zmq_pollitem_t zap = {.socket = b->door.zap, .events = ZMQ_POLLIN};
    zloop_set_nonstop(b->loop, true); // signals are ours
    check(zloop_poller(b->loop, &signals, on_signal, b) == 0);
    check(b->door.zap == NULL || zloop_poller(b->loop, &zap, on_zap, b) == 0);
    check(zloop_timer(b->loop, TICK_MS, 0, on_tick, b) > 0);
    zloop_start(b->loop);
    if (b->why.status == OK) return OK;
    *e = b->why;
    return e->status;
}

static void close_all(struct broker *b)
{
    queue_destroy(&b->queue); // its open calls end in those who made them
    ingest_destroy(&b->ingest);
    joins_destroy(&b->joins);
    for (int i = 0; i < MODELS_MAX; i++) claims_destroy(&b->claims[i]);
    jobs_destroy(&b->jobs);
    groups_destroy(&b->groups);
    standby_deinit(&b->standby);
    fleet_record_deinit(&b->record);
    scrape_close(&b->scrape);
    if (b->loop != NULL) zloop_destroy(&b->loop);
    door_deinit(&b->door);
    if (b->signals >= 0) close(b->signals);
    models_deinit(&b->models);
}

enum status broker_run(const struct broker_options *o, struct error *e)
{
    try(door_check(&o->door, e));
    struct broker *b = malloc(sizeof *b);
    if (b == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a broker");
    *b = (struct broker){.options = *o, .signals = -1, .health.path = o->status};
    enum status status = open_sockets(b, e);
    if (status == OK) status = models_load(&b->models, &o->models, &o->pp, &o->layers, e);
    if (status == OK) status = listen_on(b, e);
    if (status == OK) status = create_parts(b, e);
    if (status == OK) status = run_loop(b, e);
    health_end(&b->health);
    close_all(b);
    free(b);
    return status;
}
