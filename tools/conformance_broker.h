// The broker's part of `penstock conformance producer`: takes, admits and ends the jobs of one
// tenant through the real Redis functions, and remembers what it saw. The answer to a prompt (or
// to the last message's content) is "re: " and the same again, with fields that no reader knows; a
// prompt "fail" fails. One thread; knows nothing of the program that is tried.
#ifndef PENSTOCK_TOOLS_CONFORMANCE_BROKER_H
#define PENSTOCK_TOOLS_CONFORMANCE_BROKER_H

#include "common/job.h"

struct redisContext;

// A message as it came.
struct seen {
    char id[JOB_ID_MAX + 1]; // empty: it could not be read
    enum job_op op;
    int class;
    bool stream;
    char custom_id[JOB_CUSTOM_ID_MAX + 1];
    char *prompt; // terminated; owned
    char refused[ERROR_TEXT_SIZE]; // why it is no job; empty: it is one
    int runs;          // of the job, counted at its first message
};

struct conformance_broker {
    struct redisContext *c;
    char queue[65];
    const char *tenant; // default
    char key[96], term[24];
    bool hold_takes, hold_runs;
    int most_runs; // a step; 0: all
    int n_claims;
    struct seen *seen; // in order of arrival
    int n_seen;
    int open, most_open; // taken and not ended: now, and the most since it was set to 0
};

// Takes over the connection. Loads the function library and takes the next term.
enum status conformance_broker_init(struct conformance_broker *b, struct redisContext *c,
                                    const char *queue, struct error *e);

// Removes the queue's keys, closes the connection.
void conformance_broker_deinit(struct conformance_broker *b);

// Takes what came and ends what is ready, as far as it is not told to hold.
enum status conformance_broker_step(struct conformance_broker *b, struct error *e);

// Publishes a chunk of a job's text; `entry` is its id in the stream.
enum { CONFORMANCE_ENTRY_SIZE = 48 };
enum status conformance_broker_publish(struct conformance_broker *b, const char *id, int attempt,
                                       size_t offset, const char *bytes, size_t n,
                                       char entry[CONFORMANCE_ENTRY_SIZE], struct error *e);

// Cancels a job as another producer would.
enum status conformance_broker_cancel(struct conformance_broker *b, const char *id,
                                      struct error *e);

// The first or last message with this id; NULL: none.
struct seen *conformance_first(struct conformance_broker *b, const char *id);
struct seen *conformance_last(struct conformance_broker *b, const char *id);

#endif
