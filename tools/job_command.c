#include "tools/job_command.h"

#include "broker/redis.h"
#include "common/limits.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

int job_command_main(const struct job_command *c, int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    const char *id = NULL;
    bool json = false;
    struct option_spec specs[] = {
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "One JSON object on stdout."},
        QUEUE_FLAG_ROWS(flags),
    };
    struct options o = {.program = c->program,
                        .usage = "ID [OPTIONS]",
                        .about = c->about,
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = &id,
                        .max_positional = 1};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (id == NULL) {
        error_set(&e, ERR_INPUT, "bad_usage", "which job? %s ID", c->program);
        return outcome_failed(o.program, &e, json);
    }
    if (redis_name_check("id", id, JOB_ID_MAX, &e) != OK) {
        return outcome_failed(o.program, &e, json);
    }
    struct queue_sync *q;
    if (queue_flags_open(&flags, &q, &e) != OK) return outcome_failed(o.program, &e, json);
    int status = c->run(o.program, q, flags.tenant, id, json);
    queue_sync_close(&q);
    return status;
}
