// The broker's metrics in Prometheus' text format: names, labels and units are in README.md. It
// only reads what others keep, and writes it down. The loop's thread. Knows no HTTP.
#ifndef PENSTOCK_BROKER_METRICS_H
#define PENSTOCK_BROKER_METRICS_H

#include "broker/fleet_record.h"
#include "broker/groups.h"
#include "broker/jobs.h"
#include "broker/model.h"
#include "common/buffer.h"

struct metrics {
    const char *queue, *name; // of this broker
    bool leads, redis;        // redis: the connection is there
    uint64_t term;
    int64_t started_ms;       // wall clock
    bool counted;             // stats is there
    struct queue_stats stats; // as Redis told last
    uint64_t leases_expired, requests;
    // NULL: it does not lead
    const struct jobs *jobs;
    const struct groups *groups;
    const struct fleet_record *record;
    const struct models *models;
};

// Appends all of them.
void metrics_write(const struct metrics *m, struct buffer *to);

#endif
