// Which pipelines are paused, as Redis has it: they get no jobs, whoever leads, and keep their
// weights. The loop's thread. Knows numbers of pipelines, not their accounts.
#ifndef PENSTOCK_BROKER_PAUSES_H
#define PENSTOCK_BROKER_PAUSES_H

#include "broker/model.h"
#include "broker/queue.h"

#include <stdbool.h>

struct pauses {
    struct queue *queue;         // borrowed, as the models
    const struct models *models;
    void *arg;
    void (*changed)(void *arg);  // what is paused is not what it was
    bool asking;
    int n;
    struct pause {
        char model[JOB_MODEL_MAX + 1];
        uint64_t pipeline;
    } at[PAUSED_PIPELINES_MAX];
};

// Asks Redis unless it is being asked.
void pauses_ask(struct pauses *p);

bool pauses_has(const struct pauses *p, int model, uint64_t pipeline);

#endif
