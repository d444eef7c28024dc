// What the broker answers over HTTP: /metrics and /healthz. It keeps the text of a moment, so that
// many who ask cost no more than one, and asks Redis for the queue's counts once a second. The
// loop's thread. Knows nothing of what the figures mean (metrics.h).
#ifndef PENSTOCK_BROKER_SCRAPE_H
#define PENSTOCK_BROKER_SCRAPE_H

#include "broker/http.h"
#include "broker/metrics.h"
#include "broker/queue.h"

struct scrape {
    struct http *http;     // NULL: nobody asked for it
    struct queue *queue;   // borrowed
    struct metrics metrics;
    bool well;             // as /healthz says
    const char *state;     // a word for that
    bool asking;
    int64_t asked_ms, written_ms;
    int64_t fresh_ms; // that the page may be used again
    struct buffer text;
    uint64_t n_written; // times that the text was written
};

// Listens at `address`. `s` is zeros but for queue and metrics. The errors of http_create.
enum status scrape_open(struct scrape *s, zloop_t *loop, const char *address, struct error *e);

// After the queue, before the loop. Nothing happens where it was never opened.
void scrape_close(struct scrape *s);

// Call a few times a second.
void scrape_tick(struct scrape *s, int64_t now_ms);

#endif
