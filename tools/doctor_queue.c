#include "broker/queue_admin.h"
#include "tools/doctor.h"
#include "tools/fleet_view.h"

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OLD_MS = 600000, TENANTS_SEEN_MAX = 256, SCANS_MAX = 100000 };

static void check_counts(struct doctor *d)
{
    struct queue_stats s;
    struct error e = {0};
    if (queue_sync_stats(d->queue, &s, &e) != OK) {
        doctor_find(d, false, "queue", "start a broker, or ask as a viewer (penstock acl viewer)",
                    "%s", e.text);
        return;
    }
    doctor_find(d, s.oldest_ms < OLD_MS, "oldest ready job",
                "are groups up? Does the pipeline serve?", "%llu ready, the oldest for %llu s",
                (unsigned long long) s.ready, (unsigned long long) s.oldest_ms / 1000);
    doctor_find(d, s.dead == 0, "dead letters", "look at them with penstock dead ls, then retry or "
                "purge them", "%llu", (unsigned long long) s.dead);
}

// --- models

static bool is_served(const struct doctor *d, const char *name)
{
    size_t i;
    json_t *model;
    json_array_foreach(json_object_get(d->fleet, "models"), i, model) {
        if (strcmp(fleet_text(model, "name"), name) == 0) return true;
    }
    return false;
}

static void on_model(void *arg, const char *model, uint64_t ready, uint64_t waited_ms)
{
    struct doctor *d = arg;
    if (ready == 0 || d->fleet == NULL || is_served(d, model)) return;
    doctor_find(d, false, "model of jobs", "give the brokers this model again (--model NAME=DIR), "
                "or cancel the jobs", "%llu jobs wait for %.64s, which no broker serves, the first "
                "for %llu s", (unsigned long long) ready, model,
                (unsigned long long) waited_ms / 1000);
}

// --- inboxes

struct tenants_seen {
    char names[TENANTS_SEEN_MAX][TENANT_MAX + 1];
    int n;
};

static void on_tenant(void *arg, const struct queue_tenant *t)
{
    struct tenants_seen *s = arg;
    if (s->n < TENANTS_SEEN_MAX) snprintf(s->names[s->n++], TENANT_MAX + 1, "%s", t->name);
}

static void check_inbox(struct doctor *d, const struct tenants_seen *s, const char *key)
{
    const char *tenant = strstr(key, "}:in:");
    if (tenant == NULL) return;
    tenant += strlen("}:in:");
    for (int i = 0; i < s->n; i++) {
        if (strcmp(s->names[i], tenant) == 0) return;
    }
    redisReply *r = doctor_ask(d, "LLEN %s", key);
    char remedy[512];
    snprintf(remedy, sizeof remedy, "penstock tenant add %.64s, or if they are a mistake: "
             "redis-cli DEL '%.200s'", tenant, key);
    doctor_find(d, false, "inbox", remedy, "%lld messages of the tenant %.64s, whom nobody added",
                doctor_failed(r) ? 0 : r->integer, tenant);
    freeReplyObject(r);
}

// All keys are looked through, which takes a right that viewers do not have.
static void check_inboxes(struct doctor *d)
{
    static struct tenants_seen seen;
    struct error e = {0};
    bool paused;
    char cursor[24] = "0";
    seen.n = 0;
    if (queue_admin_tenants(d->queue, &paused, on_tenant, &seen, &e) != OK) return;
    doctor_find(d, !paused, "pause", "penstock resume, when the work may go on", "%s",
                paused ? "the queue is paused" : "the queue is not paused");
    for (int i = 0; i < SCANS_MAX; i++) {
        redisReply *r = doctor_ask(d, "SCAN %s MATCH ps:{%s}:in:* COUNT 1000", cursor, d->name);
        bool good = !doctor_failed(r) && r->elements == 2 && r->element[0]->str != NULL;
        if (!good && i == 0) {
            doctor_find(d, true, "inbox", "", "of unknown tenants: not looked for (%.200s)",
                        doctor_words(r));
        }
        for (size_t k = 0; good && k < r->element[1]->elements; k++) {
            check_inbox(d, &seen, r->element[1]->element[k]->str);
        }
        if (good) snprintf(cursor, sizeof cursor, "%s", r->element[0]->str);
        freeReplyObject(r);
        if (!good || strcmp(cursor, "0") == 0) return;
    }
}

void doctor_queue(struct doctor *d)
{
    struct error e;
    check_counts(d);
    check_inboxes(d);
    queue_admin_models(d->queue, on_model, d, &e); // what it cannot say check_counts has said
}
