// What the functions of the library answer, as structs: every reply is checked for its form, since
// a server that is not ours, or an older library, must not be able to crash the broker. Pure; any
// thread.
#ifndef PENSTOCK_BROKER_QUEUE_REPLY_H
#define PENSTOCK_BROKER_QUEUE_REPLY_H

#include "broker/queue.h"

struct redisReply;

enum queue_form {
    QUEUE_FORM_WORD,     // admit, reject, done, nack
    QUEUE_FORM_NUMBER,   // checkpoint, fail: [word, number]
    QUEUE_FORM_SAVED,    // stream: [word, number, shown]
    QUEUE_FORM_CANCEL,   // [word], or [running, attempt, owner]
    QUEUE_FORM_MESSAGES, // take, recover
    QUEUE_FORM_HEADERS,  // window
    QUEUE_FORM_JOBS,     // claim
    QUEUE_FORM_RENEWED,  // renew: [word, tenant, id, attempt, need]
    QUEUE_FORM_VERDICTS, // reap, promote: [word, tenant, id, attempt, owner]
    QUEUE_FORM_STATS,
    QUEUE_FORM_TENANTS,
    QUEUE_FORM_PAUSES, // pauses: [model, pipeline]
    QUEUE_FORM_JOINS,  // joins: [tenant, id, level, children]
    QUEUE_FORM_GATHER, // [ok, message, usage, [index, result or nil]...], or [word]
};

// Fills `to`, which points into the reply and into *storage (released with free, also after an
// error). reply NULL: redis_unavailable. n_asked: entries that the array must have (0: any number).
// The error is in to->error, too: ERR_IO redis_reply for a form that is not known.
enum status queue_reply_decode(enum queue_form form, size_t n_asked, const struct redisReply *reply,
                               struct queue_reply *to, void **storage);

#endif
