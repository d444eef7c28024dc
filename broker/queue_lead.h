// A broker's share in the leader's lease (queue_lead.lua): when to ask for it, and what the answer
// means. Pure; the queue's connection does the asking.
//
// The leader renews its lease three times within its length, and leads on while Redis is away:
// whoever took over meanwhile has a higher term. A broker that stands by asks twenty times within
// it. When its connection is made anew it first gives the leader a whole lease to come back, too,
// so that a pause of Redis changes nothing.
#ifndef PENSTOCK_BROKER_QUEUE_LEAD_H
#define PENSTOCK_BROKER_QUEUE_LEAD_H

#include "common/limits.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct redisReply;

struct queue_lead {
    char owner[BROKER_NAME_MAX + 1];
    int64_t lease_ms;
    uint64_t term;  // of this broker's leadership; 0: it does not lead
    char leader[BROKER_NAME_MAX + 1]; // whom it stands by; empty: nobody told so far
    uint64_t rules; // the leader's term
    bool asking;    // a question is on its way
    bool resigned;
    int64_t ask_ms; // next
};

// A new connection is made. True: ask on it at once.
bool queue_lead_connected(struct queue_lead *l, int64_t now_ms);

bool queue_lead_due(const struct queue_lead *l, int64_t now_ms);

// The answer of `lead`. *changed: it leads now, or another one does. Else the reply's error.
enum status queue_lead_answered(struct queue_lead *l, const struct redisReply *r, int64_t now_ms,
                                bool *changed, struct error *e);

// ERR_INPUT bad_name.
enum status queue_lead_check_name(const char *name, struct error *e);

#endif
