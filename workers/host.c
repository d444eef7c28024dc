#include "workers/host.h"

#include "common/carve.h"
#include "common/log.h"

static void carve_host(struct host *h, const struct stage_options *stage,
                       const struct epoch_options *epoch, struct carve *c)
{
    carve_line(c, LEDGER_COMM);
    h->comm = carve_take(c, stage_comm_bytes(stage));
    carve_line(c, LEDGER_STEPS);
    h->steps = carve_take(c, stage_memory_bytes(stage));
    carve_line(c, LEDGER_SEQUENCES);
    h->sequences = carve_take(c, stage->head ? head_bytes(&stage->limits) : 0);
    carve_line(c, LEDGER_LINKS);
    h->links = carve_take(c, epoch_bytes(epoch));
    carve_line(c, LEDGER_STAGING);
    h->staging = carve_take(c, stage_staging_bytes(stage));
}

struct ledger host_ledger(const struct stage_options *stage, const struct epoch_options *epoch)
{
    struct host counted;
    struct carve c = {0};
    carve_host(&counted, stage, epoch, &c);
    return c.ledger;
}

enum status host_create(struct host *h, const struct stage_options *stage,
                        const struct epoch_options *epoch, struct error *e)
{
    *h = (struct host){.received_bytes = epoch_received_bytes(epoch)};
    struct carve c = {0};
    carve_host(h, stage, epoch, &c);
    try(arena_create(&h->arena, c.used, "the group's host memory", e));
    const struct arena *a = h->arena;
    c = (struct carve){.base = a->base, .size = c.used};
    carve_host(h, stage, epoch, &c);
    h->ledger = c.ledger;
    char lines[LEDGER_TEXT_MAX];
    ledger_print(&h->ledger, lines, sizeof lines);
    log_line(LOG_INFO, "arena", log_str("of", "host"), log_int("bytes", a->bytes),
             log_str("ledger", lines), log_int("received_bytes", h->received_bytes),
             log_str("pages", arena_pages_name(a->pages)), log_int("huge_bytes", a->huge_bytes),
             log_str("locked", a->locked ? "yes" : "no"));
    return OK;
}

void host_release(struct host *h)
{
    arena_release(h->arena);
    *h = (struct host){0};
}
