// penstock show ID: where a job is, and what has happened to it.
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"
#include "tools/show_job.h"

int cmd_show(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    const char *id = NULL;
    bool json = false;
    struct option_spec specs[] = {
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "One JSON object on stdout."},
        QUEUE_FLAG_ROWS(flags),
    };
    struct options o = {.program = "penstock show",
                        .usage = "ID [OPTIONS]",
                        .about = "Shows a job's state, attempts, owner and times, and where it "
                                 "waits.\nExit status 1: nothing is known of it.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = &id,
                        .max_positional = 1};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (id == NULL) {
        error_set(&e, ERR_INPUT, "bad_usage", "which job? penstock show ID");
        return outcome_usage(o.program, &e);
    }
    struct queue_sync *q;
    if (queue_flags_open(&flags, &q, &e) != OK) return outcome_failed(o.program, &e, json);
    int status = show_job(o.program, q, flags.tenant, id, json);
    queue_sync_close(&q);
    return status;
}
