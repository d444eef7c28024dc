// penstock result ID: what became of a job.
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"
#include "tools/show_result.h"
#include "tools/show_stream.h"

#include <stdlib.h>

struct asked {
    struct queue_flags queue;
    const char *id;
    double timeout;
    int64_t offset;
    bool wait, stream, json;
};

static enum status fetch(const struct asked *a, struct queue_sync *q, uint8_t **bytes, size_t *n,
                         struct error *e)
{
    if (a->wait) {
        return queue_sync_wait(q, a->queue.tenant, a->id, NULL, timeout_ms(a->timeout), bytes, n,
                               e);
    }
    try(queue_sync_get(q, a->queue.tenant, a->id, bytes, n, e));
    if (*bytes != NULL) return OK;
    return error_set(e, ERR_STATE, "no_result",
                     "job %s has no result: it has not ended, or its result has expired", a->id);
}

static int show(const struct asked *a, const char *program, struct queue_sync *q)
{
    struct error e = {0};
    uint8_t *bytes = NULL;
    size_t n = 0;
    int status = fetch(a, q, &bytes, &n, &e) == OK ? show_result(program, bytes, n, a->json)
                                                   : outcome_failed(program, &e, a->json);
    free(bytes);
    return status;
}

static enum status check_flags(const struct asked *a, struct error *e)
{
    if (a->id == NULL) {
        return error_set(e, ERR_INPUT, "bad_usage", "which job? penstock result ID");
    }
    if (a->stream && a->json) {
        return error_set(e, ERR_INPUT, "bad_usage", "--stream prints text: leave out --json");
    }
    if (a->offset > 0 && !a->stream) {
        return error_set(e, ERR_INPUT, "bad_usage", "--offset wants --stream");
    }
    return OK;
}

int cmd_result(int argc, char **argv)
{
    struct asked a = {.queue = queue_flags_default(), .timeout = -1};
    struct option_spec specs[] = {
        {.name = "wait", .kind = OPTION_FLAG, .value = &a.wait,
         .help = "Waits until the job has ended."},
        {.name = "timeout", .kind = OPTION_NUMBER, .value = &a.timeout, .argument = "S",
         .help = "Of --wait and --stream, in seconds (default: none).", .least = 0, .most = 1e9},
        {.name = "stream", .kind = OPTION_FLAG, .value = &a.stream,
         .help = "Prints the text as it comes, up to the job's end."},
        {.name = "offset", .kind = OPTION_INT, .value = &a.offset, .argument = "N",
         .help = "Of --stream: begins at this byte of the text (default 0).", .least = 0,
         .most = WIRE_BODY_MAX},
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "The whole result as one JSON object instead of its text."},
        QUEUE_FLAG_ROWS(a.queue),
    };
    struct options o = {.program = "penstock result",
                        .usage = "ID [OPTIONS]",
                        .about = "Prints a job's result.\n"
                                 "Exit status 1: the job failed, or there is no result.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = &a.id,
                        .max_positional = 1};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (check_flags(&a, &e) != OK) return outcome_failed(o.program, &e, a.json);
    if (redis_name_check("id", a.id, JOB_ID_MAX, &e) != OK) {
        return outcome_failed(o.program, &e, a.json);
    }
    struct queue_sync *q;
    if (queue_flags_open(&a.queue, &q, &e) != OK) return outcome_failed(o.program, &e, a.json);
    int status = a.stream ? show_stream(o.program, q, a.queue.tenant, a.id, NULL,
                                        (uint64_t) a.offset, timeout_ms(a.timeout))
                          : show(&a, o.program, q);
    queue_sync_close(&q);
    return status;
}
