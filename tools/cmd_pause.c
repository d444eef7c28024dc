// penstock pause, resume, drain: whether jobs are started, of a queue or of a tenant.
#include "broker/queue_admin.h"
#include "common/clock.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

enum { LOOK_MS = 100 };

struct asked {
    struct queue_flags queue;
    const char *tenant; // NULL: the queue
    double timeout;
    bool json;
};

static enum status read_flags(struct asked *a, struct options *o, int argc, char **argv,
                              struct error *e)
{
    try(options_parse(o, argc, argv, e));
    if (a->tenant != NULL) try(redis_name_check("tenant", a->tenant, TENANT_MAX, e));
    return OK;
}

static const char *name_of(const struct asked *a)
{
    return a->tenant != NULL ? a->tenant : "the queue";
}

static int say(const struct options *o, const struct asked *a, const char *state)
{
    if (a->json) {
        return outcome_json(json_pack("{s:s, s:s?, s:s}", "queue", a->queue.queue, "tenant",
                                      a->tenant, "state", state), EXIT_DONE);
    }
    fprintf(stderr, "%s: %s is %s\n", o->program, name_of(a), state);
    return EXIT_DONE;
}

static int set(int argc, char **argv, struct options *o, bool pause)
{
    struct asked a = {.queue = queue_flags_default()};
    struct option_spec specs[] = {
        {.name = "tenant", .kind = OPTION_STRING, .value = &a.tenant, .argument = "NAME",
         .help = "Only this tenant's jobs (default: the whole queue)."},
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "One JSON object on stdout."},
        QUEUE_ONLY_ROWS(a.queue),
    };
    struct error e = {0};
    o->specs = specs;
    o->n_specs = sizeof specs / sizeof *specs;
    if (read_flags(&a, o, argc, argv, &e) != OK) return outcome_usage(o->program, &e);
    if (o->help) return EXIT_DONE;
    struct queue_sync *q;
    if (queue_flags_open(&a.queue, &q, &e) != OK) return outcome_failed(o->program, &e, a.json);
    enum status status = queue_admin_pause(q, a.tenant, pause, &e);
    queue_sync_close(&q);
    if (status != OK) return outcome_failed(o->program, &e, a.json);
    return say(o, &a, pause ? "paused" : "resumed");
}

int cmd_pause(int argc, char **argv)
{
    struct options o = {.program = "penstock pause",
                        .usage = "[OPTIONS]",
                        .about = "No job is started any more; what runs goes on, and jobs are "
                                 "still taken in."};
    return set(argc, argv, &o, true);
}

int cmd_resume(int argc, char **argv)
{
    struct options o = {.program = "penstock resume",
                        .usage = "[OPTIONS]",
                        .about = "Jobs are started again after penstock pause or drain."};
    return set(argc, argv, &o, false);
}

// Waits until nothing runs; every look is a call of the library.
static enum status wait_idle(struct queue_sync *q, const struct asked *a, struct error *e)
{
    int64_t until = a->timeout < 0 ? INT64_MAX : clock_ms() + timeout_ms(a->timeout);
    uint64_t running;
    for (;;) {
        try(queue_admin_busy(q, a->tenant, &running, e));
        if (running == 0) return OK;
        if (clock_ms() >= until) break;
        poll(NULL, 0, LOOK_MS);
    }
    return error_set(e, ERR_TIMEOUT, NULL, "%" PRIu64 " jobs still run; %s stays paused", running,
                     name_of(a));
}

int cmd_drain(int argc, char **argv)
{
    struct asked a = {.queue = queue_flags_default(), .timeout = -1};
    struct option_spec specs[] = {
        {.name = "tenant", .kind = OPTION_STRING, .value = &a.tenant, .argument = "NAME",
         .help = "Only this tenant's jobs (default: the whole queue)."},
        {.name = "timeout", .kind = OPTION_NUMBER, .value = &a.timeout, .argument = "S",
         .help = "In seconds (default: none).", .least = 0, .most = 1e9},
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "One JSON object on stdout."},
        QUEUE_ONLY_ROWS(a.queue),
    };
    struct options o = {.program = "penstock drain",
                        .usage = "[OPTIONS]",
                        .about = "Pauses, then waits until nothing runs. From then on nothing "
                                 "does until penstock\nresume. Exit status 1: the time was up; "
                                 "it stays paused.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (read_flags(&a, &o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    struct queue_sync *q;
    if (queue_flags_open(&a.queue, &q, &e) != OK) return outcome_failed(o.program, &e, a.json);
    enum status status = queue_admin_pause(q, a.tenant, true, &e);
    if (status == OK) status = wait_idle(q, &a, &e);
    queue_sync_close(&q);
    if (status != OK) return outcome_failed(o.program, &e, a.json);
    return say(&o, &a, "drained");
}
