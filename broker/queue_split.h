// The queue's calls for jobs that are split: a parent waits while its children run, level by level,
// then it runs itself or ends with what they made (queue_split.lua). As queue.h's calls, each may
// be repeated after an unknown outcome. Owned by the loop's thread.
#ifndef PENSTOCK_BROKER_QUEUE_SPLIT_H
#define PENSTOCK_BROKER_QUEUE_SPLIT_H

#include "broker/queue.h"

// A parent at the level that it has reached: 0 before it was split.
struct queue_parent {
    const char *tenant, *id;
    int level;
};

// Tokens of what was done for a job so far.
struct queue_usage {
    uint64_t prompt, cached, completion;
};

// Reads it as queue_job and gather tell it; anything else is none.
struct queue_usage queue_usage_read(const char *text);

struct queue_child {
    const char *body_hash; // hex; equal hashes mean the same request
    uint64_t need_blocks, n_prompt, max_tokens;
    const uint8_t *message;
    size_t n_message;
};

// Up to `limit` parents of a model that can be taken on, longest waiting first. They are named
// until that was done.
enum status queue_joins(struct queue *q, const char *model, size_t limit, queue_fn *fn,
                        void *arg);

// Results of the children of the parent's level, index > after, in order: at most max_bytes, at
// least one. With after 0 also the parent's message. QUEUE_OK, _STALE (it is elsewhere), _UNKNOWN.
enum status queue_gather(struct queue *q, const struct queue_parent *p, int after,
                         size_t max_bytes, queue_fn *fn, void *arg);

// Puts n children, at most MAP_CHUNKS_MAX, at the next level; usage: of all levels so far. A child
// that was made before with the same request and ended well is taken over. QUEUE_OK, _ID_CONFLICT
// (a child's id belongs to another job), _LATER (an earlier life's children still end), _STALE,
// _UNKNOWN.
enum status queue_split(struct queue *q, const struct queue_parent *p,
                        const struct queue_usage *usage, const struct queue_child *children,
                        size_t n, queue_fn *fn, void *arg);

// The parent is ready, with another message (its own is kept for a retry). QUEUE_OK, _STALE,
// _UNKNOWN.
enum status queue_reduce(struct queue *q, const struct queue_parent *p,
                         const struct queue_usage *usage, const struct queue_child *run,
                         queue_fn *fn, void *arg);

// Ends it: with a result, or, if `why` is not NULL, as a dead letter (result NULL: the library
// makes one). text: of the result, published before the event if the job streams. QUEUE_OK, _STALE,
// _UNKNOWN.
enum status queue_joined(struct queue *q, const struct queue_parent *p, const struct error *why,
                         const uint8_t *result, size_t n, const struct queue_text *text,
                         queue_fn *fn, void *arg);

#endif
