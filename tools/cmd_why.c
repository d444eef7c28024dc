// penstock why ID: why a job waits, in one line.
#include "broker/queue_admin.h"
#include "tools/commands.h"
#include "tools/job_command.h"
#include "tools/outcome.h"
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
    if (status != OK) return outcome_failed(program, &e, json);
    bool found = why_tell(&why, &fields, tenant, id, fleet);
    json_decref(fleet);
    if (json) return outcome_json(why_json(&why, tenant, id), found ? EXIT_DONE : EXIT_FAILED);
    fprintf(found ? stdout : stderr, "%s\n", why.sentence);
    return found ? EXIT_DONE : EXIT_FAILED;
}

int cmd_why(int argc, char **argv)
{
    const struct job_command c = {
        .program = "penstock why",
        .about = "Says in one line why a job waits: for a time, room in a pipeline, its turn, a "
                 "budget,\nsomebody to resume or serve it; or that it runs or has ended. How long "
                 "it will wait\nis estimated from the tokens a second that are measured.\nExit "
                 "status 1: nothing is known of it.",
        .run = tell};
    return job_command_main(&c, argc, argv);
}
