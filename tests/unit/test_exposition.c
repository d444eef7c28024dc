// Prometheus' text format as it is written; where HTTP may be listened to. What reads it is in
// tests/e2e/metrics.
#include "broker/exposition.h"
#include "broker/http.h"
#include "broker/metrics.h"
#include "broker/site.h"
#include "tests/support/sockets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

static struct buffer text;

static int setup(void **state)
{
    (void) state;
    buffer_init(&text, 1 << 20);
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    buffer_deinit(&text);
    return 0;
}

static void assert_text(const char *want)
{
    assert_int_equal(buffer_append(&text, "", 1), OK);
    assert_string_equal((const char *) text.data, want);
    buffer_clear(&text);
}

static void a_family_and_its_samples(void **state)
{
    (void) state;
    exposition_family(&text, "x_total", "counter", "What x is.");
    exposition_count(&text, "x_total", LABELS({"a", "1"}, {"b", "two"}), 7);
    exposition_count(&text, "x_total", LABELS({0}), UINT64_MAX);
    assert_text("# HELP x_total What x is.\n# TYPE x_total counter\nx_total{a=\"1\",b=\"two\"} 7\n"
                "x_total 18446744073709551615\n");
    exposition_real(&text, "y", LABELS({0}), 0.001);
    exposition_real(&text, "y", LABELS({"k", ""}), 1795687684.25);
    assert_text("y 0.001\ny{k=\"\"} 1795687684.25\n");
}

static void labels_are_escaped(void **state)
{
    (void) state;
    exposition_count(&text, "x", LABELS({"a", "q\" b\\ n\n e\xc3\xa9}"}), 1);
    assert_text("x{a=\"q\\\" b\\\\ n\\n e\xc3\xa9}\"} 1\n");
}

static void a_histogram_is_cumulative(void **state)
{
    (void) state;
    struct histogram h = {0};
    histogram_add(&h, 100);
    histogram_add(&h, 300);
    histogram_add(&h, 300);
    histogram_add(&h, 1000000);
    exposition_histogram(&text, "s", LABELS({"k", "v"}), &h, 0, 2);
    assert_text("s_bucket{k=\"v\",le=\"0.000128\"} 1\ns_bucket{k=\"v\",le=\"0.000256\"} 1\n"
                "s_bucket{k=\"v\",le=\"0.000512\"} 3\ns_bucket{k=\"v\",le=\"+Inf\"} 4\n"
                "s_sum{k=\"v\"} 1.0007\ns_count{k=\"v\"} 4\n");
    exposition_histogram(&text, "s", LABELS({0}), &h, 1, 1);
    assert_text("s_bucket{le=\"0.000256\"} 1\ns_bucket{le=\"+Inf\"} 4\ns_sum 1.0007\ns_count 4\n");
}

// A broker that does not lead yet has families without samples.
static void a_standby_tells_of_itself(void **state)
{
    (void) state;
    static const struct metrics m = {.queue = "q", .name = "b", .redis = true};
    metrics_write(&m, &text);
    assert_int_equal(buffer_append(&text, "", 1), OK);
    assert_non_null(strstr((const char *) text.data, "\npenstock_broker_leads{name=\"b\"} 0\n"));
    assert_non_null(strstr((const char *) text.data, "\npenstock_redis_up 1\n"));
    assert_non_null(strstr((const char *) text.data, "\n# TYPE penstock_jobs gauge\n# HELP "));
}

static int times_in(const char *page, const char *what)
{
    int n = 0;
    for (const char *at = page; (at = strstr(at, what)) != NULL; at += strlen(what)) n++;
    return n;
}

static void nothing(void *arg, int model, const struct plan *plan)
{
    (void) arg, (void) model, (void) plan;
}

// A pipeline of two groups. Both tell of a pool: the second one was a head before.
static void two_groups(struct fleet *f, struct fleet_record *r)
{
    f->n_groups = 2;
    f->pipelines[0] = (struct pipeline){.id = 7, .epoch = 9, .state = PIPELINE_SERVING};
    for (int i = 0; i < 2; i++) {
        struct group *g = &f->groups[i];
        struct wire_message m = {.command = WIRE_HELLO};
        struct wire_pong pong = {.counted = true,
                                 .figures = {.kv_blocks = 100 + (uint64_t) i, .slots = 4}};
        *g = (struct group){.used = true, .stage = 1 - i, .peer = {.bytes = {0, (uint8_t) i},
                            .n = 2}};
        snprintf(g->name, sizeof g->name, "g-%d", i);
        snprintf(m.hello.name, sizeof m.hello.name, "%s", g->name);
        fleet_record_hear(r, &g->peer, &m, 0);
        fleet_record_count(r, &g->peer, 0, g->stage, &pong, 0);
    }
}

static void a_pipelines_pool_is_told_by_its_head_alone(void **state)
{
    (void) state;
    static struct models models = {.n = 1};
    static struct fleet_record record;
    char endpoint[ENDPOINT_BYTES];
    struct groups *groups;
    struct error e;
    void *context = zmq_ctx_new();
    void *router = sockets_bind(context, ZMQ_ROUTER, false, "metrics", endpoint);
    snprintf(models.at[0].name, sizeof models.at[0].name, "tiny");
    models.at[0].pp = 2;
    assert_int_equal(model_config_load(&models.at[0].config, FIXTURES "/tiny-bf16", &e), OK);
    const struct groups_options o = {.models = &models, .socket = router, .planned = nothing};
    assert_int_equal(groups_create(&groups, &o, &e), OK);
    struct site *site = (struct site *) groups_site(groups, 0);
    site->planned = true;
    two_groups(&site->fleet, &record);
    const struct metrics m = {.queue = "q", .name = "b", .leads = true, .groups = groups,
                              .record = &record, .models = &models};
    metrics_write(&m, &text);
    assert_int_equal(buffer_append(&text, "", 1), OK);
    const char *page = (const char *) text.data;
    static const char *const names[] = {"\npenstock_kv_blocks_used{", "\npenstock_sequences{",
                                        "\npenstock_kv_blocks_reserved{", "\npenstock_slots{"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(times_in(page, names[i]), 1);
    }
    static const char total[] = "\npenstock_kv_blocks_total{model=\"tiny\",pipeline=\"7\"} 101\n";
    assert_non_null(strstr(page, total));
    assert_int_equal(times_in(page, "\npenstock_kv_blocks_total{"), 1);
    assert_int_equal(times_in(page, "\npenstock_group_info{"), 2);
    groups_destroy(&groups);
    zmq_close(router);
    zmq_ctx_term(context);
}

static void places_to_listen(void **state)
{
    (void) state;
    static const char *const good[] = {"0", "9464", "127.0.0.1:0", "0.0.0.0:9464", "[::1]:9464",
                                       "[::]:65535"};
    static const char *const bad[] = {"", ":", "x", "-1", "65536", "127.0.0.1", "127.0.0.1:",
                                      ":9464", "localhost:1", "::1:1", "[::1]", "[::1:1", "[]:1",
                                      "1.2.3.4.5:1", "127.0.0.1:1x", "127.0.0.1: 1", "]:1", "[:1"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct error e;
        if (http_check(good[i], &e) != OK) fail_msg("%s: %s", good[i], e.text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error e = {0};
        if (http_check(bad[i], &e) != ERR_INPUT) fail_msg("%s is taken", bad[i]);
        assert_string_equal(e.code, "bad_usage");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_family_and_its_samples, setup, teardown),
        cmocka_unit_test_setup_teardown(labels_are_escaped, setup, teardown),
        cmocka_unit_test_setup_teardown(a_histogram_is_cumulative, setup, teardown),
        cmocka_unit_test_setup_teardown(a_standby_tells_of_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(a_pipelines_pool_is_told_by_its_head_alone, setup,
                                        teardown),
        cmocka_unit_test(places_to_listen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
