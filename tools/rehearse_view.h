// A rehearsal for people and for programs: what was planned beside what was carved and what the
// device shows, times of steps by op, and what they predict; as tables, as CSV and as JSON. Main
// thread.
#ifndef PENSTOCK_TOOLS_REHEARSE_VIEW_H
#define PENSTOCK_TOOLS_REHEARSE_VIEW_H

#include "workers/rehearse.h"
#include "workers/rehearse_predict.h"

#include <jansson.h>
#include <stdio.h>

enum { REHEARSE_BATCHES_MAX = 16 };

struct rehearse_view {
    const struct plan_request *request;
    const struct plan *plan;
    struct rehearse_rates rates;
    int stage, rank, context;
    struct rehearse_memory memory;
    int n_decodes;
    struct rehearse_time decodes[REHEARSE_BATCHES_MAX];
    struct rehearse_prediction predictions[REHEARSE_BATCHES_MAX]; // of each decode
    int n_prefills;
    struct rehearse_time prefills[2];
};

// Share of what the device shows that the plan is off by; without the libraries, which nothing here
// loads, and with what took their place. 0 where the driver shows nothing.
double rehearse_view_off(const struct rehearse_memory *m);

void rehearse_view_table(const struct rehearse_view *v);

// A row for each step, its ops behind it.
void rehearse_view_csv(const struct rehearse_view *v, FILE *out);

// The object of --json; new reference.
json_t *rehearse_view_json(const struct rehearse_view *v);

#endif
