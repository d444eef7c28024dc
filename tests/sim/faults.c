#include "tests/sim/faults.h"

#include "tests/sim/sim_net.h"
#include "tests/sim/sim_redis.h"
#include "tests/sim/sim_stage.h"
#include "tests/sim/world.h"

struct fault {
    const char *name;
    int weight;
    int64_t (*act)(void); // returns how long it goes on by itself, ns
};

static int64_t end_ns;

static struct world_node *some_group(void)
{
    return &world.groups[sim_between(0, world.options.n_groups - 1)];
}

static struct world_node *some_broker(void)
{
    return &world.brokers[sim_between(0, world.options.n_brokers - 1)];
}

static struct world_node *some_node(void)
{
    return sim_chance(60) ? some_group() : some_broker();
}

static void tell(const struct world_node *n, int64_t ns)
{
    sim_say("to %s, for %.3f s", n->name, (double) ns / 1e9);
}

// Mostly short, sometimes longer than what people wait for.
static int64_t some_time(int64_t most_ns)
{
    return sim_between(10 * SIM_MS, sim_chance(70) ? most_ns / 8 : most_ns);
}

static int64_t kill_group(void)
{
    struct world_node *n = some_group();
    tell(n, 0);
    world_kill(n);
    return 0;
}

static int64_t kill_broker(void)
{
    struct world_node *n = some_broker();
    tell(n, 0);
    world_kill(n);
    return 0;
}

static int64_t ask_to_leave(void)
{
    struct world_node *n = some_node();
    tell(n, 0);
    world_stop(n);
    return 0;
}

static int64_t stop_process(void)
{
    struct world_node *n = some_node();
    int64_t ns = some_time(40 * SIM_S);
    if (n->proc == NULL) return 0;
    tell(n, ns);
    sim_stop(n->proc, ns);
    return ns;
}

static int64_t break_connections(void)
{
    struct world_node *n = some_node();
    if (n->proc == NULL) return 0;
    tell(n, 0);
    sim_net_break(n->proc, (int) sim_between(30, 100));
    return 0;
}

static int64_t hold_network(void)
{
    struct world_node *n = some_node();
    int64_t ns = some_time(15 * SIM_S);
    if (n->proc == NULL) return 0;
    tell(n, ns);
    sim_net_hold(n->proc, ns);
    return ns;
}

static int64_t crash_redis(void)
{
    int64_t ns = some_time(20 * SIM_S);
    sim_say("for %.3f s", (double) ns / 1e9);
    sim_redis_crash(ns);
    return ns;
}

static int64_t hang_redis(void)
{
    int64_t ns = some_time(20 * SIM_S);
    sim_say("for %.3f s", (double) ns / 1e9);
    sim_redis_hang(ns);
    return ns;
}

static int64_t break_redis(void)
{
    struct world_node *n = some_broker();
    if (n->proc == NULL) return 0;
    tell(n, 0);
    sim_redis_break(n->proc);
    return 0;
}

static int64_t hang_device(void)
{
    struct world_node *n = some_group();
    int64_t ns = some_time(20 * SIM_S);
    if (n->proc == NULL) return 0;
    tell(n, ns);
    sim_stage_hang(n->proc, ns);
    return ns;
}

static int64_t fail_device(void)
{
    struct world_node *n = some_group();
    if (n->proc == NULL) return 0;
    tell(n, 0);
    sim_stage_fail(n->proc);
    return 0;
}

static const struct fault faults[] = {
    {"kill -9 of a group", 4, kill_group},
    {"kill -9 of a broker", 4, kill_broker},
    {"SIGTERM", 2, ask_to_leave},
    {"SIGSTOP", 2, stop_process},
    {"connections break", 4, break_connections},
    {"the network stalls", 2, hold_network},
    {"Redis dies", 2, crash_redis},
    {"Redis hangs", 2, hang_redis},
    {"Redis' connections break", 3, break_redis},
    {"a device hangs", 2, hang_device},
    {"a device fails", 1, fail_device},
};

static void act(void *arg)
{
    const struct fault *f = arg;
    sim_say("FAULT %s", f->name);
    int64_t ends = sim_now() + f->act();
    if (ends > end_ns) end_ns = ends;
}

static const struct fault *choose(void)
{
    int all = 0, n = (int) (sizeof faults / sizeof *faults), i = 0;
    for (int k = 0; k < n; k++) all += faults[k].weight;
    int64_t at = sim_between(0, all - 1);
    for (; at >= faults[i].weight; i++) at -= faults[i].weight;
    return &faults[i];
}

void faults_plan(int n, int64_t from_ns, int64_t to_ns)
{
    end_ns = 0;
    for (int i = 0; i < n; i++) {
        const struct fault *f = choose();
        int64_t at = sim_between(from_ns, to_ns);
        if (at > end_ns) end_ns = at;
        sim_at(at, act, (void *) (uintptr_t) f);
    }
}

int64_t faults_end(void) { return end_ns; }
