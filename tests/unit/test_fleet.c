// The fleet under groups that come, go, restart and drain at random; the world is a small
// simulation.
#include "broker/fleet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

enum { WORLD = 9, STAGES = 3 };

// What a simulated group knows of itself.
struct sim {
    bool alive;
    uint64_t boot, pipeline, epoch;
    int stage; // -1: none
    int n_loads; // of weights that it did not have
    bool ready_sent, linked;
    int first, last;
    uint8_t token[LINK_TOKEN_SIZE];
    char next[ENDPOINT_MAX];
};

struct world {
    struct fleet fleet;
    uint64_t epoch;
    struct sim groups[WORLD];
    int n_up, n_adopted;
    uint64_t serving[PIPELINES_MAX]; // epochs
    int n_serving;
};

static struct peer peer_of(int i, uint64_t boot)
{
    return (struct peer){.bytes = {(uint8_t) i, (uint8_t) boot, (uint8_t) (boot >> 8)}, .n = 3};
}

static struct sim *sim_of(struct world *w, const struct group *g)
{
    return &w->groups[g->peer.bytes[0]];
}

static void on_assign(void *arg, const struct group *g, const struct fleet_assign *a)
{
    struct sim *s = sim_of(arg, g);
    if (s->boot != g->boot) return;
    s->n_loads += s->first != a->first || s->last != a->last;
    s->stage = a->stage;
    s->pipeline = a->pipeline;
    s->epoch = a->epoch;
    s->first = a->first;
    s->last = a->last;
    memcpy(s->token, a->token, sizeof s->token);
    s->ready_sent = s->linked = false;
    s->next[0] = 0;
}

static void on_link(void *arg, const struct group *g, const struct pipeline *p, const char *next)
{
    struct sim *s = sim_of(arg, g);
    if (s->boot != g->boot) return; // sent to a life that has ended
    assert_int_equal(s->epoch, p->epoch);
    assert_int_equal(s->pipeline, p->id);
    snprintf(s->next, sizeof s->next, "%s", next);
}

// As a group does it: the order of a later assignment is not undone by an older one's end.
static void on_unassign(void *arg, const struct group *g, uint64_t pipeline, uint64_t epoch)
{
    (void) pipeline;
    struct sim *s = sim_of(arg, g);
    if (s->boot != g->boot || s->stage < 0 || epoch < s->epoch) return;
    s->stage = -1;
    s->linked = false;
}

static int serving_index(const struct world *w, uint64_t epoch)
{
    for (int i = 0; i < w->n_serving; i++) {
        if (w->serving[i] == epoch) return i;
    }
    return -1;
}

static void on_up(void *arg, const struct pipeline *p, const struct group *head, bool adopted)
{
    struct world *w = arg;
    assert_int_equal(serving_index(w, p->epoch), -1); // never twice
    assert_int_equal(head->stage, 0);
    w->serving[w->n_serving++] = p->epoch;
    w->n_up++;
    w->n_adopted += adopted;
}

static void on_down(void *arg, const struct pipeline *p, const char *reason)
{
    struct world *w = arg;
    int i = serving_index(w, p->epoch);
    (void) reason;
    assert_true(i >= 0);
    w->serving[i] = w->serving[--w->n_serving];
}

static void on_random(void *arg, void *bytes, size_t n)
{
    (void) arg;
    for (size_t i = 0; i < n; i++) ((uint8_t *) bytes)[i] = (uint8_t) rand();
}

// At most n pipelines; `spares` idle groups stay before a further one is formed.
static void world_init_n(struct world *w, uint64_t epoch, int64_t adopt_ms, int64_t now, int n,
                         int spares)
{
    struct fleet_options o = {.n_stages = STAGES, .layers = {2, 3, 1}, .plan_hash = "plan",
                              .n_pipelines = n, .n_spares = spares, .epoch = &w->epoch,
                              .adopt_ms = adopt_ms, .dead_ms = 5000};
    struct fleet_actions a = {w, on_assign, on_link, on_unassign, on_up, on_down, on_random};
    w->epoch = epoch;
    w->n_serving = w->n_adopted = 0;
    fleet_init(&w->fleet, &o, &a, now);
}

static void world_init(struct world *w, uint64_t epoch, int64_t adopt_ms, int64_t now)
{
    world_init_n(w, epoch, adopt_ms, now, 1, 0);
}

static void hello(struct world *w, int i, int64_t now)
{
    struct sim *s = &w->groups[i];
    struct peer p = peer_of(i, s->boot);
    struct held_assignment held = {0};
    struct error e;
    char name[16];
    snprintf(name, sizeof name, "g-%d", i);
    if (s->stage >= 0) {
        held = (struct held_assignment){.some = true, .pipeline = s->pipeline, .epoch = s->epoch,
                                        .stage = s->stage, .first = s->first, .last = s->last,
                                        .plan_hash = "plan", .linked = s->linked};
    }
    assert_int_equal(fleet_hello(&w->fleet, &p, name, "node", s->boot, &held, now, &e), OK);
}

// Lets group i do what it has been told.
static void act(struct world *w, int i)
{
    struct sim *s = &w->groups[i];
    struct peer p = peer_of(i, s->boot);
    if (s->stage < 0) return;
    char endpoint[32], tokens[32];
    snprintf(endpoint, sizeof endpoint, "act-%d", i);
    snprintf(tokens, sizeof tokens, "tok-%d", i);
    if (!s->ready_sent) {
        s->ready_sent = true;
        fleet_ready(&w->fleet, &p, s->epoch, endpoint, tokens);
    } else if (s->next[0] != 0 && !s->linked) {
        s->linked = true;
        fleet_linked(&w->fleet, &p, s->epoch);
    }
}

static void start(struct world *w, int i, int64_t now)
{
    w->groups[i] = (struct sim){.alive = true, .boot = (uint64_t) rand() + 1, .stage = -1};
    hello(w, i, now);
}

static void act_all(struct world *w)
{
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < WORLD; i++) {
            if (w->groups[i].alive) act(w, i);
        }
    }
}

// Time passes, with a word now and then of every group that lives.
static void tick_to(struct world *w, int64_t from, int64_t to)
{
    for (int64_t now = from; now <= to; now += 500) {
        for (int i = 0; i < WORLD; i++) {
            struct peer p = peer_of(i, w->groups[i].boot);
            if (w->groups[i].alive) assert_true(fleet_seen(&w->fleet, &p, now));
        }
        fleet_tick(&w->fleet, now);
    }
}

static void three_groups_make_a_pipeline(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init(w, 1, 0, 0);
    for (int i = 0; i < 3; i++) start(w, i, 0);
    assert_int_equal(w->n_serving, 0);
    act_all(w);
    assert_int_equal(w->n_serving, 1);
    const struct group *head = fleet_head(&w->fleet, &w->fleet.pipelines[0]);
    assert_non_null(head);
    assert_ptr_equal(fleet_pipeline(&w->fleet, head), &w->fleet.pipelines[0]);
    int stages[3];
    for (int i = 0; i < 3; i++) stages[w->groups[i].stage] = i;
    char expected[32];
    snprintf(expected, sizeof expected, "act-%d", stages[1]);
    assert_string_equal(w->groups[stages[0]].next, expected);
    snprintf(expected, sizeof expected, "tok-%d", stages[0]); // tokens go back to the head
    assert_string_equal(w->groups[stages[2]].next, expected);
    free(w);
}

static void a_spare_takes_over_and_the_others_keep_their_weights(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init(w, 1, 0, 0);
    for (int i = 0; i < 3; i++) start(w, i, 0);
    act_all(w);
    start(w, 3, 0);
    assert_int_equal(w->groups[3].stage, -1);
    int lost = 1, kept = 2, first = w->groups[kept].first, stage = w->groups[lost].stage;
    w->groups[lost].alive = false;
    tick_to(w, 0, 6000);
    assert_int_equal(w->n_serving, 0);
    act_all(w);
    assert_int_equal(w->n_serving, 1);
    assert_int_equal(w->groups[3].stage, stage);
    assert_int_equal(w->groups[kept].first, first);
    free(w);
}

static void a_new_broker_adopts_a_running_pipeline(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init(w, 7, 0, 0);
    for (int i = 0; i < 3; i++) start(w, i, 0);
    act_all(w);
    uint64_t epoch = w->epoch;
    world_init(w, 1000, 3000, 100); // the broker starts again
    for (int i = 0; i < 3; i++) {
        assert_int_equal(w->n_serving, 0);
        hello(w, i, 200);
    }
    assert_int_equal(w->n_serving, 1);
    assert_int_equal(w->serving[0], epoch);
    assert_int_equal(w->n_adopted, 1);
    for (int i = 0; i < 3; i++) assert_true(w->groups[i].stage >= 0);
    free(w);
}

static void an_incomplete_pipeline_is_not_adopted(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init(w, 7, 0, 0);
    for (int i = 0; i < 3; i++) start(w, i, 0);
    act_all(w);
    world_init(w, 1000, 3000, 100);
    hello(w, 0, 200);
    hello(w, 1, 200);
    start(w, 2, 300); // one was lost while nobody looked
    assert_int_equal(w->n_serving, 0);
    for (int i = 0; i < 3; i++) {
        struct peer p = peer_of(i, w->groups[i].boot);
        fleet_seen(&w->fleet, &p, 3000);
    }
    fleet_tick(&w->fleet, 3200);
    act_all(w);
    assert_int_equal(w->n_serving, 1);
    assert_true(w->serving[0] > 1000);
    free(w);
}

// ASSIGN and LINK may vanish with a connection: HELLO and READY, said again, bring them back.
static void lost_commands_are_said_again(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init(w, 1, 0, 0);
    for (int i = 0; i < 3; i++) start(w, i, 0);
    struct sim *s = &w->groups[1];
    struct peer p = peer_of(1, s->boot);
    uint64_t epoch = s->epoch;
    s->stage = -1; // it never saw ASSIGN
    hello(w, 1, 100);
    assert_int_equal(s->epoch, epoch);
    assert_true(s->stage >= 0);
    for (int i = 0; i < 3; i++) act(w, i);
    assert_true(s->next[0] != 0);
    s->next[0] = 0; // nor LINK
    fleet_ready(&w->fleet, &p, epoch, "act-1", "tok-1");
    assert_true(s->next[0] != 0);
    act_all(w);
    assert_int_equal(w->n_serving, 1);
    assert_int_equal(w->epoch, epoch);
    free(w);
}

// A broker that stood still has not read what its groups said meanwhile.
static void a_broker_that_slept_gives_nobody_up(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init(w, 1, 0, 0);
    for (int i = 0; i < 3; i++) start(w, i, 0);
    act_all(w);
    tick_to(w, 0, 1000);
    fleet_tick(&w->fleet, 60000);
    assert_int_equal(w->n_serving, 1);
    w->groups[1].alive = false; // this one really is gone
    tick_to(w, 60500, 66500);
    assert_int_equal(w->n_serving, 0);
    free(w);
}

static void a_group_that_serves_nothing_yet_leaves_at_once(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init(w, 1, 0, 0);
    for (int i = 0; i < 3; i++) start(w, i, 0);
    struct peer p = peer_of(1, w->groups[1].boot);
    assert_true(w->groups[1].stage >= 0);
    fleet_drain(&w->fleet, &p); // the pipeline loads
    assert_int_equal(w->groups[1].stage, -1);
    fleet_bye(&w->fleet, &p);
    w->groups[1].alive = false;
    start(w, 3, 0);
    act_all(w);
    assert_int_equal(w->n_serving, 1);
    free(w);
}

// --- several pipelines

static void groups_of_a_set_make_a_pipeline_each(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init_n(w, 1, 0, 0, 0, 0);
    for (int i = 0; i < 8; i++) start(w, i, 0);
    act_all(w);
    assert_int_equal(w->n_serving, 2);
    assert_int_equal(fleet_n_groups(&w->fleet), 8);
    assert_true(w->serving[0] != w->serving[1]);
    // The two that are left make the third with one more, wherever it comes from.
    start(w, 8, 0);
    act_all(w);
    assert_int_equal(w->n_serving, 3);
    uint64_t ids = 0;
    for (int i = 0; i < WORLD; i++) ids |= 1ull << w->groups[i].pipeline;
    assert_int_equal(ids, 0xe); // 1, 2 and 3
    free(w);
}

static void spares_stay_idle_until_a_stage_is_lost(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init_n(w, 1, 0, 0, 0, 2);
    for (int i = 0; i < 7; i++) start(w, i, 0);
    act_all(w);
    assert_int_equal(w->n_serving, 1); // four are idle, two of them for good
    start(w, 7, 0);
    act_all(w);
    assert_int_equal(w->n_serving, 2);
    int lost = 0;
    while (w->groups[lost].stage != 1 || w->groups[lost].pipeline != 2) lost++;
    start(w, lost, 100); // a new life: its pipeline takes a spare, or itself, at once
    act_all(w);
    assert_int_equal(w->n_serving, 2);
    free(w);
}

static void no_more_pipelines_than_asked_for(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init_n(w, 1, 0, 0, 2, 0);
    for (int i = 0; i < WORLD; i++) start(w, i, 0);
    act_all(w);
    assert_int_equal(w->n_serving, 2);
    assert_int_equal(fleet_n_pipelines(&w->fleet, PIPELINE_NONE), PIPELINES_MAX - 2);
    free(w);
}

// One pipeline loses a stage: the other one serves on, and the survivors keep their weights.
static void a_loss_is_its_own_pipelines(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init_n(w, 1, 0, 0, 0, 0);
    for (int i = 0; i < 6; i++) start(w, i, 0);
    act_all(w);
    int lost = 4;
    uint64_t pipeline = w->groups[lost].pipeline;
    w->groups[lost].alive = false;
    tick_to(w, 0, 6000);
    act_all(w);
    assert_int_equal(w->n_serving, 1);
    for (int i = 0; i < 6; i++) {
        if (i != lost) assert_int_equal(w->groups[i].stage < 0, w->groups[i].pipeline == pipeline);
    }
    start(w, lost, 6100);
    act_all(w);
    assert_int_equal(w->n_serving, 2);
    for (int i = 0; i < 6; i++) assert_int_equal(w->groups[i].n_loads, 1);
    assert_int_equal(w->groups[lost].pipeline, pipeline);
    free(w);
}

static void all_pipelines_are_adopted(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init_n(w, 7, 0, 0, 0, 0);
    for (int i = 0; i < 6; i++) start(w, i, 0);
    act_all(w);
    uint64_t before[2] = {w->serving[0], w->serving[1]};
    world_init_n(w, 1000, 3000, 100, 0, 0);
    for (int i = 5; i >= 0; i--) hello(w, i, 200);
    start(w, 6, 300);
    for (int i = 7; i < WORLD; i++) start(w, i, 300);
    act_all(w);
    assert_int_equal(w->n_adopted, 2);
    assert_int_equal(w->n_serving, 2);
    for (int i = 0; i < 2; i++) assert_true(serving_index(w, before[i]) >= 0);
    for (int i = 0; i < 6; i++) assert_int_equal(w->groups[i].n_loads, 1);
    tick_to(w, 300, 3300); // then the others make a third one, under an id of its own
    act_all(w);
    assert_int_equal(w->n_serving, 3);
    assert_int_equal(w->groups[6].pipeline, 3);
    assert_true(w->groups[6].epoch > 1000);
    free(w);
}

static void a_group_that_drains_ends_its_pipeline_alone(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init_n(w, 1, 0, 0, 0, 0);
    for (int i = 0; i < 6; i++) start(w, i, 0);
    act_all(w);
    struct sim *s = &w->groups[2];
    struct peer p = peer_of(2, s->boot);
    uint64_t epoch = s->epoch;
    fleet_drain(&w->fleet, &p);
    assert_int_equal(w->n_serving, 2); // its jobs may end
    fleet_drained(&w->fleet, epoch);
    assert_int_equal(serving_index(w, epoch), -1);
    assert_int_equal(w->n_serving, 1);
    fleet_bye(&w->fleet, &p);
    s->alive = false;
    start(w, 2, 100);
    act_all(w);
    assert_int_equal(w->n_serving, 2);
    free(w);
}

// What cannot be loaded is tried with others before it is tried again with the same.
static void a_group_that_fails_to_load_goes_last(void **state)
{
    (void) state;
    struct world *w = calloc(1, sizeof *w);
    world_init(w, 1, 0, 0);
    for (int i = 0; i < 3; i++) start(w, i, 0);
    start(w, 3, 0);
    assert_int_equal(w->groups[3].stage, -1);
    struct peer p = peer_of(1, w->groups[1].boot);
    fleet_failed(&w->fleet, &p, w->groups[1].epoch, "no memory");
    act_all(w);
    assert_int_equal(w->n_serving, 1);
    assert_int_equal(w->groups[1].stage, -1);
    assert_true(w->groups[3].stage >= 0);
    free(w);
}

// --- anything

// One event of a random life.
static void live(struct world *w, int i, int64_t now)
{
    struct sim *s = &w->groups[i];
    struct peer p = peer_of(i, s->boot);
    uint64_t epoch = s->epoch;
    int what = rand() % 12;
    if (what == 1 && !s->alive) start(w, i, now);
    if (what == 2) start(w, i, now); // killed and started at once
    if (!s->alive) return;
    if (what == 0) s->alive = false;
    if (what == 3 && rand() % 4 == 0) fleet_failed(&w->fleet, &p, epoch, "test");
    if (what == 5) hello(w, i, now); // reconnected
    if (what > 6) act(w, i);
    if ((what != 4 && what != 6) || rand() % 4 > 0) return;
    if (what == 6) {
        fleet_drain(&w->fleet, &p);
        if (serving_index(w, epoch) >= 0) fleet_drained(&w->fleet, epoch);
    }
    fleet_bye(&w->fleet, &p);
    s->alive = false;
}

// What must hold at any time.
static void check_world(const struct world *w)
{
    assert_int_equal(w->n_serving, fleet_n_pipelines(&w->fleet, PIPELINE_SERVING));
    bool has[FLEET_GROUPS_MAX] = {false};
    for (int i = 0; i < PIPELINES_MAX; i++) {
        const struct pipeline *p = &w->fleet.pipelines[i];
        if (p->state == PIPELINE_NONE || p->state == PIPELINE_WAITING) continue;
        assert_true(p->epoch <= w->epoch);
        for (int k = 0; k < i; k++) {
            bool same = w->fleet.pipelines[k].state >= PIPELINE_LOADING &&
                        w->fleet.pipelines[k].epoch == p->epoch;
            assert_false(same);
        }
        for (int s = 0; s < STAGES; s++) {
            int g = p->stages[s];
            assert_true(g >= 0 && w->fleet.groups[g].used && !has[g]);
            has[g] = true;
            assert_int_equal(w->fleet.groups[g].stage, s);
            assert_int_equal(w->fleet.groups[g].pipeline, i);
        }
    }
}

// Whatever happens, each epoch comes up and goes down once (the actions assert it), no group has
// two stages, and with enough groups all pipelines serve again.
static void random_lives_always_serve_again(void **state)
{
    (void) state;
    for (unsigned seed = 1; seed <= 300; seed++) {
        srand(seed);
        struct world *w = calloc(1, sizeof *w);
        int64_t now = 0;
        int most = (int) (seed % 4), spares = (int) (seed / 4 % 2), pipelines = most;
        world_init_n(w, 1, 0, 0, most, spares);
        if (most == 0) pipelines = (WORLD - spares) / STAGES;
        if (pipelines * STAGES + spares > WORLD) pipelines = (WORLD - spares) / STAGES;
        for (int i = 0; i < WORLD; i++) start(w, i, now);
        for (int k = 0; k < 400; k++) {
            now += rand() % 300;
            live(w, rand() % WORLD, now);
            if (rand() % 100 == 0) { // another broker
                for (int i = 0; i < WORLD; i++) w->groups[i].next[0] = 0;
                world_init_n(w, w->epoch + 1000, 2000, now, most, spares);
            }
            for (int j = 0; j < WORLD; j++) {
                struct peer q = peer_of(j, w->groups[j].boot);
                if (w->groups[j].alive && !fleet_seen(&w->fleet, &q, now)) hello(w, j, now);
            }
            fleet_tick(&w->fleet, now);
            check_world(w);
        }
        for (int i = 0; i < WORLD; i++) {
            if (!w->groups[i].alive) start(w, i, now);
        }
        for (int k = 0; k < 6; k++) {
            tick_to(w, now, now + 1000);
            now += 1000;
            act_all(w);
        }
        check_world(w);
        assert_in_range(w->n_serving, pipelines, pipelines + 1); // formed without spares in need
        for (int i = 0; i < WORLD; i++) {
            struct sim *s = &w->groups[i];
            if (s->stage >= 0) assert_true(serving_index(w, s->epoch) >= 0);
        }
        free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_groups_make_a_pipeline),
        cmocka_unit_test(a_spare_takes_over_and_the_others_keep_their_weights),
        cmocka_unit_test(a_new_broker_adopts_a_running_pipeline),
        cmocka_unit_test(an_incomplete_pipeline_is_not_adopted),
        cmocka_unit_test(lost_commands_are_said_again),
        cmocka_unit_test(a_broker_that_slept_gives_nobody_up),
        cmocka_unit_test(a_group_that_serves_nothing_yet_leaves_at_once),
        cmocka_unit_test(groups_of_a_set_make_a_pipeline_each),
        cmocka_unit_test(spares_stay_idle_until_a_stage_is_lost),
        cmocka_unit_test(no_more_pipelines_than_asked_for),
        cmocka_unit_test(a_loss_is_its_own_pipelines),
        cmocka_unit_test(all_pipelines_are_adopted),
        cmocka_unit_test(a_group_that_drains_ends_its_pipeline_alone),
        cmocka_unit_test(a_group_that_fails_to_load_goes_last),
        cmocka_unit_test(random_lives_always_serve_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
