// What people ask of a queue (broker/queue_admin.lua).
#include "common/limits.h"
#include "tests/support/queue_library.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>

static void test_tenants_and_their_budgets(void **state)
{
    (void) state;
    expect("[0 [default 1 0 0 0 0 0]]", "tenants");
    expect("ok", "tenant_set", "add", "big", "4", "1000", "8", "50000");
    expect("exists", "tenant_set", "add", "big", "", "", "", "");
    expect("unknown", "tenant_set", "set", "other", "2", "", "", "");
    expect("ok", "tenant_set", "set", "big", "", "10", "", "");
    expect_cmd("weight=4 bytes=10 jobs=8 tokens=50000", "HGET", "%Ttenants", "big");
    assert_non_null(strstr(call("tenants"), "[big 4 10 8 50000 0 0]"));
    expect("!BADARG", "tenant_set", "set", "big", "0", "", "", "");
    expect("!BADARG", "tenant_set", "set", "big", "1001", "", "", "");
    // What somebody wrote by hand is read as well as it can be.
    cmd("HSET", "%Ttenants", "big", "7");
    assert_non_null(strstr(call("tenants"), "[big 7 0 0 0 0 0]"));
    cmd("HSET", "%Ttenants", "big", "junk");
    assert_non_null(strstr(call("tenants"), "[big 1 0 0 0 0 0]"));
}

static void test_a_paused_queue_or_tenant_starts_nothing(void **state)
{
    (void) state;
    make_job("1", "a");
    expect("unknown", "pause", "nobody", "1");
    expect("ok", "pause", "default", "1");
    expect("[0 [default 1 0 0 0 1 1]]", "tenants");
    expect("[[later default a]]", "claim", "1", "30000", "100", "1", "g", "default", "a");
    expect("ok", "pause", "*", "1");
    expect("ok", "pause", "default", "0");
    expect("[1 [default 1 0 0 0 0 1]]", "tenants");
    expect("[[later default a]]", "claim", "1", "30000", "100", "2", "g", "default", "a");
    assert_non_null(strstr(call("stats"), "paused 1 paused_tenants 0"));
    expect("ok", "pause", "*", "0");
    const char *got = call("claim", "1", "30000", "100", "3", "g", "default", "a");
    assert_non_null(strstr(got, "[ok default a 1"));
    // What runs goes on, and a claim whose reply was lost is read back.
    expect("ok", "pause", "*", "1");
    got = call("claim", "1", "30000", "100", "3", "g", "default", "a");
    assert_non_null(strstr(got, "[ok default a 1"));
    expect("ok", "done", "1", "default", "a", "1", "done", "R");
}

// Every tenant, every class; the ms are those that a job has waited.
static void test_depths_of_tenants_and_classes(void **state)
{
    (void) state;
    expect("[[] [default 0 0 0 0 0 0 0 0]]", "depths");
    make_job("1", "a");
    make_job("2", "b");
    cmd("RPUSH", "%Tin:default", "x");
    expect("ok", "tenant_set", "add", "other", "1", "", "", "");
    expect("ok", "pause", "other", "1");
    const char *got = call("depths");
    assert_int_equal(strncmp(got, "[[default a ", 12), 0); // the first one is the oldest
    assert_non_null(strstr(got, "[other 1 0 0 0 0 0 0 0]"));
    unsigned waited, n[4];
    const char *row = strstr(got, "[default 0 1 0 ");
    assert_non_null(row);
    assert_int_equal(sscanf(row, "[default 0 1 0 %u %u %u %u %u]", &waited, &n[0], &n[1], &n[2],
                            &n[3]), 5);
    assert_int_equal(n[0] + n[1] + n[2] + n[3], 2);
    call("claim", "1", "30000", "100", "3", "g", "default", "a");
    got = call("depths");
    assert_int_equal(strncmp(got, "[[default b ", 12), 0);
    assert_non_null(strstr(got, "[default 0 1 1 "));
    expect("!BADARG", "depths", "1");
}

static void test_busy_counts_what_runs(void **state)
{
    (void) state;
    expect("ok", "tenant_set", "add", "default-2", "1", "0", "0", "0"); // not the same by its start
    expect("0", "busy", "*");
    make_running("1", "a", "1");
    make_running("2", "b", "2");
    make_job("3", "c");
    expect("2", "busy", "*");
    expect("2", "busy", "default");
    expect("0", "busy", "default-2");
    // Paused, it can only become less, whatever the way.
    expect("ok", "pause", "default", "1");
    expect("ok", "done", "1", "default", "a", "1", "done", "R");
    expect("1", "busy", "default");
    make_due("ls", "default:b");
    call("reap", "1", "10");
    expect("0", "busy", "default");
    expect("[[later default b]]", "claim", "1", "30000", "100", "5", "g", "default", "b");
    expect("0", "busy", "default");
    expect("!BADARG", "busy", "a b");
    expect("!BADARG", "busy");
}

static void expect_waits(const char *id, const char *wanted)
{
    char said[64];
    const char *at = strstr(call("show", "default", id), " waits ");
    snprintf(said, sizeof said, "%.*s", at != NULL ? (int) strcspn(at + 7, " ]") : 0,
             at != NULL ? at + 7 : "");
    assert_string_equal(said, wanted);
}

static void test_show_tells_what_a_job_waits_for(void **state)
{
    (void) state;
    make_job("1", "a");
    make_job("2", "b"); // 3 blocks each
    expect_waits("b", "turn");
    expect("ok", "pause", "default", "1");
    expect_waits("b", "tenant_paused");
    expect("ok", "pause", "default", "0");
    // Budgets count what runs; a job alone is never over one.
    expect("ok", "tenant_set", "set", "default", "", "", "1", "0");
    expect_waits("b", "turn");
    call("claim", "1", "30000", "100", "1", "g", "default", "a");
    expect_waits("a", "");
    expect_waits("b", "budget_jobs");
    expect("ok", "tenant_set", "set", "default", "", "", "0", "384"); // 6 blocks
    expect_waits("b", "turn");
    expect("ok", "tenant_set", "set", "default", "", "", "0", "320");
    expect_waits("b", "budget_tokens");
    expect("[retry 1000]", "fail", "1", "default", "a", "1", "c", "t", "1", "1000", "5000",
           "999999", "");
    expect_waits("a", "backoff");
    expect_waits("b", "turn");
    cmd("HSET", "%Tj:default:b", "poison", "1");
    expect_waits("b", "alone");
    cmd("RPUSH", "%Tin:default", "m");
    call("take", "1", "default", "1", "1000", "1000");
    expect("ok", "admit", "1", "default", "3", "c", "2", "h", "3", "100", "20", "9000000000000",
           "0", "60000", "3", "0", "", "", "m");
    expect_waits("c", "at");
    make_due("dly", "default:c");
    call("promote", "1", "10");
    const char *got = call("show", "default", "c");
    assert_non_null(strstr(got, " waits turn ahead 0 waiting 1 before 1]"));
    expect("[cancelled]", "cancel", "1", "default", "0", "c");
    expect_waits("c", "");
    assert_non_null(strstr(call("show", "default", "c"), " until "));
}

static void test_paused_pipelines_are_remembered(void **state)
{
    (void) state;
    expect("[]", "pauses");
    expect("ok", "pause_pipeline", "model.x", "2", "1");
    expect("ok", "pause_pipeline", "model.x", "2", "1");
    expect("[[model.x 2]]", "pauses");
    assert_non_null(strstr(call("stats"), "paused 0 paused_tenants 0"));
    expect("!BADARG", "pause_pipeline", "a/b", "2", "1");
    expect("!BADARG", "pause_pipeline", "m", "0", "1");
    expect("!BADARG", "pause_pipeline", "m", "1", "2");
    expect("ok", "pause_pipeline", "model.x", "3", "0"); // nothing to resume
    char number[8];
    for (int i = 3; i < 2 + PAUSED_PIPELINES_MAX; i++) {
        snprintf(number, sizeof number, "%d", i);
        expect("ok", "pause_pipeline", "m", number, "1");
    }
    expect("full", "pause_pipeline", "m", "999", "1");
    expect("ok", "pause_pipeline", "model.x", "2", "1");
    expect("ok", "pause_pipeline", "model.x", "2", "0");
    expect("ok", "pause_pipeline", "m", "999", "1");
}

static void expect_waits(const char *id, const char *wanted);

static void test_show_tells_who_could_run_a_job(void **state)
{
    (void) state;
    make_job("1", "a");
    expect_waits("a", "turn"); // the leader has said nothing yet
    const char *model = cmd("HGET", "%Tj:default:a", "model");
    char record[256], name[64];
    snprintf(name, sizeof name, "%s", model);
    static const struct {
        const char *pipelines, *waits;
    } table[] = {
        {"{\"state\":\"serving\"}", "turn"},
        {"{\"state\":\"serving\",\"paused\":true}", "no_pipeline"},
        {"{\"state\":\"loading\"},{\"state\":\"serving\"}", "turn"},
        {"{\"state\":\"waiting\"}", "no_pipeline"},
        {"", "no_pipeline"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        snprintf(record, sizeof record, "{\"models\":[{\"name\":\"%s\",\"pipelines\":[%s]}]}",
                 name, table[i].pipelines);
        expect("ok", "fleet", "1", "60000", record);
        expect_waits("a", table[i].waits);
    }
    expect("ok", "fleet", "1", "60000", "no JSON");
    expect_waits("a", "turn");
    expect("ok", "resign", "1");
    expect_waits("a", "no_broker");
}

static void test_dead_letters_are_listed_retried_and_purged(void **state)
{
    (void) state;
    cmd("RPUSH", "%Tin:default", "junk");
    call("take", "1", "default", "10", "1000", "1000");
    expect("dead", "reject", "1", "default", "1", "", "", "bad_msgpack", "a sentence", "");
    make_running("2", "b", "1");
    expect("[dead 0]", "fail", "1", "default", "b", "1", "code", "why", "0", "1", "1", "0", "");
    expect_cmd("[junk b]", "HVALS", "%Traw");
    const char *got = call("dead", "default", "0", "10");
    assert_non_null(strstr(got, "[0 [")); // all of them, newest first (or the same millisecond)
    assert_non_null(strstr(got, " code why 1 0]"));
    assert_non_null(strstr(got, " bad_msgpack a sentence 0 0]"));
    got = call("dead", "default", "0", "1");
    assert_memory_equal(got, "[1 [", 4);
    expect("[0]", "dead", "other", "0", "10");
    expect("unknown", "retry", "default", "nobody");
    expect("ok", "retry", "default", "b");
    expect("unknown", "retry", "default", "b");
    expect_cmd("[b]", "LRANGE", "%Tin:default", "0", "-1");
    expect_cmd("0", "EXISTS", "%Tj:default:b", "%Tr:default:b");
    expect("ok", "purge", "default", "raw-1");
    expect("unknown", "purge", "default", "raw-1");
    expect_clean();
    // It is a job like any other again.
    make_running("3", "b", "2");
    expect("unknown", "retry", "default", "b");
    expect("unknown", "purge", "default", "b");
    expect("ok", "done", "1", "default", "b", "2", "done", "R");
}

static void test_show_tells_where_a_job_is(void **state)
{
    (void) state;
    expect("[]", "show", "default", "a");
    make_job("1", "a");
    make_job("2", "b");
    const char *got = call("show", "default", "b");
    assert_non_null(strstr(got, "state queued"));
    assert_non_null(strstr(got, " waits turn ahead 1 waiting 2 before 0]"));
    expect("ok", "pause", "*", "1");
    got = call("show", "default", "b");
    assert_non_null(strstr(got, " waits queue_paused paused 1 ahead 1 waiting 2 before 0]"));
    expect("ok", "pause", "*", "0");
    call("claim", "1", "30000", "100", "1", "group", "default", "b");
    call("checkpoint", "1", "default", "b", "1", "0", "ABCD");
    got = call("show", "default", "b");
    assert_non_null(strstr(got, "state running"));
    assert_non_null(strstr(got, "owner group"));
    assert_non_null(strstr(got, " checkpoint 4 lease "));
    call("fail", "1", "default", "b", "1", "code", "why", "0", "1", "1", "0", "");
    assert_non_null(strstr(call("show", "default", "b"), " dead "));
}

#define test(f) cmocka_unit_test_setup(f, library_new_queue)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_tenants_and_their_budgets),
        test(test_a_paused_queue_or_tenant_starts_nothing),
        test(test_depths_of_tenants_and_classes),
        test(test_busy_counts_what_runs),
        test(test_dead_letters_are_listed_retried_and_purged),
        test(test_show_tells_where_a_job_is),
        test(test_show_tells_what_a_job_waits_for),
        test(test_show_tells_who_could_run_a_job),
        test(test_paused_pipelines_are_remembered),
    };
    return cmocka_run_group_tests(tests, library_start, library_stop);
}
