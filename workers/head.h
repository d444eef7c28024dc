// The head of a pipeline: its sequences, their KV blocks, what the next step holds and what becomes
// of the tokens that come back. Pure: no sockets, no clock (`now_ms` comes in). Leader's thread of
// stage 0. A sequence enters only with the blocks of prompt + max_tokens, so nothing is ever
// preempted; they are free again in the moment it ends, because every stage does steps in order.
//
// Scheduler and KV allocator live in `memory` and are sealed. What belongs to one job alone is
// control and uses the heap, within WIRE_BODY_MAX bytes a job: its text as it grows, its logprobs,
// its result until COMMITTED.
#ifndef PENSTOCK_WORKERS_HEAD_H
#define PENSTOCK_WORKERS_HEAD_H

#include "common/wire.h"
#include "workers/kv.h"
#include "workers/pace.h"
#include "workers/sched.h"
#include "workers/seq.h"
#include "workers/step.h"

struct head_options {
    const struct model_config *config;   // borrowed
    const struct tokenizer *tokenizer;   // borrowed; NULL: results have no text
    struct step_limits limits;
    int max_context;      // tokens of one sequence
    int chunk;            // most prefill rows of one sequence in a step; 0: the budget
    int steps_in_flight;  // most
    int stages;
    int64_t fill_ms, step_ms;         // sched.h
    const struct device_rates *rates; // copied: of the devices, to begin with; NULL: unknown
    int tp;
    bool f32;             // exact mode
    const char *model_hash, *plan_hash;  // copied
    int report_tokens;    // TOKENS leave after so many new ones, or
    int64_t report_ms;    // after this time; jobs with `stream`: STREAM_REPORT_TOKENS, _MS
    void *memory;         // head_bytes; outlives the head
};

// A result that waits for COMMITTED.
struct kept_result {
    struct kept_result *next;
    struct job_key key;
    struct buffer bytes;
    int64_t sent_ms; // 0: never
};

// What leaves the head; borrowed bytes. `result` and `tokens` are only hints to send: false means
// that it could not leave now; it is offered again by head_report.
struct head_events {
    void *arg;
    bool (*tokens)(void *arg, const struct wire_tokens *t);
    bool (*result)(void *arg, const struct kept_result *r);
    void (*logits)(void *arg, const struct wire_logits *l);
};

struct head_counts { // since head_create
    uint64_t prefill; // rows of ids that were known at ACCEPT
    uint64_t again;   // of these, of jobs that an earlier attempt had begun
    uint64_t decode;  // tokens chosen
};

// A step that is in flight.
struct head_flight {
    struct pace_step step;
    int64_t planned_ns;
    int n_out; // tokens that it brings
};

// The row that a token follows.
struct head_out {
    int32_t slot, pos;
};

struct head {
    struct head_options options;
    struct head_events events;
    char model_hash[WIRE_HASH_MAX + 1], plan_hash[WIRE_HASH_MAX + 1];
    struct seq *seqs;          // (slots)
    uint64_t *opened; // (slots) number of the step that opened the slot's sequence; 0: not yet
    bool *to_close;            // (slots) CLOSE has to travel
    int32_t *ids;              // (slots, max_blocks * KV_BLOCK_ROWS)
    int32_t *blocks;           // (slots, max_blocks)
    int *n_blocks;             // (slots)
    struct kv kv;
    struct pace pace;          // of the steps so far
    struct sched sched;
    struct head_flight flights[STEPS_IN_FLIGHT_MAX]; // by step number
    struct head_out *outs;     // (STEPS_IN_FLIGHT_MAX, max_out) of each of them
    uint64_t n_back;           // number of the step that came back last
    int64_t back_ns;           // when it did
    uint64_t granted_slots, granted_blocks; // CREDIT: ever
    uint64_t n_steps;          // planned so far
    int n_running;
    struct kept_result *kept;  // newest first
    int n_kept;
    uint64_t n_late;           // tokens of sequences that had ended
    struct head_counts counts;
};

// Bytes of all tables, for sequences as long as max_blocks allow.
uint64_t head_bytes(const struct step_limits *l);

enum status head_create(struct head **head, const struct head_options *o,
                        const struct head_events *events, struct error *e);

// Gives everything back; what runs is forgotten (the broker's leases bring it back).
void head_destroy(struct head **head);

// Takes a job, or says why not: ERR_LIMIT no_credit (slots or blocks), ERR_INPUT bad_job (longer
// than max_context, ids out of range), ERR_NOMEM. A key that runs or has ended here already is
// accepted again.
enum status head_accept(struct head *h, const struct wire_job *job, int64_t now_ms,
                        struct error *e);

// Ends a sequence with what it has; the result's status is the reason. No later step has rows of
// it. Unknown keys are ignored.
void head_cancel(struct head *h, const struct job_key *key, enum wire_reason reason,
                 int64_t now_ms);

// Fills the next step (reset here; expanded). False: nothing to run yet; ask again when a step is
// back, a job has come, or head_plan_due says so.
bool head_plan(struct head *h, struct step *s, int64_t now_ns);

// When a step that waits for more rows leaves; INT64_MAX: none does.
int64_t head_plan_due(const struct head *h);

// The tokens of a step are back, in order of its out rows. logits (n, vocab) in score mode, else
// NULL. Once for each step, in their order; the intervals teach the pace. ERR_INPUT bad_step if
// they are not exactly those of the rows that the step had: then nothing is taken, and the epoch
// must end.
enum status head_tokens(struct head *h, uint64_t step, const struct step_token *tokens, int n,
                        const float *logits, int64_t now_ns, struct error *e);

// Offers what is due: TOKENS, and RESULTs never sent or sent more than `again_ms` ago.
// Returns when TOKENS are due next; INT64_MAX: there is nothing to tell.
int64_t head_report(struct head *h, int64_t now_ms, int64_t again_ms);

// Another broker listens, or the connection is new: this attempt's tokens are told from its
// beginning, and the text of a stream from its own.
void head_report_again(struct head *h);

// The broker has the result (or nobody wants it).
void head_committed(struct head *h, const struct job_key *key);

// KV blocks that have rows in them, or will have once the steps on their way are done.
int head_kv_used(const struct head *h);

// For HELLO: what runs, and what waits for COMMITTED; at most `most` each. Returns how many.
int head_list_running(const struct head *h, struct wire_running *to, int most);
int head_list_kept(const struct head *h, struct job_key *to, int most);

#endif
