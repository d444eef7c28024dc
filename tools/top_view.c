#include "tools/top_view.h"

#include "broker/queue_admin.h"
#include "common/clock.h"
#include "tools/fleet_view.h"

static json_t *number(uint64_t n) { return json_integer((json_int_t) n); }

static json_t *jobs_json(const struct queue_stats *s)
{
    const struct {
        const char *name;
        uint64_t n;
    } all[] = {
        {"inbox", s->inbox},         {"taken", s->taken},       {"ready", s->ready},
        {"delayed", s->delayed},     {"running", s->running},   {"dead", s->dead},
        {"bytes", s->bytes},         {"admitted", s->admitted}, {"done", s->done},
        {"failed", s->failed},       {"cancelled", s->cancelled}, {"expired", s->expired},
        {"rejected", s->rejected},   {"retried", s->retried},   {"lost", s->lost},
        {"stale", s->stale},
    };
    json_t *j = json_object();
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        json_object_set_new(j, all[i].name, number(all[i].n));
    }
    json_object_set_new(j, "paused", json_boolean(s->paused > 0));
    return j;
}

static void add_tenant(void *arg, const struct queue_depth *d)
{
    json_t *ready = json_array();
    for (int i = 0; i < JOB_CLASSES; i++) json_array_append_new(ready, number(d->ready[i]));
    json_array_append_new(arg, json_pack("{s:s,s:b,s:o,s:o,s:o,s:o}", "name", d->tenant, "paused",
                                         (int) d->paused, "inbox", number(d->inbox), "ready", ready,
                                         "running", number(d->running), "waited_ms",
                                         number(d->waited_ms)));
}

static json_t *oldest_json(const struct queue_oldest *o)
{
    if (o->id[0] == '\0') return json_null();
    return json_pack("{s:s,s:s,s:i,s:o}", "tenant", o->tenant, "id", o->id, "class", o->class,
                     "waited_ms", number(o->waited_ms));
}

static json_t *leads_json(const struct queue_leader *l)
{
    if (l->term == 0) return json_null();
    return json_pack("{s:s,s:o,s:I}", "name", l->name, "term", number(l->term), "lease_ms",
                     (json_int_t) l->lease_ms);
}

enum status top_view(struct queue_sync *q, const char *queue, json_t **view, struct error *e)
{
    struct queue_stats stats;
    struct queue_leader leader;
    struct queue_oldest oldest;
    json_t *record, *tenants;
    *view = NULL;
    try(queue_sync_stats(q, &stats, e));
    try(fleet_view(q, &leader, &record, e));
    tenants = json_array();
    enum status status = queue_admin_depths(q, &oldest, add_tenant, tenants, e);
    if (status != OK) {
        json_decref(tenants);
        json_decref(record);
        return status;
    }
    *view = json_pack("{s:I,s:s,s:o,s:o,s:o,s:o,s:o}", "at", (json_int_t) clock_wall_ms(), "queue",
                      queue, "leads", leads_json(&leader), "jobs", jobs_json(&stats), "oldest",
                      oldest_json(&oldest), "tenants", tenants, "fleet",
                      record != NULL ? record : json_null());
    return *view != NULL ? OK : error_set(e, ERR_NOMEM, NULL, "no memory for what is to be shown");
}
