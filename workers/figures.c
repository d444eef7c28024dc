#include "workers/figures.h"

#include "common/seal.h"

#include <string.h>

static void add_stage(struct wire_figures *to, struct wire_rank *ranks, struct stage *s)
{
    struct stage_figures f;
    if (s == NULL) return;
    stage_figures(s, &f);
    to->rows += f.rows;
    to->sampler_rows += f.sampler_rows;
    to->sampler_fallbacks += f.sampler_fallbacks;
    to->sampler_hosted += f.sampler_hosted;
    histogram_merge(&to->decode_steps, &f.decode);
    histogram_merge(&to->prefill_steps, &f.prefill);
    for (int i = 0; i < TP_MAX; i++) ranks[i].busy_us += f.busy_us[i];
}

static void add_memory(struct ledger *host, struct wire_rank *ranks, int tp, struct stage *s)
{
    struct error e;
    if (s == NULL || stage_state(s, &e) != STAGE_READY) return;
    struct ledger pinned = stage_host_ledger(s);
    ledger_add(host, &pinned);
    for (int i = 0; i < tp; i++) ranks[i].memory = stage_rank_ledger(s, i);
}

static void add_head(struct wire_figures *to, const struct head *h)
{
    if (h == NULL) return;
    to->prefill_tokens += h->counts.prefill;
    to->again_tokens += h->counts.again;
    to->decode_tokens += h->counts.decode;
}

void figures_end_stage(struct figures *f, struct stage *s) { add_stage(&f->ended, f->ranks, s); }

void figures_end_head(struct figures *f, const struct head *h) { add_head(&f->ended, h); }

void figures_end_epoch(struct figures *f, const struct epoch *ep)
{
    if (ep != NULL) f->ended.stale_frames += ep->n_stale;
}

void figures_now(const struct figures *f, struct stage *s, const struct head *h,
                 const struct epoch *ep, int tp, struct wire_rank *ranks, struct wire_figures *to)
{
    *to = f->ended;
    to->heap_calls = seal_counts().broken;
    memcpy(ranks, f->ranks, sizeof f->ranks);
    add_stage(to, ranks, s);
    add_memory(&to->memory, ranks, tp, s);
    add_head(to, h);
    if (ep != NULL) to->stale_frames += ep->n_stale;
    to->ranks = ranks;
    to->n_ranks = tp;
    if (h == NULL) return;
    to->slots = (uint64_t) h->options.limits.slots;
    to->running = (uint64_t) h->n_running;
    to->kv_blocks = (uint64_t) h->kv.n_blocks;
    to->kv_reserved = (uint64_t) (h->kv.n_blocks - h->kv.n_free);
    to->kv_used = (uint64_t) head_kv_used(h);
}
