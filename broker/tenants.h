// The tenants whose inboxes and ready jobs are served, as Redis names them: what each may have, and
// whether it is paused. The loop's thread. Knows neither Redis nor clock.
#ifndef PENSTOCK_BROKER_TENANTS_H
#define PENSTOCK_BROKER_TENANTS_H

#include "common/limits.h"

#include <stdbool.h>
#include <stdint.h>

enum { TENANTS_MAX = 256 };

struct tenant {
    char name[TENANT_MAX + 1]; // empty: a free place
    uint32_t weight;           // 1..TENANT_WEIGHT_MAX: its share within a class
    uint64_t max_bytes;        // of messages that wait or run; 0: no limit, as below
    uint64_t max_jobs;         // in flight
    uint64_t max_tokens;       // in flight, prompt and max_tokens, in whole KV blocks
    bool paused;               // nothing of it starts
};

struct tenants {
    int n;       // places in use, free ones among them
    bool paused; // the whole queue
    struct tenant at[TENANTS_MAX];
};

// Takes over what is said of the tenants now. Who stays keeps its place, so that an index means the
// same tenant for as long as it exists. False if there was no room for all.
bool tenants_merge(struct tenants *t, const struct tenants *now);

// Its place, or -1.
int tenants_find(const struct tenants *t, const char *name);

#endif
