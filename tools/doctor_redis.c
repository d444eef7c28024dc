#include "broker/queue.h"
#include "broker/queue_lua.h"
#include "common/clock.h"
#include "tools/acl.h"
#include "tools/doctor.h"

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SKEW_MS = 2000, SLOW_SYNC_MS = 50, SYNCS = 5, DRY_ARGS_MAX = 6 };

static void check_version(struct doctor *d)
{
    redisReply *r = doctor_ask(d, "INFO server");
    const char *at = !doctor_failed(r) && r->str != NULL ? strstr(r->str, "redis_version:") : NULL;
    int version = at != NULL ? atoi(at + strlen("redis_version:")) : 0;
    doctor_find(d, version >= 7, "version", "functions need Redis 7 or newer, or valkey",
                "Redis %.*s", at != NULL ? (int) strcspn(at + 14, "\r\n") : 7,
                at != NULL ? at + 14 : "unknown");
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
        redisReply *r = doctor_ask(d, "CONFIG GET %s", name);
        if (r != NULL && r->type == REDIS_REPLY_ERROR && strncmp(r->str, "NOPERM", 6) == 0) {
            // A broker asks itself at its start.
            doctor_find(d, true, name, "", "not looked at: %s", doctor_words(r));
        } else if (doctor_failed(r) || r->elements != 2) {
            doctor_find(d, false, name, "ask as a user that may CONFIG GET (penstock acl broker)",
                        "cannot be read: %s",
                        doctor_failed(r) ? doctor_words(r) : "unknown to this server");
        } else {
            const char *value = r->element[1]->str;
            bool told = strchr(value, 'K') != NULL &&
                        (strchr(value, 'l') != NULL || strchr(value, 'A') != NULL);
            snprintf(remedy, sizeof remedy, "CONFIG SET %s %s, and the same in redis.conf", name,
                     must != NULL ? must : "Kl");
            doctor_find(d, must != NULL ? strcmp(value, must) == 0 : told, name, remedy, "%s",
                        value[0] != '\0' ? value : "(empty)");
        }
        freeReplyObject(r);
    }
}

// The same code, or another build's that happens to carry the version.
static bool check_library(struct doctor *d)
{
    redisReply *r = doctor_ask(d, "FUNCTION LIST LIBRARYNAME %s WITHCODE", QUEUE_LIBRARY);
    bool there = !doctor_failed(r) && r->elements > 0, same = false;
    const redisReply *of = there ? r->element[0] : NULL;
    for (size_t i = 0; there && i + 1 < of->elements; i += 2) {
        const redisReply *name = of->element[i], *code = of->element[i + 1];
        if (name->str == NULL || strcmp(name->str, "library_code") != 0) continue;
        same = code->len == queue_lua_size && memcmp(code->str, queue_lua, queue_lua_size) == 0;
    }
    doctor_find(d, there && same, "function library",
                there ? "start the brokers anew with the version of this tool"
                      : "start a broker on this Redis: it loads the library",
                "%s %s", QUEUE_LIBRARY,
                there ? same ? "is loaded" : "is loaded, but of another build"
                : doctor_failed(r) ? doctor_words(r) : "is not there");
    freeReplyObject(r);
    return there;
}

// Brokers need all that the library calls; others that it may be called to read.
static void check_user(struct doctor *d)
{
    redisReply *who = doctor_ask(d, "ACL WHOAMI");
    redisReply *r = doctor_ask(d, "FCALL selftest 1 ps:{%s}:term 0", d->name);
    const char *user = doctor_failed(who) || who->str == NULL ? "this user" : who->str;
    bool lacks = r != NULL && r->type == REDIS_REPLY_ERROR && strncmp(r->str, "SELFTEST ", 9) == 0;
    doctor_find(d, !lacks, "user", "give it the rights that penstock acl broker prints", "%s %s%s",
                user, doctor_failed(r) ? lacks ? "lacks a right of brokers: " : "is no broker: "
                                       : "may do all that a broker does",
                doctor_failed(r) ? doctor_words(r) : "");
    freeReplyObject(who);
    freeReplyObject(r);
}

// Whether Redis would let the user run a command: true also if that cannot be said.
static bool may_run(struct doctor *d, const char *user, const char *command)
{
    char words[64];
    const char *args[DRY_ARGS_MAX + 6] = {"ACL", "DRYRUN", user, words};
    char key[QUEUE_NAME_MAX + 16];
    bool may = true, said = false;
    int n = 4;
    snprintf(words, sizeof words, "%s", command);
    snprintf(key, sizeof key, "ps:{%s}:term", d->name);
    char *sub = strchr(words, '|');
    if (sub != NULL) {
        *sub = '\0';
        args[n++] = sub + 1;
    }
    // Redis looks at the rights once there are as many arguments as the command wants.
    for (int more = 0; !said && more <= DRY_ARGS_MAX; more++, args[n++] = key) {
        redisReply *r = redisCommandArgv(d->c, n, args, NULL);
        if (r == NULL) return true;
        said = r->type != REDIS_REPLY_ERROR;
        if (said && r->str != NULL) may = strstr(r->str, "no permissions to run") == NULL;
        freeReplyObject(r);
    }
    return may;
}

// Whether the role's user, if there is one, has what `penstock acl` prints today.
static void check_role(struct doctor *d, enum acl_role role, const char *user)
{
    char rules[ACL_RULES_MAX], missing[ACL_RULES_MAX] = "";
    redisReply *r = doctor_ask(d, "ACL GETUSER %s", user);
    bool known = !doctor_failed(r) && r->type != REDIS_REPLY_NIL; // and this user may look
    freeReplyObject(r);
    if (!known) return;
    acl_rules(role, d->name, "default", d->db, rules);
    for (char *save, *word = strtok_r(rules, " ", &save); word != NULL;
         word = strtok_r(NULL, " ", &save)) {
        size_t used = strlen(missing);
        if (word[0] != '+' || may_run(d, user, word + 1)) continue;
        snprintf(missing + used, sizeof missing - used, " %s", word);
    }
    doctor_find(d, missing[0] == '\0', user, "make the user again with penstock acl", "%s%.300s",
                missing[0] == '\0' ? "has its rights" : "lacks", missing);
}

static void check_roles(struct doctor *d)
{
    char user[QUEUE_NAME_MAX + 16];
    snprintf(user, sizeof user, "broker-%s", d->name);
    check_role(d, ACL_BROKER, user);
    snprintf(user, sizeof user, "viewer-%s", d->name);
    check_role(d, ACL_VIEWER, user);
}

// Redis runs its append-only file with the rights of the user `default`, and drops a transaction,
// which is what a function wrote, that these do not cover. Only an administrator may look.
static void check_default(struct doctor *d)
{
    redisReply *r = doctor_ask(d, "ACL DRYRUN default SET ps:{%s}:term 0", d->name);
    bool may = !doctor_failed(r) && r->str != NULL && strcmp(r->str, "OK") == 0;
    if (!doctor_failed(r)) {
        doctor_find(d, may, "default user",
                    "ACL SETUSER default ~* &* +@all (off or on), and so in the ACL file",
                    "%s",
                    may ? "has the rights that reading the append-only file takes"
                        : "lacks rights: at its next start Redis loses what functions wrote");
    }
    freeReplyObject(r);
}

static void check_clock(struct doctor *d)
{
    struct timespec now;
    redisReply *r = doctor_ask(d, "TIME");
    clock_gettime(CLOCK_REALTIME, &now);
    if (doctor_failed(r) || r->elements != 2) {
        doctor_find(d, false, "clock", "ask as a user that may TIME", "%s", doctor_words(r));
    } else {
        long long redis_ms = atoll(r->element[0]->str) * 1000 + atoll(r->element[1]->str) / 1000;
        long long skew = redis_ms - (now.tv_sec * 1000ll + now.tv_nsec / 1000000);
        doctor_find(d, llabs(skew) < SKEW_MS, "clock", "keep both machines' clocks with NTP",
             "Redis is %+lld ms from this machine", skew);
    }
    freeReplyObject(r);
}

// Writes to a key of its own, which goes by itself.
static void check_sync(struct doctor *d)
{
    int64_t begun = clock_ms();
    for (int i = 0; i < SYNCS; i++) {
        redisReply *r = doctor_ask(d, "SET ps:{%s}:doctor %d PX 10000", d->name, i);
        bool bad = doctor_failed(r);
        if (bad) doctor_find(d, true, "write time", "", "not measured: %s", doctor_words(r));
        freeReplyObject(r);
        if (bad) return;
    }
    int64_t each = (clock_ms() - begun) / SYNCS;
    doctor_find(d, each < SLOW_SYNC_MS, "write time", "give Redis' append-only file a faster disk",
         "%lld ms for a durable write", (long long) each);
}

void doctor_redis(struct doctor *d)
{
    check_version(d);
    check_settings(d);
    if (check_library(d)) check_user(d);
    check_roles(d);
    check_default(d);
    check_clock(d);
    check_sync(d);
}
