#include "workers/sched.h"

#include "common/status.h"

#include <string.h>

enum { CLASS_SHIFT = 56 }; // in `order`: so many bits number the sequences

void sched_init(struct sched *s, struct sched_seq *storage, const struct step_limits *l, int chunk,
                int steps_in_flight)
{
    check(steps_in_flight >= 1 && l->max_rows >= 1 && l->slots >= 1);
    *s = (struct sched){.seqs = storage,
                        .slots = l->slots,
                        .max_rows = l->max_rows,
                        .chunk = chunk > 0 && chunk < l->max_rows ? chunk : l->max_rows,
                        .max_out = l->max_out,
                        .steps_in_flight = steps_in_flight};
    memset(storage, 0, (size_t) l->slots * sizeof *storage);
}

void sched_admit(struct sched *s, int slot, int n_prompt, int n_known, int class, bool all_logits)
{
    check(!s->seqs[slot].active && n_prompt >= 1 && n_known >= n_prompt && class >= 0);
    uint64_t first = (uint64_t) class << CLASS_SHIFT;
    s->seqs[slot] = (struct sched_seq){.active = true,
                                       .all_logits = all_logits,
                                       .n_known = n_known,
                                       .n_prompt = n_prompt,
                                       .order = first | s->n_admitted++};
}

void sched_remove(struct sched *s, int slot)
{
    check(s->seqs[slot].active);
    s->seqs[slot].active = false;
}

void sched_append(struct sched *s, int slot)
{
    check(s->seqs[slot].active && s->seqs[slot].n_sent == s->seqs[slot].n_known);
    s->seqs[slot].n_known++;
}

// What is left of the step being planned.
struct room {
    int rows, out, n_runs;
};

static void add_run(struct sched *s, int slot, int n, struct room *room, struct step_run *runs)
{
    struct sched_seq *q = &s->seqs[slot];
    bool reaches_end = q->n_sent + n == q->n_known;
    int logits = q->all_logits ? RUN_ALL_ROWS : reaches_end ? RUN_LAST_ROW : RUN_NO_LOGITS;
    runs[room->n_runs++] = (struct step_run){slot, q->n_sent, n, logits};
    q->n_sent += n;
    room->rows -= n;
    room->out -= logits == RUN_ALL_ROWS ? n : logits == RUN_LAST_ROW;
}

static bool decoding(const struct sched_seq *q) { return q->active && q->n_known > q->n_prompt; }

static bool ready_to_decode(const struct sched_seq *q)
{
    return decoding(q) && !q->all_logits && q->n_known - q->n_sent == 1;
}

static void plan_decodes(struct sched *s, struct room *room, struct step_run *runs)
{
    int n = 0;
    for (int i = 0; i < s->slots; i++) n += decoding(&s->seqs[i]);
    int share = (n + s->steps_in_flight - 1) / s->steps_in_flight;
    int start = s->cursor;
    for (int i = 0; i < s->slots && share > 0 && room->rows > 0 && room->out > 0; i++) {
        int slot = (start + i) % s->slots;
        if (!ready_to_decode(&s->seqs[slot])) continue;
        add_run(s, slot, 1, room, runs);
        s->cursor = (slot + 1) % s->slots;
        share--;
    }
}

// The first sequence, by class and age, with more than one row to go (or a prompt of one) that
// isn't planned yet.
static int next_prefill(const struct sched *s, uint64_t from)
{
    int best = -1;
    for (int i = 0; i < s->slots; i++) {
        const struct sched_seq *q = &s->seqs[i];
        if (!q->active || q->n_sent == q->n_known || q->order < from || ready_to_decode(q))
            continue;
        if (best < 0 || q->order < s->seqs[best].order) best = i;
    }
    return best;
}

static void plan_prefills(struct sched *s, struct room *room, struct step_run *runs)
{
    uint64_t from = 0;
    while (room->rows > 0) {
        int slot = next_prefill(s, from);
        if (slot < 0) return;
        struct sched_seq *q = &s->seqs[slot];
        from = q->order + 1;
        int n = q->n_known - q->n_sent;
        if (n > s->chunk) n = s->chunk;
        if (n > room->rows) n = room->rows;
        if (q->all_logits && n > room->out) n = room->out;
        if (room->out == 0 && q->n_sent + n == q->n_known) n--; // its last row waits for a place
        if (n > 0) add_run(s, slot, n, room, runs);
    }
}

int sched_plan(struct sched *s, struct step_run *runs)
{
    struct room room = {s->max_rows, s->max_out, 0};
    plan_decodes(s, &room, runs);
    plan_prefills(s, &room, runs);
    return room.n_runs;
}
