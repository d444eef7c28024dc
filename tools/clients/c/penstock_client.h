// A client of Penstock's queue: jobs in, results out, over hiredis and msgpack-c. This file and its
// .c are all there is; nothing else of Penstock is needed. One thread at a time uses a client.
//
// Lost connections are made again, and what was cut off is said again with the same id, for
// `patience_ms`. Functions return enum penstock_code; penstock_error() says more.
#ifndef PENSTOCK_TOOLS_CLIENTS_C_PENSTOCK_CLIENT_H
#define PENSTOCK_TOOLS_CLIENTS_C_PENSTOCK_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum penstock_code {
    PENSTOCK_DONE,
    PENSTOCK_NONE,    // result: there is none (yet, or no more)
    PENSTOCK_TIMEOUT, // the job has not ended in time
    PENSTOCK_AWAY,    // Redis could not be reached, or was full, for longer than the patience
    PENSTOCK_REFUSED, // by Redis: login, rights
    PENSTOCK_INVALID, // an argument, or a reply that cannot be read
    PENSTOCK_NOMEM,
    PENSTOCK_DIFFERS, // what was streamed is not the result's text; only the result counts
};

enum { PENSTOCK_ID_SIZE = 65, PENSTOCK_ENTRY_SIZE = 48 };

struct penstock; // a client

// What is asked for. Zero: absent. The same job may be enqueued again: its id stays, it runs once.
struct penstock_job {
    const char *op;   // chat, completion, tokens, map_reduce
    const char *body; // an OpenAI request body as JSON text
    size_t body_bytes; // 0: it ends with a zero
    const char *model, *custom_id, *batch;
    int class;
    int attempts;
    int64_t at_ms, deadline_ms, ttl_ms;
    bool stream;
    char id[PENSTOCK_ID_SIZE];       // made by enqueue if empty
    char since[PENSTOCK_ENTRY_SIZE]; // last event before the push; set by enqueue
};

// What became of a job. Release with penstock_result_free.
struct penstock_result {
    char status[16];        // ok, error, cancelled, expired
    char finish_reason[16]; // empty: none
    char custom_id[520];
    char error_code[64]; // empty: no error; id_conflict: the id belongs to another job
    char error_message[512];
    bool retryable;
    char *text; // with a zero at its end; NULL: none
    size_t text_bytes;
    int32_t *tokens;
    size_t n_tokens;
    void *raw; // the whole msgpack map; NULL if there was none
    size_t raw_bytes;
};

// url: redis://[[user]:password@]host[:port] or unix://path. Copies its arguments; connects when it
// is needed. patience_ms 0: a minute.
enum penstock_code penstock_open(struct penstock **self, const char *url, const char *queue,
                                 const char *tenant, int64_t patience_ms);
void penstock_close(struct penstock **self);

// Why the last call failed, for people.
const char *penstock_error(const struct penstock *p);

enum penstock_code penstock_enqueue(struct penstock *p, struct penstock_job *job);
enum penstock_code penstock_cancel(struct penstock *p, const char *id);
enum penstock_code penstock_result(struct penstock *p, const char *id, struct penstock_result *r);

// The result at the job's end. Of `job` only id and since count: with an empty `since` (a job of an
// earlier process) the result is looked for first. timeout_ms < 0: without end.
enum penstock_code penstock_wait(struct penstock *p, const struct penstock_job *job,
                                 int64_t timeout_ms, struct penstock_result *r);

// The same, and the text as it comes: whole at the end, whatever came before. `offset`: bytes that
// are here already and don't come again. Pieces may cut a UTF-8 character. PENSTOCK_DIFFERS: the
// pieces were not the text of *r, which is there nevertheless.
typedef void penstock_piece_fn(void *arg, const char *bytes, size_t n);
enum penstock_code penstock_stream(struct penstock *p, const struct penstock_job *job,
                                   int64_t timeout_ms, size_t offset, penstock_piece_fn *piece,
                                   void *arg, struct penstock_result *r);

// Many jobs, at most `window` of them in the queue. `next` fills a job (its strings may go when it
// is called again) or returns false at the end; `ended` gets every result, in no order, which it
// may not keep.
typedef bool penstock_next_fn(void *arg, struct penstock_job *job);
typedef void penstock_ended_fn(void *arg, const char *id, const struct penstock_result *r);
enum penstock_code penstock_bulk(struct penstock *p, size_t window, penstock_next_fn *next,
                                 penstock_ended_fn *ended, void *arg);

void penstock_result_free(struct penstock_result *r);

#endif
