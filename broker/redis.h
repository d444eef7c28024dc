// What the asynchronous and the blocking Redis client share: the URL, the words for failures, the
// counts of `stats`. No I/O here; any thread. It knows Redis, not what a job is.
#ifndef PENSTOCK_BROKER_REDIS_H
#define PENSTOCK_BROKER_REDIS_H

#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct redisReply;
struct redisContext;

enum { REDIS_HOST_MAX = 256, REDIS_USER_MAX = 128, REDIS_PASSWORD_MAX = 512 };

// redis://[[user]:password@]host[:port][/db], rediss:// for TLS (redis_tls.h), or
// unix://path[?db=N] (also unix:path).
struct redis_url {
    bool tls;
    char host[REDIS_HOST_MAX + 1]; // empty: `path` is a unix socket
    char path[REDIS_HOST_MAX + 1];
    int port;
    int db;
    char user[REDIS_USER_MAX + 1];
    char password[REDIS_PASSWORD_MAX + 1]; // percent escapes decoded; never logged
};

// ERR_INPUT bad_redis_url, with what is wrong with it; ERR_UNSUPPORTED no_tls for rediss:// where
// this build has no TLS.
enum status redis_url_parse(const char *text, struct redis_url *url, struct error *e);

// The URL without its password, for people.
void redis_url_show(const struct redis_url *url, char *text, size_t n);

// [A-Za-z0-9_-]{1,most}: names of queues and tenants, job ids. ERR_INPUT bad_name.
enum status redis_name_check(const char *what, const char *name, size_t most, struct error *e);

// The status of an error reply: stale_term (ERR_STATE), redis_full (ERR_LIMIT), redis_loading
// (ERR_UNAVAILABLE), no_library (ERR_UNAVAILABLE), redis_forbidden, redis_login, bad_argument
// (ERR_INPUT), else redis_error (ERR_IO). reply NULL: redis_unavailable, the outcome is unknown.
// OK for every other reply.
enum status redis_reply_check(const struct redisReply *reply, struct error *e);

// ERR_UNAVAILABLE with why the connection could not be made or was lost.
enum status redis_connection_error(const struct redisContext *c, const struct redis_url *url,
                                   struct error *e);

// Limits of what one reply may make hiredis allocate. Call once a connection has been made.
void redis_reader_limit(struct redisContext *c);

// What FCALL stats says. Ages by the clock of Redis.
struct queue_stats {
    uint64_t term;
    uint64_t inbox, taken, ready, delayed, running, dead; // now
    uint64_t oldest_ms;                                   // age of the oldest ready job
    uint64_t raw; // messages whose bytes are kept
    uint64_t bytes;                  // of messages that wait or run
    uint64_t paused, paused_tenants; // the queue (0, 1); how many tenants
    // Since the queue was made:
    uint64_t admitted, done, failed, cancelled, expired, rejected, duplicates, conflicts, retried,
        lost, stale;
};

enum status queue_stats_decode(const struct redisReply *reply, struct queue_stats *stats,
                               struct error *e);

#endif
