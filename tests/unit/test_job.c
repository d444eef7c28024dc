#include "common/job.h"

#include "tests/support/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <msgpack.h>
#include <stdio.h>
#include <string.h>

static struct buffer bytes;

static int setup(void **state)
{
    (void) state;
    buffer_init(&bytes, (size_t) (2 * JOB_MESSAGE_MAX));
    return 0;
}

static int teardown(void **state)
{
    (void) state;
    buffer_deinit(&bytes);
    return 0;
}

static enum status decode_json(struct job *job, const char *json, struct error *e)
{
    *e = (struct error){0};
    buffer_clear(&bytes);
    bytes_json(&bytes, json);
    return job_decode(job, bytes.data, bytes.n, e);
}

// A producer's message, and what the broker reads in it.
static void a_message_is_decoded_in_place(void **state)
{
    (void) state;
    struct job job;
    struct error e;
    assert_int_equal(decode_json(&job, "{'v': 1, 'id': 'job-1', 'op': 'chat', 'class': 2,"
                                       " 'custom_id': 'row 17', 'meta': {'team': 'blue'},"
                                       " 'body': {'messages': []}}", &e), OK);
    assert_string_equal(job.id, "job-1");
    assert_int_equal(job.op, JOB_CHAT);
    assert_int_equal(job.class, 2);
    assert_string_equal(job.custom_id, "row 17");
    assert_int_equal(job.n_meta, 1);
    assert_memory_equal(job.meta[0].value.at, "blue", 4);
    assert_int_equal(job.body_form, JOB_BODY_MAP);
    assert_true((const uint8_t *) job.body.at > bytes.data); // nothing was copied
    assert_true((const uint8_t *) job.body.at + job.body.n == bytes.data + bytes.n);
}

static void absent_and_nil_fields_have_defaults(void **state)
{
    (void) state;
    static const char *const table[] = {
        "{'v': 1, 'id': 'a', 'op': 'cancel'}",
        "{'v': 1, 'id': 'a', 'op': 'cancel', 'model': null, 'class': null, 'at': null,"
        " 'deadline': null, 'ttl': null, 'attempts': null, 'stream': null, 'custom_id': null,"
        " 'batch': null, 'meta': null, 'body': null}",
        "{'future': [1, {'x': 2}], 'v': 1, 'id': 'a', 'op': 'cancel', 'priority': 'high'}",
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct job job, none = job_default();
        struct error e;
        assert_int_equal(decode_json(&job, table[i], &e), OK);
        assert_true(job.class == 0 && job.at_ms == 0 && job.deadline_ms == 0 && !job.stream);
        assert_true(job.ttl_ms == RESULT_TTL_MS && job.ttl_ms == none.ttl_ms);
        assert_int_equal(job.attempts, JOB_ATTEMPTS_DEFAULT);
        assert_int_equal(job.attempts, none.attempts);
        assert_true(job.model[0] == '\0' && job.custom_id[0] == '\0' && job.batch[0] == '\0');
        assert_true(job.n_meta == 0 && job.body_form == JOB_BODY_NONE);
    }
}

#define JOB(more) "{'v': 1, 'id': 'a', 'op': 'chat', 'body': {}" more "}"

static void what_is_refused_is_named(void **state)
{
    (void) state;
    static const struct {
        const char *json, *field;
    } table[] = {
        {"[]", "map"},
        {"1", "map"},
        {"'text'", "map"},
        {"{}", "v"},
        {"{'v': 1}", "id"},
        {"{'v': 1, 'id': 'a'}", "op"},
        {"{'v': 1, 'id': 'a', 'op': 'chat'}", "body"},
        {"{'v': 1, 'id': 'a', 'op': 'chat', 'body': null}", "body"},
        {"{'id': 'a', 'op': 'chat', 'body': {}}", "v"},
        {"{'v': null, 'id': 'a', 'op': 'chat', 'body': {}}", "v"},
        {"{'v': 2, 'id': 'a', 'op': 'chat', 'body': {}}", "v"},
        {"{'v': 0, 'id': 'a', 'op': 'chat', 'body': {}}", "v"},
        {"{'v': 1.0, 'id': 'a', 'op': 'chat', 'body': {}}", "v"},
        {"{'v': '1', 'id': 'a', 'op': 'chat', 'body': {}}", "v"},
        {"{'v': 1, 'id': '', 'op': 'chat', 'body': {}}", "id"},
        {"{'v': 1, 'id': 'a b', 'op': 'chat', 'body': {}}", "id"},
        {"{'v': 1, 'id': 'a:b', 'op': 'chat', 'body': {}}", "id"},
        {"{'v': 1, 'id': 'a\\u0000', 'op': 'chat', 'body': {}}", "id"},
        {"{'v': 1, 'id': '\\u00e4', 'op': 'chat', 'body': {}}", "id"},
        {"{'v': 1, 'id': 7, 'op': 'chat', 'body': {}}", "id"},
        {"{'v': 1, 'id': 'a', 'op': 'embed', 'body': {}}", "op"},
        {"{'v': 1, 'id': 'a', 'op': 'Chat', 'body': {}}", "op"},
        {"{'v': 1, 'id': 'a', 'op': 1, 'body': {}}", "op"},
        {"{'v': 1, 'id': 'a', 'op': 'chat', 'body': []}", "body"},
        {"{'v': 1, 'id': 'a', 'op': 'chat', 'body': 1}", "body"},
        {"{'v': 1, 'id': 'a', 'op': 'chat', 'body': true}", "body"},
        {JOB(", 'model': 1"), "model"},
        {JOB(", 'model': 'a\\u0000b'"), "model"},
        {JOB(", 'class': -1"), "class"},
        {JOB(", 'class': 4"), "class"},
        {JOB(", 'class': '0'"), "class"},
        {JOB(", 'class': 1.5"), "class"},
        {JOB(", 'at': -1"), "at"},
        {JOB(", 'at': 253402300800000"), "at"},
        {JOB(", 'at': '2026-01-01'"), "at"},
        {JOB(", 'deadline': 0"), "deadline"},
        {JOB(", 'deadline': 253402300800000"), "deadline"},
        {JOB(", 'ttl': 0"), "ttl"},
        {JOB(", 'ttl': 2592000001"), "ttl"},
        {JOB(", 'ttl': -9223372036854775807"), "ttl"},
        {JOB(", 'attempts': 0"), "attempts"},
        {JOB(", 'attempts': 21"), "attempts"},
        {JOB(", 'stream': 1"), "stream"},
        {JOB(", 'stream': 'yes'"), "stream"},
        {JOB(", 'custom_id': 17"), "custom_id"},
        {JOB(", 'custom_id': 'a\\u0000'"), "custom_id"},
        {JOB(", 'batch': {}"), "batch"},
        {JOB(", 'batch': 'a b'"), "batch"},
        {JOB(", 'batch': 'a:b'"), "batch"},
        {JOB(", 'meta': []"), "meta"},
        {JOB(", 'meta': {'a': 1}"), "meta"},
        {JOB(", 'meta': {'a': null}"), "meta"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct job job;
        struct error e;
        if (decode_json(&job, table[i].json, &e) != ERR_INPUT || strcmp(e.code, "bad_job") != 0 ||
            strstr(e.text, table[i].field) == NULL)
            fail_msg("%s: %s: %s", table[i].json, e.code, e.text);
    }
}

// A job whose `field` is a str of n bytes.
static enum status decode_text(struct job *job, const char *field, int n, struct error *e)
{
    char json[2048], text[1024] = "";
    memset(text, 'x', (size_t) n);
    bool is_id = strcmp(field, "id") == 0;
    snprintf(json, sizeof json, "{'v': 1, 'op': 'cancel', '%s': '%s'%s}", field, text,
             is_id ? "" : ", 'id': 'a'");
    return decode_json(job, json, e);
}

static void text_has_limits(void **state)
{
    (void) state;
    static const struct {
        const char *field;
        int most;
    } table[] = {{"id", JOB_ID_MAX}, {"model", JOB_MODEL_MAX}, {"custom_id", JOB_CUSTOM_ID_MAX},
                 {"batch", JOB_BATCH_MAX}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct job job;
        struct error e;
        assert_int_equal(decode_text(&job, table[i].field, table[i].most, &e), OK);
        assert_int_equal(decode_text(&job, table[i].field, table[i].most + 1, &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_job");
        assert_non_null(strstr(e.text, table[i].field));
    }
}

static void numbers_reach_their_bounds(void **state)
{
    (void) state;
    struct job job;
    struct error e;
    assert_int_equal(decode_json(&job, JOB(", 'class': 3, 'at': 0, 'deadline': 1, 'ttl': 1,"
                                           " 'attempts': 1"), &e), OK);
    assert_int_equal(job.class, JOB_CLASSES - 1);
    assert_int_equal(decode_json(&job, JOB(", 'class': 0, 'at': 253402300799999,"
                                           " 'deadline': 253402300799999, 'ttl': 2592000000,"
                                           " 'attempts': 20"), &e), OK);
    assert_int_equal(job.ttl_ms, JOB_TTL_MAX_MS);
    assert_int_equal(job.attempts, JOB_ATTEMPTS_MAX);
}

static void meta_has_at_most_sixteen_pairs(void **state)
{
    (void) state;
    for (int n = 0; n <= JOB_META_MAX + 1; n++) {
        char json[1024], pair[32];
        struct job job;
        struct error e;
        strcpy(json, "{'v': 1, 'id': 'a', 'op': 'cancel', 'meta': {");
        for (int i = 0; i < n; i++) {
            snprintf(pair, sizeof pair, "%s'k%d': 'v%d'", i > 0 ? ", " : "", i, i);
            strcat(json, pair);
        }
        strcat(json, "}}");
        if (n > JOB_META_MAX) {
            assert_int_equal(decode_json(&job, json, &e), ERR_INPUT);
            assert_non_null(strstr(e.text, "meta"));
        } else {
            assert_int_equal(decode_json(&job, json, &e), OK);
            assert_int_equal(job.n_meta, n);
        }
    }
}

// A message whose body is n bytes of str or bin, or a map of n bytes.
static void make_body(const char *form, size_t n)
{
    buffer_clear(&bytes);
    bytes_hex(&bytes, "84"); // a map of 4
    bytes_json(&bytes, "'v'"), bytes_json(&bytes, "1");
    bytes_json(&bytes, "'id'"), bytes_json(&bytes, "'a'");
    bytes_json(&bytes, "'op'"), bytes_json(&bytes, "'chat'");
    bytes_json(&bytes, "'body'");
    size_t text = n;
    char head[16];
    if (strcmp(form, "map") == 0) {
        bytes_hex(&bytes, "81 a161");
        text -= 8;
    }
    snprintf(head, sizeof head, "%s%08zx", strcmp(form, "bin") == 0 ? "c6" : "db", text);
    bytes_hex(&bytes, head);
    char *filling = malloc(text);
    memset(filling, 'x', text);
    check(buffer_append(&bytes, filling, text) == OK);
    free(filling);
}

static void a_body_has_at_most_eight_mib(void **state)
{
    (void) state;
    static const char *const forms[] = {"str", "bin", "map"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct job job;
        struct error e = {0};
        make_body(forms[i], (size_t) JOB_BODY_MAX);
        assert_int_equal(job_decode(&job, bytes.data, bytes.n, &e), OK);
        assert_int_equal(job.body.n, JOB_BODY_MAX);
        assert_int_equal(job.body_form, i < 2 ? JOB_BODY_JSON : JOB_BODY_MAP);
        make_body(forms[i], (size_t) JOB_BODY_MAX + 1);
        assert_int_equal(job_decode(&job, bytes.data, bytes.n, &e), ERR_LIMIT);
        assert_string_equal(e.code, "too_large");
        assert_non_null(strstr(e.text, "body"));
    }
    struct job job;
    struct error e = {0};
    assert_int_equal(job_decode(&job, bytes.data, (size_t) JOB_MESSAGE_MAX + 1, &e), ERR_LIMIT);
    assert_string_equal(e.code, "too_large");
}

static void an_id_is_found_in_what_is_no_job(void **state)
{
    (void) state;
    static const struct {
        const char *json, *id;
        enum job_op op;
    } table[] = {
        {"{'id': 'a', 'op': 'cancel'}", "a", JOB_CANCEL},
        {"{'op': 'tokens', 'x': [1, {'id': 'no'}], 'id': 'b'}", "b", JOB_TOKENS},
        {"{'id': 'a', 'op': 'nonsense', 'v': 77}", "a", JOB_CHAT},
        {"{'id': 'a', 'op': 7}", "a", JOB_CHAT},
        {"{'id': 'not good', 'op': 'completion'}", NULL, JOB_COMPLETION},
        {"{'id': 7}", NULL, JOB_CHAT},
        {"{'x': {'id': 'inside'}}", NULL, JOB_CHAT},
        {"['id', 'a']", NULL, JOB_CHAT},
        {"'id'", NULL, JOB_CHAT},
    };
    char id[JOB_ID_MAX + 1];
    enum job_op op;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        buffer_clear(&bytes);
        bytes_json(&bytes, table[i].json);
        assert_int_equal(job_id_peek(bytes.data, bytes.n, id, &op), table[i].id != NULL);
        if (table[i].id != NULL) assert_string_equal(id, table[i].id);
        assert_int_equal(op, table[i].op);
        assert_int_equal(job_id_peek(bytes.data, bytes.n, id, NULL), table[i].id != NULL);
    }
    assert_false(job_id_peek("", 0, id, &op));
    buffer_clear(&bytes);
    bytes_hex(&bytes, "83 a26964 a161 a26f70 a6 63616e"); // cut in the second value
    assert_true(job_id_peek(bytes.data, bytes.n, id, &op));
    assert_string_equal(id, "a");
}

// --- encoding

static void assert_same_text(struct job_text a, struct job_text b)
{
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.at, b.at, a.n);
}

static void assert_same_job(const struct job *a, const struct job *b)
{
    assert_string_equal(a->id, b->id);
    assert_string_equal(a->model, b->model);
    assert_string_equal(a->custom_id, b->custom_id);
    assert_string_equal(a->batch, b->batch);
    assert_true(a->op == b->op && a->class == b->class && a->stream == b->stream);
    assert_true(a->at_ms == b->at_ms && a->deadline_ms == b->deadline_ms);
    assert_true(a->ttl_ms == b->ttl_ms && a->attempts == b->attempts);
    assert_int_equal(a->n_meta, b->n_meta);
    for (int i = 0; i < a->n_meta; i++) {
        assert_same_text(a->meta[i].key, b->meta[i].key);
        assert_same_text(a->meta[i].value, b->meta[i].value);
    }
    assert_int_equal(a->body_form, b->body_form);
    assert_same_text(a->body, b->body);
}

// Lines of the fixture behind its first: name, JSON, hex.
static char *golden(char **save)
{
    char *text = bytes_file(FIXTURES "/job-golden.txt", NULL);
    strtok_r(text, "\n", save);
    return text;
}

static void bytes_are_those_of_other_packers(void **state)
{
    (void) state;
    char *save, *text = golden(&save), *name;
    int n = 0;
    for (; (name = strtok_r(NULL, "\n", &save)) != NULL; n++) {
        char *json = strtok_r(NULL, "\n", &save), *hex = strtok_r(NULL, "\n", &save);
        struct job job, back;
        struct error e = {0};
        struct buffer again;
        assert_true(name[0] == '#' && json != NULL && hex != NULL);
        buffer_clear(&bytes);
        bytes_hex(&bytes, hex);
        if (job_decode(&job, bytes.data, bytes.n, &e) != OK) fail_msg("%s: %s", name, e.text);
        buffer_init(&again, bytes.most);
        assert_int_equal(job_encode(&job, &again, &e), OK);
        assert_int_equal(job_decode(&back, again.data, again.n, &e), OK);
        assert_same_job(&job, &back);
        // The encoder puts the body last, as the fixture does: not a byte differs.
        assert_int_equal(again.n, bytes.n);
        assert_memory_equal(again.data, bytes.data, bytes.n);
        buffer_deinit(&again);
    }
    free(text);
    assert_true(n >= 5);
}

static void what_a_broker_would_refuse_is_not_written(void **state)
{
    (void) state;
    struct job good = job_default();
    struct error e = {0};
    strcpy(good.id, "a");
    good.body_form = JOB_BODY_JSON;
    good.body = (struct job_text){"{}", 2};
    assert_int_equal(buffer_append(&bytes, "before", 6), OK);
    struct job bad[8];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) bad[i] = good;
    strcpy(bad[0].id, "a b");
    bad[1].class = 4;
    bad[2].attempts = 0;
    bad[3].ttl_ms = JOB_TTL_MAX_MS + 1;
    bad[4].body = (struct job_text){"\xff", 1};
    bad[5].body_form = JOB_BODY_NONE;
    bad[6].n_meta = JOB_META_MAX + 1;
    bad[7].body_form = JOB_BODY_MAP;
    bad[7].body = (struct job_text){"\x81\xa1", 2};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(job_encode(&bad[i], &bytes, &e), ERR_INPUT);
        assert_int_equal(bytes.n, 6);
    }
    assert_int_equal(job_encode(&good, &bytes, &e), OK);
    struct job back;
    assert_int_equal(job_decode(&back, bytes.data + 6, bytes.n - 6, &e), OK);
    assert_same_job(&good, &back);
}

static void damaged_messages_never_crash(void **state)
{
    (void) state;
    enum { ROOM = 4096, TIMES = 60000 };
    uint64_t r = 7;
    int passed = 0;
    char *save, *text = golden(&save), *hexes[16];
    int n_hexes = 0;
    while (strtok_r(NULL, "\n", &save) != NULL) {
        strtok_r(NULL, "\n", &save);
        hexes[n_hexes++] = strtok_r(NULL, "\n", &save);
    }
    for (int i = 0; i < TIMES; i++) {
        uint8_t work[ROOM];
        struct job job, back;
        struct error e = {0};
        char id[JOB_ID_MAX + 1];
        buffer_clear(&bytes);
        bytes_hex(&bytes, hexes[i % n_hexes]);
        memcpy(work, bytes.data, bytes.n);
        size_t n = bytes_damage(work, bytes.n, ROOM, &r);
        uint8_t *copy = bytes_copy(work, n);
        if (job_decode(&job, copy, n, &e) == OK) {
            passed++;
            assert_true(job_id_peek(copy, n, id, NULL));
            assert_string_equal(id, job.id);
            buffer_clear(&bytes);
            assert_int_equal(job_encode(&job, &bytes, &e), OK);
            assert_int_equal(job_decode(&back, bytes.data, bytes.n, &e), OK);
            assert_same_job(&job, &back);
        } else {
            assert_true(e.code[0] != '\0' && e.text[0] != '\0');
            job_id_peek(copy, n, id, NULL);
        }
        free(copy);
    }
    free(text);
    assert_in_range(passed, TIMES / 100, TIMES - TIMES / 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_message_is_decoded_in_place, setup, teardown),
        cmocka_unit_test_setup_teardown(absent_and_nil_fields_have_defaults, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_refused_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(text_has_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(numbers_reach_their_bounds, setup, teardown),
        cmocka_unit_test_setup_teardown(meta_has_at_most_sixteen_pairs, setup, teardown),
        cmocka_unit_test_setup_teardown(a_body_has_at_most_eight_mib, setup, teardown),
        cmocka_unit_test_setup_teardown(an_id_is_found_in_what_is_no_job, setup, teardown),
        cmocka_unit_test_setup_teardown(bytes_are_those_of_other_packers, setup, teardown),
        cmocka_unit_test_setup_teardown(what_a_broker_would_refuse_is_not_written, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_messages_never_crash, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
