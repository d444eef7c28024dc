#include "broker/figures.h"

#include "common/limits.h"

#include <string.h>

enum { WINDOW_MS = 5000 }; // a mark is so old before the next one is made

static uint64_t risen(uint64_t now, uint64_t before) { return now > before ? now - before : 0; }

static struct histogram histogram_risen(const struct histogram *now, const struct histogram *before)
{
    struct histogram h = {.sum_us = risen(now->sum_us, before->sum_us), .n = now->n};
    for (int i = 0; i < now->n; i++) h.counts[i] = risen(now->counts[i], before->counts[i]);
    return h;
}

static void add_counters(struct wire_figures *to, const struct wire_figures *f)
{
    to->rows += f->rows;
    to->sampler_rows += f->sampler_rows;
    to->sampler_fallbacks += f->sampler_fallbacks;
    to->sampler_hosted += f->sampler_hosted;
    to->stale_frames += f->stale_frames;
    to->heap_calls += f->heap_calls;
    to->prefill_tokens += f->prefill_tokens;
    to->again_tokens += f->again_tokens;
    to->decode_tokens += f->decode_tokens;
    histogram_merge(&to->decode_steps, &f->decode_steps);
    histogram_merge(&to->prefill_steps, &f->prefill_steps);
}

static uint64_t busy_us(const struct wire_figures *f)
{
    uint64_t sum = 0;
    for (int i = 0; i < f->n_ranks; i++) sum += f->ranks[i].busy_us;
    return sum;
}

void figures_hello(struct group_figures *g, const uint8_t boot[WIRE_ID_BYTES])
{
    if (memcmp(g->boot, boot, sizeof g->boot) == 0) return;
    add_counters(&g->ended, &g->last);
    memcpy(g->boot, boot, sizeof g->boot);
    memset(g->marks, 0, sizeof g->marks);
    g->last = (struct wire_figures){0};
    g->told = false;
    g->stage = -1;
}

// --- the model's books

// What is computed again costs what a token of this model has cost so far.
static void count_waste(struct model_figures *m, uint64_t again)
{
    uint64_t tokens = m->prefill_tokens + m->decode_tokens;
    if (again == 0 || tokens == 0) return;
    m->wasted_s += (double) again * (double) m->busy_us / 1e6 / (double) tokens;
}

static void count_model(struct model_figures *m, int stage, const struct wire_figures *last,
                        const struct wire_figures *f)
{
    m->prefill_tokens += risen(f->prefill_tokens, last->prefill_tokens);
    m->decode_tokens += risen(f->decode_tokens, last->decode_tokens);
    m->busy_us += risen(busy_us(f), busy_us(last));
    count_waste(m, risen(f->again_tokens, last->again_tokens));
    if (stage < 0) return;
    struct histogram decode = histogram_risen(&f->decode_steps, &last->decode_steps);
    struct histogram prefill = histogram_risen(&f->prefill_steps, &last->prefill_steps);
    histogram_merge(&m->steps[stage][FIGURES_DECODE], &decode);
    histogram_merge(&m->steps[stage][FIGURES_PREFILL], &prefill);
}

// --- rates

static uint64_t n_steps(const struct wire_figures *f)
{
    return histogram_count(&f->decode_steps, HISTOGRAM_BUCKETS - 1) +
           histogram_count(&f->prefill_steps, HISTOGRAM_BUCKETS - 1);
}

static struct figures_mark mark_of(const struct wire_figures *f, int64_t now_ms)
{
    return (struct figures_mark){now_ms, n_steps(f), f->prefill_tokens, f->decode_tokens,
                                 busy_us(f)};
}

static void move_marks(struct group_figures *g, int64_t now_ms)
{
    struct figures_mark *m = g->marks;
    if (!g->told) {
        m[0] = m[1] = mark_of(&g->last, now_ms);
    } else if (now_ms - m[1].at_ms >= WINDOW_MS) {
        m[0] = m[1];
        m[1] = mark_of(&g->last, now_ms);
    }
}

struct figures_rates figures_rates(const struct group_figures *g, int64_t now_ms)
{
    const struct figures_mark *from = &g->marks[0];
    if (!g->told || now_ms - g->marks[1].at_ms > WINDOW_MS + DEAD_AFTER_MS) {
        return (struct figures_rates){0};
    }
    int64_t ms = now_ms - from->at_ms;
    if (ms < HEARTBEAT_MS) return (struct figures_rates){0};
    struct figures_mark now = mark_of(&g->last, now_ms);
    double per_s = 1e3 / (double) ms;
    double ranks = g->last.n_ranks > 0 ? g->last.n_ranks : 1;
    double busy = (double) risen(now.busy_us, from->busy_us) / 1e6 * per_s / ranks;
    return (struct figures_rates){.steps = (double) risen(now.steps, from->steps) * per_s,
                                  .prefill = (double) risen(now.prefill, from->prefill) * per_s,
                                  .decode = (double) risen(now.decode, from->decode) * per_s,
                                  .busy = busy < 1 ? busy : 1};
}

// --- PONG

static bool same(const struct wire_figures *a, const struct wire_figures *b)
{
    return a->rows == b->rows && a->running == b->running && a->kv_blocks == b->kv_blocks &&
           a->kv_reserved == b->kv_reserved && a->kv_used == b->kv_used &&
           a->decode_tokens == b->decode_tokens && a->n_ranks == b->n_ranks &&
           memcmp(&a->memory, &b->memory, sizeof a->memory) == 0 &&
           (a->n_ranks == 0 ||
            memcmp(a->ranks, b->ranks, (size_t) a->n_ranks * sizeof *a->ranks) == 0);
}

bool figures_hear(struct group_figures *g, struct model_figures *model, int stage,
                  const struct wire_figures *f, int64_t now_ms)
{
    bool changed = !g->told || !same(&g->last, f);
    if (stage >= 0 || !g->told) g->stage = stage;
    if (g->told) count_model(model, g->stage, &g->last, f);
    g->last = *f;
    if (f->n_ranks > 0) memcpy(g->ranks, f->ranks, (size_t) f->n_ranks * sizeof *f->ranks);
    g->last.ranks = g->ranks;
    move_marks(g, now_ms);
    g->told = true;
    return changed;
}

struct wire_figures figures_total(const struct group_figures *g)
{
    struct wire_figures total = g->last;
    add_counters(&total, &g->ended);
    return total;
}
