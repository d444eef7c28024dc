#include "tools/engine.h"

#include "broker/fleet.h"
#include "broker/peers.h"
#include "common/clock.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/plan.h"
#include "workers/group.h"
#include "workers/stage.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>
#include <zmq.h>

enum {
    TURN_MS = 200,
    CHUNK = 512,               // most rows of a step unless told
    STEP_DEADLINE_MS = 600000, // one machine: a step ends, or the process does
    ENGINE_DEAD_MS = 3600000,  // groups are threads of this process
    LOGITS_BYTES_MAX = WIRE_BODY_MAX / 2,
};

#define BROKER_ENDPOINT "inproc://broker"

struct group_thread {
    struct engine *engine;
    int index;
    pthread_t thread;
    bool started;
    _Atomic pid_t id; // of the thread, as the system names it
    char name[GROUP_NAME_MAX];
    char data[ENDPOINT_MAX];
    int stop_fd;
    _Atomic int ended;
    enum status status;
    struct error error;
};

struct engine {
    struct engine_options options;
    struct model_config config;
    struct layout_types types;
    struct checkpoint *checkpoint;
    struct tokenizer *tokenizer;
    char model_hash[33];
    struct plan plan;
    void *zmq, *router;
    struct peers peers;
    struct fleet fleet;
    uint64_t epoch;            // of the fleet, the last one
    struct wire_assign template;
    const struct pipeline *pipeline; // NULL: it doesn't serve yet
    struct error failure;      // of the pipeline: FAILED, or a group's end
    struct group_thread groups[PP_MAX];
    // Of engine_run:
    const struct engine_events *events;
    struct wire_job *jobs;
    int n_jobs, n_sent, n_ended;
    // Of engine_count:
    struct engine_counts *counts;
    uint64_t n_pings, since; // pings ever; PONGs count that answer one of these or a later one
    bool counted[PP_MAX];    // by stage
};

const struct plan *engine_plan(const struct engine *g) { return &g->plan; }
const struct model_config *engine_config(const struct engine *g) { return &g->config; }
const struct tokenizer *engine_tokenizer(const struct engine *g) { return g->tokenizer; }

// --- fleet actions

// Inside one process nothing is away: what can't be said is a failure.
static void must_send(struct engine *g, bool sent, const char *what)
{
    if (sent || g->failure.status != OK) return;
    error_set(&g->failure, ERR_IO, "not_sent", "%s can't be sent to a group of this process", what);
}

static void on_assign(void *arg, const struct group *group, const struct fleet_assign *a)
{
    struct engine *g = arg;
    must_send(g, peers_assign(&g->peers, group, &g->template, a), "ASSIGN");
}

static void on_link(void *arg, const struct group *group, const struct pipeline *p,
                    const char *next)
{
    struct engine *g = arg;
    must_send(g, peers_link(&g->peers, group, p, next), "LINK");
}

static void on_unassign(void *arg, const struct group *group, uint64_t pipeline, uint64_t epoch)
{
    struct engine *g = arg;
    peers_unassign(&g->peers, group, pipeline, epoch);
}

static void on_up(void *arg, const struct pipeline *p, const struct group *head, bool adopted)
{
    (void) head;
    (void) adopted;
    ((struct engine *) arg)->pipeline = p;
}

static void on_down(void *arg, const struct pipeline *p, const char *reason)
{
    struct engine *g = arg;
    (void) p;
    g->pipeline = NULL;
    if (g->failure.status == OK) error_set(&g->failure, ERR_STATE, "pipeline_down", "%s", reason);
}

static void on_random(void *arg, void *bytes, size_t n)
{
    (void) arg;
    check(getrandom(bytes, n, 0) == (ssize_t) n, "no random numbers");
}

// --- limits: as large as the sequences need, no larger

static enum status make_plan(struct engine *g, struct error *e)
{
    const struct engine_options *o = &g->options;
    int64_t blocks = ((int64_t) o->max_context + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS;
    int rows = o->chunk > 0 ? o->chunk : CHUNK;
    if (rows > o->max_context) rows = o->max_context;
    if (rows < o->slots) rows = o->slots;
    int64_t row_bytes = (int64_t) g->config.vocab_size * 4;
    if (o->score && rows > LOGITS_BYTES_MAX / row_bytes)
        rows = (int) (LOGITS_BYTES_MAX / row_bytes);
    if (rows < 1) rows = 1;
    if (rows > STEP_ROWS_MAX) {
        return error_set(e, ERR_LIMIT, "bad_chunk", "a step of %d rows: at most %d", rows,
                         STEP_ROWS_MAX);
    }
    struct plan_request r = {.config = &g->config,
                             .types = &g->types,
                             .device = o->backend->kind,
                             .pp = o->pp,
                             .tp = o->tp,
                             .f32 = o->precision == PRECISION_F32,
                             .fp8_kv = o->fp8_kv,
                             .score = o->score,
                             .slots = o->slots,
                             .max_context = o->max_context,
                             .max_rows = rows,
                             .chunk = o->chunk > 0 && o->chunk < rows ? o->chunk : rows,
                             .max_out = o->score ? rows : o->slots,
                             .kv_blocks = (int) (blocks * o->slots)};
    memcpy(r.layers, o->layers, sizeof r.layers);
    for (int i = 0; i < o->pp; i++) {
        r.device_bytes[i] = o->memory_bytes > 0 ? o->memory_bytes : UINT64_MAX / 2;
    }
    try(plan_make(&g->plan, &r, e));
    if (!g->plan.fits) return error_set(e, ERR_NOMEM, "does_not_fit", "%s", g->plan.reason);
    char hash[PLAN_HASH_SIZE];
    plan_hash(&g->plan, g->model_hash, r.f32, r.fp8_kv, hash);
    g->template = peers_template(&g->plan, hash, r.f32, r.fp8_kv, o->score);
    g->template.fill_ms = WAIT_FILL_MS;
    g->template.step_ms = STEP_MS;
    return OK;
}

// --- groups

static void *group_main(void *arg)
{
    struct group_thread *t = arg;
    struct engine *g = t->engine;
    t->id = gettid();
    struct group_options o = {.zmq = g->zmq,
                              .control = {.brokers = {{.endpoint = BROKER_ENDPOINT}},
                                          .n_brokers = 1},
                              .config = &g->config,
                              .checkpoint = g->checkpoint,
                              .model_hash = g->model_hash,
                              .tokenizer = g->tokenizer,
                              .backend = g->options.backend,
                              .name = t->name,
                              .node = "local",
                              .data = t->data,
                              .tp = g->options.tp,
                              .gpu = g->options.n_gpus > 0 ? t->index * g->options.tp : 0,
                              .n_gpus = g->options.n_gpus,
                              .n_threads = g->options.n_threads,
                              .coarse_sums = g->options.coarse_sums,
                              .precision = g->options.precision,
                              .memory_bytes = g->options.memory_bytes,
                              .step_deadline_ms = STEP_DEADLINE_MS,
                              .report_tokens = 1,
                              .stop_fd = t->stop_fd};
    t->status = group_run(&o, &t->error);
    atomic_store(&t->ended, 1);
    return NULL;
}

static enum status start_groups(struct engine *g, struct error *e)
{
    for (int i = 0; i < g->options.pp; i++) {
        struct group_thread *t = &g->groups[i];
        t->engine = g;
        t->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        t->index = i;
        snprintf(t->name, sizeof t->name, "group-%d", i);
        snprintf(t->data, sizeof t->data, "inproc://links");
        int failed = t->stop_fd < 0 || pthread_create(&t->thread, NULL, group_main, t) != 0;
        if (failed) return error_set(e, ERR_IO, NULL, "cannot start the thread of group %d", i);
        t->started = true;
    }
    return OK;
}

static enum status check_groups(struct engine *g, struct error *e)
{
    if (g->failure.status != OK) {
        *e = g->failure;
        return e->status;
    }
    for (int i = 0; i < g->options.pp; i++) {
        struct group_thread *t = &g->groups[i];
        if (atomic_load(&t->ended) == 0) continue;
        *e = t->error;
        return t->status != OK ? t->status
                               : error_set(e, ERR_ABORTED, NULL, "group %s has ended", t->name);
    }
    return OK;
}

// --- jobs

static int find_job(const struct engine *g, const struct job_key *key)
{
    for (int i = 0; i < g->n_jobs; i++) {
        if (key->attempt == g->jobs[i].key.attempt && strcmp(key->id, g->jobs[i].key.id) == 0) {
            return i;
        }
    }
    return -1;
}

static void send_jobs(struct engine *g)
{
    const struct group *head = g->pipeline != NULL ? fleet_head(&g->fleet, g->pipeline) : NULL;
    while (head != NULL && g->n_sent < g->n_jobs && g->n_sent - g->n_ended < g->options.slots) {
        struct wire_message m = {.command = WIRE_JOB};
        m.job = g->jobs[g->n_sent];
        m.job.pipeline = g->pipeline->id;
        m.job.epoch = g->pipeline->epoch;
        must_send(g, peers_send(&g->peers, &head->peer, &m), "JOB");
        g->n_sent++;
    }
}

static void commit(struct engine *g, const struct peer *to, const struct job_key *key)
{
    struct wire_message m = {.command = WIRE_COMMITTED};
    m.committed = (struct wire_committed){*key, WIRE_OUTCOME_OK};
    peers_send(&g->peers, to, &m);
}

static void count(struct engine *g, const struct peer *from, const struct wire_pong *pong)
{
    const struct group *group = fleet_find(&g->fleet, from);
    if (g->counts == NULL || group == NULL || group->stage < 0 || !pong->counted) return;
    if (pong->seq < g->since) return;
    const struct wire_figures *f = &pong->figures;
    struct engine_counts *c = g->counts;
    c->stages[group->stage].decode_us = f->decode_steps.sum_us;
    c->stages[group->stage].prompt_us = f->prefill_steps.sum_us;
    if (group->stage == 0) {
        c->decodes = histogram_count(&f->decode_steps, HISTOGRAM_BUCKETS - 1);
        c->prompts = histogram_count(&f->prefill_steps, HISTOGRAM_BUCKETS - 1);
        c->rows = f->rows;
        c->prompt_rows = f->prefill_tokens;
    }
    g->counted[group->stage] = true;
}

static void on_message(void *arg, const struct peer *from, const struct wire_message *m)
{
    struct engine *g = arg;
    int64_t now_ms = clock_ms();
    fleet_seen(&g->fleet, from, now_ms);
    if (m->command == WIRE_FAILED && g->failure.status == OK) {
        error_set(&g->failure, ERR_STATE, m->failed.code, "%s", m->failed.message);
    }
    if (peers_to_fleet(&g->peers, &g->fleet, from, m, now_ms)) return;
    switch (m->command) {
    case WIRE_TOKENS:
        if (g->events != NULL && g->events->tokens != NULL && find_job(g, &m->tokens.key) >= 0) {
            g->events->tokens(g->events->arg, &m->tokens);
        }
        break;
    case WIRE_LOGITS:
        if (g->events != NULL && g->events->logits != NULL && find_job(g, &m->logits.key) >= 0) {
            g->events->logits(g->events->arg, &m->logits);
        }
        break;
    case WIRE_RESULT:
        if (g->events != NULL && find_job(g, &m->result.key) >= 0) {
            g->n_ended++;
            g->events->result(g->events->arg, &m->result.key, m->result.result);
        }
        commit(g, from, &m->result.key);
        break;
    case WIRE_REJECT:
        if (g->failure.status != OK) break;
        error_set(&g->failure, ERR_INPUT, m->reject.code, "%s", m->reject.message);
        break;
    case WIRE_PONG: count(g, from, &m->pong); break;
    default: break; // ACCEPT, CREDIT: nothing hangs on them here
    }
}

// The groups' heartbeat: they say HELLO again when nobody talks to them.
static void ping_groups(struct engine *g)
{
    g->n_pings++;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        struct wire_message m = {.command = WIRE_PING, .ping = {.seq = g->n_pings}};
        if (g->fleet.groups[i].used) peers_send(&g->peers, &g->fleet.groups[i].peer, &m);
    }
}

static enum status turn(struct engine *g, struct error *e)
{
    zmq_pollitem_t item = {.socket = g->router, .events = ZMQ_POLLIN};
    if (zmq_poll(&item, 1, TURN_MS) == 0) ping_groups(g);
    while (!peers_turn(&g->peers, on_message, g)) {}
    fleet_tick(&g->fleet, clock_ms());
    return check_groups(g, e);
}

enum status engine_run(struct engine *g, struct wire_job *jobs, int n_jobs,
                       const struct engine_events *events, struct error *e)
{
    enum status status = OK;
    g->events = events;
    g->jobs = jobs;
    g->n_jobs = n_jobs;
    g->n_sent = g->n_ended = 0;
    while (status == OK && g->n_ended < n_jobs) {
        send_jobs(g);
        status = turn(g, e);
    }
    g->events = NULL;
    g->n_jobs = 0;
    return status;
}

// Groups take the stages in the order in which they came.
static int stage_of(const struct engine *g, const char *name)
{
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct group *group = &g->fleet.groups[i];
        if (group->used && strcmp(group->name, name) == 0) return group->stage;
    }
    return -1;
}

// What Linux tells of a thread of this process: the processor's time, and the time in which it was
// ready and had no core.
static bool read_schedstat(const char *thread, int64_t *ran_ns, int64_t *waited_ns)
{
    char path[NAME_MAX + 32];
    snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", thread);
    FILE *f = fopen(path, "r");
    if (f == NULL) return false;
    bool good = fscanf(f, "%" SCNd64 " %" SCNd64, ran_ns, waited_ns) == 2;
    fclose(f);
    return good && *ran_ns > 0; // a kernel that does not count says zeros
}

static bool is_named(const char *thread, const char *name)
{
    char path[NAME_MAX + 32], got[STAGE_THREAD_NAME_MAX + 1] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", thread);
    FILE *f = fopen(path, "r");
    if (f == NULL) return false;
    bool read = fgets(got, sizeof got, f) != NULL;
    fclose(f);
    got[strcspn(got, "\n")] = '\0';
    return read && strcmp(got, name) == 0;
}

// The first of its threads, which are in the order in which they began.
static void count_rank(int first, int64_t *ran_ns, int64_t *waited_ns)
{
    char name[STAGE_THREAD_NAME_MAX];
    DIR *tasks = opendir("/proc/self/task");
    stage_thread_name(name, first, 0);
    for (struct dirent *t; tasks != NULL && (t = readdir(tasks)) != NULL;) {
        if (!is_named(t->d_name, name)) continue;
        read_schedstat(t->d_name, ran_ns, waited_ns);
        break;
    }
    if (tasks != NULL) closedir(tasks);
}

static void count_leader(const struct group_thread *t, int64_t *ran_ns, int64_t *waited_ns)
{
    char name[16];
    clockid_t clock;
    struct timespec ran;
    snprintf(name, sizeof name, "%d", (int) t->id);
    if (read_schedstat(name, ran_ns, waited_ns)) return;
    if (pthread_getcpuclockid(t->thread, &clock) != 0 || clock_gettime(clock, &ran) != 0) return;
    *ran_ns = ran.tv_sec * 1000000000ll + ran.tv_nsec;
}

static bool all_counted(const struct engine *g)
{
    for (int i = 0; i < g->options.pp; i++) {
        if (!g->counted[i]) return false;
    }
    return true;
}

enum status engine_count(struct engine *g, struct engine_counts *to, struct error *e)
{
    enum status status = OK;
    *to = (struct engine_counts){0};
    for (int i = 0; i < g->options.pp; i++) {
        int stage = stage_of(g, g->groups[i].name);
        if (stage < 0) continue;
        count_leader(&g->groups[i], &to->stages[stage].leader_ns,
                     &to->stages[stage].leader_wait_ns);
        count_rank(g->plan.first[stage], &to->stages[stage].rank_ns,
                   &to->stages[stage].rank_wait_ns);
    }
    g->counts = to;
    g->since = g->n_pings + 1;
    memset(g->counted, 0, sizeof g->counted);
    ping_groups(g);
    while (status == OK && !all_counted(g)) status = turn(g, e);
    g->counts = NULL;
    return status;
}

// --- life

static enum status open_model(struct engine *g, struct error *e)
{
    const char *dir = g->options.model;
    try(model_config_load(&g->config, dir, e));
    try(layout_check_tp(&g->config, g->options.tp, e));
    try(checkpoint_open(&g->checkpoint, dir, e));
    try(layout_check_checkpoint(&g->config, g->checkpoint, e));
    checkpoint_manifest_hash(g->checkpoint, g->model_hash);
    layout_types_read(&g->types, &g->config, g->checkpoint);
    struct error no_tokenizer = {0};
    enum status status = tokenizer_load(&g->tokenizer, dir, &no_tokenizer);
    if (status != OK && strcmp(no_tokenizer.code, "no_tokenizer") != 0) {
        *e = no_tokenizer;
        return status;
    }
    return OK;
}

static enum status open_fleet(struct engine *g, struct error *e)
{
    struct fleet_options o = {.n_stages = g->options.pp, .n_pipelines = 1, .epoch = &g->epoch,
                              .dead_ms = ENGINE_DEAD_MS};
    struct fleet_actions actions = {g, on_assign, on_link, on_unassign, on_up, on_down, on_random};
    memcpy(o.layers, g->plan.layers, sizeof o.layers);
    snprintf(o.plan_hash, sizeof o.plan_hash, "%.*s", PLAN_HASH_MAX, g->template.plan);
    fleet_init(&g->fleet, &o, &actions, clock_ms());
    g->zmq = zmq_ctx_new();
    g->router = zmq_socket(g->zmq, ZMQ_ROUTER);
    peers_init(&g->peers, g->router, 1);
    if (zmq_bind(g->router, BROKER_ENDPOINT) != 0) {
        return error_set(e, ERR_IO, NULL, "cannot bind inside the process: %s",
                         zmq_strerror(errno));
    }
    return OK;
}

enum status engine_open(struct engine **engine, const struct engine_options *o, struct error *e)
{
    struct engine *g = calloc(1, sizeof *g);
    *engine = g;
    if (g == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for an engine");
    g->options = *o;
    enum status status = open_model(g, e);
    if (status == OK) status = make_plan(g, e);
    if (status == OK) status = open_fleet(g, e);
    if (status == OK) status = start_groups(g, e);
    while (status == OK && g->pipeline == NULL) status = turn(g, e);
    if (status != OK) engine_close(engine);
    return status;
}

void engine_close(struct engine **engine)
{
    struct engine *g = *engine;
    if (g == NULL) return;
    *engine = NULL;
    uint64_t at_once = 2;
    for (int i = 0; i < g->options.pp; i++) {
        struct group_thread *t = &g->groups[i];
        if (!t->started) continue;
        ssize_t n = write(t->stop_fd, &at_once, sizeof at_once);
        check(n == sizeof at_once, "eventfd");
    }
    for (int i = 0; i < g->options.pp; i++) {
        if (g->groups[i].started) pthread_join(g->groups[i].thread, NULL);
        if (g->groups[i].engine != NULL && g->groups[i].stop_fd >= 0) close(g->groups[i].stop_fd);
    }
    if (g->zmq != NULL) {
        peers_deinit(&g->peers);
        zmq_close(g->router);
        zmq_ctx_term(g->zmq);
    }
    tokenizer_destroy(&g->tokenizer);
    checkpoint_close(&g->checkpoint);
    free(g);
}
