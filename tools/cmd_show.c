// penstock show ID: where a job is, and what has happened to it.
#include "tools/commands.h"
#include "tools/job_command.h"
#include "tools/show_job.h"

int cmd_show(int argc, char **argv)
{
    const struct job_command c = {.program = "penstock show",
                                  .about = "Shows a job's state, attempts, owner and times, and "
                                           "where it waits.\nExit status 1: nothing is known of "
                                           "it.",
                                  .run = show_job};
    return job_command_main(&c, argc, argv);
}
