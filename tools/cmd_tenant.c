// penstock tenant add|set|ls: who may use a queue, with which share and budgets.
#include "broker/queue_admin.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void print_budget(uint64_t n)
{
    if (n == 0) printf(" %14s", "-");
    else printf(" %14" PRIu64, n);
}

static void print_tenant(void *arg, const struct queue_tenant *t)
{
    (void) arg;
    printf("%-20s %6" PRIu32, t->name, t->weight);
    print_budget(t->max_bytes);
    print_budget(t->max_jobs);
    print_budget(t->max_tokens);
    printf(" %14" PRIu64 "%s\n", t->bytes, t->paused ? "  paused" : "");
}

static void add_tenant(void *arg, const struct queue_tenant *t)
{
    json_array_append_new(arg, json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:b}", "tenant", t->name,
                                         "weight", (json_int_t) t->weight, "bytes",
                                         (json_int_t) t->max_bytes, "jobs",
                                         (json_int_t) t->max_jobs, "tokens",
                                         (json_int_t) t->max_tokens, "queued_bytes",
                                         (json_int_t) t->bytes, "paused", t->paused));
}

static int list(const char *program, struct queue_sync *q, bool json)
{
    bool paused = false;
    struct error e = {0};
    json_t *all = json ? json_array() : NULL;
    if (!json) {
        printf("%-20s %6s %14s %14s %14s %14s\n", "tenant", "weight", "bytes", "jobs", "tokens",
               "queued bytes");
    }
    if (queue_admin_tenants(q, &paused, json ? add_tenant : print_tenant, all, &e) != OK) {
        json_decref(all);
        return outcome_failed(program, &e, json);
    }
    if (json) {
        return outcome_json(json_pack("{s:b, s:o}", "paused", paused, "tenants", all), EXIT_DONE);
    }
    if (paused) fprintf(stderr, "%s: the queue is paused\n", program);
    return EXIT_DONE;
}

static int change(const char *program, struct queue_sync *q, bool add, const char *tenant,
                  const struct queue_budget *b, bool json)
{
    struct error e = {0};
    enum status status = queue_admin_tenant(q, add, tenant, b, &e);
    if (status == ERR_INPUT) return outcome_usage(program, &e);
    if (status != OK) return outcome_failed(program, &e, json);
    if (json) return outcome_json(json_pack("{s:s}", "tenant", tenant), EXIT_DONE);
    fprintf(stderr, "%s: %s is %s\n", program, tenant, add ? "added" : "set");
    return EXIT_DONE;
}

// What is asked for: ls takes no name, add and set take one.
static bool is_asked(const char *const words[2])
{
    if (words[0] == NULL) return false;
    if (strcmp(words[0], "ls") == 0) return words[1] == NULL;
    return words[1] != NULL && (strcmp(words[0], "add") == 0 || strcmp(words[0], "set") == 0);
}

int cmd_tenant(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    struct queue_budget b = {-1, -1, -1, -1};
    const char *words[2] = {NULL, NULL};
    bool json = false;
    struct option_spec specs[] = {
        {.name = "weight", .kind = OPTION_INT, .value = &b.weight, .argument = "N",
         .help = "Share of tokens among the tenants of a class (default 1).", .least = 1,
         .most = TENANT_WEIGHT_MAX},
        {.name = "bytes", .kind = OPTION_BYTES, .value = &b.max_bytes, .argument = "BYTES",
         .help = "Most bytes of messages that wait or run; 0: no limit."},
        {.name = "jobs", .kind = OPTION_INT, .value = &b.max_jobs, .argument = "N",
         .help = "Most jobs in flight; 0: no limit.", .least = 0, .most = 1e9},
        {.name = "tokens", .kind = OPTION_INT, .value = &b.max_tokens, .argument = "N",
         .help = "Most tokens in flight, prompt and max_tokens; 0: no limit.", .least = 0,
         .most = 1e15},
        {.name = "json", .kind = OPTION_FLAG, .value = &json,
         .help = "One JSON object on stdout."},
        QUEUE_ONLY_ROWS(flags),
    };
    struct options o = {.program = "penstock tenant",
                        .usage = "add NAME | set NAME | ls [OPTIONS]",
                        .about = "Adds a tenant to a queue, changes its weight and budgets, or "
                                 "lists all.\nThe broker sees it within a second; what is not "
                                 "given stays as it is.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs,
                        .positional = words,
                        .max_positional = 2};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (!is_asked(words)) {
        error_set(&e, ERR_INPUT, "bad_usage", "penstock tenant add NAME, set NAME, or ls");
        return outcome_usage(o.program, &e);
    }
    struct queue_sync *q;
    if (queue_flags_open(&flags, &q, &e) != OK) return outcome_failed(o.program, &e, json);
    bool add = strcmp(words[0], "add") == 0;
    int status = words[1] == NULL ? list(o.program, q, json)
                                  : change(o.program, q, add, words[1], &b, json);
    queue_sync_close(&q);
    return status;
}
