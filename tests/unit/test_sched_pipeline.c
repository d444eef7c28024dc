// The scheduler over a pipeline of stages that take the time that the cost model says: how long the
// slowest stage idles, and what that costs beside the most that it could do.
#include "workers/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SLOTS = 512, STAGES = 4, ROWS = 2048 };

struct flight {
    struct step_run runs[SLOTS];
    int n_runs;
    uint64_t of[SLOTS]; // which sequence had the slot
    double back_s;
};

// A pipeline of four nodes of 4090s.
struct pipe {
    struct cost_model model;
    struct device_rates rates;
    struct plan_stage stages[STAGES];
    struct pace pace;
    struct sched_seq storage[SLOTS];
    struct sched s;
    uint64_t number[SLOTS], n_admitted;
    int left[SLOTS];             // tokens to choose
    struct flight flights[STEPS_IN_FLIGHT_MAX];
    int first, flying;
    double free_s[STAGES], busy_s[STAGES], now_s;
    int64_t decodes, prefills;   // rows done
    double context, kv_rows;     // of all rows, as cost_step counts them
    double decoding;             // sum over steps of the sequences that decode
    int64_t n_steps;
    double longest_s;            // step, in a stage
    int urgent;                  // slot whose first token is waited for, or -1
    double urgent_s;             // when it came
};

static struct pipe *open_pipe(int steps, int64_t step_ms)
{
    static const struct plan_stage STAGE[STAGES] = {
        {0, 17, true, false}, {17, 32, false, false}, {32, 47, false, false}, {47, 61, false, true},
    };
    struct pipe *p = calloc(1, sizeof *p);
    struct model_config c;
    assert_non_null(p);
    p->urgent = -1;
    assert_int_equal(model_config_load(&c, FIXTURES "/deepseek-v3", NULL), OK);
    assert_int_equal(device_rates_named(&p->rates, "rtx4090", NULL), OK);
    struct cost_form form = {.tp = 8, .kv_ranks = 8, .fp8_gemm = true, .fp8_kv = true};
    struct plan_stage typical = {45, 61, false, true};
    cost_model_init(&p->model, &c, &form);
    pace_init(&p->pace, &c, &form, &typical, &p->rates);
    memcpy(p->stages, STAGE, sizeof STAGE);
    struct sched_options o = {.limits = {.max_rows = ROWS, .slots = SLOTS, .max_out = SLOTS},
                              .steps_in_flight = steps, .stages = STAGES, .fill_ms = 5,
                              .step_ms = step_ms, .pace = &p->pace};
    sched_init(&p->s, p->storage, &o);
    return p;
}

static void admit(struct pipe *p, int slot, int prompt, int tokens, int class)
{
    sched_admit(&p->s, slot, prompt, prompt, class, false);
    p->number[slot] = ++p->n_admitted;
    p->left[slot] = tokens;
}

// A stage begins a step when it has it and is done with the one before.
static void fly(struct pipe *p, struct flight *f)
{
    struct cost_step step = {0};
    for (int i = 0; i < f->n_runs; i++) {
        const struct step_run *r = &f->runs[i];
        const struct sched_seq *q = &p->storage[r->slot];
        f->of[i] = p->number[r->slot];
        cost_step_add(&step, r->pos, r->n, r->logits != RUN_NO_LOGITS);
        if (r->pos < q->n_prompt) p->prefills += r->n;
        else p->decodes += r->n;
    }
    p->context += step.context;
    p->kv_rows += step.kv_rows;
    p->decoding += p->s.n_decoding;
    p->n_steps++;
    double at_s = p->now_s;
    for (int i = 0; i < STAGES; i++) {
        double took = cost_stage(&p->model, &p->stages[i], &p->rates, &step).seconds;
        if (at_s < p->free_s[i]) at_s = p->free_s[i];
        at_s += took;
        p->free_s[i] = at_s;
        p->busy_s[i] += took;
        p->longest_s = took > p->longest_s ? took : p->longest_s;
        at_s += i + 1 < STAGES ? cost_link(&p->model, &p->rates, &step) : p->rates.link_s;
    }
    f->back_s = at_s;
}

// The oldest step is back: tokens are chosen, and sequences that end make room for `next`.
static void land(struct pipe *p, void (*next)(struct pipe *p, int slot))
{
    struct flight *f = &p->flights[p->first];
    p->now_s = f->back_s;
    p->first = (p->first + 1) % STEPS_IN_FLIGHT_MAX;
    p->flying--;
    for (int i = 0; i < f->n_runs; i++) {
        int slot = f->runs[i].slot;
        if (f->runs[i].logits == RUN_NO_LOGITS || f->of[i] != p->number[slot]) continue;
        if (slot == p->urgent && p->urgent_s == 0) p->urgent_s = p->now_s;
        if (--p->left[slot] > 0) {
            sched_append(&p->s, slot);
        } else {
            sched_remove(&p->s, slot);
            next(p, slot);
        }
    }
}

static bool take_off(struct pipe *p)
{
    struct flight *f = &p->flights[(p->first + p->flying) % STEPS_IN_FLIGHT_MAX];
    if (p->flying == p->s.options.steps_in_flight) return false;
    f->n_runs = sched_plan(&p->s, p->flying, (int64_t) (p->now_s * 1000), f->runs);
    if (f->n_runs == 0) return false;
    fly(p, f);
    p->flying++;
    return true;
}

static void run(struct pipe *p, int steps, void (*next)(struct pipe *p, int slot))
{
    for (int i = 0; i < steps; i++) {
        while (take_off(p)) continue;
        if (p->flying > 0) land(p, next);
        else p->now_s = (double) p->s.again_ms / 1000;
    }
}

// From here on it counts: the pipeline has filled.
static void forget(struct pipe *p)
{
    memset(p->busy_s, 0, sizeof p->busy_s);
    for (int i = 0; i < STAGES; i++) {
        if (p->free_s[i] > p->now_s) p->busy_s[i] = p->free_s[i] - p->now_s;
    }
    p->decodes = p->prefills = 0;
    p->context = p->kv_rows = p->decoding = 0;
    p->n_steps = 0;
}

static double bubble(const struct pipe *p, double since_s)
{
    double most = 0;
    for (int i = 0; i < STAGES; i++) {
        double ahead = p->free_s[i] > p->now_s ? p->free_s[i] - p->now_s : 0;
        double busy = p->busy_s[i] - ahead;
        most = busy > most ? busy : most;
    }
    return 1 - most / (p->now_s - since_s);
}

static void nothing_next(struct pipe *p, int slot)
{
    (void) p;
    (void) slot;
}

// Random lengths: mostly short prompts, some long ones.
static void mixed_next(struct pipe *p, int slot)
{
    int prompt = rand() % 8 == 0 ? 1000 + rand() % 3000 : 20 + rand() % 400;
    admit(p, slot, prompt, 1 + rand() % 400, 1);
}

// Decode rows a second if as many sequences as did decode in as many equal steps as there are
// stages, or one more, each with its part of the prefill, and no stage ever waits.
static double limit_of(const struct pipe *p)
{
    double n = p->decoding / (double) p->n_steps;
    double best = 0, done = (double) p->decodes, rows = done + (double) p->prefills;
    for (int steps = STAGES; steps <= STAGES + 1; steps++) {
        double decodes = n / steps, part = decodes / done, longest = 0;
        struct cost_step s = {part * rows, part * p->context, part * p->kv_rows, decodes};
        for (int i = 0; i < STAGES; i++) {
            double took = cost_stage(&p->model, &p->stages[i], &p->rates, &s).seconds;
            longest = took > longest ? took : longest;
        }
        best = decodes / longest > best ? decodes / longest : best;
    }
    return best;
}

static void expect_busy(const char *what, const struct pipe *p, double since_s)
{
    double idle = bubble(p, since_s), rate = (double) p->decodes / (p->now_s - since_s);
    double share = p->decodes > 0 ? rate / limit_of(p) : 1;
    printf("# %s: bubble %.1f%%; predicted %.0f decode and %.0f prefill rows/s, %.1f%% of the "
           "limit\n", what, 100 * idle, rate, (double) p->prefills / (p->now_s - since_s),
           100 * share);
    assert_true(idle <= 0.05);
    assert_true(share >= 0.95);
}

// All sequences at 4k of context.
static void decode_keeps_four_stages_busy(void **state)
{
    (void) state;
    static const int BATCHES[] = {8, 32, 128, 339};
    for (size_t k = 0; k < sizeof BATCHES / sizeof *BATCHES; k++) {
        struct pipe *p = open_pipe(STAGES + 1, 0);
        char what[32];
        int n = BATCHES[k];
        for (int i = 0; i < n; i++) admit(p, i, 4000, 1 << 20, 1);
        while (p->s.n_decoding < n) run(p, 1, nothing_next);
        run(p, 50, nothing_next);
        forget(p);
        double since = p->now_s;
        run(p, 200, nothing_next);
        snprintf(what, sizeof what, "decode of %d", n);
        expect_busy(what, p, since);
        free(p);
    }
}

// Sequences come and end: prefill beside decode.
static void a_mixed_load_keeps_four_stages_busy(void **state)
{
    (void) state;
    for (unsigned seed = 1; seed <= 5; seed++) {
        struct pipe *p = open_pipe(STAGES + 1, 0);
        srand(seed);
        for (int i = 0; i < 256; i++) mixed_next(p, i);
        run(p, 1000, mixed_next);
        forget(p);
        double since = p->now_s;
        run(p, 3000, mixed_next);
        expect_busy("mixed", p, since);
        free(p);
    }
}

static void prompt_next(struct pipe *p, int slot) { admit(p, slot, 100 + rand() % 4000, 1, 2); }

static void prefill_keeps_four_stages_busy(void **state)
{
    (void) state;
    struct pipe *p = open_pipe(STAGES + 1, 250);
    srand(3);
    for (int i = 0; i < 64; i++) prompt_next(p, i);
    run(p, 100, prompt_next);
    forget(p);
    double since = p->now_s;
    run(p, 500, prompt_next);
    assert_int_equal(p->decodes, 0);
    expect_busy("prefill", p, since);
    free(p);
}

// A job of class 0 that comes into a backlog of long prompts: its first token is there when the
// steps that were in flight, and its own, have passed.
static void what_is_urgent_waits_for_the_steps_in_flight_alone(void **state)
{
    (void) state;
    for (unsigned seed = 1; seed <= 20; seed++) {
        struct pipe *p = open_pipe(STAGES + 1, 100);
        srand(seed);
        for (int i = 0; i < 64; i++) prompt_next(p, i);
        run(p, 50 + rand() % 50, prompt_next);
        double since = p->now_s;
        p->urgent = SLOTS - 1;
        admit(p, p->urgent, 200, 2, 0);
        run(p, 12, prompt_next);
        assert_true(p->longest_s < 0.13); // of the slowest stage; the pace knows a typical one
        assert_true(p->urgent_s > since);
        assert_true(p->urgent_s - since <= (STAGES + 1 + STAGES) * p->longest_s);
        free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_keeps_four_stages_busy),
        cmocka_unit_test(a_mixed_load_keeps_four_stages_busy),
        cmocka_unit_test(prefill_keeps_four_stages_busy),
        cmocka_unit_test(what_is_urgent_waits_for_the_steps_in_flight_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
