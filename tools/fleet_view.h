// What the leader last said of its fleet, as JSON of which nothing is trusted. For the subcommands
// fleet and doctor; one thread.
#ifndef PENSTOCK_TOOLS_FLEET_VIEW_H
#define PENSTOCK_TOOLS_FLEET_VIEW_H

#include "broker/queue_admin.h"

#include <jansson.h>

// *record: a new reference, NULL if nothing was said lately. ERR_IO bad_record; else the errors of
// queue_admin_fleet.
enum status fleet_view(struct queue_sync *q, struct queue_leader *leader, json_t **record,
                       struct error *e);

// A member that may be missing: "", 0.
const char *fleet_text(const json_t *object, const char *name);
json_int_t fleet_number(const json_t *object, const char *name);

#endif
