// penstock doctor: what is wrong with a queue's Redis and its keys, each finding with its remedy.
#include "broker/queue.h"
#include "broker/redis.h"
#include "common/clock.h"
#include "tools/commands.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <hiredis/hiredis.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { CONNECT_SECONDS = 5, SKEW_MS = 2000, SLOW_SYNC_MS = 50, SYNCS = 5, OLD_MS = 600000 };

struct doctor {
    redisContext *c;
    const char *queue;
    bool json, wrong;
    json_t *findings;
};

static void find(struct doctor *d, bool ok, const char *what, const char *remedy,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));

static void find(struct doctor *d, bool ok, const char *what, const char *remedy,
                 const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    d->wrong = d->wrong || !ok;
    if (d->json) {
        json_array_append_new(d->findings,
                              json_pack("{s:s,s:b,s:s,s:s}", "check", what, "ok", ok, "found", text,
                                        "remedy", ok ? "" : remedy));
        return;
    }
    printf("%-5s  %-22s  %s\n", ok ? "ok" : "WRONG", what, text);
    if (!ok) printf("%-5s  %-22s  -> %s\n", "", "", remedy);
}

// NULL if Redis is gone; error replies come back as they are.
static redisReply *ask(struct doctor *d, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    redisReply *r = redisvCommand(d->c, format, args);
    va_end(args);
    return r;
}

static bool is_error(const redisReply *r) { return r == NULL || r->type == REDIS_REPLY_ERROR; }

static const char *words_of(const redisReply *r) { return r == NULL ? "no answer" : r->str; }

static void check_version(struct doctor *d)
{
    redisReply *r = ask(d, "INFO server");
    const char *at = !is_error(r) && r->str != NULL ? strstr(r->str, "redis_version:") : NULL;
    int version = at != NULL ? atoi(at + strlen("redis_version:")) : 0;
    find(d, version >= 7, "version", "functions need Redis 7 or newer, or valkey", "Redis %.*s",
         at != NULL ? (int) strcspn(at + 14, "\r\n") : 7, at != NULL ? at + 14 : "unknown");
    freeReplyObject(r);
}

static void check_settings(struct doctor *d)
{
    static const struct {
        const char *name, *must;
    } settings[] = {{"appendonly", "yes"}, {"appendfsync", "always"},
                    {"maxmemory-policy", "noeviction"}, {"notify-keyspace-events", NULL}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        char remedy[128];
        const char *name = settings[i].name, *must = settings[i].must;
        redisReply *r = ask(d, "CONFIG GET %s", name);
        if (is_error(r) || r->elements != 2) {
            find(d, false, name, "ask as a user that may CONFIG GET (penstock acl broker)",
                 "cannot be read: %s", is_error(r) ? words_of(r) : "unknown to this server");
        } else {
            const char *value = r->element[1]->str;
            bool told = strchr(value, 'K') != NULL &&
                        (strchr(value, 'l') != NULL || strchr(value, 'A') != NULL);
            snprintf(remedy, sizeof remedy, "CONFIG SET %s %s, and the same in redis.conf", name,
                     must != NULL ? must : "Kl");
            find(d, must != NULL ? strcmp(value, must) == 0 : told, name, remedy, "%s",
                 value[0] != '\0' ? value : "(empty)");
        }
        freeReplyObject(r);
    }
}

static void check_user(struct doctor *d)
{
    redisReply *r = ask(d, "ACL WHOAMI");
    if (is_error(r)) find(d, true, "user", "", "not known: %s", words_of(r));
    else find(d, true, "user", "", "%s", r->str);
    freeReplyObject(r);
    r = ask(d, "FUNCTION LIST LIBRARYNAME %s", QUEUE_LIBRARY);
    bool there = !is_error(r) && r->elements > 0;
    find(d, there, "function library", "start a broker on this Redis: it loads the library",
         "%s %s", QUEUE_LIBRARY, there ? "is loaded" : is_error(r) ? words_of(r) : "is not there");
    freeReplyObject(r);
}

static void check_clock(struct doctor *d)
{
    struct timespec now;
    redisReply *r = ask(d, "TIME");
    clock_gettime(CLOCK_REALTIME, &now);
    if (is_error(r) || r->elements != 2) {
        find(d, false, "clock", "ask as a user that may TIME", "%s", words_of(r));
    } else {
        long long redis_ms = atoll(r->element[0]->str) * 1000 + atoll(r->element[1]->str) / 1000;
        long long skew = redis_ms - (now.tv_sec * 1000ll + now.tv_nsec / 1000000);
        find(d, llabs(skew) < SKEW_MS, "clock", "keep both machines' clocks with NTP",
             "Redis is %+lld ms from this machine", skew);
    }
    freeReplyObject(r);
}

// Writes to a key of its own, which goes by itself.
static void check_sync(struct doctor *d)
{
    int64_t begun = clock_ms();
    for (int i = 0; i < SYNCS; i++) {
        redisReply *r = ask(d, "SET ps:{%s}:doctor %d PX 10000", d->queue, i);
        bool bad = is_error(r);
        if (bad) find(d, true, "write time", "", "not measured: %s", words_of(r));
        freeReplyObject(r);
        if (bad) return;
    }
    int64_t each = (clock_ms() - begun) / SYNCS;
    find(d, each < SLOW_SYNC_MS, "write time", "give Redis' append-only file a faster disk",
         "%lld ms for a durable write", (long long) each);
}

static void check_counts(struct doctor *d, struct queue_sync *q)
{
    struct queue_stats s;
    struct error e = {0};
    if (queue_sync_stats(q, &s, &e) != OK) {
        find(d, false, "queue", "start a broker, or ask as a viewer (penstock acl viewer)", "%s",
             e.text);
        return;
    }
    find(d, s.oldest_ms < OLD_MS, "oldest ready job", "are groups up? Does the pipeline serve?",
         "%llu ready, the oldest for %llu s", (unsigned long long) s.ready,
         (unsigned long long) s.oldest_ms / 1000);
    find(d, s.dead == 0, "dead letters", "look at them, then retry or purge them", "%llu",
         (unsigned long long) s.dead);
}

static void check_key(struct doctor *d, const char *path)
{
    struct stat s;
    if (path == NULL) return;
    if (stat(path, &s) != 0) {
        find(d, false, "key", "penstock keygen makes one", "%s is not there", path);
        return;
    }
    find(d, (s.st_mode & 077) == 0, "key", "chmod 600 it", "%s has mode %03o", path,
         (unsigned) s.st_mode & 0777);
}

static enum status examine(struct doctor *d, const struct queue_flags *f, const char *key,
                           struct error *e)
{
    struct redis_url url;
    struct queue_sync *q;
    try(redis_url_parse(f->url, &url, e));
    try(queue_flags_open(f, &q, e));
    struct timeval wait = {.tv_sec = CONNECT_SECONDS};
    d->c = url.host[0] != '\0' ? redisConnectWithTimeout(url.host, url.port, wait)
                               : redisConnectUnixWithTimeout(url.path, wait);
    if (d->c == NULL || d->c->err != 0) {
        queue_sync_close(&q);
        enum status status = redis_connection_error(d->c, &url, e);
        if (d->c != NULL) redisFree(d->c);
        return status;
    }
    redisSetTimeout(d->c, wait);
    if (url.user[0] != '\0') freeReplyObject(ask(d, "AUTH %s %s", url.user, url.password));
    else if (url.password[0] != '\0') freeReplyObject(ask(d, "AUTH %s", url.password));
    if (url.db != 0) freeReplyObject(ask(d, "SELECT %d", url.db));
    check_version(d);
    check_settings(d);
    check_user(d);
    check_clock(d);
    check_sync(d);
    check_counts(d, q);
    check_key(d, key);
    queue_sync_close(&q);
    redisFree(d->c);
    return OK;
}

int cmd_doctor(int argc, char **argv)
{
    struct queue_flags flags = queue_flags_default();
    struct doctor d = {0};
    const char *key = NULL;
    struct option_spec specs[] = {
        {.name = "key", .kind = OPTION_STRING, .value = &key, .argument = "FILE",
         .help = "A secret key whose file is looked at, too."},
        {.name = "json", .kind = OPTION_FLAG, .value = &d.json, .help = "One JSON object."},
        QUEUE_FLAG_ROWS(flags),
    };
    struct options o = {.program = "penstock doctor",
                        .usage = "[OPTIONS]",
                        .about = "Looks at Redis, the queue and keys; exit status 1 if something "
                                 "is wrong.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    d.queue = flags.queue;
    d.findings = json_array();
    enum status status = examine(&d, &flags, key, &e);
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
