// Drives hiredis' asynchronous connections from a zloop: one poller a connection, writes gathered to
// one system call a turn of the loop. Owned by the loop's thread; knows nothing of jobs.
//
// A hung Redis makes no event: whoever sends commands keeps a timer and ends the connection with
// redisAsyncFree. SIGPIPE must be ignored by the program.
#ifndef PENSTOCK_BROKER_REDIS_LOOP_H
#define PENSTOCK_BROKER_REDIS_LOOP_H

#include "broker/redis.h"

typedef struct _zloop_t zloop_t;
struct redisAsyncContext;

// Begins to connect and attaches the connection to `loop`, which must outlive it; *ac's connect callback
// says how it went. The adapter frees itself when hiredis frees the connection. ERR_UNAVAILABLE if
// it failed at once.
enum status redis_loop_connect(zloop_t *loop, const struct redis_url *url,
                               struct redisAsyncContext **ac, struct error *e);

#endif
