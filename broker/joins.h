// Map_reduce jobs on their way: looks for those that can be taken on (new ones, and those whose
// children have all ended), reads what their children made, has the next step worked out in a pool,
// and tells it to the queue. A few at once, within a bound of bytes. The loop's thread. Knows no
// groups.
//
// Nothing is kept that Redis has not: what fails or breaks off is found again at the next look, and
// a step that was told already changes nothing.
#ifndef PENSTOCK_BROKER_JOINS_H
#define PENSTOCK_BROKER_JOINS_H

#include "broker/prompt.h"
#include "broker/queue.h"

struct joins;

struct joins_options {
    zloop_t *loop;
    struct queue *queue; // borrowed, as the models
    const struct models *models;
    int default_max_tokens;
    void *arg;
    // Jobs of this tenant may be ready: children, or the job itself.
    void (*ready)(void *arg, const char *tenant);
};

enum status joins_create(struct joins **joins, const struct joins_options *o, struct error *e);
void joins_destroy(struct joins **joins); // after the queue, whose open calls end here

// What a model's pipelines take; no job of it is taken on before that is known.
void joins_set_max_context(struct joins *j, int model, int max_context);

// A new job waits to be taken on.
void joins_wake(struct joins *j);

// Call about ten times a second.
void joins_tick(struct joins *j);

#endif
