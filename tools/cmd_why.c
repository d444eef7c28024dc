// penstock why ID: why a job waits, in one line.
#include "broker/queue_admin.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"
#include "tools/why_job.h"

#include <stdio.h>
#include <stdlib.h>

static enum status ask(struct queue_sync *q, const char *tenant, const char *id,
                       struct why_fields *f, json_t **fleet, struct error *e)
{
    struct queue_leader leader;
    char *record = NULL;
    try(queue_admin_why(q, tenant, id, why_keep, f, e));
    try(queue_admin_fleet(q, &leader, &record, e));
    *fleet = record != NULL ? json_loads(record, 0, NULL) : NULL;
    free(record);
    return OK;
}

static int tell(const char *program, struct queue_sync *q, const char *tenant, const char *id,
                bool json)
{
    struct why_fields fields = {0};
    struct why why;
    struct error e = {0};
    json_t *fleet = NULL;
    enum status status = ask(q, tenant, id, &fields, &fleet, &e);
    if (status == ERR_INPUT) return outcome_usage(program, &e);
    if (status != OK) return outcome_failed(program, &e, json);
    bool found = why_tell(&why, &fields, tenant, id, fleet);
    json_decref(fleet);
    if (json) return outcome_json(why_json(&why, tenant, id), found ? EXIT_DONE : EXIT_FAILED);
    fprintf(found ? stdout : stderr, "%s\n", why.sentence);
    return found ? EXIT_DONE : EXIT_FAILED;
}

int cmd_why(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    const char *id = NULL;
    bool json = false;
    struct option_spec specs[] = {
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "One JSON object on stdout."},
        QUEUE_FLAG_ROWS(flags),
    };
    struct options o = {.program = "penstock why",
                        .usage = "ID [OPTIONS]",
                        .about = "Says in one line why a job waits: for a time, room in a "
                                 "pipeline, its turn, a budget,\nsomebody to resume or serve it; "
                                 "or that it runs or has ended. How long it will wait\nis "
                                 "estimated from the tokens a second that are measured.\nExit "
                                 "status 1: nothing is known of it.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = &id,
                        .max_positional = 1};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (id == NULL) {
        error_set(&e, ERR_INPUT, "bad_usage", "which job? penstock why ID");
        return outcome_usage(o.program, &e);
    }
    struct queue_sync *q;
    if (queue_flags_open(&flags, &q, &e) != OK) return outcome_failed(o.program, &e, json);
    int status = tell(o.program, q, flags.tenant, id, json);
    queue_sync_close(&q);
    return status;
}
