#include "broker/dispatch.h"

#include "common/status.h"

void credit_reset(struct credit *c) { *c = (struct credit){0}; }

void credit_grant(struct credit *c, uint64_t slots, uint64_t blocks)
{
    if (slots > c->granted_slots) c->granted_slots = slots;
    if (blocks > c->granted_blocks) c->granted_blocks = blocks;
}

void credit_adopt(struct credit *c, uint64_t total_slots, uint64_t total_blocks,
                  uint64_t used_slots, uint64_t used_blocks)
{
    c->taken_slots = c->granted_slots - (total_slots - used_slots);
    c->taken_blocks = c->granted_blocks - (total_blocks - used_blocks);
}

void credit_take(struct credit *c, uint64_t blocks)
{
    check(credit_slots(c) >= 1 && credit_blocks(c) >= blocks);
    c->taken_slots++;
    c->taken_blocks += blocks;
}

void credit_give_back(struct credit *c, uint64_t blocks)
{
    check(c->taken_slots >= 1 && c->taken_blocks >= blocks);
    c->taken_slots--;
    c->taken_blocks -= blocks;
}

uint64_t credit_slots(const struct credit *c)
{
    return c->granted_slots > c->taken_slots ? c->granted_slots - c->taken_slots : 0;
}

uint64_t credit_blocks(const struct credit *c)
{
    return c->granted_blocks > c->taken_blocks ? c->granted_blocks - c->taken_blocks : 0;
}

int dispatch_choose(const struct credit *c, const struct ready_job *jobs, int n, int n_running,
                    bool alone)
{
    if (alone) return 0;
    uint64_t slots = credit_slots(c), blocks = credit_blocks(c);
    int chosen = 0;
    for (; chosen < n; chosen++) {
        const struct ready_job *j = &jobs[chosen];
        if (slots == 0 || j->need_blocks > blocks) break;
        if (j->poison) return n_running == 0 && chosen == 0 ? 1 : chosen;
        slots--;
        blocks -= j->need_blocks;
    }
    return chosen;
}
