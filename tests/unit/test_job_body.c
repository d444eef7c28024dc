// Every case runs twice: with the body as msgpack and as JSON text.
#include "common/job.h"

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
static struct job job;
static struct job_body body;
static struct error e;

static int setup(void **state)
{
    (void) state;
    buffer_init(&bytes, (size_t) (2 * JOB_BODY_MAX));
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    job_body_deinit(&body);
    buffer_deinit(&bytes);
    return 0;
}

static enum status parse_bytes(enum job_op op, enum job_body_form form)
{
    job_body_deinit(&body);
    e = (struct error){0};
    job = job_default();
    strcpy(job.id, "job-1");
    job.op = op;
    job.body_form = form;
    job.body = (struct job_text){bytes.n > 0 ? (const char *) bytes.data : "", bytes.n};
    return job_body_parse(&body, &job, "default", &e);
}

static enum status parse(enum job_op op, enum job_body_form form, const char *json)
{
    buffer_clear(&bytes);
    if (form == JOB_BODY_MAP) {
        bytes_json(&bytes, json);
        return parse_bytes(op, form);
    }
    check(buffer_append(&bytes, json, strlen(json)) == OK);
    for (size_t i = 0; i < bytes.n; i++)
        if (bytes.data[i] == '\'') bytes.data[i] = '"';
    return parse_bytes(op, form);
}

#define EACH_FORM(form) enum job_body_form form = JOB_BODY_MAP; form <= JOB_BODY_JSON; form++

static void a_chat_request(void **state)
{
    (void) state;
    for (EACH_FORM(form)) {
        assert_int_equal(
            parse(JOB_CHAT, form,
                  "{'model': 'ignored', 'messages': [{'role': 'user', 'content': 'Hi'}],"
                  " 'max_tokens': 256, 'temperature': 0.5, 'top_p': 0.25, 'top_k': 40,"
                  " 'min_p': 0.125, 'repetition_penalty': 1.5, 'presence_penalty': -0.5,"
                  " 'frequency_penalty': 2, 'stop': ['\\n\\n', 'END'], 'seed': -7,"
                  " 'stop_token_ids': [1, 100001], 'logprobs': true, 'top_logprobs': 5,"
                  " 'ignore_eos': true, 'n': 1, 'user': 'anna'}"),
            OK);
        assert_int_equal(json_array_size(body.messages), 1);
        assert_true(body.prompt == NULL && body.ids == NULL);
        assert_int_equal(body.max_tokens, 256);
        const struct sampling *s = &body.sampling;
        assert_true(s->temperature == 0.5f && s->top_p == 0.25f && s->min_p == 0.125f);
        assert_true(s->repetition_penalty == 1.5f && s->presence_penalty == -0.5f);
        assert_true(s->frequency_penalty == 2 && s->top_k == 40 && s->n_logprobs == 5);
        assert_true(s->seed == (uint64_t) -7 && body.seed_given);
        assert_int_equal(body.n_stops, 2);
        assert_string_equal(body.stops[0], "\n\n");
        assert_int_equal(body.stop_bytes[1], 3);
        assert_true(body.n_stop_ids == 2 && body.stop_ids[1] == 100001);
        assert_true(body.ignore_eos);
    }
}

static void what_is_absent_or_null_takes_openais_defaults(void **state)
{
    (void) state;
    static const char *const table[] = {
        "{'messages': [{}]}",
        "{'messages': [{}], 'max_tokens': null, 'max_completion_tokens': null, 'temperature': null,"
        " 'top_p': null, 'top_k': null, 'min_p': null, 'repetition_penalty': null, 'seed': null,"
        " 'presence_penalty': null, 'frequency_penalty': null, 'stop': null,"
        " 'stop_token_ids': null, 'logprobs': null, 'top_logprobs': null, 'n': null,"
        " 'best_of': null, 'ignore_eos': null,"
        " 'tools': null, 'response_format': null, 'logit_bias': null}",
        "{'messages': [{}], 'tools': [], 'functions': [], 'logit_bias': {}, 'suffix': '',"
        " 'echo': false, 'min_tokens': 0, 'response_format': {'type': 'text'}, 'n': 1,"
        " 'best_of': 1, 'top_k': -1,"
        " 'logprobs': false, 'top_logprobs': 0, 'stop': [], 'stop_token_ids': []}",
        "{'messages': [{}], 'from_the_future': {'x': [1, 2, {}]}, 'stream': true, 'metadata': {}}",
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (EACH_FORM(form)) {
            if (parse(JOB_CHAT, form, table[i]) != OK) fail_msg("%s: %s", table[i], e.text);
            struct sampling s = sampling_default();
            s.temperature = 1;
            s.seed = job_seed("default", "job-1");
            assert_memory_equal(&body.sampling, &s, sizeof s);
            assert_true(body.max_tokens == 0 && body.n_stops == 0 && body.n_stop_ids == 0);
            assert_true(!body.seed_given && !body.ignore_eos);
        }
    }
}

static void a_prompt_is_text_or_ids(void **state)
{
    (void) state;
    for (EACH_FORM(form)) {
        assert_int_equal(parse(JOB_COMPLETION, form, "{'prompt': 'Once \\u20ac'}"), OK);
        assert_string_equal(body.prompt, "Once \xe2\x82\xac");
        assert_int_equal(body.prompt_bytes, 8);
        assert_true(body.ids == NULL && body.messages == NULL);
        assert_int_equal(parse(JOB_COMPLETION, form, "{'prompt': ''}"), OK);
        assert_int_equal(body.prompt_bytes, 0);
        assert_int_equal(parse(JOB_COMPLETION, form, "{'prompt': [5, 6, 1048575], 'echo': false}"),
                         OK);
        assert_true(body.n_ids == 3 && body.ids[2] == MODEL_VOCAB_MAX - 1 && body.prompt == NULL);
        assert_int_equal(parse(JOB_TOKENS, form, "{'tokens': [0], 'prompt': 'not looked at'}"), OK);
        assert_true(body.n_ids == 1 && body.ids[0] == 0 && body.prompt == NULL);
    }
}

static void logprobs_are_counted(void **state)
{
    (void) state;
    static const struct {
        enum job_op op;
        const char *json;
        int n;
    } table[] = {
        {JOB_CHAT, "{'messages': [{}], 'logprobs': true}", 0},
        {JOB_CHAT, "{'messages': [{}], 'logprobs': true, 'top_logprobs': 20}", 20},
        {JOB_CHAT, "{'messages': [{}], 'logprobs': false}", -1},
        {JOB_COMPLETION, "{'prompt': 'a', 'logprobs': 0}", 0},
        {JOB_COMPLETION, "{'prompt': 'a', 'logprobs': 20}", 20},
        {JOB_COMPLETION, "{'prompt': 'a', 'logprobs': true, 'top_logprobs': 3}", 3},
        {JOB_TOKENS, "{'tokens': [1], 'logprobs': 2, 'top_logprobs': 1}", 2},
        {JOB_TOKENS, "{'tokens': [1]}", -1},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (EACH_FORM(form)) {
            assert_int_equal(parse(table[i].op, form, table[i].json), OK);
            assert_int_equal(body.sampling.n_logprobs, table[i].n);
        }
}

static void max_tokens_has_two_names(void **state)
{
    (void) state;
    for (EACH_FORM(form)) {
        assert_int_equal(parse(JOB_CHAT, form, "{'messages': [{}], 'max_completion_tokens': 9}"),
                         OK);
        assert_int_equal(body.max_tokens, 9);
        assert_int_equal(parse(JOB_CHAT, form, "{'messages': [{}], 'max_tokens': 4194304,"
                                               " 'max_completion_tokens': 4194304}"), OK);
        assert_int_equal(body.max_tokens, CONTEXT_MAX);
    }
}

struct refusal {
    const char *more, *code, *word; // `more`: further fields of the body
};

static void check_refusals(const struct refusal *table, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (EACH_FORM(form)) {
            char json[2048];
            snprintf(json, sizeof json, "{'messages': [{}], 'prompt': 'a', 'tokens': [1], %s}",
                     table[i].more);
            for (enum job_op op = JOB_CHAT; op <= JOB_TOKENS; op++) {
                enum status status = parse(op, form, json);
                if (status == OK || strcmp(e.code, table[i].code) != 0 ||
                    strstr(e.text, table[i].word) == NULL)
                    fail_msg("%s as %s: %s: %s", table[i].more, job_op_name(op), e.code, e.text);
                bool unsupported = strcmp(e.code, "unsupported") == 0;
                assert_int_equal(status, unsupported ? ERR_UNSUPPORTED : ERR_INPUT);
            }
        }
    }
}

static void values_out_of_bounds_are_named(void **state)
{
    (void) state;
    static const struct refusal table[] = {
        {"'max_tokens': 0", "bad_body", "max_tokens"},
        {"'max_tokens': -1", "bad_body", "max_tokens"},
        {"'max_tokens': 4194305", "bad_body", "max_tokens"},
        {"'max_tokens': 1.0", "bad_body", "max_tokens"},
        {"'max_tokens': '5'", "bad_body", "max_tokens"},
        {"'max_completion_tokens': 0", "bad_body", "max_completion_tokens"},
        {"'max_tokens': 5, 'max_completion_tokens': 6", "bad_body", "max_completion_tokens"},
        {"'temperature': -0.1", "bad_sampling", "temperature"},
        {"'temperature': 100.5", "bad_sampling", "temperature"},
        {"'temperature': 1e300", "bad_sampling", "temperature"},
        {"'temperature': -1e300", "bad_sampling", "temperature"},
        {"'temperature': '1'", "bad_body", "temperature"},
        {"'temperature': true", "bad_body", "temperature"},
        {"'top_p': 0", "bad_sampling", "top_p"},
        {"'top_p': 1.1", "bad_sampling", "top_p"},
        {"'top_k': -2", "bad_body", "top_k"},
        {"'top_k': 1000001", "bad_body", "top_k"},
        {"'top_k': 1.5", "bad_body", "top_k"},
        {"'min_p': -0.1", "bad_sampling", "min_p"},
        {"'min_p': 2", "bad_sampling", "min_p"},
        {"'repetition_penalty': 0", "bad_sampling", "repetition_penalty"},
        {"'repetition_penalty': 11", "bad_sampling", "repetition_penalty"},
        {"'presence_penalty': 2.5", "bad_sampling", "presence_penalty"},
        {"'frequency_penalty': -3", "bad_sampling", "frequency_penalty"},
        {"'frequency_penalty': []", "bad_body", "frequency_penalty"},
        {"'seed': 1.5", "bad_body", "seed"},
        {"'seed': 'x'", "bad_body", "seed"},
        {"'stop': ''", "bad_body", "stop"},
        {"'stop': 7", "bad_body", "stop"},
        {"'stop': ['a', 7]", "bad_body", "stop"},
        {"'stop': ['a', '']", "bad_body", "stop"},
        {"'stop_token_ids': 7", "bad_body", "stop_token_ids"},
        {"'stop_token_ids': [-1]", "bad_body", "stop_token_ids"},
        {"'stop_token_ids': [1048576]", "bad_body", "stop_token_ids"},
        {"'stop_token_ids': [1.5]", "bad_body", "stop_token_ids"},
        {"'stop_token_ids': [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", "bad_body", "16"},
        {"'logprobs': 'x'", "bad_body", "logprobs"},
        {"'logprobs': 1.5", "bad_body", "logprobs"},
        {"'logprobs': true, 'top_logprobs': 21", "bad_body", "top_logprobs"},
        {"'logprobs': true, 'top_logprobs': -1", "bad_body", "top_logprobs"},
        {"'top_logprobs': 3", "bad_body", "logprobs"},
        {"'logprobs': false, 'top_logprobs': 3", "bad_body", "logprobs"},
        {"'n': 0", "bad_body", "n must"},
        {"'n': '1'", "bad_body", "n must"},
        {"'ignore_eos': 1", "bad_body", "ignore_eos"},
    };
    check_refusals(table, sizeof table / sizeof *table);
}

static void what_penstock_does_not_do_is_refused_by_name(void **state)
{
    (void) state;
    static const struct refusal table[] = {
        {"'n': 2", "unsupported", "n = 2"},
        {"'best_of': 3", "unsupported", "best_of = 3"},
        {"'tools': [{}]", "unsupported", "tools"},
        {"'functions': [{}]", "unsupported", "functions"},
        {"'response_format': {'type': 'json_object'}", "unsupported", "response_format"},
        {"'response_format': {'type': 7}", "unsupported", "response_format"},
        {"'response_format': 'json'", "unsupported", "response_format"},
        {"'logit_bias': {'50256': -100}", "unsupported", "logit_bias"},
        {"'suffix': 'x'", "unsupported", "suffix"},
        {"'echo': true", "unsupported", "echo"},
        {"'audio': {'voice': 'x'}", "unsupported", "audio"},
        {"'prompt_logprobs': 1", "unsupported", "prompt_logprobs"},
        {"'min_tokens': 4", "unsupported", "min_tokens"},
        {"'bad_words': ['x']", "unsupported", "bad_words"},
        {"'guided_json': {'a': 1}", "unsupported", "guided_json"},
        {"'guided_regex': 'x'", "unsupported", "guided_regex"},
        {"'guided_choice': ['x']", "unsupported", "guided_choice"},
        {"'guided_grammar': 'x'", "unsupported", "guided_grammar"},
        {"'structured_outputs': {'x': 1}", "unsupported", "structured_outputs"},
        {"'use_beam_search': true", "unsupported", "use_beam_search"},
        {"'prompt_embeds': 'x'", "unsupported", "prompt_embeds"},
    };
    check_refusals(table, sizeof table / sizeof *table);
}

static void what_the_op_needs_is_asked_for(void **state)
{
    (void) state;
    static const struct {
        enum job_op op;
        const char *json, *code, *word;
    } table[] = {
        {JOB_CHAT, "{}", "bad_body", "messages"},
        {JOB_CHAT, "{'messages': null}", "bad_body", "messages"},
        {JOB_CHAT, "{'messages': []}", "bad_body", "messages"},
        {JOB_CHAT, "{'messages': {}}", "bad_body", "messages"},
        {JOB_CHAT, "{'messages': 'Hi'}", "bad_body", "messages"},
        {JOB_CHAT, "{'messages': [{}, 'Hi']}", "bad_body", "messages[1]"},
        {JOB_CHAT, "{'messages': [{}], 'logprobs': 3}", "bad_body", "logprobs"},
        {JOB_COMPLETION, "{'messages': [{}]}", "bad_body", "prompt"},
        {JOB_COMPLETION, "{'prompt': 7}", "bad_body", "prompt"},
        {JOB_COMPLETION, "{'prompt': []}", "bad_body", "prompt"},
        {JOB_COMPLETION, "{'prompt': ['a', 'b']}", "unsupported", "prompt"},
        {JOB_COMPLETION, "{'prompt': [[1, 2], [3]]}", "unsupported", "prompt"},
        {JOB_COMPLETION, "{'prompt': [1, 'a']}", "bad_body", "prompt[1]"},
        {JOB_COMPLETION, "{'prompt': [-1]}", "bad_body", "prompt[0]"},
        {JOB_COMPLETION, "{'prompt': [1.0]}", "bad_body", "prompt[0]"},
        {JOB_COMPLETION, "{'prompt': 'a', 'logprobs': 21}", "bad_body", "logprobs"},
        {JOB_TOKENS, "{'prompt': 'a'}", "bad_body", "tokens"},
        {JOB_TOKENS, "{'tokens': []}", "bad_body", "tokens"},
        {JOB_TOKENS, "{'tokens': 'a'}", "bad_body", "tokens"},
        {JOB_TOKENS, "{'tokens': [1, -1]}", "bad_body", "tokens[1]"},
        {JOB_TOKENS, "{'tokens': [1, 2, 1048576]}", "bad_body", "tokens[2]"},
        {JOB_TOKENS, "{'tokens': [1, [2]]}", "bad_body", "tokens[1]"},
        {JOB_TOKENS, "{'tokens': [null]}", "bad_body", "tokens[0]"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (EACH_FORM(form))
            if (parse(table[i].op, form, table[i].json) == OK ||
                strcmp(e.code, table[i].code) != 0 || strstr(e.text, table[i].word) == NULL)
                fail_msg("%s: %s: %s", table[i].json, e.code, e.text);
    assert_int_equal(parse(JOB_CANCEL, JOB_BODY_MAP, "{}"), ERR_INPUT);
    assert_int_equal(parse(JOB_CHAT, JOB_BODY_NONE, "{}"), ERR_INPUT);
}

static void stop_strings_have_limits(void **state)
{
    (void) state;
    for (EACH_FORM(form)) {
        for (int over = 0; over < 2; over++) {
            char json[1024], text[STOP_STRING_BYTES_MAX + 2] = "";
            memset(text, 'x', (size_t) (STOP_STRING_BYTES_MAX + over));
            snprintf(json, sizeof json, "{'tokens': [1], 'stop': '%s'}", text);
            assert_int_equal(parse(JOB_TOKENS, form, json), over ? ERR_INPUT : OK);
            strcpy(json, "{'tokens': [1], 'stop': ['0'");
            for (int i = 1; i < STOP_STRINGS_MAX + over; i++) strcat(json, ", 'x'");
            strcat(json, "]}");
            assert_int_equal(parse(JOB_TOKENS, form, json), over ? ERR_INPUT : OK);
            if (!over) assert_int_equal(body.n_stops, STOP_STRINGS_MAX);
        }
    }
}

// What only msgpack can say.
static void msgpack_has_values_that_json_has_not(void **state)
{
    (void) state;
    static const struct {
        const char *hex, *code, *word;
    } table[] = {
        {"ab 74656d7065726174757265 cb 7ff8000000000000", "bad_sampling", "temperature"}, // NaN
        {"ab 74656d7065726174757265 ca 7fc00000", "bad_sampling", "temperature"},
        {"ab 74656d7065726174757265 cb fff0000000000000", "bad_sampling", "temperature"}, // -inf
        {"a5 746f705f70 cb 7ff0000000000000", "bad_sampling", "top_p"},
        {"a4 73656564 cf ffffffffffffffff", "bad_body", "seed"},
        {"a4 73656564 c401 00", "bad_body", "bin"},
        {"a4 73746f70 91 c403 616263", "bad_body", "bin"},
        {"a4 73746f70 a3 610062", "bad_body", "U+0000"},
        {"a4 73746f70 d4 01 00", "bad_body", "ext"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        buffer_clear(&bytes);
        bytes_hex(&bytes, "82 a6 746f6b656e73 91 01"); // tokens: [1]
        bytes_hex(&bytes, table[i].hex);
        if (parse_bytes(JOB_TOKENS, JOB_BODY_MAP) != ERR_INPUT ||
            strcmp(e.code, table[i].code) != 0 || strstr(e.text, table[i].word) == NULL)
            fail_msg("%s: %s: %s", table[i].hex, e.code, e.text);
    }
    // Inside a message, too; but not in a field that nobody looks at.
    buffer_clear(&bytes);
    bytes_hex(&bytes, "81 a8 6d65737361676573 91 81 a161 cb 7ff8000000000000");
    assert_int_equal(parse_bytes(JOB_CHAT, JOB_BODY_MAP), ERR_INPUT);
    assert_non_null(strstr(e.text, "messages"));
    buffer_clear(&bytes);
    bytes_hex(&bytes, "81 a8 6d65737361676573 91 81 a3 610062 01");
    assert_int_equal(parse_bytes(JOB_CHAT, JOB_BODY_MAP), ERR_INPUT);
    buffer_clear(&bytes);
    bytes_hex(&bytes, "82 a6 746f6b656e73 91 01 a178 cb 7ff8000000000000");
    assert_int_equal(parse_bytes(JOB_TOKENS, JOB_BODY_MAP), OK);
}

static void broken_json_says_where(void **state)
{
    (void) state;
    static const struct {
        const char *text, *word;
    } table[] = {
        {"", "line 1"},
        {"[1]", "object"},
        {"7", "JSON"},
        {"{\"tokens\": [1]} x", "JSON"},
        {"{\"tokens\": [1],\n \"seed\": }", "line 2"},
        {"{\"tokens\": [1], \"tokens\": [2]}", "JSON"},
        {"{\"tokens\": [1], \"a\": \"\\u0000\"}", "JSON"},
        {"{\"tokens\": [1], \"a\": \"\xff\"}", "JSON"},
        {"{\"tokens\": [1], \"a\": NaN}", "JSON"},
        {"{\"tokens\": [1], \"a\": 1e999}", "JSON"},
        {"{\"tokens\": [1], \"seed\": 99999999999999999999}", "JSON"},
        {"{\"tokens\": [1], \"a\": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}", "nested"},
        {"{\"tokens\": [1], \"a\": \"\\ud800\"}", "JSON"},
        {"{\"tokens\": [1", "JSON"},
        {"{\"tokens\": \"", "JSON"},
        {"{\"tokens\": \"\\", "JSON"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        buffer_clear(&bytes);
        buffer_append(&bytes, table[i].text, strlen(table[i].text));
        if (parse_bytes(JOB_TOKENS, JOB_BODY_JSON) != ERR_INPUT ||
            strcmp(e.code, "bad_body") != 0 || strstr(e.text, table[i].word) == NULL)
            fail_msg("%s: %s: %s", table[i].text, e.code, e.text);
    }
}

// A value of one byte must not become a hundred: both forms count before they allocate.
static void values_are_counted(void **state)
{
    (void) state;
    for (EACH_FORM(form)) {
        for (int over = 0; over < 2; over++) {
            int n = JOB_BODY_VALUES_MAX - 3 + over; // and the list, a key or the object, a string
            buffer_clear(&bytes);
            if (form == JOB_BODY_MAP) {
                char head[16];
                bytes_hex(&bytes, "81 a8 6d65737361676573 92 80 dd");
                snprintf(head, sizeof head, "%08x", n);
                bytes_hex(&bytes, head);
                for (int i = 0; i < n; i++) buffer_append(&bytes, "\xc0", 1);
            } else {
                buffer_append(&bytes, "{\"messages\":[{},[", 17);
                for (int i = 0; i < n; i++)
                    buffer_append(&bytes, i > 0 ? ",[]" : "[]", i > 0 ? 3 : 2);
                buffer_append(&bytes, "]]}", 3);
            }
            enum status status = parse_bytes(JOB_CHAT, form);
            bool too_many = status == ERR_LIMIT && strcmp(e.code, "too_large") == 0;
            // Below the limit it is refused for another reason: messages[1] is no object.
            if (over) assert_true(too_many);
            else assert_false(too_many && form == JOB_BODY_MAP);
        }
    }
}

static void a_whole_context_of_ids(void **state)
{
    (void) state;
    for (int over = 0; over < 2; over++) {
        char head[32];
        buffer_clear(&bytes);
        snprintf(head, sizeof head, "81 a6 746f6b656e73 dd %08x", CONTEXT_MAX + over);
        bytes_hex(&bytes, head);
        for (int i = 0; i < CONTEXT_MAX + over; i++) buffer_append(&bytes, "\x07", 1);
        assert_int_equal(parse_bytes(JOB_TOKENS, JOB_BODY_MAP), over ? ERR_LIMIT : OK);
        if (over) assert_string_equal(e.code, "too_large");
        else assert_true(body.n_ids == CONTEXT_MAX && body.ids[CONTEXT_MAX - 1] == 7);
    }
}

// --- seed and hash

static void hash_of(enum job_op op, enum job_body_form form, const char *json, char *hash)
{
    if (parse(op, form, json) != OK) fail_msg("%s: %s", json, e.text);
    assert_int_equal(job_body_hash(&job, &body, hash, &e), OK);
    assert_int_equal(strlen(hash), JOB_HASH_SIZE - 1);
}

static void the_hash_is_of_what_is_asked_for(void **state)
{
    (void) state;
    static const char plain[] =
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5}";
    static const char *const same[] = {
        "{'max_tokens': 5, 'messages': [{'content': 'Hi', 'role': 'u'}]}",
        "{'messages': [{'role': 'u', 'content': '\\u0048i'}], 'max_completion_tokens': 5}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'temperature': 1, 'n': 1}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'top_p': 1.0, 'stop': []}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'user': 'a', 'top_k': -1}",
    };
    static const char *const other[] = {
        "{'messages': [{'role': 'u', 'content': 'Ho'}], 'max_tokens': 5}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}]}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'seed': 0}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'temperature': 0.5}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'stop': 'x'}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'stop_token_ids': [120]}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'ignore_eos': true}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'logprobs': true}",
        "{'messages': [{'role': 'u', 'content': 'Hi', 'x': null}], 'max_tokens': 5}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}, {}], 'max_tokens': 5}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'stop': ['x', 'y']}",
        "{'messages': [{'role': 'u', 'content': 'Hi'}], 'max_tokens': 5, 'stop': ['xy']}",
    };
    enum { N = 1 + sizeof other / sizeof *other };
    char hashes[N][JOB_HASH_SIZE], hash[JOB_HASH_SIZE];
    for (EACH_FORM(form)) {
        hash_of(JOB_CHAT, form, plain, hashes[0]);
        for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
            hash_of(JOB_CHAT, form, same[i], hash);
            assert_string_equal(hash, hashes[0]);
        }
        for (int i = 1; i < N; i++) {
            hash_of(JOB_CHAT, form, other[i - 1], hashes[i]);
            for (int k = 0; k < i; k++) assert_string_not_equal(hashes[i], hashes[k]);
        }
    }
    // Ids as prompt or as tokens are two operations; a model is part of the question.
    hash_of(JOB_COMPLETION, JOB_BODY_MAP, "{'prompt': [1, 2]}", hashes[0]);
    hash_of(JOB_TOKENS, JOB_BODY_MAP, "{'tokens': [1, 2]}", hashes[1]);
    assert_string_not_equal(hashes[0], hashes[1]);
    strcpy(job.model, "m");
    assert_int_equal(job_body_hash(&job, &body, hashes[2], &e), OK);
    assert_string_not_equal(hashes[1], hashes[2]);
    // What isn't the question: class, times, meta, custom_id.
    hash_of(JOB_TOKENS, JOB_BODY_JSON, "{'tokens': [1, 2]}", hashes[2]);
    assert_string_equal(hashes[1], hashes[2]);
    job.class = 3, job.ttl_ms = 1, job.n_meta = 1, strcpy(job.custom_id, "c");
    assert_int_equal(job_body_hash(&job, &body, hashes[2], &e), OK);
    assert_string_equal(hashes[1], hashes[2]);
}

// Pinned: a job that is replayed by a later version must draw the same numbers and be the same job.
static void seeds_and_hashes_stay(void **state)
{
    (void) state;
    char hash[JOB_HASH_SIZE];
    assert_true(job_seed("default", "job-1") == 0x77cbb177acd51f97u);
    assert_true(job_seed("a", "bc") != job_seed("ab", "c"));
    hash_of(JOB_CHAT, JOB_BODY_MAP, "{'messages': [{'role': 'user', 'content': 'Hi'}]}", hash);
    assert_string_equal(hash, "fa0b15a8a746ee52c63b7ad9636956da");
}

static void damaged_bodies_never_crash(void **state)
{
    (void) state;
    enum { ROOM = 1024, TIMES = 20000 };
    static const char json[] =
        "{'messages': [{'role': 'user', 'content': 'H\\u00e9'}], 'prompt': [1, 2, 3],"
        " 'tokens': [9], 'max_tokens': 5, 'temperature': 0.5, 'stop': ['a', 'b'], 'seed': 3,"
        " 'logprobs': true,"
        " 'stop_token_ids': [7], 'n': 1}";
    uint64_t r = 3;
    int passed = 0, tried = 0;
    for (int i = 0; i < TIMES; i++) {
        for (EACH_FORM(form)) {
            uint8_t work[ROOM];
            buffer_clear(&bytes);
            bytes_json(&bytes, json);
            if (form == JOB_BODY_JSON) {
                buffer_clear(&bytes);
                for (const char *p = json; *p != '\0'; p++)
                    buffer_append(&bytes, *p == '\'' ? "\"" : p, 1);
            }
            memcpy(work, bytes.data, bytes.n);
            size_t n = bytes_damage(work, bytes.n, ROOM, &r);
            buffer_clear(&bytes);
            // The job around it, as job_decode would have it: a map that was walked.
            struct job decoded;
            bytes_hex(&bytes, "84 a176 01 a26964 a161 a26f70");
            bytes_json(&bytes, i % 3 == 0 ? "'chat'" : i % 3 == 1 ? "'completion'" : "'tokens'");
            bytes_json(&bytes, "'body'");
            if (form == JOB_BODY_JSON) {
                uint8_t head[] = {0xc5, (uint8_t) (n >> 8), (uint8_t) n};
                buffer_append(&bytes, head, sizeof head);
            }
            buffer_append(&bytes, work, n);
            uint8_t *copy = bytes_copy(bytes.data, bytes.n);
            if (job_decode(&decoded, copy, bytes.n, NULL) == OK) {
                tried++;
                job_body_deinit(&body);
                e = (struct error){0};
                char hash[JOB_HASH_SIZE];
                if (job_body_parse(&body, &decoded, "t", &e) == OK) {
                    passed++;
                    assert_int_equal(job_body_hash(&decoded, &body, hash, &e), OK);
                } else {
                    assert_true(e.code[0] != '\0' && e.text[0] != '\0');
                }
                job_body_deinit(&body);
            }
            free(copy);
        }
    }
    assert_true(tried > TIMES && passed > TIMES / 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_chat_request, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_absent_or_null_takes_openais_defaults, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_prompt_is_text_or_ids, setup, teardown),
        cmocka_unit_test_setup_teardown(logprobs_are_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(max_tokens_has_two_names, setup, teardown),
        cmocka_unit_test_setup_teardown(values_out_of_bounds_are_named, setup, teardown),
        cmocka_unit_test_setup_teardown(what_penstock_does_not_do_is_refused_by_name, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(what_the_op_needs_is_asked_for, setup, teardown),
        cmocka_unit_test_setup_teardown(stop_strings_have_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(msgpack_has_values_that_json_has_not, setup, teardown),
        cmocka_unit_test_setup_teardown(broken_json_says_where, setup, teardown),
        cmocka_unit_test_setup_teardown(values_are_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(a_whole_context_of_ids, setup, teardown),
        cmocka_unit_test_setup_teardown(the_hash_is_of_what_is_asked_for, setup, teardown),
        cmocka_unit_test_setup_teardown(seeds_and_hashes_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_bodies_never_crash, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
