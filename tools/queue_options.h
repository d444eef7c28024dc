// The flags that say which queue: of every subcommand that talks to one.
#ifndef PENSTOCK_TOOLS_QUEUE_OPTIONS_H
#define PENSTOCK_TOOLS_QUEUE_OPTIONS_H

#include "broker/queue_sync.h"
#include "common/options.h"

struct queue_flags {
    const char *url, *queue, *tenant;
};

// Rows of a table of options: which queue, and whose jobs in it.
#define QUEUE_ONLY_ROWS(f)                                                                         \
    {.name = "redis", .kind = OPTION_STRING, .value = &(f).url, .argument = "URL",                 \
     .help = "Of the queue (default $PENSTOCK_REDIS, else redis://127.0.0.1:6379); rediss:// "     \
             "for TLS."},                                                                          \
    {.name = "queue", .kind = OPTION_STRING, .value = &(f).queue, .argument = "NAME",              \
     .help = "Queue (default $PENSTOCK_QUEUE, else default)."}

#define QUEUE_FLAG_ROWS(f)                                                                         \
    QUEUE_ONLY_ROWS(f),                                                                            \
    {.name = "tenant", .kind = OPTION_STRING, .value = &(f).tenant, .argument = "NAME",            \
     .help = "Whose jobs (default $PENSTOCK_TENANT, else default)."}

struct queue_flags queue_flags_default(void);

// ERR_INPUT for a bad URL or name, else as queue_sync_open.
enum status queue_flags_open(const struct queue_flags *f, struct queue_sync **q, struct error *e);

// Milliseconds of a --timeout in seconds; < 0: none.
int64_t timeout_ms(double seconds);

#endif
