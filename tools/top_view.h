// What `penstock top` shows, read from Redis as one JSON object (its keys: tools/README.md): counts
// of the queue, depths by tenant and class, what the leader said of its fleet. Blocking, one
// thread. Knows no terminal.
#ifndef PENSTOCK_TOOLS_TOP_VIEW_H
#define PENSTOCK_TOOLS_TOP_VIEW_H

#include "broker/queue_sync.h"

#include <jansson.h>

// *view: a new reference; `queue` is its name. The errors of queue_sync_stats, fleet_view and
// queue_admin_depths.
enum status top_view(struct queue_sync *q, const char *queue, json_t **view, struct error *e);

#endif
