// The body of a map_reduce job: its fields and their bounds, the requests that it becomes, its
// hash.
#include "common/map_reduce_body.h"

#include "tests/support/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

// The bytes that a job points into.
static struct buffer bytes;

static int start(void **state)
{
    (void) state;
    buffer_init(&bytes, 64 << 20);
    return 0;
}

static int stop(void **state)
{
    (void) state;
    buffer_deinit(&bytes);
    return 0;
}

// JSON with single quotes, as JSON text or as msgpack.
static enum status parse(struct map_reduce_body *b, struct job *job, enum job_body_form form,
                         const char *json, struct error *e)
{
    buffer_clear(&bytes);
    if (form == JOB_BODY_MAP) {
        bytes_json(&bytes, json);
    } else {
        for (const char *c = json; *c != '\0'; c++) buffer_append(&bytes, *c == '\'' ? "\"" : c, 1);
    }
    *job = job_default();
    job->op = JOB_MAP_REDUCE;
    strcpy(job->id, "doc");
    job->body_form = form;
    job->body = (struct job_text){(const char *) bytes.data, bytes.n};
    *e = (struct error){0};
    return map_reduce_body_parse(b, job, e);
}

static void expect_fill(const struct map_reduce_request *r, const char *text, int index, int count,
                        const char *wanted)
{
    const struct map_reduce_fill fill = {text, strlen(text), index, count};
    struct buffer to;
    struct error e = {0};
    char *expected = strdup(wanted);
    for (char *c = expected; *c != '\0'; c++) *c = *c == '\'' ? '"' : *c;
    buffer_init(&to, 1 << 16);
    if (map_reduce_fill(r, &fill, &to, &e) != OK) fail_msg("%s", e.text);
    buffer_append(&to, "", 1);
    assert_string_equal((const char *) to.data, expected);
    buffer_deinit(&to);
    free(expected);
}

static void a_document_and_its_requests(void **state)
{
    (void) state;
    static const char json[] =
        "{'document': 'All of it.',"
        " 'map': {'messages': [{'role': 'system', 'content': 'Part {index} of {count}.'},"
        " {'role': 'user', 'content': 'Sum up: {chunk}'}], 'max_tokens': 50, 'temperature': 0},"
        " 'reduce': {'prompt': 'Join: {results}|'}, 'chunk_tokens': 100, 'overlap_tokens': 49,"
        " 'separator': '; '}";
    for (enum job_body_form form = JOB_BODY_MAP; form <= JOB_BODY_JSON; form++) {
        struct map_reduce_body b;
        struct job job;
        struct error e;
        size_t n;
        if (parse(&b, &job, form, json, &e) != OK) fail_msg("%s", e.text);
        assert_int_equal(b.n_texts, 1);
        assert_string_equal(map_reduce_text(&b, 0, &n), "All of it.");
        assert_int_equal(n, 10);
        assert_int_equal(b.map.op, JOB_CHAT);
        assert_int_equal(b.map.max_tokens, 50);
        assert_true(b.map.numbered);
        assert_int_equal(b.reduce.op, JOB_COMPLETION);
        assert_int_equal(b.reduce.max_tokens, 0);
        assert_false(b.reduce.numbered);
        assert_int_equal(b.chunk_tokens, 100);
        assert_int_equal(b.overlap_tokens, 49);
        assert_string_equal(b.separator, "; ");
        expect_fill(&b.map, "a \"b\"", 2, 7,
                    "{'messages':[{'role':'system','content':'Part 2 of 7.'},{'role':'user',"
                    "'content':'Sum up: a \\'b\\''}],'max_tokens':50,'temperature':0}");
        expect_fill(&b.reduce, "x", 1, 1, "{'prompt':'Join: x|'}");
        map_reduce_body_deinit(&b);
    }
}

static void what_is_put_in_is_not_looked_at_again(void **state)
{
    (void) state;
    struct map_reduce_body b;
    struct job job;
    struct error e;
    assert_int_equal(parse(&b, &job, JOB_BODY_JSON,
                           "{'document': ['a', 'b'], 'map': {'prompt':"
                           " '{chunk}{{chunk}}{results}{index}{ chunk }{chunk'},"
                           " 'reduce': {'messages': [{'role': 'user', 'content': [{'type': 'text',"
                           " 'text': '{chunk}'}, {'type': 'text', 'text': '{results}'}]},"
                           " {'role': 'user', 'content': ''}]}}",
                           &e), OK);
    expect_fill(&b.map, "{chunk}{index}{results}", 3, 4,
                "{'prompt':'{chunk}{index}{results}{{chunk}{index}{results}}{results}3{ chunk }"
                "{chunk'}");
    expect_fill(&b.reduce, "{chunk}", 3, 4,
                "{'messages':[{'role':'user','content':[{'type':'text','text':'{chunk}'},{'type':"
                "'text','text':'{chunk}'}]},{'role':'user','content':''}]}");
    size_t n;
    assert_int_equal(b.n_texts, 2);
    assert_string_equal(map_reduce_text(&b, 1, &n), "b");
    assert_string_equal(b.separator, "\n\n");
    assert_int_equal(b.overlap_tokens, -1);
    map_reduce_body_deinit(&b);
}

static void refusals(void **state)
{
    (void) state;
#define MAP "'map': {'prompt': '{chunk}'}"
    static const struct {
        const char *json, *code, *says;
    } cases[] = {
        {"{" MAP "}", "bad_body", "document is missing"},
        {"{'document': null, " MAP "}", "bad_body", "document is missing"},
        {"{'document': '', " MAP "}", "bad_body", "document must be not empty"},
        {"{'document': 7, " MAP "}", "bad_body", "document must be a text or a list of texts"},
        {"{'document': [], " MAP "}", "bad_body", "document must be a text or a list of texts"},
        {"{'document': ['a', ''], " MAP "}", "bad_body", "document[1] must be not empty"},
        {"{'document': ['a', 1], " MAP "}", "bad_body", "document[1] must be a string"},
        {"{'document': 'a'}", "bad_body", "map is missing"},
        {"{'document': 'a', 'map': []}", "bad_body", "map: it must be an object"},
        {"{'document': 'a', 'map': {}}", "bad_body", "map: it must be with messages or a prompt"},
        {"{'document': 'a', 'map': {'prompt': '{chunk}', 'messages': []}}", "bad_body",
         "map: it must be with messages or a prompt"},
        {"{'document': 'a', 'map': {'prompt': [1, 2]}}", "bad_body",
         "map: prompt must be a string"},
        {"{'document': 'a', 'map': {'prompt': '{results}'}}", "bad_body",
         "map: no text of it holds {chunk}"},
        {"{'document': 'a', " MAP ", 'reduce': {'prompt': '{chunk}'}}", "bad_body",
         "reduce: no text of it holds {results}"},
        {"{'document': 'a', 'map': {'messages': 5}}", "bad_body", "map: messages must be a list"},
        {"{'document': 'a', 'map': {'messages': [5]}}", "bad_body", "map: no text of it"},
        {"{'document': 'a', 'map': {'prompt': '{chunk}', 'max_tokens': 0}}", "bad_body",
         "map: max_tokens must be from 1"},
        {"{'document': 'a', " MAP ", 'reduce': {'prompt': '{results}', 'top_p': 7}}",
         "bad_sampling", "reduce: "},
        {"{'document': 'a', 'map': {'prompt': '{chunk}', 'n': 2}}", "unsupported", "map: n = 2"},
        {"{'document': 'a', 'map': {'prompt': '{chunk}', 'logprobs': 2}}", "unsupported",
         "map: logprobs"},
        {"{'document': 'a', " MAP ", 'chunk_tokens': 15}", "bad_body", "chunk_tokens must be from"},
        {"{'document': 'a', " MAP ", 'chunk_tokens': '16'}", "bad_body", "must be an integer"},
        {"{'document': 'a', " MAP ", 'chunk_tokens': 16, 'overlap_tokens': 8}", "bad_body",
         "overlap_tokens is 8, but must be less than half of chunk_tokens, which is 16"},
        {"{'document': 'a', " MAP ", 'overlap_tokens': -1}", "bad_body", "overlap_tokens must be"},
        {"{'document': 'a', " MAP ", 'separator': 1}", "bad_body", "separator must be a string"},
        {"{'document': 'a', " MAP ", 'max_tokens': 5}", "bad_body",
         "max_tokens belongs into map or reduce"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (enum job_body_form form = JOB_BODY_MAP; form <= JOB_BODY_JSON; form++) {
            struct map_reduce_body b;
            struct job job;
            struct error e;
            assert_int_not_equal(parse(&b, &job, form, cases[i].json, &e), OK);
            map_reduce_body_deinit(&b);
            if (strcmp(e.code, cases[i].code) != 0 || strstr(e.text, cases[i].says) == NULL) {
                fail_msg("%s: %s: %s", cases[i].json, e.code, e.text);
            }
        }
    }
}

static enum status parse_id(const char *id, struct error *e)
{
    struct job job = job_default();
    struct map_reduce_body b;
    static const char body[] = "{\"document\": \"a\", \"map\": {\"prompt\": \"{chunk}\"}}";
    job.op = JOB_MAP_REDUCE;
    strcpy(job.id, id);
    job.body_form = JOB_BODY_JSON;
    job.body = (struct job_text){body, strlen(body)};
    enum status status = map_reduce_body_parse(&b, &job, e);
    map_reduce_body_deinit(&b);
    return status;
}

static void limits(void **state)
{
    (void) state;
    struct error e;
    char id[JOB_ID_MAX + 1] = "";
    memset(id, 'x', MAP_PARENT_ID_MAX);
    assert_int_equal(parse_id(id, &e), OK);
    id[MAP_PARENT_ID_MAX] = 'x';
    assert_int_equal(parse_id(id, &e), ERR_INPUT);
    assert_string_equal(e.code, "bad_job");

    for (int over = 0; over <= 1; over++) {
        struct map_reduce_body b;
        struct job job;
        char *json = malloc(64 + 4 * (MAP_CHUNKS_MAX + 1) + MAP_SEPARATOR_MAX), *at = json;
        at += sprintf(at, "{'document': ['a'");
        for (int i = 1; i < MAP_CHUNKS_MAX + over; i++) at += sprintf(at, ",'a'");
        sprintf(at, "], 'map': {'prompt': '{chunk}'}}");
        assert_int_equal(parse(&b, &job, JOB_BODY_JSON, json, &e), over ? ERR_LIMIT : OK);
        map_reduce_body_deinit(&b);
        at = json + sprintf(json, "{'document': 'a', 'map': {'prompt': '{chunk}'}, 'separator': '");
        memset(at, 'x', (size_t) (MAP_SEPARATOR_MAX + over));
        strcpy(at + MAP_SEPARATOR_MAX + over, "'}");
        assert_int_equal(parse(&b, &job, JOB_BODY_JSON, json, &e), over ? ERR_INPUT : OK);
        map_reduce_body_deinit(&b);
        free(json);
    }
}

static void hash_of(enum job_body_form form, const char *json, char hash[JOB_HASH_SIZE])
{
    struct map_reduce_body b;
    struct job job;
    struct error e;
    if (parse(&b, &job, form, json, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(map_reduce_body_hash(&b, &job, hash, &e), OK);
    map_reduce_body_deinit(&b);
}

static void the_same_request_has_the_same_hash(void **state)
{
    (void) state;
    char first[JOB_HASH_SIZE], other[JOB_HASH_SIZE];
    const char *json = "{'document': 'a', 'map': {'prompt': '{chunk}', 'max_tokens': 5}}";
    hash_of(JOB_BODY_JSON, json, first);
    hash_of(JOB_BODY_MAP, json, other);
    assert_string_equal(first, other);
    hash_of(JOB_BODY_MAP, "{'map': {'max_tokens': 5, 'prompt': '{chunk}'}, 'more': 1, "
                          "'separator': null, 'document': 'a'}", other);
    assert_string_equal(first, other);
    static const char *const others[] = {
        "{'document': 'b', 'map': {'prompt': '{chunk}', 'max_tokens': 5}}",
        "{'document': ['a'], 'map': {'prompt': '{chunk}', 'max_tokens': 5}}",
        "{'document': 'a', 'map': {'prompt': '{chunk}', 'max_tokens': 6}}",
        "{'document': 'a', 'map': {'prompt': '{chunk}', 'max_tokens': 5}, 'chunk_tokens': 20}",
        "{'document': 'a', 'map': {'prompt': '{chunk}', 'max_tokens': 5}, 'separator': ''}",
        "{'document': 'a', 'map': {'prompt': '{chunk}', 'max_tokens': 5}, 'overlap_tokens': 0}",
        ("{'document': 'a', 'map': {'prompt': '{chunk}', 'max_tokens': 5}, "
         "'reduce': {'prompt': '{results}'}}"),
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        hash_of(JOB_BODY_JSON, others[i], other);
        assert_string_not_equal(first, other);
    }
}

// Whatever the bytes are: refused or read, never out of bounds (the sanitizers watch).
static void damaged_bodies_do_no_harm(void **state)
{
    (void) state;
    static const char json[] =
        "{\"document\": [\"a b\", \"c\"], \"map\": {\"messages\": [{\"role\": \"user\", "
        "\"content\": [{\"type\": \"text\", \"text\": \"{chunk}\"}]}], \"max_tokens\": 5}, "
        "\"reduce\": {\"prompt\": \"{results}{count}\"}, \"chunk_tokens\": 32}";
    uint64_t seed = 7;
    int good = 0;
    for (int i = 0; i < 20000; i++) {
        uint8_t damaged[512];
        memcpy(damaged, json, sizeof json - 1);
        size_t n = bytes_damage(damaged, sizeof json - 1, sizeof damaged, &seed);
        uint8_t *copy = bytes_copy(damaged, n);
        struct job job = job_default();
        struct map_reduce_body b;
        struct error e;
        job.op = JOB_MAP_REDUCE;
        job.body_form = JOB_BODY_JSON;
        job.body = (struct job_text){(const char *) copy, n};
        if (map_reduce_body_parse(&b, &job, &e) == OK) {
            const struct map_reduce_fill fill = {"y", 1, 1, 1};
            struct buffer to;
            buffer_init(&to, 1 << 16);
            assert_int_equal(map_reduce_fill(&b.map, &fill, &to, &e), OK);
            buffer_deinit(&to);
            good++;
        }
        map_reduce_body_deinit(&b);
        free(copy);
    }
    assert_true(good > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_document_and_its_requests),
        cmocka_unit_test(what_is_put_in_is_not_looked_at_again),
        cmocka_unit_test(refusals),
        cmocka_unit_test(limits),
        cmocka_unit_test(the_same_request_has_the_same_hash),
        cmocka_unit_test(damaged_bodies_do_no_harm),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
