// The table of running attempts, and what `jobs` keeps with it. Inside of jobs.c, jobs_pipeline.c
// and jobs_head.c only.
#ifndef PENSTOCK_BROKER_ATTEMPTS_H
#define PENSTOCK_BROKER_ATTEMPTS_H

#include "broker/account.h"
#include "broker/jobs.h"
#include "broker/pending_text.h"
#include "common/log.h"

enum { ATTEMPT_BUCKETS = 1024 };
#define ATTEMPT_MAX (1ull << 53) // Redis' functions count exactly up to here

enum attempt_state {
    CLAIMED,  // its bytes are being read
    AT_HEAD,
    REPORTED, // the head's result is on its way to Redis
    ENDING,   // so is an outcome of the broker's own
    GONE,     // over: waits for the calls that are open
};

enum outcome { NACK, NACK_LOST, FAIL };

// One attempt at a job. It is owned by the table, from jobs_add (or the head's HELLO, or a RESULT
// that nobody asked for) until Redis has its outcome, or says that it is another's.
struct attempt {
    struct jobs *jobs;
    struct attempt *next; // in its bucket
    struct job_key key;
    enum attempt_state state;
    struct account *account; // of the pipeline that has it, or will; NULL: none
    bool credited;        // credit of that account was taken for it
    uint64_t need_blocks, steps; // steps: that it takes at most
    bool need_known;      // false until the first renewal of an attempt that was found at the head
    bool poison;
    bool counted;         // in an adopted head's account
    bool seen;            // in the HELLO that is looked at
    bool foreign;         // nothing is known of it but its RESULT
    bool over;            // its RESULT has come: the head has its slot back
    bool open;            // a call about its outcome is
    int64_t queued_ms;    // since when it is in the queue; 0: not known
    bool saving;          // a checkpoint call is
    bool stuck;           // tokens are missing between checkpoint and `ids`
    int32_t *ids;         // (n_ids) generated tokens from `first_id` on
    int first_id, n_ids, room;
    int n_saved;          // of all generated, in Redis
    bool plain;           // known not to stream
    struct pending_text text;
    bool mute;            // Redis did not take its text: none until the head says all of it again
    int64_t given_up_ms;  // AT_HEAD: asked since then to end with what it has; 0: not
    enum wire_reason reason;
    enum outcome outcome;
    struct error why;     // FAIL
    bool retryable;
    uint8_t *result;      // FAIL: owned; NULL: made by the library
    size_t n_result;
    struct peer from;     // REPORTED: who waits for COMMITTED
};

struct jobs {
    struct jobs_options options;
    struct attempt *buckets[ATTEMPT_BUCKETS];
    int n, n_active;
    size_t text_bytes;     // pending, of all
    struct histogram done_times;
    int64_t now_ms, renewed_ms, saved_ms, retried_ms;
    int saved_bucket; // whose attempts are the next to be saved
    int n_accounts; // places in use, free ones among them
    struct account accounts[MODELS_MAX * PIPELINES_MAX];
    struct dispatch_running running[JOBS_MAX]; // what the last view lists
};

// --- the table (attempts.c)

struct attempt *attempts_find(const struct jobs *j, uint64_t attempt);
struct attempt *attempts_find_key(const struct jobs *j, const struct job_key *key);

// ERR_LIMIT, ERR_NOMEM; ERR_INPUT for a key that no job has: one of these in a call to Redis, and
// all that the call is about would be refused.
enum status attempts_insert(struct jobs *j, const struct job_key *key, enum attempt_state state,
                            bool poison, struct attempt **to);

void attempt_set_state(struct attempt *a, enum attempt_state state);
void attempt_set_account(struct attempt *a, struct account *account);
bool attempt_is_active(const struct attempt *a); // claimed, or at the head

// It is over; dropped now, or by the last call that is open.
void attempt_drop(struct attempt *a);

// fn may drop the attempt it is given, and no other.
typedef void attempt_fn(struct attempt *a);
void attempts_each(struct jobs *j, attempt_fn *fn);
void attempts_in(struct jobs *j, int bucket, attempt_fn *fn);
void attempts_of(struct jobs *j, const struct account *account, attempt_fn *fn);
void attempts_free(struct jobs *j);

struct queue_attempt attempt_name(const struct attempt *a);
void attempt_log(enum log_level level, const char *event, const struct attempt *a, const char *word,
                 const char *code);

// --- what both halves use (jobs.c)

// The head never got it, or refused it.
void attempt_give_credit_back(struct attempt *a);

// Begins an outcome of the broker's own, and repeats it until Redis has it.
void attempt_end(struct attempt *a, enum outcome outcome);

// It fails; result NULL: made by the library.
void attempt_refuse(struct attempt *a, const struct error *why, bool retryable,
                    const uint8_t *result, size_t n_result);

// What Redis takes for a code.
const char *attempt_code(const char *code);

// --- what the head said (jobs_head.c)

void attempt_save(struct attempt *a); // its tokens, if there are new ones

// What an adopted head's account waited for may be known now.
void jobs_settle(struct jobs *j, struct account *account);

// Renews all leases, and learns what the attempts need that were found running.
void jobs_renew(struct jobs *j);

// --- pipelines (jobs_pipeline.c)

struct account *jobs_account(struct jobs *j, uint64_t epoch); // NULL: it does not serve any more
struct account *jobs_headed_by(struct jobs *j, const struct peer *head); // NULL: none

void jobs_say_cancel(struct jobs *j, const struct peer *head, const struct job_key *key,
                     enum wire_reason reason);

#endif
