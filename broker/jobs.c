#include "broker/jobs.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/result.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BUCKETS = 1024,
    RENEW_MOST = 1000, // leases of one call
    CHECKPOINT_MS = 500,
    RETRY_MS = 500,    // outcomes that Redis did not take
    PAUSE_MS = 1000,   // after a head refused a job for want of credit
    IDS_FIRST = 64,
};

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
    uint64_t epoch;       // whose credit it took; 0: none
    uint64_t need_blocks;
    bool need_known;      // false until the first renewal of an attempt that was found at the head
    bool poison;
    bool counted;         // in an adopted head's account
    bool seen;            // in the HELLO that is looked at
    bool foreign;         // nothing is known of it but its RESULT
    bool open;            // a call about its outcome is
    bool saving;          // a checkpoint call is
    bool stuck;           // tokens are missing between checkpoint and `ids`
    int32_t *ids;         // (n_ids) generated tokens from `first_id` on
    int first_id, n_ids, room;
    int n_saved;          // of all generated, in Redis
    enum outcome outcome;
    struct error why;     // FAIL
    bool retryable;
    uint8_t *result;      // FAIL: owned; NULL: made by the library
    size_t n_result;
    struct peer from;     // REPORTED: who waits for COMMITTED
};

struct jobs {
    struct jobs_options options;
    struct attempt *buckets[BUCKETS];
    int n, n_active, n_poison;
    // The pipeline; epoch 0: none serves.
    struct peer head;
    uint64_t pipeline, epoch;
    int slots, blocks;
    struct credit credit;
    int64_t now_ms, resume_ms, renewed_ms, saved_ms, retried_ms;
    // While an adopted head's account is made up:
    bool adopting, listed; // listed: HELLO told what runs
    bool snapped;          // a CREDIT came after that, and marked who is counted
    struct credit snap;
    uint64_t used_slots, used_blocks, latest_slots, latest_blocks;
    int n_unknown;         // counted ones whose need is not known yet
};

// --- the table

static struct attempt *find(const struct jobs *j, uint64_t attempt)
{
    struct attempt *a = j->buckets[attempt % BUCKETS];
    while (a != NULL && a->key.attempt != attempt) a = a->next;
    return a;
}

static struct attempt *find_key(const struct jobs *j, const struct job_key *key)
{
    struct attempt *a = find(j, key->attempt);
    bool same = a != NULL && strcmp(a->key.id, key->id) == 0 &&
                strcmp(a->key.tenant, key->tenant) == 0;
    return same ? a : NULL;
}

static bool is_active(const struct attempt *a)
{
    return a->state == CLAIMED || a->state == AT_HEAD;
}

static void set_state(struct attempt *a, enum attempt_state state)
{
    struct jobs *j = a->jobs;
    int before = is_active(a);
    a->state = state;
    int change = is_active(a) - before;
    j->n_active += change;
    j->n_poison += a->poison ? change : 0;
}

static enum status insert(struct jobs *j, const struct job_key *key, enum attempt_state state,
                          bool poison, struct attempt **to)
{
    *to = NULL;
    if (j->n >= JOBS_MAX) return ERR_LIMIT;
    struct attempt *a = calloc(1, sizeof *a);
    if (a == NULL) return ERR_NOMEM;
    *a = (struct attempt){.jobs = j, .key = *key, .state = ENDING, .poison = poison};
    a->next = j->buckets[key->attempt % BUCKETS];
    j->buckets[key->attempt % BUCKETS] = a;
    j->n++;
    set_state(a, state);
    *to = a;
    return OK;
}

static void finish_adoption(struct jobs *j);

static void free_attempt(struct attempt *a)
{
    free(a->ids);
    free(a->result);
    free(a);
}

// Nothing may be open about it.
static void drop(struct attempt *a)
{
    struct jobs *j = a->jobs;
    struct attempt **at = &j->buckets[a->key.attempt % BUCKETS];
    check(!a->open && !a->saving);
    while (*at != a) at = &(*at)->next;
    *at = a->next;
    j->n--;
    set_state(a, ENDING);
    if (a->counted && !a->need_known) {
        j->n_unknown--;
        finish_adoption(j);
    }
    free_attempt(a);
}

// It is over; dropped now, or by the last call that is open.
static void drop_when_quiet(struct attempt *a)
{
    set_state(a, GONE);
    if (!a->open && !a->saving) drop(a);
}

typedef void each_fn(struct attempt *a);

// fn may drop the attempt it is given, and no other.
static void each(struct jobs *j, each_fn *fn)
{
    for (int b = 0; b < BUCKETS; b++) {
        for (struct attempt *a = j->buckets[b], *next; a != NULL; a = next) {
            next = a->next;
            fn(a);
        }
    }
}

static struct queue_attempt name_of(const struct attempt *a)
{
    return (struct queue_attempt){a->key.tenant, a->key.id, a->key.attempt};
}

static void log_attempt(enum log_level level, const char *event, const struct attempt *a,
                        const char *word, const char *code)
{
    log_line(level, event, log_str("tenant", a->key.tenant), log_str("id", a->key.id),
             log_int("attempt", a->key.attempt), log_str("word", word), log_str("code", code));
}

// --- credit

// The head never got it, or refused it.
static void give_credit_back(struct attempt *a)
{
    struct jobs *j = a->jobs;
    if (a->epoch != 0 && a->epoch == j->epoch && !j->adopting) {
        credit_give_back(&j->credit, a->need_blocks);
    }
    a->epoch = 0;
}

// --- outcomes of the broker's own

// What Redis takes for a code.
static const char *code_of(const char *code)
{
    struct error e;
    return redis_name_check("code", code, ERROR_CODE_SIZE, &e) == OK ? code : "group_error";
}

static void on_outcome(void *arg, const struct queue_reply *r)
{
    struct attempt *a = arg;
    struct jobs *j = a->jobs;
    a->open = false;
    if (a->state == GONE) {
        drop_when_quiet(a);
        return;
    }
    if (r->error.status == ERR_ABORTED || r->error.status == ERR_UNAVAILABLE) return; // again later
    if (r->error.status != OK) { // its lease ends, and the job goes back
        log_attempt(LOG_ERROR, "outcome_refused", a, r->error.text, r->error.code);
    } else {
        bool fails = a->outcome == FAIL;
        log_attempt(LOG_INFO, fails ? "failed" : "given_back", a, queue_word_name(r->word),
                    a->why.code);
    }
    drop_when_quiet(a);
    j->options.freed(j->options.arg);
}

static void call_outcome(struct attempt *a)
{
    struct queue *q = a->jobs->options.queue;
    struct queue_attempt name = name_of(a);
    if (a->open) return;
    if (a->outcome == FAIL) {
        struct queue_failure f = {code_of(a->why.code), a->why.text, a->retryable, a->result,
                                  a->n_result};
        a->open = queue_fail(q, &name, &f, on_outcome, a) == OK;
    } else {
        a->open = queue_nack(q, &name, a->outcome == NACK_LOST, on_outcome, a) == OK;
    }
}

static void end(struct attempt *a, enum outcome outcome)
{
    set_state(a, ENDING);
    a->outcome = outcome;
    call_outcome(a);
}

static void retry_outcome(struct attempt *a)
{
    if (a->state == ENDING) call_outcome(a);
}

static void refuse(struct attempt *a, const struct error *why, bool retryable,
                   const uint8_t *result, size_t n_result)
{
    a->why = *why;
    a->retryable = retryable;
    a->result = n_result > 0 ? malloc(n_result) : NULL;
    a->n_result = a->result != NULL ? n_result : 0;
    if (a->result != NULL) memcpy(a->result, result, n_result);
    end(a, FAIL);
}

// --- what the head is told

static bool say(struct jobs *j, const struct peer *to, const struct wire_message *m)
{
    return j->options.send(j->options.arg, to, m);
}

static void say_cancel(struct jobs *j, const struct job_key *key)
{
    struct wire_message m = {.command = WIRE_CANCEL, .key = *key};
    if (j->epoch != 0) say(j, &j->head, &m);
}

static void say_committed(struct jobs *j, const struct peer *to, const struct job_key *key,
                          enum wire_outcome outcome)
{
    struct wire_message m = {.command = WIRE_COMMITTED};
    m.committed.key = *key;
    m.committed.outcome = outcome;
    say(j, to, &m);
}

// --- claimed jobs

enum status jobs_add(struct jobs *j, const struct job_key *key, uint64_t need_blocks, bool poison,
                     uint64_t epoch)
{
    struct attempt *a;
    try(insert(j, key, CLAIMED, poison, &a));
    a->need_blocks = need_blocks;
    a->need_known = true;
    a->epoch = epoch;
    return OK;
}

static bool set_ids(struct attempt *a, const struct wire_bytes ids)
{
    int n = wire_ids_count(ids);
    a->first_id = 0;
    a->n_ids = a->n_saved = n;
    if (n == 0) return true;
    a->ids = malloc((size_t) n * sizeof *a->ids);
    a->room = a->ids != NULL ? n : 0;
    if (a->ids != NULL) wire_ids_copy(ids, a->ids);
    return a->ids != NULL;
}

// What was read needs another number of blocks than what was admitted: another tokenizer, say.
static bool correct_need(struct attempt *a, uint64_t need_blocks)
{
    struct jobs *j = a->jobs;
    if (need_blocks == a->need_blocks) return true;
    credit_give_back(&j->credit, a->need_blocks);
    a->need_blocks = need_blocks;
    if (credit_blocks(&j->credit) < need_blocks || credit_slots(&j->credit) < 1) {
        a->epoch = 0;
        return false;
    }
    credit_take(&j->credit, need_blocks);
    return true;
}

void jobs_start(struct jobs *j, const struct wire_job *job, uint64_t need_blocks)
{
    struct attempt *a = find_key(j, &job->key);
    if (a == NULL || a->state != CLAIMED) return;
    bool mine = a->epoch != 0 && a->epoch == j->epoch && !j->adopting;
    if (!mine || !correct_need(a, need_blocks) || !set_ids(a, job->resume)) {
        jobs_give_back(j, a->key.attempt);
        return;
    }
    struct wire_message m = {.command = WIRE_JOB, .job = *job};
    m.job.pipeline = j->pipeline;
    m.job.epoch = j->epoch;
    if (!say(j, &j->head, &m)) {
        jobs_give_back(j, a->key.attempt);
        return;
    }
    set_state(a, AT_HEAD);
    log_attempt(LOG_DEBUG, "sent", a, "", "");
}

void jobs_refuse(struct jobs *j, uint64_t attempt, const struct error *why, bool retryable,
                 const uint8_t *result, size_t n_result)
{
    struct attempt *a = find(j, attempt);
    if (a == NULL || a->state != CLAIMED) return;
    give_credit_back(a);
    refuse(a, why, retryable, result, n_result);
}

void jobs_give_back(struct jobs *j, uint64_t attempt)
{
    struct attempt *a = find(j, attempt);
    if (a == NULL || a->state != CLAIMED) return;
    give_credit_back(a);
    end(a, NACK);
}

void jobs_cancel(struct jobs *j, uint64_t attempt)
{
    struct attempt *a = find(j, attempt);
    if (a == NULL || !is_active(a)) return;
    if (a->state == AT_HEAD) {
        say_cancel(j, &a->key); // its credit comes back from the head
    } else {
        give_credit_back(a);
    }
    end(a, NACK); // Redis knows why it ends
}

void jobs_forget(struct jobs *j, uint64_t attempt)
{
    struct attempt *a = find(j, attempt);
    if (a == NULL || !is_active(a)) return;
    log_attempt(LOG_WARN, "attempt_lost", a, "", "stale");
    if (a->state == AT_HEAD) {
        say_cancel(j, &a->key);
    } else {
        give_credit_back(a);
    }
    drop_when_quiet(a);
}

// --- leases

static void on_renewed(void *arg, const struct queue_reply *r)
{
    struct jobs *j = arg;
    if (r->error.status != OK) return; // the next one, or the next connection
    for (size_t i = 0; i < r->n; i++) {
        const struct queue_verdict *v = &r->verdicts[i];
        struct attempt *a = find(j, v->attempt);
        if (a == NULL) continue;
        if (!a->need_known) {
            a->need_known = true;
            a->need_blocks = v->need_blocks;
            if (a->counted) {
                j->used_blocks += v->need_blocks;
                j->n_unknown--;
            }
        }
        if (v->word == QUEUE_STALE) jobs_forget(j, v->attempt);
        if (v->word == QUEUE_CANCEL) jobs_cancel(j, v->attempt);
    }
    finish_adoption(j);
}

static void renew_all(struct jobs *j)
{
    struct queue_attempt names[RENEW_MOST];
    size_t n = 0;
    j->renewed_ms = j->now_ms;
    for (int b = 0; b < BUCKETS; b++) {
        for (const struct attempt *a = j->buckets[b]; a != NULL; a = a->next) {
            if (a->state == ENDING || a->foreign) continue;
            names[n++] = name_of(a);
            if (n < RENEW_MOST) continue;
            queue_renew(j->options.queue, LEASE_MS, names, n, on_renewed, j);
            n = 0;
        }
    }
    if (n > 0) queue_renew(j->options.queue, LEASE_MS, names, n, on_renewed, j);
}

// --- checkpoints

static void on_saved(void *arg, const struct queue_reply *r)
{
    struct attempt *a = arg;
    a->saving = false;
    if (r->error.status == OK && (r->word == QUEUE_OK || r->word == QUEUE_GAP)) {
        a->n_saved = (int) (r->number / sizeof *a->ids);
        a->stuck = r->word == QUEUE_GAP && a->n_saved < a->first_id;
    }
    if (a->state == GONE) {
        drop_when_quiet(a);
    } else if (r->error.status == OK && r->word == QUEUE_STALE) {
        jobs_forget(a->jobs, a->key.attempt);
    }
}

static void save(struct attempt *a)
{
    int end_id = a->first_id + a->n_ids;
    if (a->state != AT_HEAD || a->saving || a->stuck || a->n_saved >= end_id) return;
    int from = a->n_saved > a->first_id ? a->n_saved : a->first_id;
    struct queue_attempt name = name_of(a);
    a->saving = queue_checkpoint(a->jobs->options.queue, &name, (uint64_t) from * sizeof *a->ids,
                                 (const uint8_t *) (a->ids + (from - a->first_id)),
                                 (size_t) (end_id - from) * sizeof *a->ids, on_saved, a) == OK;
}

// Ids of a later offset than is known here were lost on the way, or told to another broker.
static void on_tokens(struct jobs *j, const struct wire_tokens *t)
{
    struct attempt *a = find_key(j, &t->key);
    int n = wire_ids_count(t->ids);
    if (a == NULL || a->state != AT_HEAD) return;
    if (a->n_ids == 0 && a->n_saved == 0) a->first_id = t->offset;
    if (t->offset < a->first_id) { // all of it again
        a->first_id = t->offset;
        a->n_ids = 0;
        a->stuck = false;
    }
    int known = a->first_id + a->n_ids - t->offset; // of these ids
    if (known < 0 || known >= n) return;
    int wanted = t->offset + n - a->first_id;
    if (wanted > CONTEXT_MAX) return;
    if (wanted > a->room) {
        int room = wanted > 2 * a->room ? wanted : 2 * a->room;
        if (room < IDS_FIRST) room = IDS_FIRST;
        int32_t *ids = realloc(a->ids, (size_t) room * sizeof *ids);
        if (ids == NULL) return; // no checkpoint, then
        a->ids = ids;
        a->room = room;
    }
    memcpy(a->ids + a->n_ids, (const char *) t->ids.at + (size_t) known * sizeof *a->ids,
           (size_t) (n - known) * sizeof *a->ids);
    a->n_ids = wanted;
}

// --- results

// Redis did not take the result: the head sends it again, if it still can.
static void result_again(struct attempt *a)
{
    if (a->foreign) drop_when_quiet(a);
    else if (a->epoch == 0 || a->epoch != a->jobs->epoch) end(a, NACK_LOST);
    else set_state(a, AT_HEAD);
}

static void on_stored(void *arg, const struct queue_reply *r)
{
    struct attempt *a = arg;
    struct jobs *j = a->jobs;
    a->open = false;
    if (r->error.status != OK) {
        if (r->error.status != ERR_ABORTED && r->error.status != ERR_UNAVAILABLE) {
            log_attempt(LOG_ERROR, "result_refused", a, r->error.text, r->error.code);
        }
        result_again(a);
        return;
    }
    enum wire_outcome outcome = r->word == QUEUE_STALE     ? WIRE_OUTCOME_STALE
                                : r->word == QUEUE_UNKNOWN ? WIRE_OUTCOME_UNKNOWN
                                                           : WIRE_OUTCOME_OK;
    log_attempt(LOG_INFO, "result", a, queue_word_name(r->word), a->why.code);
    say_committed(j, &a->from, &a->key, outcome);
    drop_when_quiet(a);
    j->options.freed(j->options.arg);
}

static enum status read_result(struct result *r, const struct attempt *a,
                               const struct wire_bytes *bytes, struct error *e)
{
    try(result_decode(r, bytes->at, bytes->n, e));
    if (strcmp(r->id, a->key.id) == 0) return OK;
    return error_set(e, ERR_INPUT, "bad_result", "the head sent the result of another job");
}

static enum status store(struct attempt *a, const struct wire_bytes *bytes)
{
    struct queue *q = a->jobs->options.queue;
    struct queue_attempt name = name_of(a);
    struct result result;
    struct error e = {0};
    enum queue_end how = QUEUE_END_DONE;
    struct queue_failure f = {.retryable = true, .result = bytes->at, .n_result = bytes->n};
    bool readable = read_result(&result, a, bytes, &e) == OK;
    bool failed = !readable || result.status == RESULT_ERROR;
    if (readable && failed) {
        error_set(&e, ERR_STATE, result.error.code, "%s", result.error.message);
        f.retryable = result.error.retryable;
    }
    if (!readable) f.n_result = 0;
    if (readable && result.status == RESULT_CANCELLED) how = QUEUE_END_CANCELLED;
    if (readable && result.status == RESULT_EXPIRED) how = QUEUE_END_EXPIRED;
    result_deinit(&result);
    if (!failed) return queue_done(q, &name, how, bytes->at, bytes->n, on_stored, a);
    a->why = e;
    f.code = code_of(a->why.code);
    f.text = a->why.text;
    return queue_fail(q, &name, &f, on_stored, a);
}

static void on_result(struct jobs *j, const struct peer *from, const struct wire_result *m)
{
    struct attempt *a = find_key(j, &m->key);
    if (!queue_ready(j->options.queue)) return; // the head keeps it and sends it again
    if (a == NULL) {
        if (insert(j, &m->key, REPORTED, false, &a) != OK) return;
        a->foreign = true;
        a->need_known = true;
    } else if (a->state != AT_HEAD) {
        return; // under way, or cancelled: the next time tells
    }
    set_state(a, REPORTED);
    a->from = *from;
    a->open = store(a, &m->result) == OK;
    if (!a->open) result_again(a);
}

static void on_reject(struct jobs *j, const struct wire_reject *m)
{
    // No fault of the job: it goes back to the queue.
    static const char *const innocent[] = {"no_credit", "stale_epoch"};
    static const char *const final[] = {"bad_job", "bad_token", "context_exceeded", "no_scores",
                                        "bad_sampling"};
    struct attempt *a = find_key(j, &m->key);
    if (a == NULL || a->state != AT_HEAD) return;
    give_credit_back(a);
    log_attempt(LOG_WARN, "refused_by_head", a, m->message, m->code);
    for (size_t i = 0; i < sizeof innocent / sizeof *innocent; i++) {
        if (strcmp(m->code, innocent[i]) != 0) continue;
        j->resume_ms = j->now_ms + PAUSE_MS;
        end(a, NACK);
        return;
    }
    struct error why;
    bool retryable = true;
    for (size_t i = 0; i < sizeof final / sizeof *final; i++) {
        if (strcmp(m->code, final[i]) == 0) retryable = false;
    }
    error_set(&why, ERR_STATE, m->code, "the head refused the job: %s", m->message);
    refuse(a, &why, retryable, NULL, 0);
}

// --- the account of an adopted head: what it has granted less what is free has been taken

static void count_one(struct attempt *a)
{
    struct jobs *j = a->jobs;
    if (a->state != AT_HEAD && a->state != REPORTED) return;
    if (a->foreign) return;
    a->counted = true;
    j->used_slots++;
    if (a->need_known) j->used_blocks += a->need_blocks;
    else j->n_unknown++;
}

static void finish_adoption(struct jobs *j)
{
    if (!j->adopting || !j->snapped || j->n_unknown > 0) return;
    j->adopting = false;
    j->credit = j->snap;
    credit_adopt(&j->credit, (uint64_t) j->slots, (uint64_t) j->blocks, j->used_slots,
                 j->used_blocks);
    credit_grant(&j->credit, j->latest_slots, j->latest_blocks);
    log_line(LOG_INFO, "adopted", log_int("jobs", j->used_slots),
             log_int("blocks", j->used_blocks));
    j->options.freed(j->options.arg);
}

static void on_credit(struct jobs *j, const struct wire_credit *c)
{
    if (j->epoch == 0 || c->epoch != j->epoch || c->pipeline != j->pipeline) return;
    if (!j->adopting) {
        uint64_t before = credit_slots(&j->credit);
        credit_grant(&j->credit, c->slots, c->blocks);
        if (credit_slots(&j->credit) > before) j->options.freed(j->options.arg);
        return;
    }
    if (!j->listed) return;
    if (!j->snapped) {
        j->snapped = true;
        credit_reset(&j->snap);
        credit_grant(&j->snap, c->slots, c->blocks);
        each(j, count_one);
    }
    j->latest_slots = c->slots;
    j->latest_blocks = c->blocks;
    finish_adoption(j);
}

bool jobs_message(struct jobs *j, const struct peer *from, const struct wire_message *m)
{
    switch (m->command) {
    case WIRE_CREDIT: on_credit(j, &m->credit); return true;
    case WIRE_ACCEPT: return true; // silence would be a REJECT, or a lost connection
    case WIRE_REJECT: on_reject(j, &m->reject); return true;
    case WIRE_TOKENS: on_tokens(j, &m->tokens); return true;
    case WIRE_RESULT: on_result(j, from, &m->result); return true;
    default: return false;
    }
}

// --- the pipeline

void jobs_up(struct jobs *j, const struct peer *head, uint64_t pipeline, uint64_t epoch, int slots,
             int blocks, bool adopted)
{
    j->head = *head;
    j->pipeline = pipeline;
    j->epoch = epoch;
    j->slots = slots;
    j->blocks = blocks;
    j->adopting = adopted;
    j->listed = j->snapped = false;
    j->used_slots = j->used_blocks = 0;
    j->n_unknown = 0;
    j->resume_ms = 0;
    credit_reset(&j->credit);
}

static void lose(struct attempt *a)
{
    a->counted = false;
    if (a->state == CLAIMED) end(a, NACK);
    else if (a->state == AT_HEAD) end(a, NACK_LOST);
    a->epoch = 0;
}

void jobs_down(struct jobs *j)
{
    j->adopting = false;
    j->n_unknown = 0;
    each(j, lose);
    j->epoch = 0;
}

static void unsee(struct attempt *a) { a->seen = false; }

// A JOB that went down with its connection.
static void give_back_unseen(struct attempt *a)
{
    if (a->state != AT_HEAD || a->seen) return;
    give_credit_back(a);
    end(a, NACK);
}

static void take_over(struct jobs *j, const struct wire_running *r)
{
    struct attempt *a = find_key(j, &r->key);
    if (a == NULL) {
        if (find(j, r->key.attempt) != NULL) return; // attempts are unique: this one is no good
        if (insert(j, &r->key, AT_HEAD, false, &a) != OK) return;
        a->epoch = j->epoch;
        a->seen = true;
        log_attempt(LOG_INFO, "found_running", a, "", "");
        return;
    }
    a->seen = true;
    // The head has not heard that it is over.
    if (a->state == ENDING) say_cancel(j, &r->key);
}

void jobs_hello(struct jobs *j, const struct peer *head, const struct wire_hello *h)
{
    bool replaced = head->n != j->head.n || memcmp(head->bytes, j->head.bytes, head->n) != 0;
    j->head = *head;
    each(j, unsee);
    for (int i = 0; i < h->n_running; i++) take_over(j, &h->running[i]);
    for (int i = 0; i < h->n_finished; i++) {
        struct attempt *a = find_key(j, &h->finished[i]);
        if (a != NULL) a->seen = true; // its RESULT comes again
    }
    if (replaced) each(j, give_back_unseen);
    if (j->adopting) j->listed = true;
    renew_all(j);
}

// --- the queue's events and time

void jobs_ready(struct jobs *j, int64_t now_ms)
{
    j->now_ms = now_ms;
    renew_all(j);
    each(j, retry_outcome);
}

void jobs_tick(struct jobs *j, int64_t now_ms)
{
    j->now_ms = now_ms;
    if (!queue_ready(j->options.queue)) return;
    if (now_ms - j->renewed_ms >= LEASE_MS / 3) renew_all(j);
    if (now_ms - j->saved_ms >= CHECKPOINT_MS) {
        j->saved_ms = now_ms;
        each(j, save);
    }
    if (now_ms - j->retried_ms >= RETRY_MS) {
        j->retried_ms = now_ms;
        each(j, retry_outcome);
    }
}

static void release(struct attempt *a)
{
    if (a->state == CLAIMED) jobs_give_back(a->jobs, a->key.attempt);
}

void jobs_release(struct jobs *j) { each(j, release); }

// --- for dispatch

struct credit *jobs_credit(struct jobs *j) { return &j->credit; }

uint64_t jobs_epoch(const struct jobs *j) { return j->epoch; }

int jobs_n_active(const struct jobs *j) { return j->n_active; }

bool jobs_alone(const struct jobs *j) { return j->n_poison > 0; }

bool jobs_may_start(struct jobs *j)
{
    return j->epoch != 0 && !j->adopting && j->now_ms >= j->resume_ms;
}

static int n_in(const struct jobs *j, enum attempt_state state)
{
    int n = 0;
    for (int b = 0; b < BUCKETS; b++) {
        const struct attempt *a = j->buckets[b];
        for (; a != NULL; a = a->next) n += a->state == state;
    }
    return n;
}

int jobs_n_owed(const struct jobs *j) { return n_in(j, AT_HEAD) + n_in(j, REPORTED); }

enum status jobs_create(struct jobs **jobs, const struct jobs_options *o, struct error *e)
{
    struct jobs *j = calloc(1, sizeof *j);
    *jobs = j;
    if (j == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the jobs' table");
    j->options = *o;
    return OK;
}

void jobs_destroy(struct jobs **jobs)
{
    struct jobs *j = *jobs;
    if (j == NULL) return;
    *jobs = NULL;
    each(j, free_attempt);
    free(j);
}
