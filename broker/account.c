#include "broker/account.h"

bool account_settle(struct account *a)
{
    if (!a->adopting || !a->snapped || a->n_unknown > 0) return false;
    a->adopting = false;
    a->credit = a->snap;
    credit_adopt(&a->credit, (uint64_t) a->slots, (uint64_t) a->blocks, a->used_slots,
                 a->used_blocks);
    credit_grant(&a->credit, a->latest_slots, a->latest_blocks);
    return true;
}

bool account_view(const struct account *a, int64_t now_ms, struct dispatch_pipeline *to)
{
    bool held = a->adopting || a->closed || a->paused || now_ms < a->resume_ms;
    if (a->epoch == 0 || held) return false;
    *to = (struct dispatch_pipeline){.id = a->epoch,
                                     .slots = credit_slots(&a->credit),
                                     .blocks = credit_blocks(&a->credit),
                                     .n_running = a->n_active + a->n_promised,
                                     .alone = a->n_poison + a->n_promised_poison > 0,
                                     .all_slots = (uint64_t) a->slots,
                                     .all_blocks = (uint64_t) a->blocks};
    return true;
}
