// Properties of the scheduler under random sequences and a pipeline with steps in flight.
#include "workers/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>
#include <string.h>

enum { SLOTS = 12, RUNS_IN_FLIGHT = 4 };

static void one_sequence_prefills_in_chunks_then_decodes(void **state)
{
    (void) state;
    struct sched_seq storage[2];
    struct sched s;
    struct step_limits l = {.max_rows = 16, .slots = 2, .max_out = 2};
    struct step_run runs[2];
    sched_init(&s, storage, &l, 8, 1);
    sched_admit(&s, 1, 20, 20, false);
    int expected[3][3] = {{0, 8, RUN_NO_LOGITS}, {8, 8, RUN_NO_LOGITS}, {16, 4, RUN_LAST_ROW}};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(sched_plan(&s, runs), 1);
        assert_int_equal(runs[0].slot, 1);
        assert_int_equal(runs[0].pos, expected[i][0]);
        assert_int_equal(runs[0].n, expected[i][1]);
        assert_int_equal(runs[0].logits, expected[i][2]);
    }
    assert_int_equal(sched_plan(&s, runs), 0); // its token isn't known yet
    sched_append(&s, 1);
    assert_int_equal(sched_plan(&s, runs), 1);
    assert_int_equal(runs[0].pos, 20);
    assert_int_equal(runs[0].n, 1);
}

static void decodes_are_spread_over_the_steps_in_flight(void **state)
{
    (void) state;
    struct sched_seq storage[SLOTS];
    struct sched s;
    struct step_limits l = {.max_rows = 64, .slots = SLOTS, .max_out = SLOTS};
    struct step_run runs[SLOTS];
    sched_init(&s, storage, &l, 0, 3);
    for (int i = 0; i < 9; i++) sched_admit(&s, i, 1, 2, false); // each resumes: one row is due
    for (int i = 0; i < 9; i++) storage[i].n_sent = 1;
    bool seen[SLOTS] = {false};
    for (int step = 0; step < 3; step++) {
        assert_int_equal(sched_plan(&s, runs), 3);
        for (int i = 0; i < 3; i++) {
            assert_false(seen[runs[i].slot]);
            seen[runs[i].slot] = true;
        }
    }
    assert_int_equal(sched_plan(&s, runs), 0);
}

static void scores_every_row_within_the_output_bound(void **state)
{
    (void) state;
    struct sched_seq storage[1];
    struct sched s;
    struct step_limits l = {.max_rows = 16, .slots = 1, .max_out = 5};
    struct step_run runs[1];
    sched_init(&s, storage, &l, 0, 2);
    sched_admit(&s, 0, 12, 12, true);
    for (int sent = 0; sent < 12; sent += runs[0].n) {
        assert_int_equal(sched_plan(&s, runs), 1);
        assert_int_equal(runs[0].pos, sent);
        assert_int_equal(runs[0].logits, RUN_ALL_ROWS);
        assert_true(runs[0].n <= 5);
    }
    assert_int_equal(sched_plan(&s, runs), 0);
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
        assert_true(r->n <= s->chunk);
        rows += r->n;
        outs += r->logits == RUN_LAST_ROW;
    }
    assert_true(rows <= s->max_rows && outs <= s->max_out);
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
        sched_init(&s, storage, &l, rand() % 20, depth);
        int to_admit = 40;
        for (int steps = 0; steps < 20000; steps++) {
            for (int i = 0; i < SLOTS && to_admit > 0; i++) {
                if (storage[i].active || rand() % 4 != 0) continue;
                int n_prompt = 1 + rand() % 60, n_known = n_prompt + rand() % 3;
                sched_admit(&s, i, n_prompt, n_known, false);
                length[i] = n_known + 1 + rand() % 30;
                sent[i] = idle[i] = 0;
                to_admit--;
            }
            int at = (f.first + f.n) % RUNS_IN_FLIGHT;
            int n = sched_plan(&s, f.runs[at]);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_sequence_prefills_in_chunks_then_decodes),
        cmocka_unit_test(decodes_are_spread_over_the_steps_in_flight),
        cmocka_unit_test(scores_every_row_within_the_output_bound),
        cmocka_unit_test(random_loads_finish_without_starving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
