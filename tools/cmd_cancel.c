// penstock cancel ID: asks for a job to be dropped, wherever it is.
#include "tools/commands.h"
#include "tools/job_command.h"
#include "tools/outcome.h"

#include <stdio.h>

static int ask(const char *program, struct queue_sync *q, const char *tenant, const char *id,
               bool json)
{
    struct error e = {0};
    enum status status = queue_sync_cancel(q, tenant, id, &e);
    if (status != OK) return outcome_failed(program, &e, json);
    if (json) return outcome_json(json_pack("{s:s, s:b}", "id", id, "asked", true), EXIT_DONE);
    fprintf(stderr, "%s: asked; penstock result %s --wait says how it ended\n", program, id);
    return EXIT_DONE;
}

int cmd_cancel(int argc, char **argv)
{
    const struct job_command c = {.program = "penstock cancel",
                                  .about = "Asks for a job to be cancelled: its result then says "
                                           "so, unless it ended before.",
                                  .run = ask};
    return job_command_main(&c, argc, argv);
}
