#include "tools/why_job.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// Two pipelines of the model m: with 12 of 100 blocks free, and with 4; 50 tokens a second.
static const char FLEET[] =
    "{'models': [{'name': 'other', 'pipelines': [{'id': 9, 'state': 'serving'}], 'groups': []},"
    " {'name': 'm', 'plan': {'kv_blocks': 100, 'slots': 8},"
    "  'pipelines': [{'id': 1, 'state': 'serving'}, {'id': 2, 'state': 'serving'},"
    "                {'id': 3, 'state': 'loading'}],"
    "  'groups': [{'pipeline': 1, 'stage': 0, 'figures': {'slots': 8, 'running': 5,"
    "    'kv': {'blocks': 100, 'reserved': 96}, 'tokens': {'decode_per_s': 20.0}}},"
    "   {'pipeline': 1, 'stage': 1, 'figures': {}},"
    "   {'pipeline': 2, 'stage': 0, 'figures': {'slots': 8, 'running': 5,"
    "    'kv': {'blocks': 100, 'reserved': 88}, 'tokens': {'decode_per_s': 30.0}}}]}]}";

// Nothing has been told yet, and nothing runs.
static const char FRESH[] =
    "{'models': [{'name': 'm', 'plan': {'kv_blocks': 100, 'slots': 8}, 'groups': [],"
    "  'pipelines': [{'id': 1, 'state': 'serving'}]}]}";

static const char PAUSED[] =
    "{'models': [{'name': 'm', 'plan': {'kv_blocks': 100, 'slots': 8}, 'groups': [],"
    "  'pipelines': [{'id': 1, 'state': 'serving', 'paused': true}]}]}";

static const char IDLE[] =
    "{'models': [{'name': 'm', 'pipelines': [{'id': 1, 'state': 'serving'}],"
    "  'groups': [{'pipeline': 1, 'stage': 0, 'figures': {'slots': 8, 'running': 8,"
    "    'kv': {'blocks': 100, 'reserved': 8}, 'tokens': {'decode_per_s': 0.0}}}]}]}";

// Where most blocks are free there is no slot.
static const char NO_SLOT[] =
    "{'models': [{'name': 'm', 'pipelines': [{'id': 1, 'state': 'serving'},"
    "   {'id': 2, 'state': 'serving'}, {'id': 3, 'state': 'serving'}],"
    "  'groups': [{'pipeline': 1, 'stage': 0, 'figures': {'slots': 8, 'running': 8,"
    "    'kv': {'blocks': 100, 'reserved': 10}, 'tokens': {'decode_per_s': 10.0}}},"
    "   {'pipeline': 2, 'stage': 0, 'figures': {'slots': 8, 'running': 6,"
    "    'kv': {'blocks': 100, 'reserved': 50}, 'tokens': {'decode_per_s': 10.0}}},"
    "   {'pipeline': 3, 'stage': 0, 'figures': {'slots': 8, 'running': 8,"
    "    'kv': {'blocks': 100, 'reserved': 20}, 'tokens': {'decode_per_s': 10.0}}}]}]}";

static json_t *read_json(const char *text)
{
    char copy[4096];
    if (text == NULL) return NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *p = copy; *p != '\0'; p++) *p = *p == '\'' ? '"' : *p;
    json_t *j = json_loads(copy, 0, NULL);
    assert_non_null(j);
    return j;
}

// "name=value|name=value"
static void keep_all(struct why_fields *f, const char *pairs)
{
    char copy[1024];
    *f = (struct why_fields){0};
    snprintf(copy, sizeof copy, "%s", pairs);
    char *save, *at = strtok_r(copy, "|", &save);
    for (; at != NULL; at = strtok_r(NULL, "|", &save)) {
        char *value = strchr(at, '=');
        *value++ = '\0';
        why_keep(f, at, value);
    }
}

#define QUEUED "state=queued|class=2|need=34|most=100|model=m|"

static const struct {
    const char *fields, *fleet, *sentence;
    int tenths; // of the seconds; -10: unknown
} CASES[] = {
    // 2 jobs go first, and 22 of the 184 blocks that are reserved must be free: 10 jobs, half done.
    {QUEUED "waits=turn|ahead=2|first=2|mean=100", FLEET,
     "needs 34 KV blocks, 12 free in the best of 2 pipelines; 3rd of its tenant in class 2; about "
     "5 s", 52},
    {QUEUED "waits=turn|ahead=20|first=1000|mean=100", FLEET,
     "needs 34 KV blocks, 12 free in the best of 2 pipelines; 21st of its tenant in class 2; about "
     "33 min", 20012},
    {QUEUED "waits=turn|ahead=0|first=0|mean=100", FRESH,
     "needs 34 KV blocks, 100 free; 1st of its tenant in class 2; about 0 s", 0},
    {QUEUED "waits=turn|ahead=12|first=12|mean=100", FRESH,
     "needs 34 KV blocks, 100 free; 13th of its tenant in class 2; for how long is unknown", -10},
    {QUEUED "waits=turn|ahead=0|first=0|mean=100", IDLE,
     "needs 34 KV blocks, 92 free and no slot; 1st of its tenant in class 2; for how long is "
     "unknown", -10},
    {QUEUED "waits=turn|ahead=0|first=0|mean=100", NO_SLOT,
     "needs 34 KV blocks, 50 free in the best of 3 pipelines; 1st of its tenant in class 2; about "
     "0 s", 0},
    {QUEUED "waits=turn|ahead=1|first=1|mean=100", NULL,
     "needs 34 KV blocks, what is free is not known; 2nd of its tenant in class 2; for how long is "
     "unknown", -10},
    {"state=queued|class=0|need=101|model=m|waits=turn|ahead=0|first=0|mean=1", FLEET,
     "needs 101 KV blocks, but no pipeline that serves has more than 100; 1st of its tenant in "
     "class 0; for how long is unknown", -10},
    {QUEUED "waits=alone|ahead=0|first=0|mean=100", FRESH,
     "needs 34 KV blocks, 100 free; waits for a pipeline where nothing runs, as groups were lost "
     "that ran it; 1st of its tenant in class 2; about 0 s", 0},
    {QUEUED "waits=no_pipeline|ahead=0", NULL, "no pipeline serves its model m (penstock fleet)",
     -10},
    {QUEUED "waits=no_pipeline|ahead=0", PAUSED,
     "all pipelines of its model m are paused (penstock resume --pipeline)", -10},
    {QUEUED "waits=queue_paused", FLEET, "the queue is paused (penstock resume)", -10},
    {QUEUED "waits=tenant_paused", FLEET, "its tenant is paused (penstock resume --tenant)", -10},
    {QUEUED "waits=no_broker", NULL, "no broker leads", -10},
    {QUEUED "waits=budget_jobs", FLEET,
     "its tenant's budget of jobs is used up: others of it must end", -10},
    {QUEUED "waits=budget_tokens", FLEET,
     "its tenant's budget of tokens is used up: others of it must end", -10},
    {QUEUED "waits=at|now=1700000000000|due=1700000090500", FLEET,
     "scheduled at 2023-11-14T22:14:50Z, in 90 s", 905},
    {QUEUED "waits=backoff|now=1700000000000|due=1700000001000|fails=2|max=5|code=oops|text=why",
     NULL,
     "failed 2 of 5 times (oops: why), again at 2023-11-14T22:13:21Z, in 1 s", 10},
    {"state=waiting|waits=children", NULL, "waits for the jobs that it was split into", -10},
    {"state=running|owner=g|starts=1|started=1700000000000|now=1700000012000|checkpoint=136|"
     "most=100", NULL, "runs at g, attempt 1, for 12 s: 34 of at most 100 tokens saved", -10},
    {"state=done|ended=1700000000000", NULL, "ended: done at 2023-11-14T22:13:20Z", -10},
    {"state=failed|ended=1700000000000|code=oops|text=it was so", NULL,
     "ended: failed at 2023-11-14T22:13:20Z, oops: it was so", -10},
    {"place=taken", NULL, "taken from the inbox, and not admitted yet", -10},
    {"place=inbox|position=3|inbox=10", NULL, "in the inbox, 3rd of 10", -10},
    {"place=inbox|position=112|inbox=200|waits=bytes|bytes_used=9|bytes_budget=8", NULL,
     "in the inbox, 112th of 200: nothing is taken in, as 9 of 8 bytes of its tenant are used",
     -10},
    {"place=inbox|position=1|inbox=1|waits=no_broker", NULL,
     "in the inbox, 1st of 1: no broker leads", -10},
    {"place=inbox|position=1|inbox=1|waits=no_tenant", NULL,
     "in the inbox, 1st of 1: there is no such tenant (penstock tenant add)", -10},
};

static void each_reason_has_its_sentence(void **state)
{
    (void) state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        struct why_fields f;
        struct why why;
        json_t *fleet = read_json(CASES[i].fleet);
        keep_all(&f, CASES[i].fields);
        assert_true(why_tell(&why, &f, "t", "a", fleet));
        if (strcmp(why.sentence, CASES[i].sentence) != 0) {
            fail_msg("case %zu: '%s', not '%s'", i, why.sentence, CASES[i].sentence);
        }
        int tenths = (int) (10 * why.seconds + (why.seconds < 0 ? -0.5 : 0.5));
        if (tenths != CASES[i].tenths) fail_msg("case %zu: %d tenths of a second", i, tenths);
        json_decref(fleet);
    }
}

static void what_is_not_there_is_said(void **state)
{
    (void) state;
    struct why_fields f;
    struct why why;
    keep_all(&f, "inbox=5000");
    assert_false(why_tell(&why, &f, "t", "a", NULL));
    assert_string_equal(why.sentence, "nothing is known of a: no job of the tenant t has this id, "
                                      "or it ended and its record has expired; 5000 messages wait "
                                      "in the inbox, and it is not among the first");
    assert_string_equal(why.state, "unknown");
}

static void programs_get_numbers(void **state)
{
    (void) state;
    struct why_fields f;
    struct why why;
    json_t *fleet = read_json(FLEET);
    keep_all(&f, CASES[0].fields);
    assert_true(why_tell(&why, &f, "t", "a", fleet));
    json_t *j = why_json(&why, "t", "a");
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(4));
    static const char wanted[] =
        "{\"tenant\":\"t\",\"id\":\"a\",\"state\":\"queued\",\"waits_for\":\"turn\",\"class\":2,"
        "\"position\":3,\"need_blocks\":34,\"free_blocks\":12,\"free_slots\":3,\"seconds\":5.2,"
        "\"sentence\":";
    if (strncmp(text, wanted, sizeof wanted - 1) != 0) fail_msg("%s", text);
    free(text);
    json_decref(j);
    json_decref(fleet);
    keep_all(&f, "place=taken");
    why_tell(&why, &f, "t", "a", NULL);
    j = why_json(&why, "t", "a");
    assert_true(json_is_null(json_object_get(j, "seconds")));
    assert_true(json_is_null(json_object_get(j, "waits_for")));
    assert_true(json_is_null(json_object_get(j, "free_blocks")));
    json_decref(j);
}

// Texts are cut where they are kept, and again where they are quoted: never within a character.
static void long_texts_are_cut_between_characters(void **state)
{
    (void) state;
    static const char *const characters[] = {"\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    for (size_t i = 0; i < 3; i++) {
        size_t n = strlen(characters[i]);
        for (size_t before = 0; before < n; before++) { // each place of a cut within a character
            char text[600] = "xxxx";
            struct why_fields f;
            struct why why;
            text[before] = '\0';
            for (size_t at = before; at + n < sizeof text; at += n) strcat(text, characters[i]);
            keep_all(&f, "state=failed|code=oops");
            why_keep(&f, "text", text);
            size_t kept = strlen(f.at[f.n - 1].value);
            assert_int_equal(kept, before + (WHY_VALUE_SIZE - 1 - before) / n * n);
            assert_memory_equal(f.at[f.n - 1].value, text, kept);
            assert_true(why_tell(&why, &f, "t", "a", NULL));
            json_t *j = why_json(&why, "t", "a");
            assert_non_null(j);
            const char *quote = strstr(json_string_value(json_object_get(j, "sentence")), ": ");
            quote = strstr(quote + 2, ": ") + 2;
            assert_int_equal(strlen(quote), before + (200 - before) / n * n);
            json_decref(j);
        }
    }
}

// What a broker of another version, or anybody, wrote there.
static void damaged_records_do_no_harm(void **state)
{
    (void) state;
    static const char *const fleets[] = {
        "[]", "{'models': 3}", "{'models': [3, {'name': 'm'}]}",
        "{'models': [{'name': 'm', 'pipelines': [1, {'state': 'serving'}], 'groups': {}}]}",
        ("{'models': [{'name': 'm', 'pipelines': [{'state': 'serving', 'id': 1}], 'groups': "
         "[{'stage': 0, 'pipeline': 1, 'figures': {'kv': {'blocks': 'x'}, 'tokens': 4}}]}]}")};
    for (size_t i = 0; i < sizeof fleets / sizeof *fleets; i++) {
        struct why_fields f;
        struct why why;
        json_t *fleet = read_json(fleets[i]);
        keep_all(&f, CASES[0].fields);
        assert_true(why_tell(&why, &f, "t", "a", fleet));
        assert_true(why.seconds < 0);
        json_decref(fleet);
    }
    struct why_fields f = {0};
    for (int i = 0; i < 2 * WHY_FIELDS_MAX; i++) why_keep(&f, "state", "queued");
    assert_int_equal(f.n, WHY_FIELDS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_reason_has_its_sentence),
        cmocka_unit_test(what_is_not_there_is_said),
        cmocka_unit_test(programs_get_numbers),
        cmocka_unit_test(long_texts_are_cut_between_characters),
        cmocka_unit_test(damaged_records_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
