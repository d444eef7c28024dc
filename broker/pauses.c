#include "broker/pauses.h"

#include "common/log.h"

#include <stdio.h>
#include <string.h>

static bool same(const struct pauses *p, const struct queue_reply *r)
{
    if ((size_t) p->n != r->n) return false;
    for (int i = 0; i < p->n; i++) {
        if (p->at[i].pipeline != r->pauses[i].pipeline) return false;
        if (strcmp(p->at[i].model, r->pauses[i].model) != 0) return false;
    }
    return true;
}

static void on_reply(void *arg, const struct queue_reply *r)
{
    struct pauses *p = arg;
    p->asking = false;
    if (r->error.status != OK || same(p, r)) return;
    p->n = 0;
    for (size_t i = 0; i < r->n && p->n < PAUSED_PIPELINES_MAX; i++) {
        struct pause *to = &p->at[p->n++];
        to->pipeline = r->pauses[i].pipeline;
        snprintf(to->model, sizeof to->model, "%s", r->pauses[i].model);
    }
    log_line(LOG_INFO, "paused_pipelines", log_int("pipelines", p->n));
    p->changed(p->arg);
}

void pauses_ask(struct pauses *p)
{
    if (!p->asking) p->asking = queue_pauses(p->queue, on_reply, p) == OK;
}

bool pauses_has(const struct pauses *p, int model, uint64_t pipeline)
{
    for (int i = 0; i < p->n; i++) {
        bool here = p->at[i].pipeline == pipeline;
        if (here && strcmp(p->at[i].model, p->models->at[model].name) == 0) return true;
    }
    return false;
}
