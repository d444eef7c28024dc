// What a head tells of a job with `stream`, and how it ends a sequence that was given up: the text
// of chosen tokens, fed by the test.
#include "workers/head.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/utf8.h"
#include "tests/unit/tokenizer_files.h"

// Tokens are single bytes, but for the first two bytes of "中" (e4 b8 ad).
static const char *const MERGES[] = {"ä ¸"};
enum { CUT = 256, VOCAB = 300, REPORT_TOKENS = 64, REPORT_MS = 250, AGAIN_MS = 1000 };

static struct tokenizer *tokenizer;
static struct model_config config = {.vocab_size = VOCAB};

// A head with one stage that answers at once, and what it said.
struct stage {
    struct head *head;
    struct step step;
    void *memory;
    int n_reports;         // TOKENS
    int n_ids;             // of the last one
    size_t text_offset;    // of the last one
    char text[1 << 16];    // chunks by their offsets
    size_t n_text;
    size_t longest;
    bool deaf;             // nobody takes TOKENS
    int n_results;
    struct buffer bytes;
    struct result result;
};

static bool on_tokens(void *arg, const struct wire_tokens *t)
{
    struct stage *s = arg;
    if (s->deaf) return false;
    s->n_reports++;
    s->n_ids = wire_ids_count(t->ids);
    s->text_offset = (size_t) t->text_offset;
    assert_int_equal(utf8_valid_prefix(t->text.at, t->text.n), t->text.n); // at every cut
    if (t->text.n > s->longest) s->longest = t->text.n;
    assert_true(s->text_offset == 0 || s->text_offset == s->n_text);
    s->n_text = s->text_offset + t->text.n;
    if (s->n_text <= sizeof s->text) memcpy(s->text + s->text_offset, t->text.at, t->text.n);
    return true;
}

static bool on_result(void *arg, const struct kept_result *r)
{
    struct stage *s = arg;
    struct error e;
    s->n_results++;
    result_deinit(&s->result);
    buffer_clear(&s->bytes);
    buffer_append(&s->bytes, r->bytes.data, r->bytes.n);
    assert_int_equal(result_decode(&s->result, s->bytes.data, s->bytes.n, &e), OK);
    return true;
}

static void on_logits(void *arg, const struct wire_logits *l) { (void) arg, (void) l; }

static void open_stage(struct stage *s, int context)
{
    *s = (struct stage){0};
    int blocks = (context + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS;
    struct step_limits limits = {.max_rows = 64, .slots = 2, .max_blocks = blocks,
                                 .n_blocks = 2 * blocks, .max_out = 2, .vocab_size = VOCAB};
    struct head_options o = {.config = &config, .tokenizer = tokenizer, .limits = limits,
                             .max_context = context, .chunk = 64, .steps_in_flight = 1, .stages = 1,
                             .model_hash = "m", .plan_hash = "p", .report_tokens = REPORT_TOKENS,
                             .report_ms = REPORT_MS, .memory = malloc(head_bytes(&limits))};
    struct head_events events = {s, on_tokens, on_result, on_logits};
    struct error e;
    assert_int_equal(head_create(&s->head, &o, &events, &e), OK);
    s->memory = calloc(1, step_bytes(&limits));
    step_init(&s->step, &limits, s->memory);
    buffer_init(&s->bytes, 64 * MIB);
}

static void close_stage(struct stage *s)
{
    void *memory = s->head->options.memory;
    head_destroy(&s->head);
    free(memory);
    result_deinit(&s->result);
    buffer_deinit(&s->bytes);
    free(s->memory);
}

static struct job_key accept(struct stage *s, const struct wire_job *like, int64_t now_ms)
{
    static const int32_t prompt[] = {65};
    static uint64_t attempt;
    struct error e = {0};
    struct wire_job job = *like;
    job.key = (struct job_key){.tenant = "default", .id = "a", .attempt = ++attempt};
    job.sampling = sampling_default();
    job.attempts = 1;
    job.ids = (struct wire_bytes){prompt, sizeof prompt};
    if (head_accept(s->head, &job, now_ms, &e) != OK) fail_msg("%s", e.text);
    return job.key;
}

// One step, after which the only sequence has one more token.
static void step(struct stage *s, int32_t id, int64_t now_ms)
{
    assert_true(head_plan(s->head, &s->step, 0));
    int row = s->step.out_rows[0];
    struct step_token t = {.slot = s->step.slot[row], .pos = s->step.pos[row], .id = id};
    struct error e = {0};
    assert_int_equal(head_tokens(s->head, s->step.number, &t, 1, NULL, now_ms * 1000000, &e), OK);
}

static void say(struct stage *s, const char *bytes, int64_t now_ms)
{
    for (; *bytes != '\0'; bytes++) step(s, (uint8_t) *bytes, now_ms);
}

static void assert_text(const struct stage *s, const char *text)
{
    assert_int_equal(s->n_text, strlen(text));
    assert_memory_equal(s->text, text, strlen(text));
}

static void assert_result(const struct stage *s, enum result_status status, const char *text)
{
    assert_int_equal(s->n_results, 1);
    assert_int_equal(s->result.status, status);
    assert_int_equal(s->result.text_bytes, strlen(text));
    assert_memory_equal(s->result.text, text, strlen(text));
}

// --- how often

static void told_after_50_ms_or_32_tokens(void **state)
{
    (void) state;
    struct stage s;
    char line[STREAM_REPORT_TOKENS + 1] = "";
    memset(line, 'x', STREAM_REPORT_TOKENS);
    open_stage(&s, 1000);
    accept(&s, &(struct wire_job){.max_tokens = 500, .stream = true}, 1000);
    assert_true(head_report(s.head, 1000, AGAIN_MS) == INT64_MAX);
    say(&s, line + 1, 1001); // one less
    assert_int_equal(head_report(s.head, 1000 + STREAM_REPORT_MS - 1, AGAIN_MS),
                     1000 + STREAM_REPORT_MS);
    assert_int_equal(s.n_reports, 0);
    assert_true(head_report(s.head, 1000 + STREAM_REPORT_MS, AGAIN_MS) == INT64_MAX);
    assert_int_equal(s.n_reports, 1);
    assert_int_equal(s.n_ids, STREAM_REPORT_TOKENS - 1);
    assert_int_equal(s.n_text, STREAM_REPORT_TOKENS - 1);
    say(&s, line, 1000 + STREAM_REPORT_MS);
    head_report(s.head, 1000 + STREAM_REPORT_MS, AGAIN_MS);
    assert_int_equal(s.n_reports, 2);
    assert_int_equal(s.text_offset, STREAM_REPORT_TOKENS - 1);
    close_stage(&s);
}

static void the_loop_may_sleep_while_nobody_listens(void **state)
{
    (void) state;
    struct stage s;
    open_stage(&s, 1000);
    accept(&s, &(struct wire_job){.max_tokens = 500, .stream = true}, 1000);
    s.deaf = true;
    for (int64_t now_ms = 1100, i = 0; i < 2 * STREAM_REPORT_TOKENS; i++, now_ms++) {
        say(&s, "x", now_ms);
        assert_int_equal(head_report(s.head, now_ms, AGAIN_MS), now_ms + STREAM_REPORT_MS);
    }
    s.deaf = false;
    assert_true(head_report(s.head, 2000, AGAIN_MS) == INT64_MAX);
    assert_int_equal(s.n_text, 2 * STREAM_REPORT_TOKENS);
    close_stage(&s);
}

static void jobs_without_stream_tell_no_text(void **state)
{
    (void) state;
    struct stage s;
    open_stage(&s, 1000);
    accept(&s, &(struct wire_job){.max_tokens = 500}, 1000);
    say(&s, "abc", 1001);
    assert_int_equal(head_report(s.head, 1002, AGAIN_MS), 1000 + REPORT_MS);
    head_report(s.head, 1000 + REPORT_MS, AGAIN_MS);
    assert_int_equal(s.n_ids, 3);
    assert_int_equal(s.n_text, 0);
    close_stage(&s);
}

// --- what

static void characters_are_whole_and_stop_strings_held_back(void **state)
{
    (void) state;
    struct stage s;
    int64_t now_ms = 1000;
    open_stage(&s, 1000);
    accept(&s, &(struct wire_job){.max_tokens = 500, .stream = true, .n_stops = 2,
                                  .stops = {{"END", 3}, {"\xe4\xb8\xad!", 4}}}, now_ms);
    static const char said[] = "a\xe4\xb8\xadz ENTER \xf0\x9f\x98\x80 EN";
    for (const char *c = said; *c != '\0'; c++) {
        step(&s, (uint8_t) *c, now_ms);
        head_report(s.head, now_ms += STREAM_REPORT_MS, AGAIN_MS);
    }
    assert_text(&s, "a\xe4\xb8\xadz ENTER \xf0\x9f\x98\x80 "); // "EN" may be a beginning
    step(&s, 'D', now_ms);
    head_report(s.head, now_ms + STREAM_REPORT_MS, AGAIN_MS);
    assert_text(&s, "a\xe4\xb8\xadz ENTER \xf0\x9f\x98\x80 ");
    assert_result(&s, RESULT_OK, "a\xe4\xb8\xadz ENTER \xf0\x9f\x98\x80 ");
    close_stage(&s);
}

static void a_resumed_text_is_told_from_its_beginning(void **state)
{
    (void) state;
    struct stage s;
    static const int32_t earlier[] = {'a', 0xe4, 0xb8};
    open_stage(&s, 1000);
    accept(&s, &(struct wire_job){.max_tokens = 500, .stream = true,
                                  .resume = {earlier, sizeof earlier}}, 1000);
    head_report(s.head, 1000 + STREAM_REPORT_MS, AGAIN_MS);
    assert_text(&s, "a"); // before any new token
    assert_int_equal(s.n_ids, 0);
    step(&s, 0xad, 1100);
    head_report(s.head, 1200, AGAIN_MS);
    assert_int_equal(s.text_offset, 1);
    assert_text(&s, "a\xe4\xb8\xad");
    head_report_again(s.head); // another broker
    head_report(s.head, 1300, AGAIN_MS);
    assert_int_equal(s.text_offset, 0);
    assert_int_equal(s.n_ids, 1);
    assert_text(&s, "a\xe4\xb8\xad");
    close_stage(&s);
}

static void a_long_text_takes_several_frames(void **state)
{
    (void) state;
    struct stage s;
    enum { PAIRS = 800000 / 2, CONTEXT = 900000 };
    int32_t *earlier = malloc(2 * PAIRS * sizeof *earlier);
    for (int i = 0; i < PAIRS; i++) {
        earlier[2 * i] = CUT;
        earlier[2 * i + 1] = 0xad;
    }
    open_stage(&s, CONTEXT);
    accept(&s, &(struct wire_job){.max_tokens = CONTEXT - 1, .stream = true,
                                  .resume = {earlier, 2 * PAIRS * sizeof *earlier}}, 0);
    int64_t now_ms = 0;
    while (head_report(s.head, now_ms += STREAM_REPORT_MS, AGAIN_MS) != INT64_MAX) continue;
    assert_int_equal(s.n_text, 3 * PAIRS);
    assert_int_equal(s.n_reports, 2);
    assert_int_equal(s.longest, STREAM_CHUNK_MAX / 3 * 3);
    close_stage(&s);
    free(earlier);
}

// --- the end before its time

static void given_up_within_one_step(void **state)
{
    (void) state;
    static const struct {
        enum wire_reason reason;
        enum result_status status;
        const char *code;
    } cases[] = {{WIRE_REASON_CANCELLED, RESULT_CANCELLED, "cancelled"},
                 {WIRE_REASON_EXPIRED, RESULT_EXPIRED, "expired"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct stage s;
        open_stage(&s, 1000);
        struct job_key key = accept(&s, &(struct wire_job){.max_tokens = 500, .stream = true}, 0);
        say(&s, "abc", 1);
        assert_true(head_plan(s.head, &s.step, 0)); // the fourth token is on its way
        int row = s.step.out_rows[0];
        struct step_token late = {.slot = s.step.slot[row], .pos = s.step.pos[row], .id = 'd'};
        uint64_t number = s.step.number, free_blocks = (uint64_t) s.head->kv.n_free;
        head_cancel(s.head, &key, cases[i].reason, 2);
        assert_result(&s, cases[i].status, "abc");
        assert_string_equal(s.result.error.code, cases[i].code);
        assert_int_equal(s.result.n_tokens, 3);
        assert_int_equal(s.result.usage.completion, 3);
        assert_int_equal(s.result.usage.prompt, 1);
        assert_true((uint64_t) s.head->kv.n_free > free_blocks); // for the next job, at once
        struct error e = {0};
        assert_int_equal(head_tokens(s.head, number, &late, 1, NULL, 3000000, &e), OK);
        assert_int_equal(s.head->n_late, 1);
        assert_false(head_plan(s.head, &s.step, 0)); // not one step more
        head_cancel(s.head, &key, cases[i].reason, 4); // said again
        assert_int_equal(s.n_results, 1);
        close_stage(&s);
    }
}

static int load(void **state)
{
    (void) state;
    struct error e = {0};
    return load_json(&tokenizer, small_tokenizer(MERGES, 1), &e) == OK ? 0 : -1;
}

static int unload(void **state)
{
    (void) state;
    tokenizer_destroy(&tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(told_after_50_ms_or_32_tokens),
        cmocka_unit_test(the_loop_may_sleep_while_nobody_listens),
        cmocka_unit_test(jobs_without_stream_tell_no_text),
        cmocka_unit_test(characters_are_whole_and_stop_strings_held_back),
        cmocka_unit_test(a_resumed_text_is_told_from_its_beginning),
        cmocka_unit_test(a_long_text_takes_several_frames),
        cmocka_unit_test(given_up_within_one_step),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
