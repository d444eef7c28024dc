#include "common/result.h"

#include "tests/support/bytes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static struct buffer bytes;
static struct error e;

static int setup(void **state)
{
    (void) state;
    buffer_init(&bytes, 1 << 24);
    e = (struct error){0};
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    buffer_deinit(&bytes);
    return 0;
}

static int32_t some_tokens[] = {5, 100000, 1};
static struct result_token some_rivals[] = {{6, -0.5f, " b", 2}, {7, -INFINITY, NULL, 0}};
static struct result_logprob some_logprobs[] = {{{5, -0.25f, " a", 2}, some_rivals, 2},
                                                {{100000, -1, "\xe2\x82", 2}, NULL, 0},
                                                {{1, 0, NULL, 0}, NULL, 0}};

static struct result full(void)
{
    struct result r;
    memset(&r, 0, sizeof r);
    strcpy(r.id, "job-1");
    strcpy(r.custom_id, "row 17");
    r.finish_reason = RESULT_STOP;
    r.text = " a\xe2\x82\xac", r.text_bytes = 5;
    r.tokens = some_tokens, r.n_tokens = 3;
    r.logprobs = some_logprobs, r.n_logprobs = 3;
    r.max_tokens = 256;
    r.usage.prompt = 10, r.usage.cached = 2, r.usage.completion = 3;
    r.timing.queued_ms = 1000, r.timing.prefill_ms = 20, r.timing.decode_ms = UINT64_MAX;
    r.attempts = 2, r.resumed = 1;
    strcpy(r.engine.version, "0.1.0");
    strcpy(r.engine.model, "5f1d8c");
    strcpy(r.engine.plan, "c0ffee");
    return r;
}

static struct result failed(void)
{
    struct result r;
    memset(&r, 0, sizeof r);
    strcpy(r.id, "job-2");
    r.status = RESULT_ERROR;
    r.attempts = 5;
    strcpy(r.error.code, "no_memory");
    strcpy(r.error.message, "the prompt needs 9 blocks of 8");
    r.error.retryable = true;
    return r;
}

static void a_result_is_written_and_read(void **state)
{
    (void) state;
    struct result r = full(), back;
    assert_int_equal(result_encode(&r, &bytes, &e), OK);
    assert_int_equal(result_decode(&back, bytes.data, bytes.n, &e), OK);
    assert_string_equal(back.id, "job-1");
    assert_int_equal(back.status, RESULT_OK);
    assert_string_equal(result_finish_name(back.finish_reason), "stop");
    assert_memory_equal(back.text, " a\xe2\x82\xac", back.text_bytes);
    assert_int_equal(back.n_tokens, 3);
    assert_int_equal(back.tokens[1], 100000);
    assert_int_equal(back.logprobs[0].n_top, 2);
    assert_true(back.logprobs[0].top[0].id == 6 && back.logprobs[0].top[0].logprob == -0.5f);
    assert_true(isinf(back.logprobs[0].top[1].logprob) && back.logprobs[0].top[1].bytes == NULL);
    assert_memory_equal(back.logprobs[1].chosen.bytes, "\xe2\x82", 2); // half a character
    result_deinit(&back);
}

// Encoding what was decoded gives the same bytes, so nothing was lost on the way.
static void check_round_trip(const struct result *r)
{
    struct result back;
    struct buffer again;
    buffer_clear(&bytes);
    buffer_init(&again, bytes.most);
    if (result_encode(r, &bytes, &e) != OK || result_decode(&back, bytes.data, bytes.n, &e) != OK)
        fail_msg("%s", e.text);
    assert_int_equal(result_encode(&back, &again, &e), OK);
    assert_int_equal(again.n, bytes.n);
    assert_memory_equal(again.data, bytes.data, bytes.n);
    assert_int_equal(back.status, r->status);
    assert_int_equal(back.finish_reason, r->finish_reason);
    assert_string_equal(back.error.code, r->error.code);
    assert_string_equal(back.error.message, r->error.message);
    assert_int_equal(back.error.retryable, r->error.retryable);
    assert_int_equal(back.text == NULL, r->text == NULL);
    result_deinit(&back);
    buffer_deinit(&again);
}

static void every_kind_comes_back_the_same(void **state)
{
    (void) state;
    struct result r = full();
    check_round_trip(&r);
    for (int s = RESULT_OK; s <= RESULT_EXPIRED; s++) {
        for (int f = RESULT_NO_FINISH; f <= RESULT_LENGTH; f++) {
            r = failed();
            r.status = (enum result_status) s;
            r.finish_reason = (enum result_finish) f;
            check_round_trip(&r);
        }
    }
    r = full();
    r.text = "", r.text_bytes = 0; // empty is not the same as none
    check_round_trip(&r);
    r.text = NULL;
    check_round_trip(&r);
}

static void out_of_bounds_is_not_written(void **state)
{
    (void) state;
    struct result bad[] = {full(), full(), full(),   full(), full(),
                           full(), full(), failed(), full()};
    int32_t negative[] = {-1};
    static const char *const fields[] = {"id", "text", "prompt", "tokens", "attempts", "status",
                                         "max_tokens", "id", "logprobs"};
    strcpy(bad[0].id, "a b");
    bad[1].text_bytes = 4; // cut within the last character
    bad[2].usage.prompt = -1;
    bad[3].tokens = negative, bad[3].n_tokens = 1;
    bad[4].attempts = -1;
    bad[5].status = (enum result_status) 4;
    bad[6].max_tokens = -1;
    bad[7].id[0] = '\0';
    bad[8].n_logprobs = CONTEXT_MAX + 1;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        buffer_clear(&bytes);
        assert_int_equal(result_encode(&bad[i], &bytes, &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_result");
        if (strstr(e.text, fields[i]) == NULL) fail_msg("%s: %s", fields[i], e.text);
    }
    struct buffer small;
    struct result r = full();
    buffer_init(&small, 20);
    assert_int_equal(result_encode(&r, &small, &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_large");
    buffer_deinit(&small);
}

#define REST                                                                                       \
    "'tokens': [], 'usage': {'prompt': 1, 'cached': 0, 'completion': 0}, 'timing': {'queued': 0,"  \
    " 'prefill': 0, 'decode': 0}, 'attempts': 1, 'resumed': 0, 'engine': {}"

static void what_is_refused_is_named(void **state)
{
    (void) state;
    static const struct {
        const char *json, *field; // NULL: it is good
    } table[] = {
        {"{'v': 1, 'id': 'a', 'status': 'ok', " REST "}", NULL},
        {"{'v': 1, 'id': 'a', 'status': 'ok', 'text': null, 'error': null, 'new': [{}], " REST "}",
         NULL},
        {"[]", "map"},
        {"{'id': 'a', 'status': 'ok', " REST "}", "v"},
        {"{'v': 2, 'id': 'a', 'status': 'ok', " REST "}", "v"},
        {"{'v': 1, 'status': 'ok', " REST "}", "id"},
        {"{'v': 1, 'id': 'a/b', 'status': 'ok', " REST "}", "id"},
        {"{'v': 1, 'id': 'a', " REST "}", "status"},
        {"{'v': 1, 'id': 'a', 'status': 'done', " REST "}", "status"},
        {"{'v': 1, 'id': 'a', 'status': 'ok', 'finish_reason': 'tired', " REST "}",
         "finish_reason"},
        {"{'v': 1, 'id': 'a', 'status': 'ok', 'text': 1, " REST "}", "text"},
        {"{'v': 1, 'id': 'a', 'status': 'ok', 'max_tokens': -1, " REST "}", "max_tokens"},
        {"{'v': 1, 'id': 'a', 'status': 'ok', 'logprobs': [1], " REST "}", "logprobs"},
        {"{'v': 1, 'id': 'a', 'status': 'ok', 'logprobs': [{'id': 1}], " REST "}", "logprob"},
        {"{'v': 1, 'id': 'a', 'status': 'ok', 'logprobs': [{'id': 1048576, 'logprob': 0}], " REST
         "}",
         "id"},
        {"{'v': 1, 'id': 'a', 'status': 'error', 'error': {}, " REST "}", "code"},
        {"{'v': 1, 'id': 'a', 'status': 'error', 'error': 'x', " REST "}", "error"},
        {"{'v': 1, 'id': 'a', 'status': 'ok'}", "tokens"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct result r;
        buffer_clear(&bytes);
        bytes_json(&bytes, table[i].json);
        enum status status = result_decode(&r, bytes.data, bytes.n, &e);
        if (status != (table[i].field == NULL ? OK : ERR_INPUT) ||
            (status != OK && strstr(e.text, table[i].field) == NULL))
            fail_msg("%s: %s", table[i].json, e.text);
        if (status != OK) assert_string_equal(e.code, "bad_result");
        result_deinit(&r);
    }
}

static void assert_json(const struct result *r, const char *expected)
{
    json_t *json = result_to_json(r);
    assert_non_null(json);
    char *text = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(6));
    assert_string_equal(text, expected);
    free(text);
    json_decref(json);
}

static void as_json_nothing_is_left_out(void **state)
{
    (void) state;
    struct result r = full();
    r.timing.decode_ms = 30;
    assert_json(&r,
                "{\"v\":1,\"id\":\"job-1\",\"custom_id\":\"row 17\",\"status\":\"ok\","
                "\"finish_reason\":\"stop\",\"text\":\" a\xe2\x82\xac\",\"tokens\":[5,100000,1],"
                "\"logprobs\":[{\"id\":5,\"logprob\":-0.25,\"bytes\":[32,97],\"top\":["
                "{\"id\":6,\"logprob\":-0.5,\"bytes\":[32,98]},"
                "{\"id\":7,\"logprob\":null,\"bytes\":null}]},"
                "{\"id\":100000,\"logprob\":-1.0,\"bytes\":[226,130],\"top\":[]},"
                "{\"id\":1,\"logprob\":0.0,\"bytes\":null,\"top\":[]}],"
                "\"max_tokens\":256,\"usage\":{\"prompt\":10,\"cached\":2,\"completion\":3},"
                "\"timing\":{\"queued\":1000,\"prefill\":20,\"decode\":30},\"attempts\":2,"
                "\"resumed\":1,\"engine\":{\"version\":\"0.1.0\",\"model\":\"5f1d8c\","
                "\"plan\":\"c0ffee\"},\"error\":null}");
    r = failed();
    assert_json(&r,
                "{\"v\":1,\"id\":\"job-2\",\"custom_id\":null,\"status\":\"error\","
                "\"finish_reason\":null,\"text\":null,\"tokens\":[],\"logprobs\":null,"
                "\"max_tokens\":0,\"usage\":{\"prompt\":0,\"cached\":0,\"completion\":0},"
                "\"timing\":{\"queued\":0,\"prefill\":0,\"decode\":0},\"attempts\":5,\"resumed\":0,"
                "\"engine\":{\"version\":null,\"model\":null,\"plan\":null},"
                "\"error\":{\"code\":\"no_memory\","
                "\"message\":\"the prompt needs 9 blocks of 8\",\"retryable\":true}}");
}

// The examples of the fixture, in its order.
static struct result example(int i)
{
    struct result r = full();
    r.timing.decode_ms = 450;
    if (i == 0) return r;
    if (i == 1) return failed();
    r.status = RESULT_CANCELLED; // in mid-text, and without what was not asked for
    r.finish_reason = RESULT_NO_FINISH;
    r.custom_id[0] = '\0';
    r.logprobs = NULL, r.n_logprobs = 0;
    strcpy(r.error.code, "cancelled");
    strcpy(r.error.message, "the job was cancelled");
    return r;
}

static const char *const EXAMPLES[] = {"every field", "a failure", "cancelled in mid-text"};
enum { N_EXAMPLES = sizeof EXAMPLES / sizeof *EXAMPLES };

// What a later version may add, behind the fields of a map of less than 15.
static void add_unknown(struct buffer *map)
{
    map->data[0]++;
    buffer_append(map, "\xa5" "later\x81\xa1\x61\x93\x01\xc4\x01\xff\xc0", 15);
}

static void write_example(int i)
{
    struct result r = example(i);
    buffer_clear(&bytes);
    assert_int_equal(result_encode(&r, &bytes, &e), OK);
    if (i == 2) add_unknown(&bytes);
}

// Pinned: results are read by clients in other languages.
static void bytes_stay(void **state)
{
    (void) state;
    char *text = bytes_file(FIXTURES "/result-golden.txt", NULL), *save;
    strtok_r(text, "\n", &save);
    for (int i = 0; i < N_EXAMPLES; i++) {
        const char *name = strtok_r(NULL, "\n", &save), *json = strtok_r(NULL, "\n", &save);
        const char *hex = strtok_r(NULL, "\n", &save);
        struct result back;
        assert_non_null(hex);
        assert_string_equal(name + 2, EXAMPLES[i]);
        write_example(i);
        char *now = bytes_to_hex(bytes.data, bytes.n);
        assert_string_equal(now, hex);
        free(now);
        assert_int_equal(result_decode(&back, bytes.data, bytes.n, &e), OK);
        assert_json(&back, json);
        result_deinit(&back);
    }
    assert_null(strtok_r(NULL, "\n", &save));
    free(text);
}

// For the fixture, when the schema has changed.
static int print_examples(void)
{
    puts("# Results and their bytes. Three lines each: name, JSON (bin as numbers, infinity as "
         "null), hex.");
    for (int i = 0; i < N_EXAMPLES; i++) {
        struct result r = example(i);
        json_t *json = result_to_json(&r);
        setup(NULL);
        write_example(i);
        char *hex = bytes_to_hex(bytes.data, bytes.n);
        printf("# %s\n", EXAMPLES[i]);
        json_dumpf(json, stdout, JSON_COMPACT);
        printf("\n%s\n", hex);
        json_decref(json);
        free(hex);
        teardown(NULL);
    }
    return 0;
}

static void damaged_results_never_crash(void **state)
{
    (void) state;
    enum { ROOM = 4096, TIMES = 60000 };
    uint64_t r = 5;
    int passed = 0;
    for (int i = 0; i < TIMES; i++) {
        uint8_t work[ROOM];
        struct result from = i % 2 ? full() : failed(), back;
        struct buffer again;
        buffer_clear(&bytes);
        assert_int_equal(result_encode(&from, &bytes, &e), OK);
        memcpy(work, bytes.data, bytes.n);
        size_t n = bytes_damage(work, bytes.n, ROOM, &r);
        uint8_t *copy = bytes_copy(work, n);
        buffer_init(&again, 1 << 20);
        e = (struct error){0};
        if (result_decode(&back, copy, n, &e) == OK) {
            passed++;
            if (result_encode(&back, &again, &e) != OK) fail_msg("%s", e.text);
            json_t *json = result_to_json(&back);
            assert_non_null(json);
            json_decref(json);
        } else {
            assert_true(e.code[0] != '\0' && e.text[0] != '\0');
        }
        result_deinit(&back);
        buffer_deinit(&again);
        free(copy);
    }
    assert_in_range(passed, TIMES / 100, TIMES - TIMES / 100);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "golden") == 0) return print_examples();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_result_is_written_and_read, setup, teardown),
        cmocka_unit_test_setup_teardown(every_kind_comes_back_the_same, setup, teardown),
        cmocka_unit_test_setup_teardown(out_of_bounds_is_not_written, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(as_json_nothing_is_left_out, setup, teardown),
        cmocka_unit_test_setup_teardown(bytes_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_results_never_crash, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
