#include "broker/queue_server.h"

#include "broker/redis.h"

#include <hiredis/hiredis.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION_LEAST = 7 }; // the first with functions

const char *const queue_server_settings_asked[] = {"appendonly", "appendfsync", "maxmemory-policy",
                                                   NULL};

static const struct {
    const char *name, *must, *why;
} settings[] = {
    {"appendonly", "yes", "a crash of Redis would lose acknowledged jobs"},
    {"appendfsync", "always", "a crash of Redis would lose the jobs of its last second or more"},
    {"maxmemory-policy", "noeviction", "a full Redis would throw jobs away"},
};

// The value behind a name in a flat list of names and values, or NULL.
static const char *value_of(const redisReply *r, const char *name)
{
    for (size_t i = 0; r->type == REDIS_REPLY_ARRAY && i + 1 < r->elements; i += 2) {
        const redisReply *key = r->element[i], *value = r->element[i + 1];
        if (key->type != REDIS_REPLY_STRING || value->type != REDIS_REPLY_STRING) continue;
        if (strcmp(key->str, name) == 0) return value->str;
    }
    return NULL;
}

static enum status too_old(const char *version, struct error *e)
{
    return error_set(
        e, ERR_UNSUPPORTED, "redis_too_old",
        "Redis %s is too old: a queue needs functions, which came with Redis 7 (Debian 12, "
        "Ubuntu 24.04 and newer have it; valkey will do, too)",
        version);
}

enum status queue_server_hello(const redisReply *r, struct error *e)
{
    if (r->type == REDIS_REPLY_ERROR && strncmp(r->str, "ERR ", 4) == 0) {
        return too_old("(older than 6.2)", e); // HELLO without arguments is not known
    }
    try(redis_reply_check(r, e));
    const char *version = value_of(r, "version"), *role = value_of(r, "role");
    if (version == NULL) {
        return error_set(e, ERR_IO, "redis_reply", "Redis answered HELLO without its version");
    }
    if (atoi(version) < VERSION_LEAST) return too_old(version, e);
    if (role != NULL && strcmp(role, "master") != 0) {
        return error_set(e, ERR_UNAVAILABLE, "redis_replica",
                         "this Redis is a %s: the queue's URL must name the master", role);
    }
    return OK;
}

enum status queue_server_settings(const redisReply *r, struct error *e)
{
    if (redis_reply_check(r, e) != OK) {
        if (e->status == ERR_UNAVAILABLE) return e->status;
        char why[ERROR_TEXT_SIZE];
        memcpy(why, e->text, sizeof why);
        return error_set(
            e, ERR_UNSUPPORTED, "redis_settings",
            "the settings of Redis cannot be read (%.200s): allow CONFIG GET, or start with "
            "--accept-loss if you know that they are safe",
            why);
    }
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        const char *value = value_of(r, settings[i].name);
        if (value == NULL) {
            return error_set(
                e, ERR_UNSUPPORTED, "redis_settings",
                "Redis does not say what %s is; start with --accept-loss if you know that it "
                "is %s",
                settings[i].name, settings[i].must);
        }
        if (strcmp(value, settings[i].must) == 0) continue;
        return error_set(
            e, ERR_UNSUPPORTED, "redis_unsafe",
            "%s is %.32s, but must be %s: %s. Set \"%s %s\" in redis.conf (now: redis-cli "
            "CONFIG SET %s %s), or start with --accept-loss",
            settings[i].name, value, settings[i].must, settings[i].why, settings[i].name,
            settings[i].must, settings[i].name, settings[i].must);
    }
    return OK;
}

enum status queue_server_load(const redisReply *r, struct error *e)
{
    if (r->type == REDIS_REPLY_ERROR && strstr(r->str, "already exists") != NULL) return OK;
    return redis_reply_check(r, e);
}

enum status queue_server_selftest(const redisReply *r, struct error *e)
{
    if (r->type == REDIS_REPLY_ERROR && strncmp(r->str, "SELFTEST ", 9) == 0) {
        return error_set(e, ERR_UNSUPPORTED, "redis_forbidden",
                         "the user of the Redis URL lacks a right: %s", r->str + 9);
    }
    return redis_reply_check(r, e);
}
