// Which attempt at which job: how broker and groups name the work they talk about.
#ifndef PENSTOCK_COMMON_JOB_KEY_H
#define PENSTOCK_COMMON_JOB_KEY_H

#include "common/limits.h"

#include <stdint.h>

struct job_key {
    char tenant[TENANT_MAX + 1];
    char id[JOB_ID_MAX + 1];
    uint64_t attempt; // the attempt's fencing token
};

#endif
