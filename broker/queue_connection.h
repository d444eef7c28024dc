// The queue's connection to Redis: made, checked (version, settings, library, rights), watched for
// silence and made again with backoff; and the leader's lease, which is asked for and renewed over
// it. Owned by the loop's thread. Knows no calls but
// its own; who sends commands here gets each reply, or NULL when the connection ends.
#ifndef PENSTOCK_BROKER_QUEUE_CONNECTION_H
#define PENSTOCK_BROKER_QUEUE_CONNECTION_H

#include "broker/queue.h"
#include "broker/queue_lead.h"
#include "broker/redis_loop.h"

struct redisReply;
struct redisAsyncContext;

enum { QUEUE_KEY_SIZE = QUEUE_NAME_MAX + 16 };

enum queue_connection_state {
    CONNECTION_WAITING,    // for the next try
    CONNECTION_CONNECTING,
    CONNECTION_CHECKING,
    CONNECTION_STANDBY,   // another broker leads
    CONNECTION_READY,
    CONNECTION_ENDING,     // given up; open commands get their NULL replies
    CONNECTION_REFUSED,    // for good
    CONNECTION_CLOSED,
};

struct queue_connection {
    zloop_t *loop;
    struct redis_url url;
    char key[QUEUE_KEY_SIZE]; // ps:{name}:term, which routes every call
    bool accept_loss;
    int64_t timeout_ms;
    struct queue_events events;
    struct redis_link link;
    enum queue_connection_state state;
    int step;          // of the checks
    bool asks;         // for the lease, as the last of them
    struct queue_lead lead; // owner and lease_ms are set by the caller
    size_t n_open;     // commands without a reply
    size_t n_unsent;   // bytes of them, when it was last looked
    int64_t heard_ms;  // last sign of life while something is open
    int64_t backoff_ms;
    int retry_timer, silence_timer, lead_timer; // 0: none
    bool told_down;    // in this outage
    bool refusing;     // `why` is final
    struct error why;  // of the end that is under way; no error: the connection's own
};

void queue_connection_init(struct queue_connection *c, zloop_t *loop);

// Open commands get NULL replies; no event any more.
void queue_connection_close(struct queue_connection *c);

typedef void queue_connection_fn(struct redisAsyncContext *ac, void *reply, void *arg);

// ERR_UNAVAILABLE unless ready. Each reply's function calls queue_connection_replied first.
enum status queue_connection_send(struct queue_connection *c, int n, const char **args,
                                  const size_t *sizes, queue_connection_fn *fn, void *arg,
                                  struct error *e);

void queue_connection_replied(struct queue_connection *c, const struct redisReply *reply);

// An error that a call met may mean the end of the connection: a newer term, rights that were
// taken, a library that was removed, a master that is none any more.
void queue_connection_judge(struct queue_connection *c, const struct error *e);

#endif
