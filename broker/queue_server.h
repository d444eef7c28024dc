// What a Redis server must be before a queue may live in it: new enough, a master, and with
// settings that lose no acknowledged job. Pure: judges replies. Any thread.
#ifndef PENSTOCK_BROKER_QUEUE_SERVER_H
#define PENSTOCK_BROKER_QUEUE_SERVER_H

#include "common/status.h"

struct redisReply;

// The reply of HELLO. ERR_UNSUPPORTED redis_too_old, redis_login; ERR_UNAVAILABLE redis_replica.
enum status queue_server_hello(const struct redisReply *r, struct error *e);

// The reply of CONFIG GET of the settings that queue_server_settings_asked names. ERR_UNSUPPORTED
// redis_unsafe (names the setting and says what to do), redis_settings (they cannot be read).
enum status queue_server_settings(const struct redisReply *r, struct error *e);

// NULL ends the list.
extern const char *const queue_server_settings_asked[];

// The reply of FUNCTION LOAD; a library that is there already is fine.
enum status queue_server_load(const struct redisReply *r, struct error *e);

// The reply of FCALL selftest. ERR_UNSUPPORTED redis_forbidden names the command.
enum status queue_server_selftest(const struct redisReply *r, struct error *e);

#endif
