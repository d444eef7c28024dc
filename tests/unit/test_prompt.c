// What a message asks of the model: ids, need and limits, for text, ids and chats, and refusals by
// code.
#include "broker/prompt.h"

#include "common/chat.h"
#include "common/result.h"
#include "tests/support/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/tokenizer_files.h"

static struct models models = {.n = 2}; // the second has no tokenizer
static struct prompt_scratch scratch;

static int start(void **state)
{
    (void) state;
    static const char *const merges[] = {"a b", "ab c"};
    struct error e;
    snprintf(models.at[0].name, sizeof models.at[0].name, "tiny");
    models.at[0].config.vocab_size = 300;
    snprintf(models.at[1].name, sizeof models.at[1].name, "bare");
    models.at[1].config = (struct model_config){.vocab_size = 500, .bos_id = -1};
    assert_int_equal(load_json(&models.at[0].tokenizer, small_tokenizer(merges, 2), &e), OK);
    assert_int_equal(chat_load(&models.at[0].chat, FIXTURES, &e), OK); // there is no template
    assert_int_equal(prompt_scratch_init(&scratch, &models, -1, &e), OK);
    models.at[0].config.bos_id = tokenizer_special(models.at[0].tokenizer, "<s>", 3);
    return 0;
}

static int stop(void **state)
{
    (void) state;
    prompt_scratch_deinit(&scratch);
    models_deinit(&models);
    return 0;
}

// Reads a message written as JSON with single quotes; the caller deinits both.
static enum status read_json(struct prompt *p, struct buffer *bytes, const char *json,
                             struct prompt_limits limits, struct error *e)
{
    *e = (struct error){0};
    buffer_init(bytes, 1 << 16);
    bytes_json(bytes, json);
    return prompt_read(p, &models, -1, &limits, "default", bytes->data, bytes->n, &scratch, e);
}

static void expect_ids(const char *json, int n, const int32_t *ids)
{
    struct prompt p;
    struct buffer bytes;
    struct error e;
    enum status status = read_json(&p, &bytes, json, (struct prompt_limits){{100, 50}, 10, 0}, &e);
    if (status != OK) fail_msg("%s: %s", json, e.text);
    assert_int_equal(p.ids.n, n);
    assert_memory_equal(p.ids.ids, ids, (size_t) n * sizeof *ids);
    prompt_deinit(&p);
    buffer_deinit(&bytes);
}

static void reads_a_completion(void **state)
{
    (void) state;
    struct prompt p;
    struct buffer bytes;
    struct error e;
    const char *json = "{'v': 1, 'id': 'a', 'op': 'completion', 'model': 'tiny', "
                       "'body': {'prompt': 'abcx', 'max_tokens': 62}}";
    assert_int_equal(read_json(&p, &bytes, json, (struct prompt_limits){{100, 50}, 10, 0}, &e), OK);
    const int32_t ids[] = {258, 257, 'x'}; // BOS, the merges' result, a byte
    assert_int_equal(p.ids.n, 3);
    assert_memory_equal(p.ids.ids, ids, sizeof ids);
    assert_int_equal(p.max_tokens, 62);
    assert_int_equal(p.need_blocks, 2); // 65 rows
    assert_int_equal(strlen(p.body_hash), 32);
    prompt_deinit(&p);
    buffer_deinit(&bytes);
}

static void bos_and_special_strings(void **state)
{
    (void) state;
    const int32_t bos = 258, end = 259;
    expect_ids("{'v': 1, 'id': 'a', 'op': 'completion', 'body': {'prompt': '<s>x'}}", 2,
               (const int32_t[]){bos, 'x'}); // not twice
    expect_ids("{'v': 1, 'id': 'a', 'op': 'completion', 'body': {'prompt': 'x<e>'}}", 3,
               (const int32_t[]){bos, 'x', end});
    expect_ids("{'v': 1, 'id': 'a', 'op': 'completion', 'body': {'prompt': ''}}", 1, &bos);
    expect_ids("{'v': 1, 'id': 'a', 'op': 'completion', 'body': {'prompt': [5, 6]}}", 2,
               (const int32_t[]){5, 6}); // ids are left as they are
    expect_ids("{'v': 1, 'id': 'a', 'op': 'tokens', 'body': {'tokens': [5]}}", 1,
               (const int32_t[]){5});
}

static void max_tokens(void **state)
{
    (void) state;
    static const struct {
        const char *body;
        struct prompt_limits limits;
        int max_tokens; // 0: refused
    } cases[] = {
        {"{'tokens': [1, 2, 3]}", {{100, 50}, 10, 0}, 10},
        {"{'tokens': [1, 2, 3]}", {{8, 50}, 10, 0}, 5}, // the default gives way
        {"{'tokens': [1, 2, 3]}", {{4, 50}, 10, 0}, 1},
        {"{'tokens': [1, 2, 3]}", {{3, 50}, 10, 0}, 0},
        {"{'tokens': [1, 2, 3], 'max_tokens': 5}", {{8, 50}, 10, 0}, 5},
        {"{'tokens': [1, 2, 3], 'max_tokens': 6}", {{8, 50}, 10, 0}, 0},
        {"{'tokens': [1, 2, 3]}", {{100, 50}, 10, 20}, 20}, // as it was admitted
        {"{'tokens': [1, 2, 3], 'max_tokens': 6}", {{100, 50}, 10, 20}, 20},
        {"{'tokens': [1, 2, 3]}", {{22, 50}, 10, 20}, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[256];
        struct prompt p;
        struct buffer bytes;
        struct error e;
        snprintf(json, sizeof json, "{'v': 1, 'id': 'a', 'op': 'tokens', 'body': %s}",
                 cases[i].body);
        enum status status = read_json(&p, &bytes, json, cases[i].limits, &e);
        assert_int_equal(status == OK, cases[i].max_tokens > 0);
        if (status == OK) assert_int_equal(p.max_tokens, cases[i].max_tokens);
        prompt_deinit(&p);
        buffer_deinit(&bytes);
    }
}

static void refusals_by_code(void **state)
{
    (void) state;
    static const struct {
        const char *code, *text, *json;
    } cases[] = {
        {"unknown_model", "\"gpt\"",
         "{'v': 1, 'id': 'a', 'op': 'tokens', 'model': 'gpt', 'body': {'tokens': [1]}}"},
        {"bad_token", "id 300 at index 1",
         "{'v': 1, 'id': 'a', 'op': 'tokens', 'body': {'tokens': [1, 300]}}"},
        {"template_unknown", "",
         "{'v': 1, 'id': 'a', 'op': 'chat', 'body': {'messages': [{'role': 'user', "
         "'content': 'x'}]}}"},
        {"prompt_too_long", "12 tokens",
         "{'v': 1, 'id': 'a', 'op': 'completion', 'body': {'prompt': 'xyxyxyxyxyx'}}"},
        {"context_exceeded", "3 tokens and max_tokens is 11",
         "{'v': 1, 'id': 'a', 'op': 'completion', 'body': {'prompt': 'xy', 'max_tokens': 11}}"},
        {"bad_job", "op", "{'v': 1, 'id': 'a', 'body': {'tokens': [1]}}"},
        {"bad_body", "tokens", "{'v': 1, 'id': 'a', 'op': 'tokens', 'body': {}}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct prompt p;
        struct buffer bytes;
        struct error e;
        enum status status = read_json(&p, &bytes, cases[i].json,
                                       (struct prompt_limits){{12, 50}, 10, 0}, &e);
        assert_int_not_equal(status, OK);
        assert_string_equal(e.code, cases[i].code);
        if (strstr(e.text, cases[i].text) == NULL) fail_msg("%s", e.text);
        prompt_deinit(&p);
        buffer_deinit(&bytes);
    }
}

// The job names its model; each has its own vocabulary, tokenizer and context.
static void the_model_that_a_job_names(void **state)
{
    (void) state;
    static const struct {
        const char *op, *model, *body, *code;
        int index;
    } cases[] = {
        {"tokens", "", "{'tokens': [7]}", "", 0},
        {"tokens", ", 'model': 'tiny'", "{'tokens': [7]}", "", 0},
        {"tokens", ", 'model': 'bare'", "{'tokens': [7]}", "", 1},
        {"tokens", "", "{'tokens': [400]}", "bad_token", 0},
        {"tokens", ", 'model': 'bare'", "{'tokens': [400]}", "", 1},
        {"completion", ", 'model': 'bare'", "{'prompt': 'x'}", "no_tokenizer", 1},
        {"tokens", "", "{'tokens': [7], 'max_tokens': 60}", "", 0},
        {"tokens", ", 'model': 'bare'", "{'tokens': [7], 'max_tokens': 60}", "context_exceeded", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[256];
        struct prompt p;
        struct buffer bytes;
        struct error e;
        snprintf(json, sizeof json, "{'v': 1, 'id': 'a', 'op': '%s'%s, 'body': %s}", cases[i].op,
                 cases[i].model, cases[i].body);
        read_json(&p, &bytes, json, (struct prompt_limits){{100, 50}, 10, 0}, &e);
        assert_string_equal(e.code, cases[i].code);
        assert_int_equal(p.model, cases[i].index);
        prompt_deinit(&p);
        buffer_deinit(&bytes);
    }
    // As admitted, even if another model is the first by now.
    struct prompt_limits limits = {{100, 50}, 10, 0};
    struct prompt p;
    struct buffer bytes;
    struct error e;
    buffer_init(&bytes, 1 << 16);
    bytes_json(&bytes, "{'v': 1, 'id': 'a', 'op': 'tokens', 'body': {'tokens': [400]}}");
    assert_int_equal(prompt_read(&p, &models, 1, &limits, "default", bytes.data, bytes.n, &scratch,
                                 &e), OK);
    assert_int_equal(p.model, 1);
    prompt_deinit(&p);
    buffer_deinit(&bytes);
}

static void a_cancel_has_no_prompt(void **state)
{
    (void) state;
    struct prompt p;
    struct buffer bytes;
    struct error e;
    assert_int_equal(read_json(&p, &bytes, "{'v': 1, 'id': 'a', 'op': 'cancel'}",
                               (struct prompt_limits){{100, 50}, 10, 0}, &e), OK);
    assert_int_equal(p.job.op, JOB_CANCEL);
    assert_int_equal(p.ids.n, 0);
    prompt_deinit(&p);
    buffer_deinit(&bytes);
}

static void damaged_messages_are_refused_or_read(void **state)
{
    (void) state;
    struct buffer whole;
    uint64_t seed = 7;
    buffer_init(&whole, 1 << 16);
    bytes_json(&whole, "{'v': 1, 'id': 'a', 'op': 'completion', 'custom_id': 'c', "
                       "'body': {'prompt': 'abcabc', 'max_tokens': 5, 'stop': ['x'], "
                       "'temperature': 0.5}}");
    for (int i = 0; i < 5000; i++) {
        uint8_t bytes[512];
        struct prompt p;
        struct prompt_limits limits = {{100}, 10, 0};
        struct error e = {0};
        memcpy(bytes, whole.data, whole.n);
        size_t n = bytes_damage(bytes, whole.n, sizeof bytes, &seed);
        uint8_t *exact = bytes_copy(bytes, n);
        enum status status =
            prompt_read(&p, &models, -1, &limits, "default", exact, n, &scratch, &e);
        if (status != OK) assert_true(e.code[0] != '\0' && e.text[0] != '\0');
        prompt_deinit(&p);
        free(exact);
    }
    buffer_deinit(&whole);
}

static void a_refusal_is_a_result(void **state)
{
    (void) state;
    struct error why, e;
    struct buffer bytes;
    struct result r;
    buffer_init(&bytes, 4096);
    // Cut within a character.
    char text[ERROR_TEXT_SIZE];
    memset(text, 'x', sizeof text);
    memcpy(text + sizeof text - 3, "\xc3\xa9", 3);
    text[sizeof text - 2] = '\0';
    error_set(&why, ERR_INPUT, "bad_job", "%s", text);
    assert_int_equal(prompt_refusal("a", "mine", 2, &why, &bytes, &e), OK);
    assert_int_equal(result_decode(&r, bytes.data, bytes.n, &e), OK);
    assert_int_equal(r.status, RESULT_ERROR);
    assert_string_equal(r.error.code, "bad_job");
    assert_string_equal(r.custom_id, "mine");
    assert_int_equal(r.attempts, 2);
    result_deinit(&r);
    buffer_deinit(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_completion),
        cmocka_unit_test(bos_and_special_strings),
        cmocka_unit_test(max_tokens),
        cmocka_unit_test(refusals_by_code),
        cmocka_unit_test(the_model_that_a_job_names),
        cmocka_unit_test(a_cancel_has_no_prompt),
        cmocka_unit_test(damaged_messages_are_refused_or_read),
        cmocka_unit_test(a_refusal_is_a_result),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
