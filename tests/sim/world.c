#include "tests/sim/world.h"

#include "broker/attempts.h"
#include "broker/broker.h"
#include "tests/sim/sim_parts.h"
#include "tests/sim/sim_redis.h"
#include "workers/group.h"
#include "workers/head.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

enum { FIRST_PORT = 7301, AGAIN_LEAST_MS = 100, AGAIN_MOST_MS = 6000 };

struct world world;

// Nothing of a backend but its kind is asked for: stages are simulated.
static const struct backend backends[N_DEVICE_KINDS] = {
    [DEVICE_CPU] = {.name = "sim", .kind = DEVICE_CPU},
    [DEVICE_CUDA] = {.name = "sim", .kind = DEVICE_CUDA},
};
static char manifest[] = "00000000000000000000000000000001";

// --- what the programs hold, as the linker hands their making over

enum status __wrap_jobs_create(struct jobs **jobs, const struct jobs_options *o, struct error *e);
enum status __real_jobs_create(struct jobs **jobs, const struct jobs_options *o, struct error *e);
enum status __wrap_head_create(struct head **head, const struct head_options *o,
                               const struct head_events *events, struct error *e);
enum status __real_head_create(struct head **head, const struct head_options *o,
                               const struct head_events *events, struct error *e);
void __wrap_head_destroy(struct head **head);
void __real_head_destroy(struct head **head);
void __wrap_jobs_destroy(struct jobs **jobs);
void __real_jobs_destroy(struct jobs **jobs);
enum status __wrap_models_load(struct models *m, const struct option_list *specs,
                               const struct option_list *pp, const struct option_list *layers,
                               struct error *e);

enum status __wrap_jobs_create(struct jobs **jobs, const struct jobs_options *o, struct error *e)
{
    enum status status = __real_jobs_create(jobs, o, e);
    world_broker_of(sim_self())->owned = *jobs;
    return status;
}

void __wrap_jobs_destroy(struct jobs **jobs)
{
    world_broker_of(sim_self())->owned = NULL;
    __real_jobs_destroy(jobs);
}

enum status __wrap_head_create(struct head **head, const struct head_options *o,
                               const struct head_events *events, struct error *e)
{
    enum status status = __real_head_create(head, o, events, e);
    world_group_of(sim_self())->owned = *head;
    return status;
}

void __wrap_head_destroy(struct head **head)
{
    if (*head != NULL) world_group_of(sim_self())->owned = NULL;
    __real_head_destroy(head);
}

// The model has no files: a config, and a manifest's name.
enum status __wrap_models_load(struct models *m, const struct option_list *specs,
                               const struct option_list *pp, const struct option_list *layers,
                               struct error *e)
{
    (void) specs, (void) pp, (void) layers, (void) e;
    memset(m, 0, sizeof *m);
    m->n = 1;
    m->at[0].config = *world.options.config;
    layout_types_imply(&m->at[0].types, world.options.config);
    m->at[0].pp = world.options.n_stages;
    memcpy(m->at[0].layers, world.options.layers, sizeof m->at[0].layers);
    snprintf(m->at[0].name, sizeof m->at[0].name, "model");
    snprintf(m->at[0].hash, sizeof m->at[0].hash, "%s", manifest);
    return OK;
}

// --- lives

static void spawn(struct world_node *n);

static struct world_node *node_of(struct world_node *nodes, int n, const struct sim_proc *p)
{
    for (int i = 0; i < n; i++) {
        if (nodes[i].proc == p && p != NULL) return &nodes[i];
    }
    return NULL;
}

struct world_node *world_broker_of(const struct sim_proc *p)
{
    return node_of(world.brokers, BROKERS_IN_WORLD, p);
}

struct world_node *world_group_of(const struct sim_proc *p)
{
    return node_of(world.groups, GROUPS_IN_WORLD, p);
}

const struct head *world_head(void)
{
    for (int i = 0; i < GROUPS_IN_WORLD; i++) {
        if (world.groups[i].owned != NULL) return world.groups[i].owned;
    }
    return NULL;
}

static const char *endpoint_of(int broker)
{
    static const char *const endpoints[BROKERS_IN_WORLD] = {"tcp://127.0.0.1:7301",
                                                            "tcp://127.0.0.1:7302"};
    return endpoints[broker];
}

static void run_broker(void *arg)
{
    struct world_node *n = arg;
    const struct world_options *w = &world.options;
    struct broker_options o = {.redis = "redis://127.0.0.1",
                               .queue = WORLD_QUEUE,
                               .door = {.listen = endpoint_of((int) (n - world.brokers))},
                               .name = n->name,
                               .models = {.n = 1, .at = {"model=/"}},
                               .pipelines = w->pipelines,
                               .spares = w->spares,
                               .slots = w->slots,
                               .kv_blocks = w->kv_blocks,
                               .max_context = w->max_context,
                               .max_rows = w->max_rows,
                               .chunk = w->chunk,
                               .fill_ms = WAIT_FILL_MS,
                               .step_ms = STEP_MS,
                               .default_max_tokens = 16,
                               .pool_threads = 2,
                               .urgent_percent = w->urgent_percent,
                               .age_ms = w->age_ms};
    struct error e = {0};
    enum status status = broker_run(&o, &e);
    sim_say("ended: %s %s", e.code, e.text);
    bool replaced = strcmp(e.code, "stale_term") == 0;
    if (status != OK && !replaced) sim_fail("the broker ended: %s: %s", e.code, e.text);
}

static void run_group(void *arg)
{
    struct world_node *n = arg;
    const struct world_options *w = &world.options;
    struct group_options o = {.zmq = zmq_ctx_new(),
                              .control = {.n_brokers = w->n_brokers},
                              .config = w->config,
                              .model_hash = manifest,
                              .backend = &backends[w->device],
                              .name = n->name,
                              .node = n->name,
                              .data = "tcp://127.0.0.1:*",
                              .tp = w->tp,
                              .precision = PRECISION_BF16,
                              .memory_bytes = w->device_bytes,
                              .step_deadline_ms = w->step_deadline_ms,
                              .drain_ms = 60000,
                              .report_tokens = 32,
                              .report_ms = 250,
                              .stop_fd = n->stop_fd};
    for (int i = 0; i < w->n_brokers; i++) o.control.brokers[i].endpoint = endpoint_of(i);
    struct error e = {0};
    enum status status = group_run(&o, &e);
    sim_say("ended: %s %s", e.code, e.text);
    bool device_failed = strcmp(e.code, "device_failed") == 0;
    if (status != OK && !device_failed) sim_fail("the group ended: %s: %s", e.code, e.text);
}

static void spawn_again(void *arg)
{
    struct world_node *n = arg;
    if (n->proc == NULL) spawn(n);
}

static void on_died(struct sim_proc *p)
{
    struct world_node *n = world_broker_of(p);
    bool broker = n != NULL;
    if (n == NULL) n = world_group_of(p);
    sim_zmq_died(p);
    sim_redis_break(p);
    if (n == NULL) return;
    world.n_died += !broker;
    n->proc = NULL;
    n->owned = NULL;
    int64_t pause = world.options.fragile ? sim_between(AGAIN_LEAST_MS, AGAIN_MOST_MS) : 100;
    sim_at(sim_now() + pause * SIM_MS, spawn_again, n);
}

static void spawn(struct world_node *n)
{
    bool broker = n >= world.brokers && n < world.brokers + BROKERS_IN_WORLD;
    n->stop_fd = broker ? -1 : sim_fd(NULL);
    n->proc = sim_spawn(n->name, broker ? run_broker : run_group, n);
    if (!broker) sim_fd_own(n->stop_fd, n->proc);
}

void world_open(uint64_t seed, bool trace, bool at_once, const struct sim_devices *devices)
{
    sim_begin(seed, trace);
    sim_system_begin();
    sim_zmq_begin();
    sim_pool_begin(at_once);
    sim_redis_begin();
    sim_stage_begin(devices);
}

void world_close(void)
{
    sim_redis_end();
    sim_end();
}

void world_begin(const struct world_options *o)
{
    static const char *const brokers[BROKERS_IN_WORLD] = {"broker-a", "broker-b"};
    memset(&world, 0, sizeof world);
    world.options = *o;
    sim_watch(world_check, on_died);
    for (int i = 0; i < o->n_brokers; i++) {
        world.brokers[i] = (struct world_node){.name = brokers[i]};
        spawn(&world.brokers[i]);
    }
    for (int i = 0; i < o->n_groups; i++) {
        char *name = sim_alloc(SIM_NAME_MAX);
        snprintf(name, SIM_NAME_MAX, "g%d", i);
        world.groups[i] = (struct world_node){.name = name};
        spawn(&world.groups[i]);
    }
}

void world_kill(struct world_node *n)
{
    if (n->proc != NULL) sim_kill(n->proc);
}

void world_stop(struct world_node *n)
{
    if (n->proc == NULL) return;
    if (n->stop_fd < 0) sim_signal(n->proc, SIGTERM);
    else sim_fd_write(n->stop_fd, 1);
}

// --- invariants

static void check_account(const struct account *a)
{
    const struct credit *c = &a->credit;
    if (a->epoch == 0 || a->adopting) return;
    if (c->taken_slots > c->granted_slots || c->taken_blocks > c->granted_blocks) {
        sim_fail("credit below zero: %llu of %llu slots and %llu of %llu blocks are taken",
                 (unsigned long long) c->taken_slots, (unsigned long long) c->granted_slots,
                 (unsigned long long) c->taken_blocks, (unsigned long long) c->granted_blocks);
    }
    uint64_t slots = c->granted_slots - c->taken_slots;
    uint64_t blocks = c->granted_blocks - c->taken_blocks;
    if (slots > (uint64_t) a->slots || blocks > (uint64_t) a->blocks) {
        sim_fail("credit beyond the plan: %llu of %d slots and %llu of %d blocks are free",
                 (unsigned long long) slots, a->slots, (unsigned long long) blocks, a->blocks);
    }
}

static void check_head(const struct head *h)
{
    const struct step_limits *l = &h->options.limits;
    int n_blocks = h->kv.n_free, n_used = 0;
    for (int i = 0; i < l->slots; i++) {
        if (!h->seqs[i].used) continue;
        n_used++;
        n_blocks += h->n_blocks[i];
    }
    if (n_blocks != l->n_blocks || n_used != h->n_running || n_used > l->slots) {
        sim_fail("%d of %d blocks are known, %d of %d sequences", n_blocks, l->n_blocks, n_used,
                 h->n_running);
    }
}

void world_check(struct sim_proc *p)
{
    const struct world_node *n = world_broker_of(p);
    if (n != NULL && n->owned != NULL) {
        const struct jobs *j = n->owned;
        for (int i = 0; i < j->n_accounts; i++) check_account(&j->accounts[i]);
        return;
    }
    n = world_group_of(p);
    if (n != NULL && n->owned != NULL) check_head(n->owned);
}

static bool broker_is_idle(const struct jobs *j, char *why, size_t size)
{
    if (j->n > 0) {
        snprintf(why, size, "a broker knows %d attempts", j->n);
        return false;
    }
    for (int i = 0; i < j->n_accounts; i++) {
        const struct account *a = &j->accounts[i];
        if (a->epoch == 0) continue;
        uint64_t slots = credit_slots(&a->credit), blocks = credit_blocks(&a->credit);
        bool all = slots == (uint64_t) a->slots && blocks == (uint64_t) a->blocks;
        if (all && !a->adopting && a->n_promised == 0) continue;
        snprintf(why, size, "pipeline %llu: %llu of %d slots and %llu of %d blocks are free%s",
                 (unsigned long long) a->pipeline, (unsigned long long) slots, a->slots,
                 (unsigned long long) blocks, a->blocks, a->adopting ? ", adopting" : "");
        return false;
    }
    return true;
}

bool world_is_idle(char *why, size_t size)
{
    for (int i = 0; i < BROKERS_IN_WORLD; i++) {
        const struct jobs *j = world.brokers[i].owned;
        bool leads = j != NULL && queue_ready(j->options.queue);
        if (leads && !broker_is_idle(j, why, size)) return false;
    }
    for (int i = 0; i < GROUPS_IN_WORLD; i++) {
        const struct head *h = world.groups[i].owned;
        if (h == NULL || (h->n_running == 0 && h->n_kept == 0)) continue;
        snprintf(why, size, "head g%d runs %d jobs and keeps %d results", i, h->n_running,
                 h->n_kept);
        return false;
    }
    return true;
}
