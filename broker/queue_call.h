// One call of the function library, put together and sent: what the queue's files share, each of
// which has the calls of its own. Not for others: see queue.h, queue_split.h.
#ifndef PENSTOCK_BROKER_QUEUE_CALL_H
#define PENSTOCK_BROKER_QUEUE_CALL_H

#include "broker/queue.h"
#include "broker/queue_reply.h"

enum {
    CALL_FIXED_ARGS = 4,                    // FCALL name 1 key
    CALL_SMALL_ARGS = CALL_FIXED_ARGS + 18, // of the calls that need no list
    CALL_NUMBER_SIZE = 24,
};

// The arguments of a call while it is put together.
struct args {
    size_t n, room;
    const char **at;
    size_t *sizes;
    char (*digits)[CALL_NUMBER_SIZE]; // one for each argument
    void *memory;
    const char *small_at[CALL_SMALL_ARGS];
    size_t small_sizes[CALL_SMALL_ARGS];
    char small_digits[CALL_SMALL_ARGS][CALL_NUMBER_SIZE];
};

// Begins a call of `function` with n more arguments, the first of which is the term.
// ERR_UNAVAILABLE, ERR_LIMIT (too many are open), ERR_NOMEM.
enum status call_begin(struct queue *q, struct args *a, const char *function, size_t n);

// What they point to must last until call_end. NULL stands for no bytes.
void put_bytes(struct args *a, const void *bytes, size_t n);
void put(struct args *a, const char *text);
void put_sentence(struct args *a, const char *text); // without a last character that was cut
void put_number(struct args *a, uint64_t number);
void put_ms(struct args *a, int64_t ms); // a negative one is 0

// Sends it, all arguments being there. n_asked: entries that the reply must have; 0: any number.
// ERR_LIMIT: too many bytes are open.
enum status call_end(struct queue *q, struct args *a, enum queue_form form, size_t n_asked,
                     queue_fn *fn, void *arg);

#endif
