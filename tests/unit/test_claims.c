// Claims over a queue of the test's own, which answers when it is told to: rounds that are open at
// the same time, and replies that are lost.
#include "broker/claims.h"

#include "broker/loop.h"
#include "broker/queue_split.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CALLS_MAX = 64, KEYS_MAX = 8, SLOTS = 16 };

static struct call {
    char what; // 'w' window, 'c' claim
    int class;
    uint64_t claim;
    char ids[KEYS_MAX][JOB_ID_MAX + 1];
    size_t n;
    uint64_t need_blocks; // of each job of a claim
    queue_fn *fn;
    void *arg;
    bool open;
} calls[CALLS_MAX];
static int n_calls;

static struct world {
    zloop_t *loop;
    struct jobs *jobs;
    struct claims *claims;
    struct models models;
    struct tenants tenants;
    uint64_t attempts;
    char sent[CALLS_MAX][JOB_ID_MAX + 1]; // to the head, in order
    int n_sent, n_awaited;
    bool away; // Redis is
    struct queue_failure why; // of the job that failed last, and what it points to
    char why_code[64], why_text[256];
} w;

// --- the queue

bool queue_ready(const struct queue *q)
{
    (void) q;
    return !w.away;
}

static struct call *add_call(char what, queue_fn *fn, void *arg)
{
    struct call *c = &calls[n_calls++];
    assert_true(n_calls <= CALLS_MAX);
    *c = (struct call){.what = what, .need_blocks = 1, .fn = fn, .arg = arg, .open = true};
    return c;
}

enum status queue_window(struct queue *q, int class, const char *tenant, const char *model,
                         uint64_t after, size_t limit, queue_fn *fn, void *arg)
{
    (void) q, (void) tenant, (void) model, (void) after, (void) limit;
    add_call('w', fn, arg)->class = class;
    return OK;
}

enum status queue_claim(struct queue *q, uint64_t claim, int64_t lease_ms, size_t max_bytes,
                        const struct queue_key *keys, size_t n, queue_fn *fn, void *arg)
{
    (void) q, (void) lease_ms, (void) max_bytes;
    struct call *c = add_call('c', fn, arg);
    assert_true(n <= KEYS_MAX);
    c->claim = claim;
    c->n = n;
    for (size_t i = 0; i < n; i++) snprintf(c->ids[i], sizeof c->ids[i], "%s", keys[i].id);
    return OK;
}

struct queue_usage queue_usage_read(const char *text)
{
    (void) text;
    return (struct queue_usage){0};
}

// Not of claims: nothing here is saved or ends well.
enum status queue_renew(struct queue *q, int64_t lease_ms, const struct queue_attempt *attempts,
                        size_t n, queue_fn *fn, void *arg)
{
    (void) q, (void) lease_ms, (void) attempts, (void) n, (void) fn, (void) arg;
    return ERR_UNAVAILABLE;
}

enum status queue_nack(struct queue *q, const struct queue_attempt *a, bool lost, queue_fn *fn,
                       void *arg)
{
    (void) q, (void) a, (void) lost, (void) fn, (void) arg;
    return ERR_UNAVAILABLE;
}

enum status queue_fail(struct queue *q, const struct queue_attempt *a,
                       const struct queue_failure *f, queue_fn *fn, void *arg)
{
    (void) q, (void) fn, (void) arg;
    snprintf(w.sent[w.n_sent++], sizeof w.sent[0], "%s", a->id);
    w.why = *f;
    snprintf(w.why_code, sizeof w.why_code, "%s", f->code);
    snprintf(w.why_text, sizeof w.why_text, "%s", f->text);
    return OK;
}

enum status queue_checkpoint(struct queue *q, const struct queue_attempt *a, uint64_t offset,
                             const uint8_t *bytes, size_t n, queue_fn *fn, void *arg)
{
    (void) q, (void) a, (void) offset, (void) bytes, (void) n, (void) fn, (void) arg;
    return ERR_UNAVAILABLE;
}

enum status queue_stream(struct queue *q, const struct queue_attempt *a, uint64_t offset,
                         const uint8_t *bytes, size_t n, const struct queue_text *text,
                         queue_fn *fn, void *arg)
{
    (void) q, (void) a, (void) offset, (void) bytes, (void) n, (void) text, (void) fn, (void) arg;
    return ERR_UNAVAILABLE;
}

enum status queue_done(struct queue *q, const struct queue_attempt *a,
                       const struct queue_outcome *o, queue_fn *fn, void *arg)
{
    (void) q, (void) a, (void) o, (void) fn, (void) arg;
    return ERR_UNAVAILABLE;
}

// --- its replies

// The n-th open call of that kind; window: of that class.
static struct call *open_call(char what, int class, int nth)
{
    for (int i = 0; i < n_calls; i++) {
        struct call *c = &calls[i];
        bool meant = c->open && c->what == what && (what == 'c' || c->class == class);
        if (meant && nth-- == 0) return c;
    }
    return NULL;
}

static struct call *expect_call(char what, int class, int nth)
{
    struct call *c = open_call(what, class, nth);
    if (c == NULL) fail_msg("no open call %c of class %d", what, class);
    return c;
}

// A window with jobs named <letter>1 .. <letter>n, each of so many blocks; of letter p all are
// poison.
static void answer_window(struct call *c, char letter, int n, uint64_t need_blocks)
{
    struct queue_header headers[KEYS_MAX] = {0};
    char ids[KEYS_MAX][16];
    for (int i = 0; i < n; i++) {
        snprintf(ids[i], sizeof ids[i], "%c%d", letter, i + 1);
        headers[i] = (struct queue_header){.id = ids[i], .seq = (uint64_t) (100 * letter + i),
                                           .need_blocks = need_blocks, .n_prompt = 3,
                                           .max_tokens = 5, .poison = letter == 'p'};
    }
    const struct queue_reply r = {.n = (size_t) n, .headers = headers};
    c->open = false;
    c->fn(c->arg, &r);
}

static void message_of(struct buffer *to, const char *id, int class)
{
    static const char body[] = "{\"tokens\": [1, 2, 3], \"max_tokens\": 5}";
    struct job job = job_default();
    struct error e;
    snprintf(job.id, sizeof job.id, "%s", id);
    job.op = JOB_TOKENS;
    job.class = class;
    job.body_form = JOB_BODY_JSON;
    job.body = (struct job_text){body, sizeof body - 1};
    buffer_init(to, 4096);
    assert_int_equal(job_encode(&job, to, &e), OK);
}

static void answer_claim(struct call *c)
{
    struct queue_job jobs[KEYS_MAX];
    struct buffer messages[KEYS_MAX];
    for (size_t i = 0; i < c->n; i++) {
        message_of(&messages[i], c->ids[i], 0);
        jobs[i] = (struct queue_job){.word = QUEUE_OK, .tenant = "t", .id = c->ids[i],
                                     .attempt = ++w.attempts, .bytes = messages[i].data,
                                     .n_bytes = messages[i].n,
                                     .checkpoint = (const uint8_t *) "",
                                     .need_blocks = c->need_blocks,
                                     .n_prompt = 3,
                                     .max_tokens = 5, .prior = ""};
    }
    const struct queue_reply r = {.n = c->n, .jobs = jobs};
    c->open = false;
    c->fn(c->arg, &r);
    for (size_t i = 0; i < c->n; i++) buffer_deinit(&messages[i]);
}

// None of its jobs is ready any more.
static void answer_gone(struct call *c)
{
    struct queue_job jobs[KEYS_MAX];
    for (size_t i = 0; i < c->n; i++) {
        jobs[i] = (struct queue_job){.word = QUEUE_GONE, .tenant = "t", .id = c->ids[i]};
    }
    const struct queue_reply r = {.n = c->n, .jobs = jobs};
    c->open = false;
    c->fn(c->arg, &r);
}

static void lose(struct call *c)
{
    struct queue_reply r = {.error = {.status = ERR_UNAVAILABLE}};
    c->open = false;
    c->fn(c->arg, &r);
}

// --- the rest of the broker

static bool on_send(void *arg, const struct peer *to, const struct wire_message *m)
{
    (void) arg, (void) to;
    if (m->command != WIRE_JOB) return true;
    snprintf(w.sent[w.n_sent++], sizeof w.sent[0], "%s", m->job.key.id);
    return true;
}

static void on_freed(void *arg) { (void) arg; }
static void on_returned(void *arg, const char *tenant) { (void) arg, (void) tenant; }

static void each_active(void *arg, claims_active_fn *fn, void *fn_arg)
{
    (void) arg;
    jobs_each_active(w.jobs, fn, fn_arg);
    claims_each_chosen(w.claims, fn, fn_arg);
}

static int is_there(zloop_t *loop, int timer, void *arg)
{
    (void) loop, (void) timer, (void) arg;
    return w.n_sent >= w.n_awaited ? -1 : 0;
}

// Until so many jobs have been sent: the pool's threads read them.
static void await_sent(int n)
{
    w.n_awaited = n;
    int timer = zloop_timer(w.loop, 1, 0, is_there, NULL);
    zloop_start(w.loop);
    zloop_timer_end(w.loop, timer);
    assert_int_equal(w.n_sent, n);
}

static void start_world(void)
{
    struct error e;
    memset(calls, 0, sizeof calls);
    n_calls = 0;
    w = (struct world){.loop = zloop_new(), .models = {.n = 1}, .tenants = {.n = 1}};
    snprintf(w.models.at[0].name, sizeof w.models.at[0].name, "m");
    w.models.at[0].config.vocab_size = 100;
    w.models.at[0].config.bos_id = -1;
    w.tenants.at[0] = (struct tenant){.name = "t", .weight = 1};
    const struct jobs_options jobs = {NULL, NULL, on_send, on_freed, on_returned};
    assert_int_equal(jobs_create(&w.jobs, &jobs, &e), OK);
    const struct jobs_pipeline p = {.id = 1, .epoch = 1, .head = {.n = 1}, .name = "head",
                                    .slots = SLOTS, .blocks = SLOTS};
    struct wire_message credit = {.command = WIRE_CREDIT};
    credit.credit = (struct wire_credit){1, 1, SLOTS, SLOTS};
    jobs_up(w.jobs, &p);
    assert_true(jobs_message(w.jobs, &p.head, &credit));
    const struct claims_options o = {.loop = w.loop, .jobs = w.jobs, .models = &w.models,
                                     .limits = {.max_context = {100}, .default_max_tokens = 5},
                                     .n_threads = 1, .each_active = each_active};
    assert_int_equal(claims_create(&w.claims, &o, &e), OK);
    w.away = true;
    claims_set_tenants(w.claims, &w.tenants);
    w.away = false;
    claims_ready(w.claims);
}

static void end_world(void)
{
    claims_destroy(&w.claims);
    jobs_destroy(&w.jobs);
    zloop_destroy(&w.loop);
}

static bool is_open(char what, int class, int nth) { return open_call(what, class, nth) != NULL; }

// What the first round finds: jobs of one class.
static struct call *first_claim_of(char letter, int of_class, int n, uint64_t need_blocks)
{
    for (int class = 0; class < JOB_CLASSES; class++) {
        struct call *c = expect_call('w', class, 0);
        answer_window(c, letter, class == of_class ? n : 0, need_blocks);
    }
    return expect_call('c', 0, 0);
}

static struct call *first_claim(int of_class, int n, uint64_t need_blocks)
{
    return first_claim_of('b', of_class, n, need_blocks);
}

// --- tests

static void what_is_ready_is_claimed_read_and_sent(void **state)
{
    (void) state;
    start_world();
    struct call *claim = first_claim(3, 2, 1);
    assert_int_equal(claim->n, 2);
    assert_string_equal(claim->ids[0], "b1");
    assert_false(claims_idle(w.claims));
    answer_claim(claim);
    await_sent(2);
    assert_string_equal(w.sent[0], "b1");
    assert_string_equal(w.sent[1], "b2");
    assert_true(claims_idle(w.claims));
    end_world();
}

static void class_0_waits_for_no_open_claim(void **state)
{
    (void) state;
    start_world();
    struct call *bulk = first_claim(3, 2, 1);
    claims_changed(w.claims, "t", 3); // the next round of all is for those
    assert_false(is_open('w', 3, 0));
    claims_changed(w.claims, "t", 0);
    answer_window(expect_call('w', 0, 0), 'u', 1, 1);
    struct call *urgent = expect_call('c', 0, 1);
    assert_int_equal(urgent->n, 1);
    assert_string_equal(urgent->ids[0], "u1");
    assert_true(urgent->claim != bulk->claim);
    answer_claim(urgent);
    await_sent(1);
    assert_string_equal(w.sent[0], "u1");
    answer_claim(bulk);
    await_sent(3);
    end_world();
}

// A poison job runs alone, also while its claim is open.
static void class_0_is_not_claimed_beside_poison(void **state)
{
    (void) state;
    start_world();
    struct call *poison = first_claim_of('p', 3, 2, 1);
    assert_int_equal(poison->n, 1);
    claims_changed(w.claims, "t", 3);
    claims_changed(w.claims, "t", 0);
    struct call *window = open_call('w', 0, 0);
    if (window != NULL) answer_window(window, 'u', 1, 1);
    assert_false(is_open('c', 0, 1));
    answer_claim(poison);
    await_sent(1);
    assert_string_equal(w.sent[0], "p1");
    claims_changed(w.claims, "t", -1);
    assert_false(is_open('c', 0, 0));
    end_world();
}

// The claim failed: what it promised is taken back, and others may run.
static void poison_that_was_not_claimed_is_in_nobodys_way(void **state)
{
    (void) state;
    start_world();
    answer_gone(first_claim_of('p', 3, 1, 1));
    claims_changed(w.claims, "t", -1);
    for (int class = 0; class < JOB_CLASSES; class++) {
        answer_window(expect_call('w', class, 0), 'u', class == 0 ? 2 : 0, 1);
    }
    assert_int_equal(expect_call('c', 0, 0)->n, 2);
    end_world();
}

// Nobody of another class is under way or waits: the next round is soon enough.
static void class_0_among_itself_goes_in_rounds(void **state)
{
    (void) state;
    start_world();
    struct call *claim = first_claim(0, KEYS_MAX, 3); // some have no room yet
    claims_changed(w.claims, "t", 0);
    assert_false(is_open('w', 0, 0));
    answer_claim(claim);
    assert_true(is_open('w', 0, 0));
    end_world();
}

// Whichever replies are lost: each claim is said again as it was, under its own number.
static void lost_claims_are_said_again(void **state)
{
    (void) state;
    start_world();
    struct call bulk = *first_claim(3, 2, 1);
    claims_changed(w.claims, "t", 0);
    answer_window(expect_call('w', 0, 0), 'u', 2, 1);
    struct call urgent = *expect_call('c', 0, 1);
    w.away = true;
    lose(expect_call('c', 0, 0));
    lose(expect_call('c', 0, 0));
    assert_false(claims_idle(w.claims));
    w.away = false;
    claims_ready(w.claims);
    for (int i = 0; i < 2; i++) {
        struct call *again = expect_call('c', 0, i);
        const struct call *was = again->claim == bulk.claim ? &bulk : &urgent;
        assert_int_equal(again->claim, was->claim);
        assert_int_equal(again->n, 2);
        for (int k = 0; k < 2; k++) assert_string_equal(again->ids[k], was->ids[k]);
    }
    answer_claim(expect_call('c', 0, 0));
    answer_claim(expect_call('c', 0, 0));
    await_sent(4);
    end_world();
}

// Its window has all there are: what was admitted is chosen without reading it again.
static void what_was_admitted_is_claimed_without_a_look(void **state)
{
    (void) state;
    struct queue_header h = {.id = "u1", .seq = 1000, .need_blocks = 1, .n_prompt = 3,
                             .max_tokens = 5};
    start_world();
    claims_admitted(w.claims, "t", 0, &h); // its window is being read: it may be in it or not
    struct call *bulk = first_claim(3, 2, 1);
    answer_window(expect_call('w', 0, 0), 'u', 1, 1);
    answer_claim(expect_call('c', 0, 1));
    await_sent(1);
    h = (struct queue_header){.id = "u2", .seq = 9999, .need_blocks = 1, .n_prompt = 3,
                              .max_tokens = 5};
    claims_admitted(w.claims, "t", 0, &h);
    assert_false(is_open('w', 0, 0));
    struct call *urgent = expect_call('c', 0, 1);
    assert_string_equal(urgent->ids[0], "u2");
    claims_admitted(w.claims, "t", 0, NULL);
    claims_admitted(w.claims, "nobody", 0, &h);
    answer_claim(urgent);
    await_sent(2);
    answer_claim(bulk);
    await_sent(4);
    // One that came before what is there: its place is not at the end.
    answer_window(expect_call('w', 0, 0), 'v', 1, 20);
    h.seq = 1;
    claims_admitted(w.claims, "t", 0, &h);
    assert_true(is_open('w', 0, 0));
    end_world();
}

// A plan came after it was admitted. It is refused with the numbers, whatever else waits.
static void a_job_that_fits_nowhere_is_refused(void **state)
{
    (void) state;
    start_world();
    claims_set_limits(w.claims, 100, 9);
    struct call *claim = first_claim(3, 2, 10);
    for (size_t i = 0; i < claim->n; i++) claim->need_blocks = 10;
    answer_claim(claim);
    await_sent(2);
    assert_string_equal(w.why_code, "context_exceeded");
    assert_false(w.why.retryable);
    assert_non_null(strstr(w.why_text, "10 KV blocks of 64 tokens, and pipelines have 9"));
    end_world();
}

// Two rounds read the same window; what one has chosen is not chosen by the other one, whose
// window is older.
static void no_job_is_claimed_twice(void **state)
{
    (void) state;
    start_world();
    answer_claim(first_claim(3, 2, 10)); // the other one has no room
    await_sent(1);
    claims_changed(w.claims, "t", -1);
    claims_changed(w.claims, "t", 0);
    answer_window(expect_call('w', 0, 1), 'u', 1, 1);
    assert_string_equal(expect_call('c', 0, 0)->ids[0], "u1");
    for (int class = 0; class < JOB_CLASSES; class++) {
        answer_window(expect_call('w', class, 0), 'u', class == 0 ? 2 : 0, 1);
    }
    assert_int_equal(expect_call('c', 0, 1)->n, 1);
    assert_string_equal(expect_call('c', 0, 1)->ids[0], "u2");
    end_world();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_ready_is_claimed_read_and_sent),
        cmocka_unit_test(class_0_waits_for_no_open_claim),
        cmocka_unit_test(class_0_is_not_claimed_beside_poison),
        cmocka_unit_test(poison_that_was_not_claimed_is_in_nobodys_way),
        cmocka_unit_test(class_0_among_itself_goes_in_rounds),
        cmocka_unit_test(lost_claims_are_said_again),
        cmocka_unit_test(what_was_admitted_is_claimed_without_a_look),
        cmocka_unit_test(a_job_that_fits_nowhere_is_refused),
        cmocka_unit_test(no_job_is_claimed_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
