#include "workers/round.h"

#include <math.h>

enum { LEAST_CHUNK = 16 }; // rows of prefill that a step has room for, however long it takes

// Prefill is dealt out over so many more rounds, where a share of 1 / MANY of the work is decodes.
static const double MORE_ROUNDS = 5, MANY = 8;

// A way with fewer, larger steps must be better by so much.
static const double BETTER = 1.02;

// What each hop takes beside its link: loops that poll, and processes that wait for a core.
static const double HOP_S = 0.3e-3;

static int least_of(int a, int b) { return a < b ? a : b; }

double round_step_seconds(const struct round_load *load, const struct pace *pace, int decodes,
                          int64_t prefill)
{
    double context = load->decodes > 0 ? (double) load->context / load->decodes : 0;
    struct pace_step s = {.content = {.rows = decodes, .context = decodes * context,
                                      .kv_rows = decodes * context, .out = decodes}};
    if (pace == NULL) return decodes + prefill > 0;
    if (decodes + prefill == 0) return 0;
    if (prefill > 0) cost_step_add(&s.content, load->prefill_pos, (int) prefill, 1);
    s.mixed = decodes > 0 && prefill > 0;
    return pace_seconds(pace, &s);
}

int round_room(const struct round_load *load, const struct round_limits *limits,
               const struct pace *pace, int decodes)
{
    int most = limits->max_rows - decodes;
    if (most <= 0) return 0;
    if (pace == NULL || limits->step_s <= 0) return most;
    int low = least_of(LEAST_CHUNK, most), high = most; // low is allowed, beyond high nothing is
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        bool fits = round_step_seconds(load, pace, decodes, middle) <= limits->step_s;
        if (fits) low = middle;
        else high = middle - 1;
    }
    return low;
}

struct choice {
    const struct round_load *load;
    const struct round_limits *limits;
    const struct pace *pace;
    double decode_work;  // seconds that all decodes are worth
    double prefill_work; // and a row of prefill
    double best;         // work done in a second of `round`
    struct round round;
};

static double seconds_of(const struct choice *c, int decodes, int64_t prefill)
{
    return round_step_seconds(c->load, c->pace, decodes, prefill);
}

static double away(const struct choice *c, const struct round *r)
{
    struct pace_step s = {.content.rows = r->decodes + r->prefill};
    if (c->pace == NULL || c->limits->stages == 1) return 0;
    return c->limits->stages * (HOP_S + pace_away(c->pace, &s));
}

// `r` with all but its seconds; keeps it if it is better.
static void consider(struct choice *c, struct round r)
{
    int with_decodes = least_of(r.steps, c->load->decodes), plain = with_decodes - r.n_prefill;
    double full = seconds_of(c, r.apart ? 0 : r.decodes, r.prefill), longest, sum;
    double rest = seconds_of(c, r.decodes, 0);
    if (r.apart) plain = least_of(r.steps - r.n_prefill, c->load->decodes);
    if (r.n_prefill == 0) full = 0;
    if (plain <= 0) rest = 0;
    sum = r.n_prefill * full + (plain > 0 ? plain : 0) * rest;
    longest = c->limits->stages * (full > rest ? full : rest) + away(c, &r);
    r.seconds = sum > longest ? sum : longest;
    int64_t rows = (int64_t) r.n_prefill * r.prefill;
    if (rows > c->load->prefill) rows = c->load->prefill;
    double work = c->decode_work + c->prefill_work * (double) rows;
    double rate = r.seconds > 0 ? work / r.seconds : 0;
    if (c->best > 0 && rate < BETTER * c->best) return;
    c->best = rate;
    c->round = r;
}

static int64_t share_of(int64_t rows, int steps) { return (rows + steps - 1) / steps; }

static void consider_prefill(struct choice *c, int steps, int n_prefill, bool apart)
{
    int others = apart ? steps - n_prefill : steps;
    if (others == 0) return;
    int decodes = least_of((int) share_of(c->load->decodes, others), c->limits->max_rows);
    int room = round_room(c->load, c->limits, c->pace, apart ? 0 : decodes);
    int64_t rows = share_of(c->load->prefill, n_prefill);
    if (rows > room) rows = room;
    if (rows == 0) n_prefill = 0;
    consider(c, (struct round){.steps = steps, .decodes = decodes, .prefill = (int) rows,
                               .n_prefill = n_prefill, .apart = apart});
}

static void consider_steps(struct choice *c, int steps)
{
    if (c->load->prefill == 0) {
        int decodes = (int) share_of(c->load->decodes, steps);
        consider(c, (struct round){.steps = steps,
                                   .decodes = least_of(decodes, c->limits->max_rows)});
        return;
    }
    for (int n = steps; n >= 1; n = n > 2 ? n / 2 : n - 1) {
        consider_prefill(c, steps, n, false);
        if (c->load->decodes > 0) consider_prefill(c, steps, n, true);
    }
}

// Prefill comes in lumps. Where there are decodes in every step it is dealt out over some rounds,
// since a step that is larger than those around it makes the other stages wait.
static void smooth(struct choice *c, struct round_load *load)
{
    double prefill = c->prefill_work * (double) load->prefill;
    if (c->limits->stages == 1 || c->decode_work <= 0) return;
    double share = MANY * c->decode_work / (c->decode_work + prefill);
    double rounds = 1 + MORE_ROUNDS * (share < 1 ? share : 1);
    load->prefill = (int64_t) ceil((double) load->prefill / rounds);
}

struct round round_choose(const struct round_load *all, const struct round_limits *limits,
                          const struct pace *pace)
{
    struct round_load now = *all, *load = &now;
    struct choice c = {load, limits, pace, .best = 0};
    int fewest = least_of(limits->stages, limits->steps);
    int decodes = least_of((int) share_of(load->decodes, limits->steps), limits->max_rows);
    int room = round_room(load, limits, pace, 0);
    c.decode_work = limits->steps * seconds_of(&c, decodes, 0);
    c.prefill_work = room > 0 ? seconds_of(&c, 0, room) / room : 0;
    smooth(&c, load);
    for (int steps = limits->steps; steps >= fewest; steps--) consider_steps(&c, steps);
    return c.round;
}
