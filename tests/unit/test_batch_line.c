#include "tools/batch_line.h"

#include "common/job.h"
#include "tools/custom_ids.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct error e;

static enum status parse(struct batch_line *line, const char *text)
{
    e = (struct error){0};
    return batch_line_parse(line, text, strlen(text), "b", 7, &e);
}

static void expect_json(json_t *got, const char *wanted)
{
    json_error_t bad;
    json_t *want = json_loads(wanted, 0, &bad);
    if (want == NULL) fail_msg("%s", bad.text);
    if (!json_equal(got, want)) fail_msg("%s", json_dumps(got, JSON_COMPACT));
    json_decref(want);
}

static void test_a_line_becomes_a_job(void **state)
{
    (void) state;
    struct batch_line line;
    struct job job;
    assert_int_equal(parse(&line, "{\"custom_id\":\"first\",\"method\":\"POST\","
                                  "\"url\":\"/v1/chat/completions\",\"body\":{\"model\":\"m\","
                                  "\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\"}]}}"),
                     OK);
    assert_string_equal(line.job_id, "b-7");
    assert_string_equal(line.custom_id, "first");
    assert_string_equal(line.model, "m");
    assert_true(line.chat);
    assert_int_equal(job_decode(&job, line.message.data, line.message.n, &e), OK);
    assert_string_equal(job.id, "b-7");
    assert_string_equal(job.batch, "b");
    assert_string_equal(job.custom_id, "first");
    assert_int_equal(job.op, JOB_CHAT);
    struct job_body body;
    assert_int_equal(job_body_parse(&body, &job, "default", &e), OK);
    assert_int_equal(json_array_size(body.messages), 1);
    job_body_deinit(&body);
    batch_line_deinit(&line);
}

static void test_a_document_is_a_line_too(void **state)
{
    (void) state;
    struct batch_line line;
    struct job job;
    assert_int_equal(parse(&line, "{\"custom_id\":\"d\",\"method\":\"POST\",\"url\":"
                                  "\"/v1/map_reduce\",\"body\":{\"document\":\"x\",\"map\":"
                                  "{\"prompt\":\"{chunk}\"}}}"), OK);
    assert_int_equal(job_decode(&job, line.message.data, line.message.n, &e), OK);
    assert_int_equal(job.op, JOB_MAP_REDUCE);
    assert_true(line.chat); // its answer has that form
    batch_line_deinit(&line);
}

static void test_lines_that_are_refused(void **state)
{
    (void) state;
    static const struct {
        const char *text, *code, *says, *custom_id;
    } CASES[] = {
        {"{", "bad_json", "not JSON", ""},
        {"[]", "bad_json", "not a JSON object", ""},
        {"{\"custom_id\":\"a\",\"custom_id\":\"b\"}", "bad_json", "duplicate", ""},
        {"{}", "bad_line", "custom_id must be", ""},
        {"{\"custom_id\":7}", "bad_line", "custom_id must be", ""},
        {"{\"custom_id\":\"\"}", "bad_line", "custom_id must be", ""},
        {"{\"custom_id\":\"a\"}", "bad_line", "method must be POST", "a"},
        {"{\"custom_id\":\"a\",\"method\":\"GET\"}", "bad_line", "method must be POST", "a"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\"}", "bad_line", "url must be", "a"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{}}",
         "bad_line", "url must be", "a"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\"}", "bad_line",
         "body must be", "a"},
        {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":\"x\"}",
         "bad_line", "body must be", "a"},
        {"{\"custom_id\":\"\xff\"}", "bad_json", "unable to decode", ""},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        struct batch_line line;
        assert_int_equal(parse(&line, CASES[i].text), ERR_INPUT);
        assert_string_equal(e.code, CASES[i].code);
        if (strstr(e.text, CASES[i].says) == NULL) fail_msg("%zu: %s", i, e.text);
        assert_string_equal(line.custom_id, CASES[i].custom_id);
        json_t *refusal = batch_refusal(&line, e.code, e.text);
        assert_non_null(refusal);
        json_decref(refusal);
        batch_line_deinit(&line);
    }
}

static void test_ids_name_batch_and_line(void **state)
{
    (void) state;
    static const struct {
        const char *id;
        int64_t number;
    } CASES[] = {{"b-7", 7},   {"b-123456789", 123456789}, {"b-0", 0},  {"b--1", 0}, {"b-07", 0},
                 {"b-7x", 0}, {"b-", 0},                  {"bb-7", 0}, {"b", 0},    {"b- 7", 0}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        assert_int_equal(batch_job_number(CASES[i].id, "b"), CASES[i].number);
    }
}

// --- answers

static struct batch_line line_of(bool chat)
{
    return (struct batch_line){.number = 1, .job_id = "b-1", .custom_id = "c", .chat = chat};
}

static struct result result_of(const char *text)
{
    static int32_t tokens[2] = {5, 6};
    struct result r = {.id = "b-1", .finish_reason = RESULT_STOP, .text = text,
                       .text_bytes = text != NULL ? strlen(text) : 0, .tokens = tokens,
                       .n_tokens = 2, .engine.model = "abcd"};
    r.usage.prompt = 10;
    r.usage.cached = 4;
    r.usage.completion = 2;
    return r;
}

// The answer without its time.
static json_t *answer(const struct batch_line *line, const struct result *r)
{
    json_t *a = batch_answer(line, r);
    assert_non_null(a);
    json_t *body = json_object_get(json_object_get(a, "response"), "body");
    assert_true(json_integer_value(json_object_get(body, "created")) > 1500000000);
    json_object_del(body, "created");
    return a;
}

static void test_an_answer_to_a_chat(void **state)
{
    (void) state;
    struct batch_line line = line_of(true);
    struct result r = result_of("hello");
    json_t *a = answer(&line, &r);
    expect_json(a, "{\"id\":\"b-1\",\"custom_id\":\"c\",\"response\":{\"status_code\":200,"
                   "\"request_id\":\"b-1\",\"body\":{\"id\":\"chatcmpl-b-1\","
                   "\"object\":\"chat.completion\",\"model\":\"abcd\",\"choices\":[{\"index\":0,"
                   "\"finish_reason\":\"stop\",\"logprobs\":null,\"message\":{"
                   "\"role\":\"assistant\",\"content\":\"hello\"}}],\"usage\":{"
                   "\"prompt_tokens\":10,\"completion_tokens\":2,\"total_tokens\":12,"
                   "\"prompt_tokens_details\":{\"cached_tokens\":4}}}},\"error\":null}");
    json_decref(a);
    // The beginning by which a torn line is known (batch_output.c).
    json_t *again = batch_answer(&line, &r);
    char *text = json_dumps(again, JSON_COMPACT);
    assert_memory_equal(text, "{\"id\":\"b-1\"", 11);
    free(text);
    json_decref(again);
}

static void test_an_answer_without_a_tokenizer(void **state)
{
    (void) state;
    struct batch_line line = line_of(false);
    struct result r = result_of(NULL);
    snprintf(line.model, sizeof line.model, "mine");
    r.finish_reason = RESULT_LENGTH;
    json_t *a = answer(&line, &r);
    json_t *body = json_object_get(json_object_get(a, "response"), "body");
    expect_json(json_object_get(body, "choices"),
                "[{\"index\":0,\"finish_reason\":\"length\",\"logprobs\":null,\"text\":null,"
                "\"token_ids\":[5,6]}]");
    assert_string_equal(json_string_value(json_object_get(body, "model")), "mine");
    assert_string_equal(json_string_value(json_object_get(body, "object")), "text_completion");
    json_decref(a);
}

static void test_log_probabilities(void **state)
{
    (void) state;
    struct result_token top[2] = {{5, -0.5f, "\xc3", 1}, {6, -INFINITY, NULL, 0}};
    struct result_logprob l[1] = {{{5, -0.5f, "\xc3", 1}, top, 2}};
    struct batch_line line = line_of(true);
    struct result r = result_of("x");
    r.logprobs = l;
    r.n_logprobs = 1;
    json_t *a = answer(&line, &r);
    json_t *body = json_object_get(json_object_get(a, "response"), "body");
    json_t *choice = json_array_get(json_object_get(body, "choices"), 0);
    expect_json(json_object_get(choice, "logprobs"),
                "{\"content\":[{\"token\":\"\\ufffd\",\"logprob\":-0.5,\"bytes\":[195],"
                "\"top_logprobs\":[{\"token\":\"\\ufffd\",\"logprob\":-0.5,\"bytes\":[195]},"
                "{\"token\":\"token_id:6\",\"logprob\":-9999.0,\"bytes\":null}]}],"
                "\"refusal\":null}");
    json_decref(a);
    line.chat = false;
    a = answer(&line, &r);
    body = json_object_get(json_object_get(a, "response"), "body");
    choice = json_array_get(json_object_get(body, "choices"), 0);
    expect_json(json_object_get(choice, "logprobs"),
                "{\"tokens\":[\"\\ufffd\"],\"token_logprobs\":[-0.5],"
                "\"top_logprobs\":[{\"\\ufffd\":-0.5,\"token_id:6\":-9999.0}]}");
    json_decref(a);
}

// --- custom ids

static void test_custom_ids(void **state)
{
    (void) state;
    struct custom_ids ids = {0};
    char id[32];
    bool is_new;
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < 10000; i++) {
            snprintf(id, sizeof id, "%d", i);
            assert_int_equal(custom_ids_add(&ids, id, &is_new, &e), OK);
            assert_int_equal(is_new, again == 0);
        }
    }
    assert_int_equal(ids.n, 10000);
    custom_ids_deinit(&ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_line_becomes_a_job),
        cmocka_unit_test(test_a_document_is_a_line_too),
        cmocka_unit_test(test_lines_that_are_refused),
        cmocka_unit_test(test_ids_name_batch_and_line),
        cmocka_unit_test(test_an_answer_to_a_chat),
        cmocka_unit_test(test_an_answer_without_a_tokenizer),
        cmocka_unit_test(test_log_probabilities),
        cmocka_unit_test(test_custom_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
