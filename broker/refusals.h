// Which groups were refused and why, so that a group that tries again and again is told of once a
// reason. Pure; the owner's thread only. Knows names, not what the reasons mean.
#ifndef PENSTOCK_BROKER_REFUSALS_H
#define PENSTOCK_BROKER_REFUSALS_H

#include "common/curve.h"
#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>

enum { REFUSALS_KEPT = 64 };

struct refusals {
    struct refusal {
        char key[CURVE_SIZE]; // a group is its key and its name
        char name[GROUP_NAME_MAX + 1];
        struct error why;
    } at[REFUSALS_KEPT];
    int n, next; // the oldest gives way
};

// Whether this group was not refused for this reason last time; it is remembered.
bool refusals_new(struct refusals *r, const char *key, const char *name, const struct error *why);

// The group was let in: its next refusal is new.
void refusals_forget(struct refusals *r, const char *key, const char *name);

#endif
