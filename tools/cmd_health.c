// penstock health: whether a broker or a group of this machine is well, from its status file. What
// containers and supervisors ask.
#include "common/clock.h"
#include "common/health.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/outcome.h"

#include <stdio.h>

int cmd_health(int argc, char **argv)
{
    const char *path = "/run/penstock/status";
    bool idle_ok = false, json = false;
    struct option_spec specs[] = {
        {.name = "status", .kind = OPTION_STRING, .value = &path, .argument = "FILE",
         .help = "The --status of the daemon (default /run/penstock/status)."},
        {.name = "idle-ok", .kind = OPTION_FLAG, .value = &idle_ok,
         .help = "A group without a stage is well: it may be a spare."},
        {.name = "json", .kind = OPTION_FLAG, .value = &json, .help = "One JSON object on stdout."},
    };
    struct options o = {.program = "penstock health",
                        .usage = "[OPTIONS]",
                        .about = "Says whether the broker or group with this --status is well.\n"
                                 "Broker: it turns, reaches Redis, and leads or stands by. Group: "
                                 "it turns, has\nloaded its stage, and steps move while there is "
                                 "work. Exit status 1: it is not well.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .environment = true};
    struct error e = {0};
    struct health h;
    char text[HEALTH_TEXT_SIZE];
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (health_read(&h, path, &e) != OK || health_judge(&h, clock_ms(), idle_ok, text, &e) != OK) {
        outcome_failed(o.program, &e, json);
        return EXIT_FAILED; // whatever the trouble's code means elsewhere
    }
    if (json) return outcome_json(json_pack("{s:b,s:s}", "well", 1, "text", text), EXIT_DONE);
    puts(text);
    return EXIT_DONE;
}
