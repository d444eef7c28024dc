// What becomes of a map_reduce job next: the children that its document is split into, a further
// level of them, its own last run, or its result. Work for a pool's threads: a large document takes
// seconds. Pure but for the heap; knows no queue.
#ifndef PENSTOCK_BROKER_MAP_REDUCE_H
#define PENSTOCK_BROKER_MAP_REDUCE_H

#include "broker/prompt.h"
#include "broker/queue_split.h"

struct map_reduce_context {
    const struct models *models;
    int model; // index of the job's
    const struct prompt_limits *limits;
    const char *tenant;
    const struct prompt_scratch *scratch; // the thread's own
};

// Checks a job that has come in as far as it can be without looking at the whole document, and says
// its body's hash. ERR_INPUT: bad_job, bad_body, bad_sampling, bad_messages, ...; prompt_too_long:
// a request leaves no room for a chunk, or for results; ERR_UNSUPPORTED no_tokenizer; ERR_NOMEM.
enum status map_reduce_check(const struct map_reduce_context *c, const struct job *job,
                             char hash[JOB_HASH_SIZE], struct error *e);

// --- what a level made

struct map_reduce_results {
    struct buffer texts;      // one after another; at most MAP_RESULTS_MAX bytes
    size_t *ends;             // (n) of each
    int n, capacity;
    struct queue_usage usage; // of all levels up to here
    bool cut;                 // a text was ended by its max_tokens
};

// `prior`: usage of the levels before, as the queue tells it.
void map_reduce_results_init(struct map_reduce_results *r, const char *prior);
void map_reduce_results_deinit(struct map_reduce_results *r);

// The result of the next child. ERR_INPUT bad_result; ERR_LIMIT too_large; ERR_NOMEM.
enum status map_reduce_results_add(struct map_reduce_results *r, const void *result, size_t n,
                                   struct error *e);

// --- the next step

enum map_reduce_step {
    MAP_REDUCE_SPLIT, // `children` at the next level
    MAP_REDUCE_RUN,   // the job itself runs as children[0]
    MAP_REDUCE_END,   // with the result `bytes`
};

struct map_reduce_next {
    enum map_reduce_step step;
    struct buffer bytes;          // the children's messages, or the result
    struct queue_child *children; // (n) point into bytes and hashes
    char (*hashes)[JOB_HASH_SIZE];
    int n, capacity;
    struct buffer text; // END: of the result
    bool stream;        // END: the text is to be published, too
};

// `message` is the job's own; level: reached, 0: none; results: of that level's children. As
// map_reduce_check, and ERR_LIMIT too_many_chunks, too_large; ERR_INPUT bad_chunk,
// reduce_does_not_fit. Release with map_reduce_next_deinit, also after an error.
enum status map_reduce_take_on(struct map_reduce_next *to, const struct map_reduce_context *c,
                               const void *message, size_t n, int level,
                               const struct map_reduce_results *results, struct error *e);
void map_reduce_next_deinit(struct map_reduce_next *next);

#endif
