// What becomes of a map_reduce job next: children, further levels, its last run, its result; and
// what is refused, with the numbers.
#include "broker/map_reduce.h"

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
#include <jansson.h>

#include "tests/unit/tokenizer_files.h"

static struct models models;
static struct prompt_scratch scratch;
static struct prompt_limits limits;
static struct buffer message; // of the job
static struct error e;

static int group_start(void **state)
{
    (void) state;
    static const char *const merges[] = {"a b", "ab c"};
    models.n = 1;
    struct model *m = &models.at[0];
    snprintf(m->name, sizeof m->name, "tiny");
    snprintf(m->hash, sizeof m->hash, "cafe");
    m->config.vocab_size = 300;
    assert_int_equal(load_json(&m->tokenizer, small_tokenizer(merges, 2), &e), OK);
    assert_int_equal(chat_load(&m->chat, FIXTURES, &e), OK); // there is no template
    m->config.bos_id = tokenizer_special(m->tokenizer, "<s>", 3);
    assert_int_equal(prompt_scratch_init(&scratch, &models, -1, &e), OK);
    buffer_init(&message, JOB_MESSAGE_MAX);
    return 0;
}

static int group_stop(void **state)
{
    (void) state;
    prompt_scratch_deinit(&scratch);
    models_deinit(&models);
    buffer_deinit(&message);
    return 0;
}

static int start(void **state)
{
    (void) state;
    limits = (struct prompt_limits){.max_context = {100}, .default_max_tokens = 10};
    e = (struct error){0};
    return 0;
}

static struct map_reduce_context context(void)
{
    return (struct map_reduce_context){&models, 0, &limits, "default", &scratch};
}

// The job's message, of a body in JSON.
static struct job encode(const char *body)
{
    struct job job = job_default();
    strcpy(job.id, "doc");
    strcpy(job.custom_id, "mine");
    job.op = JOB_MAP_REDUCE;
    job.class = 2;
    job.body_form = JOB_BODY_JSON;
    job.body = (struct job_text){body, strlen(body)};
    buffer_clear(&message);
    if (job_encode(&job, &message, &e) != OK) fail_msg("%s", e.text);
    assert_int_equal(job_decode(&job, message.data, message.n, &e), OK);
    return job;
}

static enum status take_on(struct map_reduce_next *next, const char *body, int level,
                           const struct map_reduce_results *results)
{
    struct map_reduce_context c = context();
    encode(body);
    return map_reduce_take_on(next, &c, message.data, message.n, level, results, &e);
}

static enum status check_body(const char *body)
{
    struct map_reduce_context c = context();
    char hash[JOB_HASH_SIZE];
    struct job job = encode(body);
    enum status status = map_reduce_check(&c, &job, hash, &e);
    if (status == OK) assert_int_equal(strlen(hash), JOB_HASH_SIZE - 1);
    return status;
}

static void expect_child(const struct map_reduce_next *next, int i, const char *id,
                         const char *prompt, int n_prompt, int max_tokens)
{
    const struct queue_child *child = &next->children[i];
    struct prompt p;
    assert_true(i < next->n);
    assert_int_equal(prompt_read(&p, &models, 0, &limits, "default", child->message,
                                 child->n_message, &scratch, &e), OK);
    assert_string_equal(p.job.id, id);
    assert_int_equal(p.job.class, 2);
    assert_string_equal(p.body.prompt, prompt);
    assert_int_equal(p.ids.n, n_prompt);
    assert_int_equal(child->n_prompt, n_prompt);
    assert_int_equal(child->max_tokens, max_tokens);
    assert_int_equal(child->need_blocks, prompt_blocks(n_prompt + max_tokens));
    assert_string_equal(child->body_hash, p.body_hash);
    prompt_deinit(&p);
}

static void add(struct map_reduce_results *r, const char *text, enum result_finish finish)
{
    struct result result = {.id = "x", .text = text, .text_bytes = strlen(text),
                            .finish_reason = finish,
                            .usage = {.prompt = 10, .cached = 1, .completion = 2}};
    struct buffer bytes;
    buffer_init(&bytes, 16 << 20);
    assert_int_equal(result_encode(&result, &bytes, &e), OK);
    enum status status = map_reduce_results_add(r, bytes.data, bytes.n, &e);
    if (status != OK) fail_msg("%s", e.text);
    buffer_deinit(&bytes);
}

static void a_document_becomes_children(void **state)
{
    (void) state;
    struct map_reduce_next next;
    assert_int_equal(take_on(&next, "{\"document\": \"One two. Three four. Five.\", \"map\": "
                                    "{\"prompt\": \"{index}/{count}: {chunk}\", \"max_tokens\": 7},"
                                    "\"chunk_tokens\": 16, \"overlap_tokens\": 0}", 0, NULL), OK);
    assert_int_equal(next.step, MAP_REDUCE_SPLIT);
    assert_int_equal(next.n, 3);
    expect_child(&next, 0, "doc-m1-1", "1/3: One two. ", 15, 7);
    expect_child(&next, 1, "doc-m1-2", "2/3: Three four. ", 18, 7);
    expect_child(&next, 2, "doc-m1-3", "3/3: Five.", 11, 7);
    map_reduce_next_deinit(&next);
}

static void each_text_of_a_list_begins_a_chunk(void **state)
{
    (void) state;
    struct map_reduce_next next;
    assert_int_equal(take_on(&next, "{\"document\": [\"a\", \"Bbbb bbbb. Cccc cccc.\", \"d\"], "
                                    "\"map\": {\"prompt\": \"{chunk}\"}, \"chunk_tokens\": 16}", 0,
                             NULL), OK);
    assert_int_equal(next.n, 4);
    expect_child(&next, 0, "doc-m1-1", "a", 2, 10); // BOS; the default output
    expect_child(&next, 1, "doc-m1-2", "Bbbb bbbb. ", 12, 10);
    expect_child(&next, 2, "doc-m1-3", "Cccc cccc.", 11, 10);
    expect_child(&next, 3, "doc-m1-4", "d", 2, 10);
    map_reduce_next_deinit(&next);
}

// Of 100 tokens the prompt's own and the output leave so many for a chunk.
static void chunks_fill_the_context(void **state)
{
    (void) state;
    char body[1024];
    struct map_reduce_next next;
    char document[401];
    memset(document, 'x', 400);
    document[400] = '\0';
    snprintf(body, sizeof body, "{\"document\": \"%s\", \"map\": {\"prompt\": \"12:{chunk}\", "
             "\"max_tokens\": 36}, \"overlap_tokens\": 0}", document);
    assert_int_equal(take_on(&next, body, 0, NULL), OK);
    assert_int_equal(next.n, 7); // 400 / (100 - 36 - BOS - 3)
    assert_int_equal(next.children[0].n_prompt, 64);
    assert_int_equal(next.children[6].n_prompt, 44);
    map_reduce_next_deinit(&next);
}

static const char REDUCE[] = "{\"document\": \"x\", \"map\": {\"prompt\": \"{chunk}\"},"
                             " \"reduce\": "
                             "{\"prompt\": \"J{results}\", \"max_tokens\": 48}, "
                             "\"separator\": \"+\"}";

static void results_that_fit_are_the_last_run(void **state)
{
    (void) state;
    struct map_reduce_next next;
    struct map_reduce_results r;
    map_reduce_results_init(&r, "100 20 3");
    add(&r, "aaa", RESULT_STOP);
    add(&r, "", RESULT_STOP);
    add(&r, "{results}", RESULT_LENGTH);
    assert_int_equal(take_on(&next, REDUCE, 1, &r), OK);
    assert_int_equal(next.step, MAP_REDUCE_RUN);
    assert_int_equal(next.n, 1);
    expect_child(&next, 0, "doc", "Jaaa++{results}", 16, 48);
    assert_int_equal(r.usage.prompt, 130);
    assert_int_equal(r.usage.cached, 23);
    assert_int_equal(r.usage.completion, 9);
    struct job job;
    assert_int_equal(job_decode(&job, next.children[0].message, next.children[0].n_message, &e),
                     OK);
    assert_string_equal(job.custom_id, "mine");
    map_reduce_next_deinit(&next);
    map_reduce_results_deinit(&r);
}

static void others_make_a_further_level(void **state)
{
    (void) state;
    struct map_reduce_next next;
    struct map_reduce_results r;
    map_reduce_results_init(&r, "");
    // 50 tokens are left for results: two of 20 and the separator, but not three.
    for (int i = 0; i < 5; i++) add(&r, "yyyyyyyyyyyyyyyyyyyy", RESULT_STOP);
    assert_int_equal(take_on(&next, REDUCE, 2, &r), OK);
    assert_int_equal(next.step, MAP_REDUCE_SPLIT);
    assert_int_equal(next.n, 3);
    expect_child(&next, 0, "doc-m3-1", "Jyyyyyyyyyyyyyyyyyyyy+yyyyyyyyyyyyyyyyyyyy", 43, 48);
    expect_child(&next, 2, "doc-m3-3", "Jyyyyyyyyyyyyyyyyyyyy", 22, 48);
    map_reduce_next_deinit(&next);

    // The last level may not make another one.
    assert_int_equal(take_on(&next, REDUCE, MAP_LEVELS_MAX, &r), ERR_INPUT);
    assert_string_equal(e.code, "reduce_does_not_fit");
    assert_non_null(strstr(e.text, "the 5 results of level 8 make 3 requests of at most 50"));
    map_reduce_next_deinit(&next);
    map_reduce_results_deinit(&r);
}

static void results_that_are_too_long(void **state)
{
    (void) state;
    struct map_reduce_next next;
    struct map_reduce_results r;
    char text[52];
    memset(text, 'y', 51);
    text[51] = '\0';
    map_reduce_results_init(&r, "");
    add(&r, "z", RESULT_STOP);
    add(&r, text, RESULT_STOP);
    assert_int_equal(take_on(&next, REDUCE, 1, &r), ERR_INPUT);
    assert_string_equal(e.code, "reduce_does_not_fit");
    assert_non_null(strstr(e.text, "result 2 has 51 tokens, reduce itself 2, and its output may "
                                   "have 48: of the 100 that all may have, only 50 are left"));
    map_reduce_next_deinit(&next);
    map_reduce_results_deinit(&r);

    // Each fits, but no two.
    map_reduce_results_init(&r, "");
    text[30] = '\0';
    for (int i = 0; i < 3; i++) add(&r, text, RESULT_STOP);
    assert_int_equal(take_on(&next, REDUCE, 1, &r), ERR_INPUT);
    assert_non_null(strstr(e.text, "there would be no fewer"));
    map_reduce_next_deinit(&next);
    map_reduce_results_deinit(&r);
}

static void without_reduce_the_texts_are_the_result(void **state)
{
    (void) state;
    static const char body[] = "{\"document\": \"x\", \"map\": {\"prompt\": \"{chunk}\"}, "
                               "\"separator\": \"+\"}";
    struct map_reduce_next next;
    struct map_reduce_results r;
    struct result result;
    map_reduce_results_init(&r, "4000000000 0 1");
    add(&r, "a", RESULT_STOP);
    add(&r, "b", RESULT_LENGTH);
    assert_int_equal(take_on(&next, body, 1, &r), OK);
    assert_int_equal(next.step, MAP_REDUCE_END);
    assert_int_equal(result_decode(&result, next.bytes.data, next.bytes.n, &e), OK);
    assert_int_equal(result.text_bytes, 3);
    assert_memory_equal(result.text, "a+b", 3);
    assert_string_equal(result.id, "doc");
    assert_string_equal(result.custom_id, "mine");
    assert_string_equal(result.engine.model, "cafe");
    assert_int_equal(result.status, RESULT_OK);
    assert_int_equal(result.finish_reason, RESULT_LENGTH); // a part was cut
    assert_int_equal(result.usage.prompt, INT32_MAX);      // as far as it can be said
    assert_int_equal(result.usage.cached, 2);
    assert_int_equal(result.usage.completion, 5);
    result_deinit(&result);
    map_reduce_next_deinit(&next);
    map_reduce_results_deinit(&r);
}

static void what_is_refused_when_it_comes(void **state)
{
    (void) state;
    static const struct {
        const char *body, *code, *says;
    } cases[] = {
        {"{\"document\": \"a\", \"map\": {\"prompt\": \"{chunk}\", \"max_tokens\": 84}}",
         "prompt_too_long", "map: the request itself has 1 tokens and its output may have 84; of "
         "the 100 that both may have, 15 are left for a chunk, and it takes at least 16"},
        {"{\"document\": \"a\", \"map\": {\"prompt\": \"{chunk}\"}, \"chunk_tokens\": 90}",
         "bad_body", "chunk_tokens is 90, but map itself has 1 tokens and its output may have 10: "
         "of the 100 that all may have, 89 are left"},
        {"{\"document\": \"a\", \"map\": {\"prompt\": \"{chunk}\"}, \"overlap_tokens\": 45}",
         "bad_body", "overlap_tokens is 45, but must be less than half of a chunk, which may have "
         "89"},
        {"{\"document\": \"a\", \"map\": {\"prompt\": \"{chunk}\"}, \"reduce\": {\"prompt\": "
         "\"{results}\", \"max_tokens\": 99}}", "prompt_too_long", "reduce: the request itself"},
        {"{\"document\": \"a\", \"map\": {\"messages\": [{\"role\": \"user\", \"content\": "
         "\"{chunk}\"}]}}", "template_unknown", "map: "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_not_equal(check_body(cases[i].body), OK);
        if (strcmp(e.code, cases[i].code) != 0 || strstr(e.text, cases[i].says) == NULL) {
            fail_msg("%zu: %s: %s", i, e.code, e.text);
        }
    }
    assert_int_equal(check_body(REDUCE), OK);
    struct tokenizer *t = models.at[0].tokenizer;
    models.at[0].tokenizer = NULL;
    assert_int_equal(check_body(REDUCE), ERR_UNSUPPORTED);
    assert_string_equal(e.code, "no_tokenizer");
    models.at[0].tokenizer = t;
}

// A body that is made of pieces: prompt, document of n bytes 'x' with `unit` between.
static char *long_body(const char *prompt, size_t n, const char *more)
{
    char *body = malloc(n + strlen(prompt) + strlen(more) + 128), *at = body;
    at += sprintf(at, "{\"map\": {\"prompt\": \"%s\"}%s, \"document\": \"", prompt, more);
    memset(at, 'x', n);
    strcpy(at + n, "\"}");
    return body;
}

static void what_is_refused_when_it_is_split(void **state)
{
    (void) state;
    struct map_reduce_next next;
    for (int over = 0; over <= 1; over++) {
        char *body = long_body("{chunk}", 16 * MAP_CHUNKS_MAX + (size_t) over,
                               ", \"chunk_tokens\": 16, \"overlap_tokens\": 0");
        enum status status = take_on(&next, body, 0, NULL);
        assert_int_equal(status, over ? ERR_LIMIT : OK);
        if (over) assert_string_equal(e.code, "too_many_chunks");
        if (over) assert_non_null(strstr(e.text, "more than 4096 chunks of 16 tokens"));
        if (!over) assert_int_equal(next.n, MAP_CHUNKS_MAX);
        map_reduce_next_deinit(&next);
        free(body);
    }
    // A request so long that its copies are too much.
    limits.max_context[0] = 100000;
    char *prompt = malloc(20001);
    memset(prompt, 'y', 20000);
    strcpy(prompt + 20000 - 7, "{chunk}");
    char *body = long_body(prompt, 16 * 1000, ", \"chunk_tokens\": 16, \"overlap_tokens\": 0");
    assert_int_equal(take_on(&next, body, 0, NULL), ERR_LIMIT);
    assert_string_equal(e.code, "too_large");
    assert_non_null(strstr(e.text, "have together more than 16777216 bytes"));
    map_reduce_next_deinit(&next);
    free(prompt);
    free(body);
}

static void results_have_a_limit(void **state)
{
    (void) state;
    struct map_reduce_results r;
    struct buffer bytes;
    char *text = malloc(MAP_RESULTS_MAX);
    memset(text, 'x', MAP_RESULTS_MAX);
    struct result result = {.id = "x", .text = text, .text_bytes = MAP_RESULTS_MAX};
    buffer_init(&bytes, 16 << 20);
    assert_int_equal(result_encode(&result, &bytes, &e), OK);
    map_reduce_results_init(&r, "");
    assert_int_equal(map_reduce_results_add(&r, bytes.data, bytes.n, &e), OK);
    buffer_clear(&bytes);
    result.text_bytes = 1;
    assert_int_equal(result_encode(&result, &bytes, &e), OK);
    assert_int_equal(map_reduce_results_add(&r, bytes.data, bytes.n, &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_large");
    assert_int_equal(map_reduce_results_add(&r, "\xc1", 1, &e), ERR_INPUT);
    map_reduce_results_deinit(&r);
    buffer_deinit(&bytes);
    free(text);
}

#define test(f) cmocka_unit_test_setup(f, start)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(a_document_becomes_children),
        test(each_text_of_a_list_begins_a_chunk),
        test(chunks_fill_the_context),
        test(results_that_fit_are_the_last_run),
        test(others_make_a_further_level),
        test(results_that_are_too_long),
        test(without_reduce_the_texts_are_the_result),
        test(what_is_refused_when_it_comes),
        test(what_is_refused_when_it_is_split),
        test(results_have_a_limit),
    };
    return cmocka_run_group_tests(tests, group_start, group_stop);
}
