#include "tools/queue_options.h"

#include <stdio.h>
#include <stdlib.h>

static const char *from_environment(const char *name, const char *otherwise)
{
    struct error e;
    const char *value = options_environment(name, &e);
    if (e.status == OK) return value != NULL ? value : otherwise;
    fprintf(stderr, "penstock: %s\n", e.text);
    return ""; // is refused, unless a flag says it
}

struct queue_flags queue_flags_default(void)
{
    return (struct queue_flags){
        .url = from_environment("PENSTOCK_REDIS", "redis://127.0.0.1:6379"),
        .queue = from_environment("PENSTOCK_QUEUE", "default"),
        .tenant = from_environment("PENSTOCK_TENANT", "default"),
    };
}

enum status queue_flags_open(const struct queue_flags *f, struct queue_sync **q, struct error *e)
{
    try(redis_name_check("tenant", f->tenant, TENANT_MAX, e));
    return queue_sync_open(q, f->url, f->queue, e);
}

int64_t timeout_ms(double seconds) { return seconds < 0 ? -1 : (int64_t) (seconds * 1000); }
