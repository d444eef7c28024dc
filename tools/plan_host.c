#include "tools/plan_host.h"

#include "common/rank_layout.h"
#include "workers/host.h"

static struct ledger pinned_by_ranks(const struct plan *p, const struct plan_request *r, int stage)
{
    struct ledger all = {0};
    for (int rank = 0; rank < p->tp; rank++) {
        struct rank_shape shape = {.config = r->config,
                                   .place = {.first = p->first[stage],
                                             .last = p->first[stage] + p->layers[stage],
                                             .head = stage == 0,
                                             .tail = stage == p->pp - 1,
                                             .tp_rank = rank,
                                             .tp = p->tp},
                                   .device = r->device,
                                   .f32 = r->f32,
                                   .fp8_kv = r->fp8_kv,
                                   .slots = p->slots,
                                   .max_blocks = p->max_blocks,
                                   .n_blocks = p->kv_blocks,
                                   .max_rows = p->max_rows,
                                   .max_out = p->max_out};
        struct ledger one = rank_host_ledger(&shape);
        ledger_add(&all, &one);
    }
    return all;
}

struct plan_host plan_host_of(const struct plan *p, const struct plan_request *r, int stage)
{
    struct step_limits limits = {.max_rows = p->max_rows,
                                 .slots = p->slots,
                                 .max_blocks = p->max_blocks,
                                 .n_blocks = p->kv_blocks,
                                 .fp8_kv = r->fp8_kv,
                                 .max_out = p->max_out,
                                 .vocab_size = r->config->vocab_size,
                                 .score = r->score};
    enum precision precision = r->f32 ? PRECISION_F32 : PRECISION_BF16;
    struct backend kind = {.kind = r->device}; // a plan needs no more of it
    struct stage_options s = {.config = r->config,
                              .backend = &kind,
                              .first = p->first[stage],
                              .last = p->first[stage] + p->layers[stage],
                              .head = stage == 0,
                              .tail = stage == p->pp - 1,
                              .tp = p->tp,
                              .precision = precision,
                              .limits = limits,
                              .n_steps = p->steps_in_flight};
    struct epoch_options e = {.stage = stage,
                              .n_stages = p->pp,
                              .steps_in_flight = p->steps_in_flight,
                              .config = r->config,
                              .precision = precision,
                              .limits = limits};
    struct plan_host host = {host_ledger(&s, &e), epoch_received_bytes(&e)};
    struct ledger pinned = pinned_by_ranks(p, r, stage);
    ledger_add(&host.ledger, &pinned);
    return host;
}
