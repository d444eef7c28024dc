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

enum { WORLD = 6 };

// What a simulated group knows of itself.
struct sim {
    bool alive;
    uint64_t boot, epoch;
    int stage; // -1: none
    bool ready_sent, linked;
    int first, last;
    uint8_t token[LINK_TOKEN_SIZE];
    char next[ENDPOINT_MAX];
};

struct world {
    struct fleet fleet;
    struct sim groups[WORLD];
    int n_up, n_down;
    bool up;
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
    s->stage = a->stage;
    s->epoch = a->epoch;
    s->first = a->first;
    s->last = a->last;
    memcpy(s->token, a->token, sizeof s->token);
    s->ready_sent = s->linked = false;
    s->next[0] = 0;
}

static void on_link(void *arg, const struct group *g, uint64_t epoch, const char *next)
{
    struct sim *s = sim_of(arg, g);
    if (s->boot != g->boot) return; // sent to a life that has ended
    assert_int_equal(s->epoch, epoch);
    snprintf(s->next, sizeof s->next, "%s", next);
}

static void on_unassign(void *arg, const struct group *g, uint64_t epoch)
{
    (void) epoch;
    struct sim *s = sim_of(arg, g);
    if (s->boot != g->boot) return;
    s->stage = -1;
    s->linked = false;
}

static void on_up(void *arg, const struct group *head, bool adopted)
{
    struct world *w = arg;
    (void) adopted;
    assert_false(w->up);
    assert_int_equal(head->stage, 0);
    w->up = true;
    w->n_up++;
}

static void on_down(void *arg, const char *reason)
{
    struct world *w = arg;
    (void) reason;
    assert_true(w->up);
    w->up = false;
    w->n_down++;
}

static void on_random(void *arg, void *bytes, size_t n)
{
    (void) arg;
    for (size_t i = 0; i < n; i++) ((uint8_t *) bytes)[i] = (uint8_t) rand();
}

static struct fleet_options options(uint64_t epoch, int64_t adopt_ms)
{
    return (struct fleet_options){.n_stages = 3, .layers = {2, 3, 1}, .plan_hash = "plan",
                                  .first_epoch = epoch, .adopt_ms = adopt_ms, .dead_ms = 5000};
}

static void world_init(struct world *w, uint64_t epoch, int64_t adopt_ms, int64_t now)
{
    struct fleet_options o = options(epoch, adopt_ms);
    struct fleet_actions a = {w, on_assign, on_link, on_unassign, on_up, on_down, on_random};
    w->up = false;
    fleet_init(&w->fleet, &o, &a, now);
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
        held = (struct held_assignment){.some = true, .pipeline = 1, .epoch = s->epoch,
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
    assert_null(fleet_head(&w->fleet));
    act_all(w);
    assert_true(w->up);
    const struct group *head = fleet_head(&w->fleet);
    assert_non_null(head);
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
    assert_false(w->up);
    act_all(w);
    assert_true(w->up);
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
    uint64_t epoch = w->fleet.epoch;
    world_init(w, 1000, 3000, 100); // the broker starts again
    for (int i = 0; i < 3; i++) {
        assert_false(w->up);
        hello(w, i, 200);
    }
    assert_true(w->up);
    assert_int_equal(w->fleet.epoch, epoch);
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
    assert_false(w->up);
    for (int i = 0; i < 3; i++) {
        struct peer p = peer_of(i, w->groups[i].boot);
        fleet_seen(&w->fleet, &p, 3000);
    }
    fleet_tick(&w->fleet, 3200);
    act_all(w);
    assert_true(w->up);
    assert_true(w->fleet.epoch >= 1000);
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
    assert_true(w->up);
    assert_int_equal(w->fleet.epoch, epoch);
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
    assert_true(w->up);
    w->groups[1].alive = false; // this one really is gone
    tick_to(w, 60500, 66500);
    assert_false(w->up);
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
    assert_true(w->up);
    free(w);
}

// Whatever happens, `up` and `down` alternate (the actions assert it), all stages of a serving
// pipeline belong to living groups of one epoch, and with enough groups it always serves again.
static void random_lives_always_serve_again(void **state)
{
    (void) state;
    for (unsigned seed = 1; seed <= 200; seed++) {
        srand(seed);
        struct world *w = calloc(1, sizeof *w);
        int64_t now = 0;
        world_init(w, 1, 0, 0);
        for (int i = 0; i < WORLD; i++) start(w, i, now);
        for (int k = 0; k < 400; k++) {
            int i = rand() % WORLD;
            struct sim *s = &w->groups[i];
            struct peer p = peer_of(i, s->boot);
            now += rand() % 300;
            switch (rand() % 12) {
            case 0: s->alive = false; break;
            case 1:
                if (!s->alive) start(w, i, now);
                break;
            case 2: start(w, i, now); break; // killed and started at once
            case 3:
                if (s->alive && rand() % 4 == 0) {
                    fleet_failed(&w->fleet, &p, s->epoch, "test");
                }
                break;
            case 4:
                if (s->alive && rand() % 4 == 0) {
                    fleet_bye(&w->fleet, &p);
                    s->alive = false;
                }
                break;
            case 5:
                if (s->alive) hello(w, i, now); // reconnected
                break;
            case 6:
                if (s->alive && rand() % 4 == 0) {
                    fleet_drain(&w->fleet, &p);
                    if (fleet_draining(&w->fleet)) fleet_drained(&w->fleet);
                    fleet_bye(&w->fleet, &p);
                    s->alive = false;
                }
                break;
            default:
                if (s->alive) act(w, i);
            }
            for (int j = 0; j < WORLD; j++) {
                struct peer q = peer_of(j, w->groups[j].boot);
                if (w->groups[j].alive && !fleet_seen(&w->fleet, &q, now)) hello(w, j, now);
            }
            fleet_tick(&w->fleet, now);
            assert_int_equal(w->up, fleet_head(&w->fleet) != NULL);
        }
        for (int i = 0; i < WORLD; i++) {
            if (!w->groups[i].alive) start(w, i, now);
        }
        act_all(w);
        assert_true(w->up);
        bool seen[3] = {false};
        for (int i = 0; i < WORLD; i++) {
            struct sim *s = &w->groups[i];
            if (s->stage < 0) continue;
            assert_int_equal(s->epoch, w->fleet.epoch);
            assert_false(seen[s->stage]);
            seen[s->stage] = true;
        }
        assert_true(seen[0] && seen[1] && seen[2]);
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
        cmocka_unit_test(random_lives_always_serve_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
