// What the leader says of its fleet: from a HELLO on, as groups report, over sockets and without
// Redis.
#include "broker/fleet_record.h"

#include "broker/groups.h"
#include "broker/model.h"
#include "common/clock.h"
#include "tests/support/sockets.h"
#include "tests/support/wire_examples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <jansson.h>
#include <string.h>

static struct fleet_record record;
static int64_t now_ms;

static struct peer peer_of(int n)
{
    struct peer p = {.bytes = {0, (uint8_t) n, (uint8_t) (n >> 8)}, .n = 3};
    return p;
}

static void hello(int n, const char *name, uint64_t bytes)
{
    struct wire_device device = {.bytes = bytes};
    struct wire_message m = {.command = WIRE_HELLO};
    struct peer from = peer_of(n);
    m.hello.devices = &device;
    m.hello.n_devices = m.hello.tp = 1;
    snprintf(m.hello.name, sizeof m.hello.name, "%s", name);
    fleet_record_hear(&record, &from, &m, now_ms);
}

static void say(int n, const struct wire_message *m)
{
    struct peer from = peer_of(n);
    fleet_record_hear(&record, &from, m, now_ms);
}

static const struct fleet_report *of(const char *name)
{
    const struct fleet_report *found = NULL;
    for (int i = 0; i < FLEET_GROUPS_MAX; i++) {
        const struct fleet_report *p = &record.at[i];
        if (!p->used || strcmp(p->name, name) != 0) continue;
        assert_null(found); // one place a group
        found = p;
    }
    return found;
}

static int setup(void **state)
{
    (void) state;
    record = (struct fleet_record){0};
    now_ms = 0;
    return 0;
}

static void what_groups_report_is_kept(void **state)
{
    (void) state;
    hello(1, "a", 1000);
    hello(2, "b", 2000);
    struct wire_message pong = {.command = WIRE_PONG, .pong = {.loaded_bytes = 3, .load_bytes = 9}};
    say(1, &pong);
    struct wire_message failed = {.command = WIRE_FAILED};
    strcpy(failed.failed.code, "link_lost");
    strcpy(failed.failed.message, "gone");
    say(1, &failed);
    assert_true(of("a")->loaded_bytes == 3 && of("a")->load_bytes == 9 && !of("a")->ready);
    assert_string_equal(of("a")->code, "link_lost");
    assert_true(of("b")->device_bytes == 2000 && of("b")->code[0] == '\0');
    struct wire_message ready = {.command = WIRE_READY};
    ready.ready.epoch = 5;
    ready.ready.total_bytes = 700;
    say(1, &ready);
    assert_true(of("a")->ready && of("a")->ledger.total_bytes == 700);
    assert_string_equal(of("a")->code, ""); // it is over
    say(9, &ready); // nobody's
}

static void a_group_on_a_new_connection_is_the_same(void **state)
{
    (void) state;
    hello(1, "a", 1000);
    struct wire_message ready = {.command = WIRE_READY};
    say(1, &ready);
    hello(2, "a", 1500);
    assert_true(of("a")->ready && of("a")->device_bytes == 1500);
    struct wire_message pong = {.command = WIRE_PONG, .pong.load_bytes = 9};
    say(1, &pong); // the former one
    assert_int_equal(of("a")->load_bytes, 0);
    say(2, &pong);
    assert_int_equal(of("a")->load_bytes, 9);
}

static void what_groups_count_is_added_up(void **state)
{
    (void) state;
    struct wire_rank rank = {.busy_us = 4000000};
    struct wire_pong none = {.counted = true};
    struct wire_pong pong = {.counted = true,
                             .figures = {.rows = 10, .prefill_tokens = 6, .decode_tokens = 2,
                                         .ranks = &rank, .n_ranks = 1}};
    struct peer from = peer_of(1);
    histogram_add(&pong.figures.decode_steps, 1000);
    fleet_record_count(&record, &from, 1, 2, &pong, 1000); // nobody's
    hello(1, "a", 1000);
    fleet_record_count(&record, &from, 1, 2, &none, 500);
    fleet_record_count(&record, &from, 1, 2, &pong, 1000);
    fleet_record_count(&record, &from, 1, 2, &pong, 2000); // nothing new
    assert_true(record.models[1].prefill_tokens == 6 && record.models[1].decode_tokens == 2);
    assert_int_equal(record.models[1].steps[2][FIGURES_DECODE].sum_us, 1000);
    assert_int_equal(record.models[1].busy_us, 4000000);
    pong.counted = false; // an older group
    pong.figures = (struct wire_figures){0};
    fleet_record_count(&record, &from, 1, 2, &pong, 3000);
    struct wire_figures f = figures_total(&fleet_record_of(&record, &from)->figures);
    assert_true(f.rows == 10 && f.ranks[0].busy_us == 4000000);
}

static void more_groups_than_places(void **state)
{
    (void) state;
    char name[16];
    const struct wire_message pong = {.command = WIRE_PONG};
    for (int i = 0; i < FLEET_GROUPS_MAX + 3; i++) {
        snprintf(name, sizeof name, "g-%d", i);
        now_ms = i;
        hello(i, name, 1);
        say(0, &pong); // this one lives
    }
    assert_non_null(of("g-0"));
    assert_null(of("g-1"));
    assert_null(of("g-3"));
    assert_non_null(of("g-4"));
    assert_non_null(of("g-258"));
    now_ms++;
    hello(4, "g-4", 1);
    hello(300, "g-300", 1);
    assert_non_null(of("g-4"));
    assert_null(of("g-5"));
}

// Names that come and go take no place of a group that lives: its work is counted once.
static void strangers_dont_make_work_count_twice(void **state)
{
    (void) state;
    char name[16];
    struct wire_message pong = {.command = WIRE_PONG, .pong.counted = true};
    struct peer from = peer_of(0);
    hello(0, "a", 1);
    for (int i = 1; i <= 3 * FLEET_GROUPS_MAX; i++) {
        now_ms = i;
        pong.pong.figures.decode_tokens = (uint64_t) i - 1;
        say(0, &pong);
        fleet_record_count(&record, &from, 0, 0, &pong.pong, now_ms);
        snprintf(name, sizeof name, "g-%d", i);
        hello(i, name, 1);
        hello(0, "a", 1);
    }
    assert_int_equal(record.models[0].decode_tokens, 3 * FLEET_GROUPS_MAX - 1);
}

// --- as JSON

static void nothing(void *arg, int model, const struct plan *plan)
{
    (void) arg, (void) model, (void) plan;
}

static int not_paused(void *arg, uint64_t epoch)
{
    (void) arg, (void) epoch;
    return -1;
}

static json_t *said(const struct groups *g, int64_t at_ms)
{
    const struct fleet_loads loads = {NULL, not_paused};
    const struct fleet_leader leader = {"b-1", "tcp://x:1", 7, 1234};
    char *text = fleet_record_due(&record, &leader, g, 1, &loads, at_ms);
    if (text == NULL) return NULL;
    json_t *j = json_loads(text, 0, NULL);
    assert_non_null(j);
    free(text);
    return j;
}

static const json_t *model_of(const json_t *j)
{
    return json_array_get(json_object_get(j, "models"), 0);
}

static void it_is_said_when_it_changes_and_every_ten_seconds(void **state)
{
    (void) state;
    static struct models models;
    char endpoint[ENDPOINT_BYTES];
    struct groups *g;
    struct error e;
    void *context = zmq_ctx_new();
    void *router = sockets_bind(context, ZMQ_ROUTER, false, "record", endpoint);
    models = (struct models){.n = 1};
    struct model *m = &models.at[0];
    strcpy(m->name, "tiny");
    strcpy(m->hash, "abc");
    m->pp = 2;
    assert_int_equal(model_config_load(&m->config, FIXTURES "/tiny-bf16", &e), OK);
    struct groups_options o = {.models = &models, .socket = router, .record = &record,
                               .planned = nothing};
    assert_int_equal(groups_create(&g, &o, &e), OK);
    json_t *j = said(g, 1000);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "leader"), "term")), 7);
    assert_true(json_is_null(json_object_get(model_of(j), "plan")));
    assert_string_equal(json_string_value(json_object_get(model_of(j), "name")), "tiny");
    assert_int_equal(json_integer_value(json_object_get(model_of(j), "stages_wanted")), 2);
    json_decref(j);
    assert_null(said(g, 1100)); // too early to look
    assert_null(said(g, 2000)); // nothing new
    strcpy(m->name, "other");
    j = said(g, 3000);
    assert_string_equal(json_string_value(json_object_get(model_of(j), "name")), "other");
    json_decref(j);
    assert_null(said(g, 12900));
    j = said(g, 13500); // before it ends in Redis
    assert_non_null(j);
    json_decref(j);
    // Figures alone: once a second, or, where they are many, less often.
    record.news = true;
    assert_null(said(g, 14200));
    j = said(g, 14800);
    assert_non_null(j);
    json_decref(j);
    assert_null(said(g, 17000));
    record.news = true;
    record.n_said = 5 * FIGURES_RATE;
    assert_null(said(g, 19700));
    j = said(g, 20300);
    assert_non_null(j);
    json_decref(j);
    fleet_record_deinit(&record);
    groups_destroy(&g);
    zmq_close(router);
    zmq_ctx_term(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_groups_report_is_kept, setup),
        cmocka_unit_test_setup(a_group_on_a_new_connection_is_the_same, setup),
        cmocka_unit_test_setup(what_groups_count_is_added_up, setup),
        cmocka_unit_test_setup(more_groups_than_places, setup),
        cmocka_unit_test_setup(strangers_dont_make_work_count_twice, setup),
        cmocka_unit_test_setup(it_is_said_when_it_changes_and_every_ten_seconds, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
