// The body of a map_reduce job: a long document, the request that each chunk of it becomes, and the
// one that joins the answers. Any thread. Knows neither tokens nor the queue.
#ifndef PENSTOCK_COMMON_MAP_REDUCE_BODY_H
#define PENSTOCK_COMMON_MAP_REDUCE_BODY_H

#include "common/buffer.h"
#include "common/job.h"

// A request with places in its texts: {chunk} (map) or {results} (reduce), {index} and {count}.
struct map_reduce_request {
    const char *name;            // "map" or "reduce"
    const struct json_t *fields; // of the body; NULL: there is none
    enum job_op op;              // JOB_CHAT with messages, else JOB_COMPLETION
    int max_tokens;              // 0: not given
    bool numbered;               // has {index} or {count}
};

struct map_reduce_body {
    struct json_t *root; // holds the rest
    int n_texts;         // of the document: a chunk is never of two
    struct map_reduce_request map, reduce;
    int chunk_tokens;    // 0: what fits
    int overlap_tokens;  // -1: not given
    const char *separator;
    size_t separator_bytes;
};

// Parses the body of a map_reduce job, and tries both requests as the bodies that they become, so
// that whatever is wrong with one is told now. ERR_INPUT bad_job (the id is too long), bad_body,
// bad_sampling; ERR_UNSUPPORTED unsupported; ERR_LIMIT too_large; ERR_NOMEM. Release with
// map_reduce_body_deinit, also after an error.
enum status map_reduce_body_parse(struct map_reduce_body *b, const struct job *job,
                                  struct error *e);
void map_reduce_body_deinit(struct map_reduce_body *b);

// The i-th text of the document, n bytes.
const char *map_reduce_text(const struct map_reduce_body *b, int i, size_t *n);

// What job_body_hash is to other jobs.
enum status map_reduce_body_hash(const struct map_reduce_body *b, const struct job *job,
                                 char hash[JOB_HASH_SIZE], struct error *e);

struct map_reduce_fill {
    const char *text; // n bytes for {chunk} or {results}
    size_t n;
    int index, count; // from 1 on
};

// Appends the request's body as JSON with its places filled. What is put in is not looked at again.
// ERR_LIMIT too_large, ERR_NOMEM.
enum status map_reduce_fill(const struct map_reduce_request *r, const struct map_reduce_fill *f,
                            struct buffer *to, struct error *e);

#endif
