// penstock doctor: what is wrong with a queue's Redis, its fleet and its keys, each finding with
// its remedy.
#include "broker/redis_tls.h"
#include "tools/commands.h"
#include "tools/doctor.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <hiredis/hiredis.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { CONNECT_MS = 5000 };

void doctor_find(struct doctor *d, bool ok, const char *check, const char *remedy,
                 const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    d->wrong = d->wrong || !ok;
    if (d->json) {
        json_array_append_new(d->findings,
                              json_pack("{s:s,s:b,s:s,s:s}", "check", check, "ok", ok, "found",
                                        text, "remedy", ok ? "" : remedy));
        return;
    }
    printf("%-5s  %-22s  %s\n", ok ? "ok" : "WRONG", check, text);
    if (!ok) printf("%-5s  %-22s  -> %s\n", "", "", remedy);
}

redisReply *doctor_ask(struct doctor *d, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    redisReply *r = redisvCommand(d->c, format, args);
    va_end(args);
    return r;
}

bool doctor_failed(const redisReply *r) { return r == NULL || r->type == REDIS_REPLY_ERROR; }

const char *doctor_words(const redisReply *r)
{
    return r == NULL ? "no answer" : r->str != NULL ? r->str : "an answer of another form";
}

static enum status examine(struct doctor *d, const struct queue_flags *f, const char *key,
                           const char *allow, struct error *e)
{
    struct redis_url url;
    try(redis_url_parse(f->url, &url, e));
    try(queue_flags_open(f, &d->queue, e));
    enum status status = redis_connect(&d->c, &url, CONNECT_MS, CONNECT_MS, e);
    if (status != OK) {
        queue_sync_close(&d->queue);
        return status;
    }
    if (url.user[0] != '\0') freeReplyObject(doctor_ask(d, "AUTH %s %s", url.user, url.password));
    else if (url.password[0] != '\0') freeReplyObject(doctor_ask(d, "AUTH %s", url.password));
    if (url.db != 0) freeReplyObject(doctor_ask(d, "SELECT %d", url.db));
    d->db = url.db;
    doctor_redis(d);
    doctor_fleet(d);
    doctor_queue(d);
    doctor_keys(d, key, allow);
    json_decref(d->fleet);
    queue_sync_close(&d->queue);
    redisFree(d->c);
    return OK;
}

int cmd_doctor(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    struct doctor d = {0};
    const char *key = NULL, *allow = NULL;
    struct option_spec specs[] = {
        {.name = "key", .kind = OPTION_STRING, .value = &key, .argument = "FILE",
         .help = "A secret key whose file is looked at, too."},
        {.name = "allow", .kind = OPTION_STRING, .value = &allow, .argument = "DIR",
         .help = "The folder of the groups' public keys, to be compared with the groups."},
        {.name = "json", .kind = OPTION_FLAG, .value = &d.json, .help = "One JSON object."},
        QUEUE_ONLY_ROWS(flags),
    };
    struct options o = {.program = "penstock doctor",
                        .usage = "[OPTIONS]",
                        .about = "Looks at Redis, fleet, queue and keys. Exit status: 0 all is "
                                 "well, 1 something is wrong, or Redis cannot be reached, 2 "
                                 "usage.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    d.name = flags.queue;
    d.findings = json_array();
    enum status status = examine(&d, &flags, key, allow, &e);
    int exit_status = d.wrong ? EXIT_FAILED : EXIT_DONE;
    if (status != OK) {
        json_decref(d.findings);
        return outcome_failed(o.program, &e, d.json);
    }
    if (!d.json) {
        json_decref(d.findings);
        return exit_status;
    }
    return outcome_json(json_pack("{s:b,s:o}", "ok", !d.wrong, "findings", d.findings),
                        exit_status);
}
