#include "broker/scrape.h"

#include "broker/exposition.h"
#include "common/clock.h"
#include "common/log.h"

#include <string.h>

enum { STATS_MS = 1000, FRESH_MS = 200, SHARE = 20 }; // of the loop's time: one part in so many
#define TEXT_MAX (32 * MIB)

static void give_metrics(struct scrape *s, struct http_answer *a)
{
    int64_t now_ms = clock_ms();
    s->metrics.requests++;
    if (s->text.n == 0 || now_ms - s->written_ms >= s->fresh_ms) {
        s->written_ms = now_ms;
        s->n_written++;
        buffer_clear(&s->text);
        metrics_write(&s->metrics, &s->text);
        int64_t cost_ms = clock_ms() - now_ms;
        s->fresh_ms = SHARE * cost_ms > FRESH_MS ? SHARE * cost_ms : FRESH_MS;
    }
    if (s->text.status != OK) { // half a page would be taken for the whole
        log_line(LOG_ERROR, "metrics_too_large", log_int("most", TEXT_MAX));
        a->status = 500;
        return;
    }
    *a = (struct http_answer){200, EXPOSITION_TYPE, s->text.data, s->text.n, s->n_written};
}

static void on_path(void *arg, const char *path, struct http_answer *a)
{
    struct scrape *s = arg;
    if (strcmp(path, "/metrics") == 0) {
        give_metrics(s, a);
    } else if (strcmp(path, "/healthz") == 0) {
        a->status = s->well ? 200 : 503;
        a->body = s->state;
        a->n = strlen(s->state);
    } else if (strcmp(path, "/") == 0) {
        static const char page[] = "/metrics\n/healthz\n";
        a->status = 200;
        a->body = page;
        a->n = sizeof page - 1;
    }
}

static void on_stats(void *arg, const struct queue_reply *r)
{
    struct scrape *s = arg;
    s->asking = false;
    if (r->error.status != OK) return;
    s->metrics.stats = r->stats;
    s->metrics.counted = true;
}

enum status scrape_open(struct scrape *s, zloop_t *loop, const char *address, struct error *e)
{
    buffer_init(&s->text, TEXT_MAX);
    s->state = "starts\n";
    s->metrics.started_ms = clock_wall_ms();
    return http_create(&s->http, loop, address, on_path, s, e);
}

void scrape_close(struct scrape *s)
{
    http_destroy(&s->http);
    buffer_deinit(&s->text);
}

void scrape_tick(struct scrape *s, int64_t now_ms)
{
    if (s->http == NULL) return;
    http_tick(s->http);
    if (s->asking || !queue_ready(s->queue) || now_ms - s->asked_ms < STATS_MS) return;
    s->asked_ms = now_ms;
    s->asking = queue_stats(s->queue, on_stats, s) == OK;
}
