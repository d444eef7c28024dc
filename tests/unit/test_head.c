// The head under random jobs, cancels and late tokens, with a model that is a formula: the next id
// follows from the last one and its position.
#include "workers/head.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

enum { VOCAB = 97, EOS = 5, SLOTS = 6, BLOCKS = 24, CONTEXT = 300, FLIGHT = 3, ROWS = 64 };

static struct model_config config = {.vocab_size = VOCAB, .eos_ids = {EOS}, .n_eos_ids = 1};

static int32_t next_id(int32_t last, int pos) { return (last * 31 + pos * 7 + 3) % VOCAB; }

// What the head said.
struct said {
    int n_results, n_tokens;
    bool away; // nothing can be sent
    struct job_key last_key;
    struct result last;
    uint8_t bytes[65536];
    int n_scored;
};

static bool on_tokens(void *arg, const struct wire_tokens *t)
{
    struct said *s = arg;
    if (s->away) return false;
    s->n_tokens += wire_ids_count(t->ids);
    return true;
}

static bool on_result(void *arg, const struct kept_result *r)
{
    struct said *s = arg;
    struct error e;
    if (s->away) return false;
    s->n_results++;
    s->last_key = r->key;
    result_deinit(&s->last);
    assert_true(r->bytes.n <= sizeof s->bytes);
    memcpy(s->bytes, r->bytes.data, r->bytes.n);
    assert_int_equal(result_decode(&s->last, s->bytes, r->bytes.n, &e), OK);
    return true;
}

static void on_logits(void *arg, const struct wire_logits *l)
{
    struct said *s = arg;
    assert_int_equal(l->pos, s->n_scored); // every row once, in order
    assert_int_equal(l->rows.n, (size_t) l->n * VOCAB * 4);
    s->n_scored += l->n;
}

// The pipeline: steps that were planned and whose tokens are not back.
struct pipe {
    struct head *head;
    struct said said;
    struct step steps[FLIGHT];
    void *memory;
    uint64_t n_in, n_out;
    int32_t owner[BLOCKS];                     // slot + 1 that the stages think has each block
    int32_t ids[SLOTS][CONTEXT];               // the last stage's view of each slot
    int32_t open_rows[SLOTS];                  // as the stages follow the steps
};

static struct step_limits limits(bool score)
{
    return (struct step_limits){.max_rows = ROWS, .slots = SLOTS,
                                .max_blocks = (CONTEXT + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS,
                                .n_blocks = BLOCKS, .max_out = score ? ROWS : SLOTS,
                                .vocab_size = VOCAB, .score = score};
}

static void pipe_open(struct pipe *p, bool score)
{
    *p = (struct pipe){0};
    struct step_limits l = limits(score);
    struct head_options o = {.config = &config, .limits = l, .max_context = CONTEXT, .chunk = 16,
                             .steps_in_flight = FLIGHT, .stages = FLIGHT,
                             .model_hash = "m", .plan_hash = "p", .report_tokens = 4,
                             .report_ms = 10, .memory = malloc(head_bytes(&l))};
    struct head_events events = {&p->said, on_tokens, on_result, on_logits};
    struct error e;
    assert_int_equal(head_create(&p->head, &o, &events, &e), OK);
    p->memory = calloc(FLIGHT, step_bytes(&l));
    for (int i = 0; i < FLIGHT; i++) {
        step_init(&p->steps[i], &l, (char *) p->memory + (size_t) i * step_bytes(&l));
    }
}

static void pipe_close(struct pipe *p)
{
    void *memory = p->head->options.memory;
    head_destroy(&p->head);
    free(memory);
    result_deinit(&p->said.last);
    free(p->memory);
}

// Plans a step if there is room; checks what stages would rely on.
static bool pipe_plan(struct pipe *p)
{
    if (p->n_in - p->n_out == FLIGHT) return false;
    struct step *s = &p->steps[p->n_in % FLIGHT];
    if (!head_plan(p->head, s, 0)) return false;
    assert_int_equal(s->number, ++p->n_in);
    assert_true(s->n_rows <= ROWS && s->n_out <= p->head->options.limits.max_out);
    struct error e;
    assert_int_equal(step_follow(p->open_rows, s, &e), OK);
    for (int i = 0; i < s->n_opens; i++) {
        for (int b = 0; b < BLOCKS; b++) {
            if (p->owner[b] == s->opens[i].slot + 1) p->owner[b] = 0;
        }
    }
    for (int i = 0; i < s->n_opens; i++) {
        const struct step_open *o = &s->opens[i];
        for (int b = 0; b < o->n_blocks; b++) p->owner[s->blocks[o->first_block + b]] = o->slot + 1;
    }
    for (int i = 0; i < s->n_rows; i++) p->ids[s->slot[i]][s->pos[i]] = s->ids[i];
    return true;
}

// The tokens of a step, in order.
static void tokens_of(const struct step *s, struct step_token *to)
{
    for (int i = 0; i < s->n_out; i++) {
        int row = s->out_rows[i];
        to[i] = (struct step_token){.slot = s->slot[row], .pos = s->pos[row],
                                    .id = next_id(s->ids[row], s->pos[row])};
    }
}

// Brings the oldest step's tokens back.
static bool pipe_return(struct pipe *p, int64_t now_ms)
{
    static const float logits[ROWS * VOCAB];
    struct step_token tokens[ROWS];
    struct error e = {0};
    if (p->n_in == p->n_out) return false;
    const struct step *s = &p->steps[p->n_out++ % FLIGHT];
    tokens_of(s, tokens);
    enum status status = head_tokens(p->head, s->number, tokens, s->n_out, logits,
                                     now_ms * 1000000, &e);
    if (status != OK) fail_msg("%s", e.text);
    return true;
}

static void pipe_run(struct pipe *p, int64_t now_ms)
{
    for (;;) {
        while (pipe_plan(p)) continue;
        if (!pipe_return(p, now_ms)) return;
    }
}

static struct wire_job job_of(int number, int32_t *ids, int n_prompt, int max_tokens)
{
    struct wire_job job = {.key = {"default", "", (uint64_t) number + 1},
                           .max_tokens = max_tokens, .sampling = sampling_default(), .attempts = 1,
                           .ids = {ids, (size_t) n_prompt * 4}};
    snprintf(job.key.id, sizeof job.key.id, "job-%d", number);
    return job;
}

// How the sequence must end.
static int expected(const int32_t *prompt, int n_prompt, int max_tokens, int32_t *out)
{
    int32_t last = prompt[n_prompt - 1];
    for (int n = 0; n < max_tokens;) {
        last = next_id(last, n_prompt - 1 + n);
        out[n++] = last;
        if (last == EOS || n == max_tokens) return n;
    }
    return 0;
}

static void test_usage(void **state)
{
    (void) state;
    struct pipe p;
    struct error e;
    int32_t prompt[20], want[40];
    for (int i = 0; i < 20; i++) prompt[i] = i;
    pipe_open(&p, false);
    struct wire_job job = job_of(1, prompt, 20, 40);
    assert_int_equal(head_accept(p.head, &job, 1000, &e), OK);
    assert_int_equal(head_kv_used(p.head), 0);
    assert_true(pipe_plan(&p));
    assert_int_equal(head_kv_used(p.head), 1); // of one block that it has reserved
    pipe_run(&p, 1010);
    assert_int_equal(p.said.n_results, 1);
    int n = expected(prompt, 20, 40, want);
    assert_true(p.head->counts.prefill == 20 && p.head->counts.again == 0);
    assert_int_equal(p.head->counts.decode, n);
    assert_int_equal(head_kv_used(p.head), 0);
    assert_int_equal(p.said.last.n_tokens, n);
    assert_memory_equal(p.said.last.tokens, want, (size_t) n * 4);
    assert_int_equal(p.said.last.finish_reason, n < 40 ? RESULT_STOP : RESULT_LENGTH);
    assert_int_equal(p.said.last.usage.prompt, 20);
    assert_int_equal(p.head->n_kept, 1);
    head_committed(p.head, &job.key);
    assert_int_equal(p.head->n_kept, 0);
    assert_int_equal(p.head->granted_slots, SLOTS + 1);
    assert_int_equal(p.head->granted_blocks, BLOCKS + 1);
    pipe_close(&p);
}

static void test_refused(void **state)
{
    (void) state;
    struct pipe p;
    int32_t prompt[CONTEXT + 1] = {0}, bad[] = {1, VOCAB};
    pipe_open(&p, false);
    struct {
        struct wire_job job;
        const char *code;
    } cases[] = {
        {job_of(1, prompt, 0, 4), "bad_job"},
        {job_of(2, prompt, 4, 0), "bad_job"},
        {job_of(3, prompt, CONTEXT, 1), "context_exceeded"},
        {job_of(4, bad, 2, 4), "bad_token"},
        {job_of(5, prompt, 4, 4), "no_scores"},
    };
    cases[4].job.score = true;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error e = {0};
        assert_int_not_equal(head_accept(p.head, &cases[i].job, 0, &e), OK);
        assert_string_equal(e.code, cases[i].code);
    }
    assert_int_equal(p.head->n_running, 0);
    assert_int_equal(p.head->kv.n_free, BLOCKS);
    // 5 sequences of 5 blocks: the fifth finds 4 free.
    for (int i = 0; i < 5; i++) {
        struct wire_job job = job_of(10 + i, prompt, 200, 100);
        struct error e = {0};
        assert_int_equal(head_accept(p.head, &job, 0, &e), i < 4 ? OK : ERR_LIMIT);
        if (i == 4) assert_string_equal(e.code, "no_credit");
    }
    pipe_close(&p);
}

// Two sequences end in a slot before a step could say so of the first; the second never ran.
static void test_slot_closes_once_taken_again(void **state)
{
    (void) state;
    struct pipe p;
    struct error e;
    int32_t prompt[] = {11, 12, 13};
    pipe_open(&p, false);
    for (int i = 0; i < 3; i++) {
        struct wire_job job = job_of(i, prompt, 3, 20);
        assert_int_equal(head_accept(p.head, &job, 1, &e), OK);
        if (i != 1) assert_true(pipe_plan(&p)); // opens the slot
        if (i < 2) head_cancel(p.head, &job.key, WIRE_REASON_CANCELLED, 2);
    }
    const struct step *second = &p.steps[1];
    assert_int_equal(second->n_closes, 1);
    assert_int_equal(second->closes[0], second->opens[0].slot);
    pipe_close(&p);
}

// An attempt that another one resumes ends with the same tokens.
static void test_resume(void **state)
{
    (void) state;
    struct pipe p;
    struct error e;
    int32_t prompt[] = {11, 12, 13}, want[30];
    int n = expected(prompt, 3, 30, want);
    pipe_open(&p, false);
    for (int resumed = 0; resumed <= n; resumed++) {
        struct wire_job job = job_of(resumed, prompt, 3, 30);
        job.resume = (struct wire_bytes){want, (size_t) resumed * 4};
        job.attempts = resumed > 0 ? 2 : 1;
        struct head_counts before = p.head->counts;
        assert_int_equal(head_accept(p.head, &job, 0, &e), OK);
        pipe_run(&p, 5);
        uint64_t again = p.head->counts.prefill - before.prefill; // what it had is computed anew
        assert_int_equal(again, resumed < n ? 3 + resumed : 0);
        assert_int_equal(p.head->counts.again - before.again, resumed > 0 ? again : 0);
        assert_int_equal(p.head->counts.decode - before.decode, n - resumed);
        assert_int_equal(p.said.n_results, resumed + 1);
        assert_int_equal(p.said.last.n_tokens, n);
        assert_memory_equal(p.said.last.tokens, want, (size_t) n * 4);
        assert_int_equal(p.said.last.resumed, resumed);
    }
    pipe_close(&p);
}

static void test_results_wait_for_commit(void **state)
{
    (void) state;
    struct pipe p;
    struct error e;
    int32_t prompt[] = {1, 2, 3};
    struct wire_job job = job_of(1, prompt, 3, 8);
    pipe_open(&p, false);
    p.said.away = true;
    assert_int_equal(head_accept(p.head, &job, 0, &e), OK);
    pipe_run(&p, 5);
    assert_int_equal(p.said.n_results, 0);
    p.said.away = false;
    head_report(p.head, 10, 1000);
    assert_int_equal(p.said.n_results, 1);
    head_report(p.head, 500, 1000); // too early to repeat
    assert_int_equal(p.said.n_results, 1);
    head_report(p.head, 1010, 1000);
    assert_int_equal(p.said.n_results, 2);
    // The same attempt sent again: not run again, but told again.
    assert_int_equal(head_accept(p.head, &job, 1020, &e), OK);
    head_report(p.head, 1021, 1000);
    assert_int_equal(p.said.n_results, 3);
    struct job_key kept[4];
    assert_int_equal(head_list_kept(p.head, kept, 4), 1);
    head_committed(p.head, &job.key);
    head_report(p.head, 9000, 1000);
    assert_int_equal(p.said.n_results, 3);
    pipe_close(&p);
}

// A new broker knows nothing of what the last one was told.
static void test_report_again(void **state)
{
    (void) state;
    struct pipe p;
    struct error e;
    int32_t prompt[] = {7, 8}, want[60];
    pipe_open(&p, false);
    struct wire_job job = job_of(1, prompt, 2, 60);
    job.ignore_eos = true;
    int n = expected(prompt, 2, 60, want) < 3 ? 0 : 2;
    job.resume = (struct wire_bytes){want, (size_t) n * 4};
    assert_int_equal(head_accept(p.head, &job, 0, &e), OK);
    for (int i = 0; i < 6; i++) {
        pipe_plan(&p);
        pipe_return(&p, 1);
    }
    head_report(p.head, 100, 1000);
    int told = p.said.n_tokens;
    assert_true(told > 0);
    head_report(p.head, 200, 1000);
    assert_int_equal(p.said.n_tokens, told);
    head_report_again(p.head);
    head_report(p.head, 300, 1000);
    assert_int_equal(p.said.n_tokens, 2 * told);
    pipe_close(&p);
}

// Such a job would run for ever in the broker's eyes.
static void test_result_that_cannot_be_encoded(void **state)
{
    (void) state;
    struct pipe p;
    pipe_open(&p, false);
    int32_t ids[] = {1, 2, 3};
    struct wire_job job = job_of(1, ids, 3, 1);
    struct error e;
    job.sampling.n_logprobs = 1;
    assert_int_equal(head_accept(p.head, &job, 1000, &e), OK);
    assert_true(pipe_plan(&p));
    struct step_token token = {.slot = 0, .pos = 2, .id = 9, .n_top = 1, .top_id = {-1}};
    assert_int_equal(head_tokens(p.head, 1, &token, 1, NULL, 1000000000, &e), OK);
    assert_int_equal(p.said.n_results, 1);
    assert_string_equal(p.said.last.id, job.key.id);
    assert_int_equal(p.said.last.status, RESULT_ERROR);
    assert_string_equal(p.said.last.error.code, "bad_result");
    assert_int_equal(p.head->n_running, 0);
    head_committed(p.head, &job.key);
    assert_int_equal(p.head->n_kept, 0);
    pipe_close(&p);
}

// Whatever the last stage sends, the head goes on to say why the epoch ends.
static void test_tokens_that_nobody_awaits(void **state)
{
    (void) state;
    static const struct {
        int n;
        int32_t slot, pos; // of the second token, added to what is right
        const char *text;
    } cases[] = {
        {2, 0, 1, "token 1 of step 1 came for row 3 of slot 1, not for row 2 of slot 1"},
        {2, 0, -1, "token 1 of step 1 came for row 1 of slot 1, not for row 2 of slot 1"},
        {2, -1, 0, "token 1 of step 1 came for row 2 of slot 0, not for row 2 of slot 1"}, // again
        {2, 4, 0, "token 1 of step 1 came for row 2 of slot 5, not for row 2 of slot 1"}, // free
        {1, 0, 0, "step 1 came back with 1 tokens, not 2"},
        {0, 0, 0, "step 1 came back with 0 tokens, not 2"},
        {3, 0, 0, "step 1 came back with 3 tokens, not 2"},
    };
    struct pipe p;
    struct step_token tokens[3] = {{0}};
    struct error e;
    int32_t ids[] = {1, 2, 3};
    pipe_open(&p, false);
    for (int i = 0; i < 2; i++) {
        struct wire_job job = job_of(i, ids, 3, 8);
        assert_int_equal(head_accept(p.head, &job, 0, &e), OK);
    }
    assert_true(pipe_plan(&p));
    assert_int_equal(p.steps[0].n_out, 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tokens_of(&p.steps[0], tokens);
        tokens[1].slot += cases[i].slot;
        tokens[1].pos += cases[i].pos;
        e = (struct error){0};
        assert_int_equal(head_tokens(p.head, 1, tokens, cases[i].n, NULL, 1, &e), ERR_INPUT);
        assert_string_equal(e.code, "bad_step");
        assert_string_equal(e.text, cases[i].text);
    }
    assert_int_equal(p.head->counts.decode, 0); // nothing of it was taken
    pipe_run(&p, 5);
    assert_int_equal(p.said.n_results, 2);
    pipe_close(&p);
}

static void test_score(void **state)
{
    (void) state;
    struct pipe p;
    struct error e;
    int32_t prompt[150] = {0};
    pipe_open(&p, true);
    struct wire_job job = job_of(1, prompt, 150, 0);
    job.score = true;
    assert_int_equal(head_accept(p.head, &job, 0, &e), OK);
    pipe_run(&p, 5);
    assert_int_equal(p.said.n_scored, 150);
    assert_int_equal(p.said.n_results, 1);
    assert_int_equal(p.said.last.n_tokens, 0);
    pipe_close(&p);
}

// Jobs come and are cancelled at random while steps fly; every accepted one ends once and rightly,
// and everything is free in the end.
static void test_random_lives(void **state)
{
    (void) state;
    for (unsigned seed = 1; seed <= 40; seed++) {
        struct pipe p;
        static int32_t prompts[200][CONTEXT];
        int n_accepted = 0, last_results = 0;
        srand(seed);
        pipe_open(&p, false);
        for (int i = 0; i < 200; i++) {
            int n_prompt = 1 + rand() % 150, max_tokens = 1 + rand() % 100;
            struct error e = {0};
            for (int k = 0; k < n_prompt; k++) prompts[i][k] = rand() % VOCAB;
            struct wire_job job = job_of(i, prompts[i], n_prompt, max_tokens);
            int now_ms = i + 1;
            enum status status = head_accept(p.head, &job, now_ms, &e);
            assert_true(status == OK || status == ERR_LIMIT);
            n_accepted += status == OK;
            for (int turns = rand() % 6; turns > 0; turns--) {
                if (rand() % 2 == 0) pipe_plan(&p);
                else pipe_return(&p, now_ms);
                if (p.said.n_results == last_results) continue;
                last_results = p.said.n_results;
                if (p.said.last.status == RESULT_CANCELLED) continue;
                int number = atoi(p.said.last_key.id + 4);
                int32_t want[CONTEXT];
                int n = expected(prompts[number], p.said.last.usage.prompt, p.said.last.max_tokens,
                                 want);
                assert_int_equal(p.said.last.n_tokens, n);
                assert_memory_equal(p.said.last.tokens, want, (size_t) n * 4);
            }
            if (rand() % 8 == 0) {
                struct wire_running running[SLOTS];
                int n = head_list_running(p.head, running, SLOTS);
                if (n > 0) {
                    head_cancel(p.head, &running[rand() % n].key, WIRE_REASON_CANCELLED, now_ms);
                    last_results = p.said.n_results;
                }
            }
            head_report(p.head, now_ms, 1000000);
        }
        pipe_run(&p, 1000);
        assert_int_equal(p.said.n_results, n_accepted);
        assert_int_equal(p.head->n_running, 0);
        assert_int_equal(p.head->kv.n_free, BLOCKS);
        assert_int_equal(p.head->granted_slots, SLOTS + n_accepted);
        pipe_close(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_slot_closes_once_taken_again),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_results_wait_for_commit),
        cmocka_unit_test(test_report_again),
        cmocka_unit_test(test_result_that_cannot_be_encoded),
        cmocka_unit_test(test_tokens_that_nobody_awaits),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_random_lives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
