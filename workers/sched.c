#include "workers/sched.h"

#include "common/status.h"

#include <string.h>

enum { FULL_PERCENT = 125 }; // a step is full if a row of it costs at most so much of one at best

void sched_init(struct sched *s, struct sched_seq *storage, const struct sched_options *o)
{
    const struct step_limits *l = &o->limits;
    check(o->steps_in_flight >= 1 && o->stages >= 1 && l->max_rows >= 1 && l->slots >= 1);
    *s = (struct sched){.options = *o, .seqs = storage, .held_ms = -1, .again_ms = INT64_MAX};
    if (o->chunk <= 0 || o->chunk > l->max_rows) s->options.chunk = l->max_rows;
    for (int i = 0; i < SCHED_LISTS; i++) s->lists[i] = (struct sched_list){-1, -1, 0, 0};
    memset(storage, 0, (size_t) l->slots * sizeof *storage);
}

// --- where sequences wait

static int rows_left(const struct sched_seq *q) { return q->n_known - q->n_sent; }

// Its prompt is in the pipeline; what follows is a row at a time.
static bool decodes(const struct sched_seq *q)
{
    return q->active && !q->all_logits && (q->list == SCHED_AWAY || q->list == SCHED_READY);
}

static void leave(struct sched *s, int slot)
{
    struct sched_seq *q = &s->seqs[slot];
    struct sched_list *l = &s->lists[q->list];
    if (decodes(q)) {
        s->n_decoding--;
        s->context -= q->n_known;
    }
    if (q->list == SCHED_AWAY) return;
    if (q->before >= 0) s->seqs[q->before].after = q->after;
    else l->first = q->after;
    if (q->after >= 0) s->seqs[q->after].before = q->before;
    else l->last = q->before;
    l->n--;
    l->rows -= rows_left(q);
    s->n_urgent -= q->list == SCHED_READY && q->class == 0;
    q->list = SCHED_AWAY;
}

static void enter(struct sched *s, int slot, int list)
{
    struct sched_seq *q = &s->seqs[slot];
    struct sched_list *l = &s->lists[list];
    q->list = (uint8_t) list;
    if (decodes(q)) {
        s->n_decoding++;
        s->context += q->n_known;
    }
    if (list == SCHED_AWAY) return;
    q->before = l->last;
    q->after = -1;
    if (l->last >= 0) s->seqs[l->last].after = slot;
    else l->first = slot;
    l->last = slot;
    l->n++;
    l->rows += rows_left(q);
    s->n_urgent += list == SCHED_READY && q->class == 0;
}

static int list_of(const struct sched_seq *q)
{
    if (rows_left(q) == 0) return SCHED_AWAY;
    bool due = q->n_known > q->n_prompt && rows_left(q) == 1 && !q->all_logits;
    return due ? SCHED_READY : SCHED_PREFILL + q->class;
}

void sched_admit(struct sched *s, int slot, int n_prompt, int n_known, int class, bool all_logits)
{
    struct sched_seq *q = &s->seqs[slot];
    check(!q->active && n_prompt >= 1 && n_known >= n_prompt && class >= 0 && class < JOB_CLASSES);
    *q = (struct sched_seq){.active = true,
                            .all_logits = all_logits,
                            .class = (uint8_t) class,
                            .n_known = n_known,
                            .n_prompt = n_prompt};
    enter(s, slot, SCHED_PREFILL + class);
    s->n_active++;
    s->n_fresh++;
    s->changed = true;
}

void sched_remove(struct sched *s, int slot)
{
    check(s->seqs[slot].active);
    leave(s, slot);
    s->seqs[slot].active = false;
    s->n_active--;
}

void sched_append(struct sched *s, int slot)
{
    struct sched_seq *q = &s->seqs[slot];
    check(q->active && rows_left(q) == 0);
    leave(s, slot);
    q->n_known++;
    enter(s, slot, list_of(q));
}

// --- a step

// What is left of the step being planned.
struct room {
    int rows, out, n_runs;
};

static void add_run(struct sched *s, int slot, int n, struct room *room, struct step_run *runs)
{
    struct sched_seq *q = &s->seqs[slot];
    int logits = q->all_logits ? RUN_ALL_ROWS : n == rows_left(q) ? RUN_LAST_ROW : RUN_NO_LOGITS;
    runs[room->n_runs++] = (struct step_run){slot, q->n_sent, n, logits};
    struct sched_seq then = *q;
    then.n_sent += n;
    if (list_of(&then) == q->list) { // keeps its place before younger sequences
        q->n_sent += n;
        s->lists[q->list].rows -= n;
    } else {
        leave(s, slot);
        q->n_sent += n;
        enter(s, slot, list_of(q));
    }
    room->rows -= n;
    room->out -= logits == RUN_ALL_ROWS ? n : logits == RUN_LAST_ROW;
}

static void plan_decodes(struct sched *s, int most, struct room *room, struct step_run *runs)
{
    struct sched_list *ready = &s->lists[SCHED_READY];
    for (; most > 0 && ready->first >= 0 && room->rows > 0 && room->out > 0; most--) {
        add_run(s, ready->first, 1, room, runs);
    }
}

static void plan_prefills(struct sched *s, int list, int most, struct room *room,
                          struct step_run *runs)
{
    int after;
    for (int slot = s->lists[list].first; slot >= 0 && room->rows > 0 && most > 0; slot = after) {
        const struct sched_seq *q = &s->seqs[slot];
        int n = rows_left(q), rows = room->rows;
        after = q->after;
        if (n > s->options.chunk) n = s->options.chunk;
        if (n > most) n = most;
        if (n > rows) n = rows;
        if (q->all_logits && n > room->out) n = room->out;
        if (room->out == 0 && n == rows_left(q)) n--; // its last row waits for a place
        if (n <= 0) continue;
        add_run(s, slot, n, room, runs);
        most -= n;
    }
}

// --- the round

static struct round_load load_of(const struct sched *s)
{
    struct round_load load = {.decodes = s->n_decoding, .context = s->context};
    for (int i = SCHED_LISTS - 1; i >= SCHED_PREFILL; i--) {
        const struct sched_list *l = &s->lists[i];
        load.prefill += l->rows;
        if (l->first >= 0) load.prefill_pos = s->seqs[l->first].n_sent;
    }
    return load;
}

static struct round_limits limits_of(const struct sched *s)
{
    const struct sched_options *o = &s->options;
    return (struct round_limits){.stages = o->stages, .steps = o->steps_in_flight,
                                 .max_rows = o->limits.max_rows,
                                 .step_s = (double) o->step_ms / 1000};
}

// Goes on with the round while it fits what there is.
static void settle_round(struct sched *s, const struct round_load *load)
{
    const struct round *r = &s->round;
    bool outgrown = load->decodes > r->steps * r->decodes;
    bool prefilled = load->prefill == 0 && r->n_prefill > 0;
    if (!s->changed && s->left > 0 && !outgrown && !prefilled) return;
    struct round_limits limits = limits_of(s);
    s->round = round_choose(load, &limits, s->options.pace);
    s->left = s->round.steps;
    s->left_prefill = s->round.n_prefill;
    s->changed = false;
}

// What the next step is to have.
struct share {
    int decodes, prefill;
};

static int least_of(int a, int b) { return a < b ? a : b; }

static struct share next_share(const struct sched *s, const struct round_load *load)
{
    const struct round *r = &s->round;
    int64_t urgent = s->lists[SCHED_PREFILL].rows;
    bool prefills = s->left_prefill > 0;
    struct share share = {.decodes = prefills && r->apart ? 0 : r->decodes,
                          .prefill = prefills ? r->prefill : 0};
    // Never an empty step while there are rows.
    if (s->lists[SCHED_READY].n == 0 && share.prefill == 0) {
        share.prefill = r->prefill > 0 ? r->prefill : s->options.limits.max_rows;
    }
    if (urgent > share.prefill) {
        struct round_limits limits = limits_of(s);
        int room = round_room(load, &limits, s->options.pace, share.decodes);
        int most = urgent < room ? (int) urgent : room;
        if (most > share.prefill) share.prefill = most;
    }
    return share;
}

// Whether a row of it costs hardly more than one of the largest step there may be.
static bool is_full(const struct sched *s, const struct round_load *load, int decodes,
                    int64_t prefill)
{
    const struct pace *pace = s->options.pace;
    struct round_limits limits = limits_of(s);
    int room = round_room(load, &limits, pace, 0);
    double row = round_step_seconds(load, pace, decodes, prefill) / (double) (decodes + prefill);
    return 100 * row <= FULL_PERCENT * round_step_seconds(load, pace, 0, room) / room;
}

// Whether the step should wait for more rows: nothing is urgent, and either sequences are coming in
// and it is not full yet, or some of its decodes are still in flight while all stages have work. It
// never waits longer than it will take: so much at most it can save.
static bool hold(struct sched *s, const struct round_load *load, struct share share, int flying,
                 int64_t now_ms)
{
    const struct sched_options *o = &s->options;
    int ready = least_of(s->lists[SCHED_READY].n, share.decodes);
    int64_t prefill = load->prefill < share.prefill ? load->prefill : share.prefill;
    bool refills = flying >= o->stages && load->prefill == 0 && ready < share.decodes;
    bool arrives = s->n_fresh > 1 && s->n_active < o->limits.slots;
    if (s->n_urgent > 0 || s->lists[SCHED_PREFILL].n > 0 || !(refills || arrives)) return false;
    if (!refills && is_full(s, load, ready, prefill)) return false;
    int64_t most = o->fill_ms;
    double seconds = round_step_seconds(load, o->pace, ready, prefill);
    if (o->pace != NULL && seconds * 1000 < (double) most) most = (int64_t) (seconds * 1000);
    if (s->held_ms < 0) s->held_ms = now_ms;
    if (now_ms - s->held_ms >= most) return false;
    s->again_ms = s->held_ms + most;
    return true;
}

int sched_plan(struct sched *s, int flying, int64_t now_ms, struct step_run *runs)
{
    const struct sched_options *o = &s->options;
    struct round_load load = load_of(s);
    bool urgent = s->lists[SCHED_PREFILL].n > 0; // a first token is waited for
    s->again_ms = INT64_MAX;
    if (s->lists[SCHED_READY].n == 0 && load.prefill == 0) {
        s->held_ms = -1;
        return 0;
    }
    settle_round(s, &load);
    if (flying >= s->round.steps && !(urgent && flying < o->steps_in_flight)) return 0;
    struct share share = next_share(s, &load);
    if (o->fill_ms > 0 && hold(s, &load, share, flying, now_ms)) return 0;
    struct room room = {o->limits.max_rows, o->limits.max_out, 0};
    plan_decodes(s, share.decodes, &room, runs);
    int rows = room.rows;
    for (int i = SCHED_PREFILL; i < SCHED_LISTS && rows - room.rows < share.prefill; i++) {
        plan_prefills(s, i, share.prefill - (rows - room.rows), &room, runs);
    }
    s->left--;
    s->left_prefill -= room.rows < rows && s->left_prefill > 0;
    s->n_fresh = 0;
    s->held_ms = -1;
    return room.n_runs;
}
