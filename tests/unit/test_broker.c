// The life of a job in a whole broker, its input, its other ends, and starts that fail.
#include "tests/support/world.h"

#include "tests/support/bytes.h"
#include "tests/support/wire_examples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>
#include <zmq.h>

enum { ARGS_MAX = 32 }; // of a program

// --- life

static void the_life_of_a_job(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push("{'v': 1, 'id': 'a', 'op': 'tokens', 'custom_id': 'mine', 'body': {'tokens': [7, 8, 9], "
         "'max_tokens': 5, 'temperature': 0, 'seed': 3, 'stop_token_ids': [4]}}");
    struct fake_job *job = wait_job(g, "a");
    assert_int_equal(job->n_prompt, 3);
    assert_int_equal(job->ids[2], 9);
    assert_int_equal(job->max_tokens, 5);
    assert_int_equal(job->attempts, 1);
    assert_int_equal((int) job->sampling.seed, 3);
    fake_group_finish(g, job);
    until(job->committed);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK);
    expect_result("a", RESULT_OK, "", 5);
    expect_events("a", "done 1;");
    assert_int_equal(saved_bytes("a"), 0);
    assert_int_equal(program_stop(&w.broker), 0);
}

static void heads_are_told_how_long_steps_may_wait_and_take(void **state)
{
    (void) state;
    struct fake_group *g =
        start_world((const char *[]){"--wait-fill-ms", "7", "--step-ms", "900", NULL});
    assert_int_equal(g->assign.fill_ms, 7);
    assert_int_equal(g->assign.step_ms, 900);
}

static void many_jobs_within_the_credit(void **state)
{
    (void) state;
    enum { N = 40 };
    struct fake_group *g = start_world((const char *[]){"--slots", "4", NULL});
    char id[16];
    for (int i = 0; i < N; i++) {
        snprintf(id, sizeof id, "job-%d", i);
        push_job(id, 1 + i, 1 + i % 7);
    }
    for (int i = 0; i < N; i++) {
        snprintf(id, sizeof id, "job-%d", i);
        struct fake_job *job = wait_job(g, id); // in order of arrival
        int running = 0;
        for (int k = 0; k < g->n_jobs; k++) running += g->jobs[k].running;
        assert_in_range(running, 1, 4);
        fake_group_finish(g, job);
    }
    for (int i = 0; i < N; i++) {
        snprintf(id, sizeof id, "job-%d", i);
        expect_result(id, RESULT_OK, "", 1 + i % 7);
    }
}

static void two_stages_are_assigned_and_linked(void **state)
{
    (void) state;
    w.extra[0] = "--pp";
    w.extra[1] = "2";
    start_broker();
    struct fake_group *a = start_group("g-a"), *b = start_group("g-b");
    until(a->linked && b->linked);
    struct fake_group *head = a->assign.stage == 0 ? a : b, *tail = head == a ? b : a;
    assert_int_equal(tail->assign.stage, 1);
    assert_int_equal(head->assign.first, 0);
    assert_int_equal(head->assign.last, tail->assign.first);
    assert_string_equal(head->next, "in-1");
    assert_string_equal(tail->next, "tokens");
    assert_memory_equal(head->assign.token, tail->assign.token, WIRE_ID_BYTES);
    push_job("a", 3, 2);
    fake_group_finish(head, wait_job(head, "a"));
    expect_result("a", RESULT_OK, "", 2);
}

static void groups_that_do_not_fit_are_told_so(void **state)
{
    (void) state;
    start_broker();
    struct fake_group *g = start_group("stranger");
    snprintf(g->model, sizeof g->model, "another");
    until(strcmp(g->error, "bad_model") == 0);
    struct fake_group *first = start_group("first");
    until(first->linked);
    struct fake_group *second = start_group("second");
    second->tp = 2;
    until(strcmp(second->error, "bad_tp") == 0);
    assert_false(g->assigned || second->assigned);
}

// What it says to the next stage would not be understood.
static void groups_of_an_old_minor_version_are_told_so(void **state)
{
    (void) state;
    start_broker();
    struct fake_group *old = start_group("old");
    old->minor = WIRE_MINOR_LEAST - 1;
    until(strcmp(old->error, "old_minor") == 0);
    until(program_said(&w.broker, "code=old_minor") != NULL);
    struct fake_group *now = start_group("now");
    now->minor = WIRE_MINOR_LEAST;
    until(now->linked);
    assert_false(old->assigned);
}

static void kv_in_fp8_wants_groups_that_know_it(void **state)
{
    (void) state;
    w.extra[0] = "--kv", w.extra[1] = "fp8";
    start_broker();
    struct fake_group *old = start_group("old");
    old->minor = WIRE_MINOR_FP8_KV - 1;
    until(strcmp(old->error, "old_minor") == 0);
    struct fake_group *now = start_group("now");
    until(now->linked);
    assert_false(old->assigned);
    assert_non_null(program_said(&w.broker, "kv=fp8"));
}

static void a_broker_may_say_how_many_ranks(void **state)
{
    (void) state;
    w.extra[0] = "--tp", w.extra[1] = "2";
    start_broker();
    struct fake_group *one = start_group("one"), *two = start_group("two");
    two->tp = 2;
    until(strcmp(one->error, "bad_tp") == 0 && two->linked);
    assert_int_equal(two->assign.tp, 2);
    assert_false(one->assigned);
}

static void a_plan_is_made_anew_for_less_memory(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    int blocks = g->assign.kv_blocks;
    fake_group_kill(g);
    struct fake_group *less = start_group("g-0");
    less->memory = 100 * (uint64_t) MIB;
    until(less->linked);
    assert_in_range(less->assign.kv_blocks, 1, blocks - 1);
    assert_true(less->assign.epoch > g->assign.epoch);
    push_job("a", 3, 2);
    fake_group_finish(less, wait_job(less, "a"));
    expect_result("a", RESULT_OK, "", 2);
}

// --- bad input

static void bad_messages_become_dead_letters_that_say_why(void **state)
{
    (void) state;
    static const struct {
        const char *id, *code, *json;
    } cases[] = {
        {"type", "bad_job", "{'v': 1, 'id': 'type', 'op': 'tokens', 'class': 'x', 'body': {}}"},
        {"class", "bad_job", "{'v': 1, 'id': 'class', 'op': 'tokens', 'class': 9, 'body': {}}"},
        {"body", "bad_job", "{'v': 1, 'id': 'body', 'op': 'tokens', 'body': 7}"},
        {"no-body", "bad_job", "{'v': 1, 'id': 'no-body', 'op': 'tokens'}"},
        {"op", "bad_job", "{'v': 1, 'id': 'op', 'op': 'dance', 'body': {}}"},
        {"empty", "bad_body", "{'v': 1, 'id': 'empty', 'op': 'tokens', 'body': {'tokens': []}}"},
        {"json", "bad_body", "{'v': 1, 'id': 'json', 'op': 'tokens', 'body': '{\\'tokens\\': [1'}"},
        {"model", "unknown_model",
         "{'v': 1, 'id': 'model', 'op': 'tokens', 'model': 'gpt', 'body': {'tokens': [1]}}"},
        {"hot", "bad_sampling",
         "{'v': 1, 'id': 'hot', 'op': 'tokens', 'body': {'tokens': [1], 'temperature': -1}}"},
        {"n", "unsupported",
         "{'v': 1, 'id': 'n', 'op': 'tokens', 'body': {'tokens': [1], 'n': 2}}"},
        {"vocab", "bad_token",
         "{'v': 1, 'id': 'vocab', 'op': 'tokens', 'body': {'tokens': [1, 1000000]}}"},
        {"long", "prompt_too_long",
         "{'v': 1, 'id': 'long', 'op': 'tokens', 'body': {'tokens': "
         "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}}"},
        {"much", "context_exceeded",
         "{'v': 1, 'id': 'much', 'op': 'tokens', 'body': {'tokens': [1, 2], 'max_tokens': 31}}"},
        {"chat", "no_tokenizer",
         "{'v': 1, 'id': 'chat', 'op': 'chat', 'body': {'messages': [{'role': 'user', 'content': "
         "'hi'}]}}"},
        {"text", "no_tokenizer",
         "{'v': 1, 'id': 'text', 'op': 'completion', 'body': {'prompt': 'hi'}}"},
        {"raw-16", "bad_job", "{'v': 1, 'id': 'a b', 'op': 'tokens', 'body': {'tokens': [1]}}"},
        {"raw-17", "bad_job", "[1, 2]"},
        {"raw-18", "bad_job", "{'v': 1, 'id': 'victim', 'op': 'cancel', 'class': 9}"},
    };
    enum { N = sizeof cases / sizeof *cases };
    w.extra[0] = "--max-context";
    w.extra[1] = "32";
    start_broker(); // no group is needed for this
    for (int i = 0; i < N; i++) push("%s", cases[i].json);
    // What JSON cannot say: id, then a NaN, bad UTF-8, a truncated map, nothing at all, too much.
    static const struct {
        const char *id, *code, *hex;
    } bytes[] = {
        {"nan", "bad_sampling", "84 a176 01 a26964 a36e616e a26f70 a6746f6b656e73 a4626f6479 82 "
                                "a6746f6b656e73 91 01 ab74656d7065726174757265 cb7ff8000000000000"},
        {"utf", "bad_msgpack", "83 a176 01 a26964 a3757466 a56d6f64656c a2c328"},
        {"cut", "bad_msgpack", "84 a176 01 a26964 a3637574 a26f70"},
        {"raw-22", "bad_msgpack", ""},
    };
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        struct buffer b;
        buffer_init(&b, 1024);
        bytes_hex(&b, bytes[i].hex);
        push_bytes(b.data != NULL ? (const void *) b.data : "", b.n);
        buffer_deinit(&b);
    }
    void *large = calloc(1, (size_t) JOB_MESSAGE_MAX + 1);
    push_bytes(large, (size_t) JOB_MESSAGE_MAX + 1);
    free(large);
    for (int i = 0; i < N; i++) expect_result(cases[i].id, RESULT_ERROR, cases[i].code, 0);
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        expect_result(bytes[i].id, RESULT_ERROR, bytes[i].code, 0);
    }
    expect_result("raw-23", RESULT_ERROR, "too_large", 0);
    expect_events("nan", "failed 0;");
}

static void the_same_id_again(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 2);
    push_job("a", 3, 2); // a duplicate
    push_job("a", 4, 2); // another job
    struct fake_job *job = wait_job(g, "a");
    expect_result("raw-3", RESULT_ERROR, "id_conflict", 0);
    fake_group_finish(g, job);
    expect_result("a", RESULT_OK, "", 2);
    push_job("a", 3, 2); // it is told of again
    until(program_said(&w.broker, "word=duplicate_done") != NULL);
    expect_events("a", "id_conflict 0;done 1;done 1;");
    assert_int_equal(g->n_jobs, 1);
}

// A job that was taken in for a larger pipeline than there is now.
static void a_job_that_cannot_fit_any_more_is_refused_with_the_numbers(void **state)
{
    (void) state;
    w.extra[0] = "--max-context";
    w.extra[1] = "100";
    start_broker();
    push_job("large", 10, 80);
    push_job("small", 10, 4);
    until(program_said(&w.broker, "id=small") != NULL);
    program_stop(&w.broker);
    w.extra[1] = "32";
    start_broker();
    struct fake_group *g = start_group("g-0");
    fake_group_finish(g, wait_job(g, "small"));
    expect_result("large", RESULT_ERROR, "context_exceeded", 0);
    expect_result("small", RESULT_OK, "", 4);
}

// --- cancels and deadlines

static void cancels_come_after_the_jobs_before_them(void **state)
{
    (void) state;
    start_broker();
    push_job("queued", 3, 2);
    push("{'v': 1, 'id': 'queued', 'op': 'cancel'}");
    expect_result("queued", RESULT_CANCELLED, "cancelled", 0);
    struct fake_group *g = start_group("g-0");
    push_job("running", 3, 9);
    struct fake_job *job = wait_job(g, "running");
    fake_group_tokens(g, job, 2);
    push("{'v': 1, 'id': 'running', 'op': 'cancel'}");
    expect_result("running", RESULT_CANCELLED, "cancelled", 2); // with what it has
    until(job->committed);
    assert_int_equal(job->reason, WIRE_REASON_CANCELLED);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK);
    expect_events("running", "cancelled 1;");
    push_job("next", 3, 2); // the slot is free again
    fake_group_finish(g, wait_job(g, "next"));
    expect_result("next", RESULT_OK, "", 2);
}

static void a_running_job_ends_at_its_deadline(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push("{'v': 1, 'id': 'late', 'op': 'tokens', 'deadline': %lld, 'body': {'tokens': [1, 2]}}",
         (long long) clock_wall_ms() + 700);
    struct fake_job *job = wait_job(g, "late");
    fake_group_tokens(g, job, 3);
    until(job->cancelled);
    assert_int_equal(job->reason, WIRE_REASON_EXPIRED);
    expect_result("late", RESULT_EXPIRED, "expired", 3);
    expect_events("late", "expired 1;");
}

static void a_head_that_does_not_answer_a_cancel_is_not_waited_for(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    g->deaf = true;
    push_job("a", 3, 9);
    fake_group_tokens(g, wait_job(g, "a"), 2);
    until(saved_bytes("a") == 8);
    push("{'v': 1, 'id': 'a', 'op': 'cancel'}");
    expect_result("a", RESULT_CANCELLED, "cancelled", 2); // from the checkpoint
    expect_events("a", "cancelled 1;");
}

static void a_head_that_is_lost_leaves_what_was_saved(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    g->deaf = true;
    push_job("a", 3, 9);
    fake_group_tokens(g, wait_job(g, "a"), 2);
    until(saved_bytes("a") == 8);
    push("{'v': 1, 'id': 'a', 'op': 'cancel'}");
    until(field_is("a", "cancel", "1"));
    fake_group_kill(g);
    expect_result("a", RESULT_CANCELLED, "cancelled", 2);
}

// --- what the head refuses

static void refused_by_the_head(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    g->reject = "bad_token";
    push_job("bad", 3, 2);
    expect_result("bad", RESULT_ERROR, "bad_token", 0);
    g->reject = "no_credit";
    push_job("later", 3, 2);
    struct fake_job *job = wait_job(g, "later"); // it is tried again
    assert_int_equal(job->attempts, 2);
    fake_group_finish(g, job);
    expect_result("later", RESULT_OK, "", 2);
}

static void results_that_nobody_waits_for(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    push_job("a", 3, 2);
    struct fake_job *job = wait_job(g, "a");
    fake_group_finish(g, job);
    until(job->committed);
    // A twin of an earlier attempt, and a job that never was.
    g->jobs[1] = *job;
    g->jobs[1].key.attempt = 1000;
    g->jobs[2] = *job;
    g->jobs[2].key.attempt = 1001;
    strcpy(g->jobs[2].key.id, "nobody");
    g->jobs[1].committed = g->jobs[2].committed = false;
    g->n_jobs = 3;
    fake_group_finish(g, &g->jobs[1]);
    fake_group_finish(g, &g->jobs[2]);
    until(g->jobs[1].committed && g->jobs[2].committed);
    assert_int_equal(g->jobs[1].outcome, WIRE_OUTCOME_STALE);
    assert_int_equal(g->jobs[2].outcome, WIRE_OUTCOME_UNKNOWN);
}

static void a_result_that_cannot_be_read_is_a_failure(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    struct wire_message m = {.command = WIRE_RESULT};
    struct error e;
    push_job("a", 3, 2);
    struct fake_job *job = wait_job(g, "a");
    m.result.key = job->key;
    m.result.result = (struct wire_bytes){"\xc1garbage", 8};
    assert_int_equal(wire_socket_send(&g->wire, NULL, 0, &m, &e), OK);
    until(job->committed);
    assert_int_equal(job->outcome, WIRE_OUTCOME_OK); // the failure is
    assert_true(field_is("a", "code", "bad_msgpack"));
    fake_group_finish(g, job); // its slot is free
    until(fake_group_job(g, "a") != job);
    fake_group_finish(g, fake_group_job(g, "a"));
    expect_result("a", RESULT_OK, "", 2);
}

// Frames of any kind from a stranger, whole and damaged.
static void send_damaged(void *socket, const struct wire_message *m, bool whole, uint64_t *seed)
{
    struct buffer space;
    struct wire_frame frames[WIRE_FRAMES];
    struct error e;
    buffer_init(&space, 1 << 20);
    assert_int_equal(wire_encode(m, &space, frames, &e), OK);
    int last = whole ? WIRE_FRAMES - 1 : (int) (bytes_random(seed) % WIRE_FRAMES);
    for (int i = 0; i <= last; i++) {
        uint8_t bytes[8192];
        size_t n = frames[i].n < 4096 ? frames[i].n : 4096;
        if (n > 0) memcpy(bytes, frames[i].data, n);
        bool damage = !whole && n > 0 && bytes_random(seed) % 2 == 0;
        if (damage) n = bytes_damage(bytes, n, sizeof bytes, seed);
        zmq_send(socket, bytes, n, i < last ? ZMQ_SNDMORE : 0);
    }
    buffer_deinit(&space);
}

static void strangers_do_no_harm(void **state)
{
    (void) state;
    struct fake_group *g = start_world(NULL);
    uint64_t seed = 11;
    int zero = 0;
    void *socket = w.stranger = zmq_socket(world_zmq, ZMQ_DEALER);
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_connect(socket, w.endpoint), 0);
    push_job("a", 3, 2);
    struct fake_job *job = wait_job(g, "a");
    for (int i = 0; i < 50 * WIRE_N_COMMANDS; i++) {
        struct wire_message m = wire_example((enum wire_command) (i % WIRE_N_COMMANDS), i % 2 == 0);
        send_damaged(socket, &m, i % 5 == 0, &seed);
        if (i % 100 == 0) turn();
    }
    // And from the head itself: of jobs that are not its own, of other epochs, out of bounds.
    for (int i = 0; i < 2 * WIRE_N_COMMANDS; i++) {
        struct error e;
        struct wire_message m = wire_example((enum wire_command) (i / 2), i % 2 == 0);
        bool leaves = m.command == WIRE_BYE || m.command == WIRE_DRAIN || m.command == WIRE_HELLO ||
                      m.command == WIRE_FAILED;
        if (!leaves) wire_socket_send(&g->wire, NULL, 0, &m, &e);
    }
    turn();
    fake_group_finish(g, job);
    expect_result("a", RESULT_OK, "", 2);
    assert_int_equal(g->n_assigns, 1);
    assert_int_equal(program_stop(&w.broker), 0);
}

// --- starts that fail

static void expect_failure(const char *const *args, int status, const char *text)
{
    struct program p;
    const char *all[ARGS_MAX] = {BUILD_DIR "/bin/penstock-broker"};
    for (int i = 0; args[i] != NULL; i++) all[i + 1] = args[i];
    program_start(&p, all);
    int got = program_ended(&p);
    if (got != status || strstr(p.log, text) == NULL) {
        fail_msg("status %d, wanted %d and \"%s\":\n%s", got, status, text, p.log);
    }
}

static void starts_that_fail_say_why(void **state)
{
    (void) state;
    const char *model = FIXTURES "/tiny-bf16", *any = "tcp://127.0.0.1:0";
    start_broker();
    program_wait(&w.broker, "event=ready");
    redisReply *r = ask("CONFIG SET appendfsync everysec");
    freeReplyObject(r);
#define fails(status, text, ...) expect_failure((const char *[]){__VA_ARGS__, NULL}, status, text)
    fails(1, "code=redis_unsafe", "--model", model, "--redis", world_server.url, "--listen", any);
    r = ask("CONFIG SET appendfsync always");
    freeReplyObject(r);
    fails(1, "code=port_taken", "--model", model, "--redis", world_server.url, "--listen",
          w.endpoint);
    fails(2, "penstock keygen", "--model", model, "--listen", "tcp://0.0.0.0:7300");
    fails(2, "penstock keygen", "--model", model, "--listen", "tcp://*:7300");
    fails(2, "belong together", "--model", model, "--allow", "x");
    fails(2, "--model is missing", "--redis", world_server.url);
    fails(2, "--pp wants", "--model", model, "--pp", "0");
    fails(2, "bad_plan", "--model", model, "--listen", any, "--pp", "60");
    fails(2, "bad_plan", "--model", model, "--listen", any, "--layers", "1,2,3,4,5,6");
    fails(2, "--precision wants", "--model", model, "--precision", "f64");
    fails(2, "there is no option", "--model", model, "--no-such");
    fails(1, "config.json", "--model", FIXTURES, "--listen", any);
    fails(2, "--wait-fill-ms", "--model", model, "--wait-fill-ms", "60001", "--listen", any);
    fails(2, "--step-ms", "--model", model, "--step-ms", "600001", "--listen", any);
    fails(1, "code=bad_redis_url", "--model", model, "--redis", "http://x", "--listen", any);
}

#define test(f) cmocka_unit_test_setup_teardown(f, world_open, world_close)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        test(the_life_of_a_job),
        test(heads_are_told_how_long_steps_may_wait_and_take),
        test(many_jobs_within_the_credit),
        test(two_stages_are_assigned_and_linked),
        test(groups_that_do_not_fit_are_told_so),
        test(groups_of_an_old_minor_version_are_told_so),
        test(kv_in_fp8_wants_groups_that_know_it),
        test(a_broker_may_say_how_many_ranks),
        test(a_plan_is_made_anew_for_less_memory),
        test(bad_messages_become_dead_letters_that_say_why),
        test(the_same_id_again),
        test(a_job_that_cannot_fit_any_more_is_refused_with_the_numbers),
        test(cancels_come_after_the_jobs_before_them),
        test(a_running_job_ends_at_its_deadline),
        test(a_head_that_does_not_answer_a_cancel_is_not_waited_for),
        test(a_head_that_is_lost_leaves_what_was_saved),
        test(refused_by_the_head),
        test(results_that_nobody_waits_for),
        test(a_result_that_cannot_be_read_is_a_failure),
        test(strangers_do_no_harm),
        test(starts_that_fail_say_why),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, world_start, world_stop);
}
