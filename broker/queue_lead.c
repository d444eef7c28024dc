#include "broker/queue_lead.h"

#include "broker/redis.h"

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RENEWALS = 3, QUESTIONS = 20, FIELDS = 4 };

bool queue_lead_connected(struct queue_lead *l, int64_t now_ms)
{
    bool stands_by = l->term == 0 && l->leader[0] != '\0';
    l->asking = false;
    l->ask_ms = stands_by ? now_ms + l->lease_ms : now_ms;
    return !stands_by;
}

bool queue_lead_due(const struct queue_lead *l, int64_t now_ms)
{
    return !l->asking && !l->resigned && now_ms >= l->ask_ms;
}

enum status queue_lead_answered(struct queue_lead *l, const redisReply *r, int64_t now_ms,
                                bool *changed, struct error *e)
{
    *changed = false;
    l->asking = false;
    l->ask_ms = now_ms + l->lease_ms / (l->term != 0 ? RENEWALS : QUESTIONS);
    try(redis_reply_check(r, e));
    bool good = r->type == REDIS_REPLY_ARRAY && r->elements == FIELDS;
    for (size_t i = 0; good && i < FIELDS; i++) good = r->element[i]->type == REDIS_REPLY_STRING;
    uint64_t term = good ? strtoull(r->element[1]->str, NULL, 10) : 0;
    const char *owner = good ? r->element[2]->str : "";
    bool leads = good && strcmp(r->element[0]->str, "lead") == 0;
    if (term == 0 || strlen(owner) > BROKER_NAME_MAX || (!leads && l->term != 0)) {
        return error_set(e, ERR_IO, "redis_reply", "Redis answered lead in an unknown form");
    }
    if (leads) {
        *changed = l->term == 0;
        l->term = term;
        l->ask_ms = now_ms + l->lease_ms / RENEWALS;
        return OK;
    }
    *changed = term != l->rules || strcmp(owner, l->leader) != 0;
    l->rules = term;
    snprintf(l->leader, sizeof l->leader, "%s", owner);
    return OK;
}

enum status queue_lead_check_name(const char *name, struct error *e)
{
    size_t n = strlen(name);
    bool good = n >= 1 && n <= BROKER_NAME_MAX;
    for (size_t i = 0; good && i < n; i++) good = name[i] > ' ' && name[i] < 0x7f;
    if (good) return OK;
    return error_set(e, ERR_INPUT, "bad_name",
                     "a broker's name is 1 to %d printable ASCII characters without spaces, not "
                     "\"%.64s\"", BROKER_NAME_MAX, name);
}
