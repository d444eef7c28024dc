// Drives hiredis' asynchronous connections from a zloop: one poller a connection, writes gathered
// to one system call a turn of the loop. Owned by the loop's thread; knows nothing of jobs.
//
// A hung Redis makes no event: whoever sends commands keeps a timer and ends the connection with
// redis_link_cut. SIGPIPE must be ignored by the program.
#ifndef PENSTOCK_BROKER_REDIS_LOOP_H
#define PENSTOCK_BROKER_REDIS_LOOP_H

#include "broker/redis.h"

#include <stdbool.h>

typedef struct _zloop_t zloop_t;
struct redisAsyncContext;

// One connection after another, on the owner's storage, zero at first. It must outlive the turn of
// the loop in which the connection ended: the loop may still hold an event of it.
struct redis_link {
    struct redisAsyncContext *ac; // NULL: not connected, nor trying
    zloop_t *loop;
    int fd;
    int flush_timer; // 0: none
    bool flushing;   // inside a flush
    bool polls_out;  // POLLOUT is armed
};

// Begins to connect; the callbacks set on link->ac say how that went. A link that has ended is
// connected again in a later turn of the loop, never in the same one. ERR_UNAVAILABLE if it failed
// at once.
enum status redis_link_connect(struct redis_link *link, zloop_t *loop, const struct redis_url *url,
                               struct error *e);

// Ends the connection, at once or when the running callback returns; open commands get NULL
// replies.
void redis_link_cut(struct redis_link *link);

// Bytes of commands that have not left yet.
size_t redis_link_unsent(const struct redis_link *link);

#endif
