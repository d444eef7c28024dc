// penstock conformance producer -- COMMAND: tries a client against a broker that is played.
#include "broker/redis.h"
#include "common/clock.h"
#include "common/options.h"
#include "tools/commands.h"
#include "tools/conformance_checks.h"
#include "tools/conformance_server.h"
#include "tools/outcome.h"

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static void show(const struct conformance_check *check, enum status status, const struct error *e,
                 json_t *rows)
{
    const char *word = status == OK ? "ok" : status == ERR_UNSUPPORTED ? "skipped" : "failed";
    if (rows == NULL) {
        printf("%-8s %-16s %s%s%s\n", word, check->name, check->what, status != OK ? ": " : "",
               status != OK ? e->text : "");
        fflush(stdout);
        return;
    }
    json_array_append_new(rows, json_pack("{s:s, s:s, s:s, s:s*}", "check", check->name, "what",
                                          check->what, "outcome", word, "why",
                                          status != OK ? e->text : NULL));
}

// The name behind the next comma; NULL: there is none.
static const char *next_name(const char *at)
{
    const char *comma = strchr(at, ',');
    return comma != NULL ? comma + 1 : NULL;
}

static bool is_name(const char *at, const char *name)
{
    size_t n = strcspn(at, ",");
    return strlen(name) == n && strncmp(name, at, n) == 0;
}

// Is the check among the names in `only`? NULL: all are.
static bool chosen(const char *only, const char *name)
{
    const char *at = only;
    while (at != NULL && !is_name(at, name)) at = next_name(at);
    return only == NULL || at != NULL;
}

static enum status check_names(const char *only, struct error *e)
{
    for (const char *at = only; at != NULL; at = next_name(at)) {
        int i = 0;
        while (i < CONFORMANCE_N_CHECKS && !is_name(at, CONFORMANCE_CHECKS[i].name)) i++;
        if (i < CONFORMANCE_N_CHECKS) continue;
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--only: there is no check \"%.*s\"; a run without --only names them all",
                         (int) strcspn(at, ","), at);
    }
    return OK;
}

struct tally {
    int checks, failed;
};

// After a failed check the program may be in the middle of something: the next gets a fresh one.
static struct tally run_checks(struct conformance *c, const char *only, json_t *rows)
{
    struct tally o = {0};
    for (int i = 0; i < CONFORMANCE_N_CHECKS; i++) {
        struct error e = {0};
        enum status status = OK;
        if (!chosen(only, CONFORMANCE_CHECKS[i].name)) continue;
        o.checks++;
        if (c->program.pid == 0) status = conformance_restart(c, &e);
        if (status == OK) status = CONFORMANCE_CHECKS[i].run(c, &e);
        show(&CONFORMANCE_CHECKS[i], status, &e, rows);
        c->broker.hold_runs = false;
        if (status == OK || status == ERR_UNSUPPORTED) continue;
        o.failed++;
        conformance_program_stop(&c->program);
    }
    if (c->program.pid > 0) conformance_program_stop(&c->program);
    return o;
}

static enum status run(struct conformance *c, const char *queue, const char *only, json_t *rows,
                       struct tally *tally, struct error *e)
{
    struct conformance_server own = {0};
    redisContext *redis;
    char made[65];
    uint32_t random = 0;
    if (getrandom(&random, sizeof random, 0) < 0) random = (uint32_t) getpid();
    snprintf(made, sizeof made, "conformance-%08x", random);
    if (queue == NULL) queue = made;
    try(redis_name_check("queue", queue, sizeof made - 1, e));
    c->own_server = c->url == NULL;
    if (c->own_server) {
        try(conformance_server_start(&own, e));
        c->url = own.url;
    }
    enum status status = conformance_server_connect(c->url, &redis, e);
    if (status == OK) {
        status = conformance_broker_init(&c->broker, redis, queue, e);
        if (status == OK) *tally = run_checks(c, only, rows);
        conformance_broker_deinit(&c->broker);
    }
    conformance_server_stop(&own);
    return status;
}

// Where "--" stands in argv; argc: nowhere.
static int command_at(int argc, char **argv)
{
    int i = 1;
    while (i < argc && strcmp(argv[i], "--") != 0) i++;
    return i;
}

int cmd_conformance(int argc, char **argv)
{
    struct conformance c = {0};
    const char *queue = NULL, *side = NULL, *only = NULL;
    int64_t timeout_s = 30;
    bool json = false;
    struct option_spec specs[] = {
        {.name = "redis", .kind = OPTION_STRING, .value = &c.url, .argument = "URL",
         .help = "Uses this server instead of starting one; connections to it are cut."},
        {.name = "queue", .kind = OPTION_STRING, .value = &queue, .argument = "NAME",
         .help = "Queue, which is removed at the end (default: a new one)."},
        {.name = "only", .kind = OPTION_STRING, .value = &only, .argument = "CHECK[,CHECK...]",
         .help = "Only these checks; each can run alone."},
        {.name = "timeout", .kind = OPTION_INT, .value = &timeout_s, .argument = "SECONDS",
         .least = 1, .most = 3600, .help = "Timeout in wishes; a reply may take twice as long."},
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "The checks as one JSON object on stdout."},
    };
    struct options o = {
        .program = "penstock conformance",
        .usage = "producer [OPTIONS] -- COMMAND [ARGUMENTS]",
        .about = "Tries a client of the queue: COMMAND is given wishes as JSON lines and replies "
                 "with one line each\n(common/PROTOCOL.md, Conformance), while the broker is "
                 "played. Exit status 1: a check failed.",
        .specs = specs,
        .n_specs = sizeof specs / sizeof *specs,
        .positional = &side,
        .max_positional = 1};
    struct error e = {0};
    struct tally tally = {0};
    int at = command_at(argc, argv);
    if (options_parse(&o, at, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (side == NULL || strcmp(side, "producer") != 0 || at + 1 >= argc) {
        error_set(&e, ERR_INPUT, "bad_usage", "which client? conformance producer -- COMMAND");
        return outcome_usage(o.program, &e);
    }
    if (check_names(only, &e) != OK || conformance_program_find(argv[at + 1], &e) != OK) {
        return outcome_usage(o.program, &e);
    }
    c.command = argv + at + 1;
    c.timeout_s = (int) timeout_s;
    json_t *rows = json ? json_array() : NULL;
    if (run(&c, queue, only, rows, &tally, &e) != OK) {
        json_decref(rows);
        return outcome_failed(o.program, &e, json);
    }
    int status = tally.failed == 0 ? EXIT_DONE : EXIT_FAILED;
    if (!json) {
        printf("%d of %d checks failed\n", tally.failed, tally.checks);
        return status;
    }
    return outcome_json(json_pack("{s:i, s:o}", "failed", tally.failed, "checks", rows), status);
}
