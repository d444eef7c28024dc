// Properties of the scheduler under random sequences and a pipeline with steps in flight.
#include "workers/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

#include "pace_case.h"

enum { SLOTS = 12, RUNS_IN_FLIGHT = 4 };

static void start(struct sched *s, struct sched_seq *storage, const struct step_limits *l,
                  int chunk, int steps, int stages)
{
    struct sched_options o = {.limits = *l, .chunk = chunk, .steps_in_flight = steps,
                              .stages = stages};
    sched_init(s, storage, &o);
}

// Of a pipeline in which nothing else is.
static int plan(struct sched *s, struct step_run *runs) { return sched_plan(s, 0, 0, runs); }

// n sequences whose prompts are in: a row of each is due.
static void decode_all(struct sched *s, int n, struct step_run *runs)
{
    for (int k = 0; k < n; k++) sched_admit(s, k, 1, 1, 0, false);
    while (plan(s, runs) > 0) continue;
    for (int k = 0; k < n; k++) sched_append(s, k);
}

static void one_sequence_prefills_in_chunks_then_decodes(void **state)
{
    (void) state;
    struct sched_seq storage[2];
    struct sched s;
    struct step_limits l = {.max_rows = 16, .slots = 2, .max_out = 2};
    struct step_run runs[2];
    start(&s, storage, &l, 8, 1, 1);
    sched_admit(&s, 1, 20, 20, 0, false);
    int expected[3][3] = {{0, 8, RUN_NO_LOGITS}, {8, 8, RUN_NO_LOGITS}, {16, 4, RUN_LAST_ROW}};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(plan(&s, runs), 1);
        assert_int_equal(runs[0].slot, 1);
        assert_int_equal(runs[0].pos, expected[i][0]);
        assert_int_equal(runs[0].n, expected[i][1]);
        assert_int_equal(runs[0].logits, expected[i][2]);
    }
    assert_int_equal(plan(&s, runs), 0); // its token isn't known yet
    sched_append(&s, 1);
    assert_int_equal(plan(&s, runs), 1);
    assert_int_equal(runs[0].pos, 20);
    assert_int_equal(runs[0].n, 1);
}

static void a_lower_class_is_prefilled_before_what_came_earlier(void **state)
{
    (void) state;
    struct sched_seq storage[3];
    struct sched s;
    struct step_limits l = {.max_rows = 16, .slots = 3, .max_out = 3};
    struct step_run runs[3];
    start(&s, storage, &l, 0, 1, 1);
    sched_admit(&s, 0, 40, 40, 3, false);
    assert_int_equal(plan(&s, runs), 1);
    sched_admit(&s, 1, 10, 10, 3, false);
    sched_admit(&s, 2, 10, 10, 0, false);
    assert_int_equal(plan(&s, runs), 2); // the long prompt has not come to its end
    assert_int_equal(runs[0].slot, 2);
    assert_int_equal(runs[0].n, 10);
    assert_int_equal(runs[1].slot, 0);
    assert_int_equal(runs[1].n, 6);
}

static void decodes_are_spread_over_the_steps_in_flight(void **state)
{
    (void) state;
    struct sched_seq storage[SLOTS];
    struct sched s;
    struct step_limits l = {.max_rows = 64, .slots = SLOTS, .max_out = SLOTS};
    struct step_run runs[SLOTS];
    start(&s, storage, &l, 0, 3, 3);
    decode_all(&s, 9, runs);
    bool seen[SLOTS] = {false};
    for (int step = 0; step < 3; step++) {
        assert_int_equal(plan(&s, runs), 3);
        for (int i = 0; i < 3; i++) {
            assert_false(seen[runs[i].slot]);
            seen[runs[i].slot] = true;
        }
    }
    assert_int_equal(plan(&s, runs), 0);
}

static void scores_every_row_within_the_output_bound(void **state)
{
    (void) state;
    struct sched_seq storage[1];
    struct sched s;
    struct step_limits l = {.max_rows = 16, .slots = 1, .max_out = 5};
    struct step_run runs[1];
    start(&s, storage, &l, 0, 2, 2);
    sched_admit(&s, 0, 12, 12, 0, true);
    for (int sent = 0; sent < 12; sent += runs[0].n) {
        assert_int_equal(plan(&s, runs), 1);
        assert_int_equal(runs[0].pos, sent);
        assert_int_equal(runs[0].logits, RUN_ALL_ROWS);
        assert_true(runs[0].n <= 5);
    }
    assert_int_equal(plan(&s, runs), 0);
}

// A pipeline that answers steps in order, `depth` behind.
struct flight {
    struct step_run runs[RUNS_IN_FLIGHT][SLOTS];
    int n_runs[RUNS_IN_FLIGHT];
    int first, n;
};

static void answer_oldest(struct sched *s, struct flight *f, const int *length, int *idle)
{
    for (int i = 0; i < f->n_runs[f->first]; i++) {
        const struct step_run *r = &f->runs[f->first][i];
        struct sched_seq *q = &s->seqs[r->slot];
        idle[r->slot] = 0;
        if (r->logits != RUN_LAST_ROW) continue;
        if (q->n_known + 1 == length[r->slot]) {
            sched_remove(s, r->slot);
        } else {
            sched_append(s, r->slot);
        }
    }
    f->first = (f->first + 1) % RUNS_IN_FLIGHT;
    f->n--;
}

static void check_step(const struct sched *s, const struct step_run *runs, int n, int *sent)
{
    int rows = 0, outs = 0;
    bool seen[SLOTS] = {false};
    for (int i = 0; i < n; i++) {
        const struct step_run *r = &runs[i];
        const struct sched_seq *q = &s->seqs[r->slot];
        assert_true(q->active && !seen[r->slot] && r->n >= 1);
        seen[r->slot] = true;
        assert_int_equal(r->pos, sent[r->slot]); // each row once, in order
        sent[r->slot] += r->n;
        assert_true(sent[r->slot] <= q->n_known); // never a row whose token isn't known
        assert_int_equal(r->logits, sent[r->slot] == q->n_known ? RUN_LAST_ROW : RUN_NO_LOGITS);
        assert_true(r->n <= s->options.chunk);
        rows += r->n;
        outs += r->logits == RUN_LAST_ROW;
    }
    assert_true(rows <= s->options.limits.max_rows && outs <= s->options.limits.max_out);
}

static void random_loads_finish_without_starving(void **state)
{
    (void) state;
    for (unsigned seed = 1; seed <= 300; seed++) {
        srand(seed);
        struct sched_seq storage[SLOTS];
        struct sched s;
        struct step_limits l = {.max_rows = 1 + rand() % 40, .slots = SLOTS,
                                .max_out = 1 + rand() % SLOTS};
        struct flight f = {.n = 0};
        int depth = 1 + rand() % RUNS_IN_FLIGHT, length[SLOTS], sent[SLOTS], idle[SLOTS] = {0};
        start(&s, storage, &l, rand() % 20, depth, 1 + rand() % depth);
        int to_admit = 40;
        for (int steps = 0; steps < 20000; steps++) {
            for (int i = 0; i < SLOTS && to_admit > 0; i++) {
                if (storage[i].active || rand() % 4 != 0) continue;
                int n_prompt = 1 + rand() % 60, n_known = n_prompt + rand() % 3;
                sched_admit(&s, i, n_prompt, n_known, 0, false);
                length[i] = n_known + 1 + rand() % 30;
                sent[i] = idle[i] = 0;
                to_admit--;
            }
            int at = (f.first + f.n) % RUNS_IN_FLIGHT;
            int n = sched_plan(&s, f.n, steps, f.runs[at]);
            check_step(&s, f.runs[at], n, sent);
            f.n_runs[at] = n;
            if (n > 0) f.n++;
            if (n == 0 && f.n == 0 && to_admit == 0) break;
            if (f.n == depth || (n == 0 && f.n > 0)) answer_oldest(&s, &f, length, idle);
            for (int i = 0; i < SLOTS; i++) {
                if (storage[i].active) assert_true(idle[i]++ < 4000);
            }
        }
        for (int i = 0; i < SLOTS; i++) assert_false(storage[i].active);
    }
}

// --- sequences of every kind that come, are cancelled and end, against a model of their own

enum { DEPTH_MAX = 6 };

struct model_seq {
    bool active, all_logits;
    int prompt, known, length; // ids there are now and at the end
    int sent, answered;        // rows
    uint64_t order, due;       // due: when its row became ready, in events
};

struct model {
    struct model_seq seqs[SLOTS];
    struct sched_seq storage[SLOTS];
    struct sched s;
    struct step_run runs[DEPTH_MAX][SLOTS];
    uint64_t order_of[DEPTH_MAX][SLOTS]; // whose rows they were
    int n_runs[DEPTH_MAX], first, n, depth;
    uint64_t n_admitted, n_events;
};

static bool model_ready(const struct model_seq *q)
{
    return q->active && q->known > q->prompt && !q->all_logits && q->known - q->sent == 1;
}

static void model_admit(struct model *m, int slot)
{
    struct model_seq *q = &m->seqs[slot];
    int class = rand() % JOB_CLASSES;
    *q = (struct model_seq){.active = true,
                            .all_logits = rand() % 5 == 0,
                            .prompt = 1 + rand() % 60,
                            .order = ((uint64_t) class << 32) + m->n_admitted++};
    q->known = q->prompt + (q->all_logits ? 0 : rand() % 4);
    q->length = q->all_logits ? q->known : q->known + 1 + rand() % 20;
    sched_admit(&m->s, slot, q->prompt, q->known, class, q->all_logits);
}

// The oldest step comes back: tokens are chosen, sequences end.
static void model_answer(struct model *m)
{
    for (int i = 0; i < m->n_runs[m->first]; i++) {
        const struct step_run *r = &m->runs[m->first][i];
        struct model_seq *q = &m->seqs[r->slot];
        if (!q->active || q->order != m->order_of[m->first][i]) continue; // cancelled meanwhile
        assert_int_equal(q->answered, r->pos); // steps come back in their order, so do rows
        q->answered += r->n;
        bool ends = q->all_logits ? q->answered == q->length : false;
        if (r->logits == RUN_LAST_ROW) {
            q->known++;
            q->due = ++m->n_events;
            ends = q->known == q->length;
            if (!ends) sched_append(&m->s, r->slot);
        }
        if (!ends) continue;
        sched_remove(&m->s, r->slot);
        q->active = false;
    }
    m->first = (m->first + 1) % DEPTH_MAX;
    m->n--;
}

static int rows_of(const struct step_run *runs, int n, int slot)
{
    for (int i = 0; i < n; i++)
        if (runs[i].slot == slot) return runs[i].n;
    return 0;
}

// Decodes go in the order of their answers, as many as the round allows; no prefill passes an older
// one that could have gone on.
static void check_order(const struct model *m, const struct step_run *runs, int n)
{
    const struct step_limits *l = &m->s.options.limits;
    int planned = 0, rows = 0, outs = 0;
    uint64_t latest = 0, youngest = 0;
    for (int i = 0; i < n; i++) {
        const struct model_seq *q = &m->seqs[runs[i].slot];
        rows += runs[i].n;
        outs += runs[i].logits == RUN_ALL_ROWS ? runs[i].n : runs[i].logits == RUN_LAST_ROW;
        if (model_ready(q)) {
            planned++;
            latest = q->due > latest ? q->due : latest;
        } else if (q->order > youngest) {
            youngest = q->order;
        }
    }
    assert_true(planned <= m->s.round.decodes);
    for (int i = 0; i < SLOTS && n > 0; i++) {
        const struct model_seq *q = &m->seqs[i];
        int got = rows_of(runs, n, i);
        if (model_ready(q)) {
            assert_true(got == 1 || q->due >= latest || planned == 0);
        } else if (q->active && q->sent < q->known && q->order < youngest) {
            assert_true(q->known == q->sent + got || got == m->s.options.chunk ||
                        rows == l->max_rows || outs == l->max_out);
        }
    }
    // A step is empty only if nothing could go on, or enough steps are in flight.
    for (int i = 0; i < SLOTS && n == 0 && m->n < m->s.round.steps; i++) {
        assert_false(m->seqs[i].active && m->seqs[i].sent < m->seqs[i].known);
    }
}

static void check_rows(struct model *m, const struct step_run *runs, int n)
{
    int rows = 0, outs = 0;
    bool seen[SLOTS] = {false};
    for (int i = 0; i < n; i++) {
        const struct step_run *r = &runs[i];
        struct model_seq *q = &m->seqs[r->slot];
        assert_true(q->active && !seen[r->slot] && r->n >= 1 && r->n <= m->s.options.chunk);
        seen[r->slot] = true;
        assert_int_equal(r->pos, q->sent); // every row once and in order
        q->sent += r->n;
        if (model_ready(q)) q->due = ++m->n_events; // resumed, and but for one row prefilled
        assert_true(q->sent <= q->known);
        int logits = q->all_logits         ? RUN_ALL_ROWS
                     : q->sent == q->known ? RUN_LAST_ROW
                                           : RUN_NO_LOGITS;
        assert_int_equal(r->logits, logits);
        rows += r->n;
        outs += logits == RUN_ALL_ROWS ? r->n : logits == RUN_LAST_ROW;
    }
    assert_true(rows <= m->s.options.limits.max_rows && outs <= m->s.options.limits.max_out);
}

static void model_step(struct model *m)
{
    int at = (m->first + m->n) % DEPTH_MAX, n = sched_plan(&m->s, m->n, 0, m->runs[at]);
    check_order(m, m->runs[at], n);
    check_rows(m, m->runs[at], n);
    for (int i = 0; i < n; i++) m->order_of[at][i] = m->seqs[m->runs[at][i].slot].order;
    m->n_runs[at] = n;
    if (n > 0) m->n++;
    if (m->n == m->depth || (n == 0 && m->n > 0)) model_answer(m);
}

static void any_schedule_keeps_the_promises(void **state)
{
    (void) state;
    struct pace pace = pace_of("tiny-fp8", "cpu", 1);
    for (unsigned seed = 1; seed <= 400; seed++) {
        srand(seed);
        struct model m = {.depth = 1 + rand() % DEPTH_MAX};
        struct step_limits l = {.max_rows = 1 + rand() % 48, .slots = SLOTS,
                                .max_out = 1 + rand() % SLOTS};
        struct sched_options o = {.limits = l, .chunk = rand() % 20, .steps_in_flight = m.depth,
                                  .stages = 1 + rand() % m.depth, .step_ms = rand() % 3,
                                  .pace = seed % 2 ? &pace : NULL};
        sched_init(&m.s, m.storage, &o);
        int to_admit = 60, steps = 0;
        bool busy = true;
        for (; busy; steps++) {
            for (int i = 0; i < SLOTS && to_admit > 0; i++) {
                if (m.seqs[i].active && rand() % 200 == 0) { // cancelled, whatever is in flight
                    sched_remove(&m.s, i);
                    m.seqs[i].active = false;
                }
                if (m.seqs[i].active || rand() % 4 != 0) continue;
                model_admit(&m, i);
                to_admit--;
            }
            model_step(&m);
            busy = to_admit > 0 || m.n > 0;
            for (int i = 0; i < SLOTS; i++) busy |= m.seqs[i].active;
            assert_true(steps < 60 * 90 * DEPTH_MAX); // all rows there are, one a step
        }
    }
}

// With decodes alone, each of them has its turn as soon as its token is back and no sooner again
// than all others had theirs.
static void decodes_take_turns(void **state)
{
    (void) state;
    for (int n = 1; n <= SLOTS; n++) {
        for (int i = 0; i < 2 * RUNS_IN_FLIGHT; i++) {
            int depth = 1 + i / 2;
            struct sched_seq storage[SLOTS];
            struct sched s;
            // Rows for all, or for fewer than are ready.
            struct step_limits l = {.max_rows = i % 2 ? 64 : 2, .slots = SLOTS, .max_out = SLOTS};
            struct flight f = {.n = 0};
            int length[SLOTS], idle[SLOTS] = {0}, count[SLOTS] = {0};
            start(&s, storage, &l, 0, depth, depth);
            for (int k = 0; k < n; k++) length[k] = 1 << 20;
            decode_all(&s, n, f.runs[0]);
            int share = (n + depth - 1) / depth;
            for (int step = 0; step < 200; step++) {
                int at = (f.first + f.n) % RUNS_IN_FLIGHT;
                f.n_runs[at] = sched_plan(&s, f.n, 0, f.runs[at]);
                assert_true(f.n_runs[at] <= share);
                for (int k = 0; k < f.n_runs[at]; k++) count[f.runs[at][k].slot]++;
                if (f.n_runs[at] > 0) f.n++;
                if (f.n == depth || f.n_runs[at] == 0) answer_oldest(&s, &f, length, idle);
                int least = count[0], most = count[0];
                for (int k = 1; k < n; k++) {
                    if (count[k] < least) least = count[k];
                    if (count[k] > most) most = count[k];
                }
                assert_true(most - least <= 1);
            }
        }
    }
}

// --- when a step waits, and how large it gets

struct waiting {
    struct pace pace;
    struct sched_seq storage[SLOTS];
    struct sched s;
    struct step_run runs[SLOTS];
};

static void open_waiting(struct waiting *w, int64_t fill_ms, int64_t step_ms)
{
    w->pace = pace_of("deepseek-v3", "rtx4090", 4);
    struct sched_options o = {.limits = {.max_rows = 4096, .slots = SLOTS, .max_out = SLOTS},
                              .steps_in_flight = 5, .stages = 4, .fill_ms = fill_ms,
                              .step_ms = step_ms, .pace = &w->pace};
    sched_init(&w->s, w->storage, &o);
}

static void a_step_waits_while_sequences_come_in(void **state)
{
    (void) state;
    struct waiting w;
    open_waiting(&w, 5, 0);
    sched_admit(&w.s, 0, 8, 8, 2, false);
    assert_int_equal(sched_plan(&w.s, 0, 100, w.runs), 1); // alone: no sign of more
    sched_admit(&w.s, 1, 8, 8, 2, false);
    sched_admit(&w.s, 2, 8, 8, 2, false);
    assert_int_equal(sched_plan(&w.s, 1, 200, w.runs), 0);
    assert_int_equal(w.s.again_ms, 205);
    sched_admit(&w.s, 3, 8, 8, 2, false);
    assert_int_equal(sched_plan(&w.s, 1, 204, w.runs), 0);
    assert_int_equal(w.s.again_ms, 205); // from the first one on
    assert_true(sched_plan(&w.s, 1, 205, w.runs) > 0);
    assert_int_equal(w.s.again_ms, INT64_MAX);
}

static void nothing_waits_that_is_urgent_or_full(void **state)
{
    (void) state;
    struct waiting w;
    open_waiting(&w, 5, 0);
    for (int i = 0; i < 3; i++) sched_admit(&w.s, i, 8, 8, 1, false);
    assert_int_equal(sched_plan(&w.s, 0, 0, w.runs), 0);
    sched_admit(&w.s, 3, 8, 8, 0, false);
    assert_true(sched_plan(&w.s, 0, 1, w.runs) > 0);
    assert_int_equal(w.runs[0].slot, 3);
    for (int i = 4; i < 8; i++) sched_admit(&w.s, i, 2000, 2000, 1, false);
    assert_true(sched_plan(&w.s, 1, 2, w.runs) > 0);
    open_waiting(&w, 0, 0); // or that is not to
    for (int i = 0; i < 3; i++) sched_admit(&w.s, i, 8, 8, 1, false);
    assert_true(sched_plan(&w.s, 0, 0, w.runs) > 0);
}

static int rows_planned(const struct waiting *w, int n)
{
    int rows = 0;
    for (int i = 0; i < n; i++) rows += w->runs[i].n;
    return rows;
}

// A long prompt of a low class is in the way of nobody for longer than step_ms a step; what is
// urgent has all the room of the next one, and a place in flight that is kept for it.
static void steps_are_kept_short_for_what_is_urgent(void **state)
{
    (void) state;
    struct waiting w;
    struct round_load load = {0};
    open_waiting(&w, 0, 100);
    sched_admit(&w.s, 0, 100000, 100000, 3, false);
    int n = sched_plan(&w.s, 0, 0, w.runs), rows = rows_planned(&w, n);
    assert_true(rows > 100 && rows < 4096);
    assert_true(round_step_seconds(&load, &w.pace, 0, rows) <= 0.1);
    assert_true(round_step_seconds(&load, &w.pace, 0, rows + rows / 50) > 0.1);
    for (int flying = 1; sched_plan(&w.s, flying, 0, w.runs) > 0; flying++) assert_true(flying < 5);
    sched_admit(&w.s, 1, 50, 50, 0, false);
    n = sched_plan(&w.s, 4, 0, w.runs);
    assert_true(n >= 1);
    assert_int_equal(w.runs[0].slot, 1);
    assert_int_equal(w.runs[0].n, 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_sequence_prefills_in_chunks_then_decodes),
        cmocka_unit_test(a_lower_class_is_prefilled_before_what_came_earlier),
        cmocka_unit_test(decodes_are_spread_over_the_steps_in_flight),
        cmocka_unit_test(scores_every_row_within_the_output_bound),
        cmocka_unit_test(random_loads_finish_without_starving),
        cmocka_unit_test(any_schedule_keeps_the_promises),
        cmocka_unit_test(decodes_take_turns),
        cmocka_unit_test(a_step_waits_while_sequences_come_in),
        cmocka_unit_test(nothing_waits_that_is_urgent_or_full),
        cmocka_unit_test(steps_are_kept_short_for_what_is_urgent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
