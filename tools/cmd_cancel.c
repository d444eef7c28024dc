// penstock cancel ID: asks for a job to be dropped, wherever it is.
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <stdio.h>

int cmd_cancel(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    const char *id = NULL;
    bool json = false;
    struct option_spec specs[] = {
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "One JSON object on stdout."},
        QUEUE_FLAG_ROWS(flags),
    };
    struct options o = {.program = "penstock cancel",
                        .usage = "ID [OPTIONS]",
                        .about = "Asks for a job to be cancelled: its result then says so, unless "
                                 "it ended before.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = &id,
                        .max_positional = 1};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (id == NULL) {
        error_set(&e, ERR_INPUT, "bad_usage", "which job? penstock cancel ID");
        return outcome_failed(o.program, &e, json);
    }
    if (redis_name_check("id", id, JOB_ID_MAX, &e) != OK) {
        return outcome_failed(o.program, &e, json);
    }
    struct queue_sync *q;
    if (queue_flags_open(&flags, &q, &e) != OK) return outcome_failed(o.program, &e, json);
    enum status status = queue_sync_cancel(q, flags.tenant, id, &e);
    queue_sync_close(&q);
    if (status != OK) return outcome_failed(o.program, &e, json);
    if (json) return outcome_json(json_pack("{s:s, s:b}", "id", id, "asked", true), EXIT_DONE);
    fprintf(stderr, "%s: asked; penstock result %s --wait says how it ended\n", o.program, id);
    return EXIT_DONE;
}
