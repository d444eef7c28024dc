// The tenants whose inboxes and ready jobs are served, as Redis names them. The loop's thread.
#ifndef PENSTOCK_BROKER_TENANTS_H
#define PENSTOCK_BROKER_TENANTS_H

#include "common/limits.h"

enum { TENANTS_MAX = 256 };

struct tenants {
    int n;
    char names[TENANTS_MAX][TENANT_MAX + 1];
};

#endif
