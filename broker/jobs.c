#include "broker/attempts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    RENEW_MOST = 1000, // leases of one call
    CHECKPOINT_MS = 500,
    RETRY_MS = 500,    // outcomes that Redis did not take
};

// --- credit

void attempt_give_credit_back(struct attempt *a)
{
    struct account *account = a->account;
    if (a->credited && account != NULL && !account->adopting) {
        credit_give_back(&account->credit, a->need_blocks);
    }
    a->credited = false;
}

// --- outcomes of the broker's own

const char *attempt_code(const char *code)
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
        attempt_drop(a);
        return;
    }
    if (r->error.status == ERR_ABORTED || r->error.status == ERR_UNAVAILABLE) return; // again later
    if (r->error.status != OK) { // its lease ends, and the job goes back
        attempt_log(LOG_ERROR, "outcome_refused", a, r->error.text, r->error.code);
    } else {
        static const char *const events[] = {
            [FAIL] = "failed", [NACK] = "given_back", [NACK_LOST] = "lost"};
        attempt_log(LOG_INFO, events[a->outcome], a, queue_word_name(r->word), a->why.code);
    }
    bool ready = r->error.status == OK && r->word == QUEUE_READY;
    struct job_key key = a->key;
    attempt_drop(a);
    if (ready) j->options.returned(j->options.arg, key.tenant);
    j->options.freed(j->options.arg);
}

static void call_outcome(struct attempt *a)
{
    struct queue *q = a->jobs->options.queue;
    struct queue_attempt name = attempt_name(a);
    if (a->open) return;
    if (a->outcome == FAIL) {
        struct queue_failure f = {attempt_code(a->why.code), a->why.text, a->retryable, a->result,
                                  a->n_result};
        a->open = queue_fail(q, &name, &f, on_outcome, a) == OK;
    } else {
        a->open = queue_nack(q, &name, a->outcome == NACK_LOST, on_outcome, a) == OK;
    }
}

void attempt_end(struct attempt *a, enum outcome outcome)
{
    attempt_set_state(a, ENDING);
    a->outcome = outcome;
    call_outcome(a);
}


void attempt_refuse(struct attempt *a, const struct error *why, bool retryable,
                   const uint8_t *result, size_t n_result)
{
    a->why = *why;
    a->retryable = retryable;
    a->result = n_result > 0 ? malloc(n_result) : NULL;
    a->n_result = a->result != NULL ? n_result : 0;
    if (a->result != NULL) memcpy(a->result, result, n_result);
    attempt_end(a, FAIL);
}

// --- what the head is told

static void say_cancel(const struct attempt *a, enum wire_reason reason)
{
    if (a->account != NULL) jobs_say_cancel(a->jobs, &a->account->head, &a->key, reason);
}

static void try_again(struct attempt *a)
{
    struct jobs *j = a->jobs;
    if (a->state == ENDING) call_outcome(a);
    if (a->state != AT_HEAD || a->given_up_ms == 0) return;
    if (j->now_ms - a->given_up_ms < CANCEL_WAIT_MS) {
        say_cancel(a, a->reason);
    } else {
        attempt_log(LOG_WARN, "cancel_unanswered", a, "", wire_reason_name(a->reason));
        attempt_end(a, NACK); // Redis knows why it ends
    }
}

// While Redis was away no RESULT could be taken.
static void wait_anew(struct attempt *a)
{
    if (a->given_up_ms != 0) a->given_up_ms = a->jobs->now_ms;
}

// --- claimed jobs

enum status jobs_add(struct jobs *j, const struct job_key *key, uint64_t need_blocks,
                     uint64_t steps, bool poison, uint64_t epoch)
{
    struct attempt *a;
    try(attempts_insert(j, key, CLAIMED, poison, &a));
    a->need_blocks = need_blocks;
    a->steps = steps;
    a->need_known = true;
    struct account *account = jobs_account(j, epoch);
    attempt_set_account(a, account);
    a->credited = account != NULL;
    if (account != NULL) {
        account->n_promised--;
        account->n_promised_poison -= poison;
    }
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
    a->steps += (uint64_t) (n + KV_BLOCK_ROWS - 1) / KV_BLOCK_ROWS; // they are prefilled again
    if (a->ids != NULL) wire_ids_copy(ids, a->ids);
    return a->ids != NULL;
}

// What was read needs another number of blocks than what was admitted: another tokenizer, say.
static bool correct_need(struct attempt *a, uint64_t need_blocks)
{
    struct credit *credit = &a->account->credit;
    if (need_blocks == a->need_blocks) return true;
    credit_give_back(credit, a->need_blocks);
    a->need_blocks = need_blocks;
    if (credit_blocks(credit) < need_blocks || credit_slots(credit) < 1) {
        a->credited = false;
        return false;
    }
    credit_take(credit, need_blocks);
    return true;
}

void jobs_start(struct jobs *j, const struct wire_job *job, uint64_t need_blocks)
{
    struct attempt *a = attempts_find_key(j, &job->key);
    if (a == NULL || a->state != CLAIMED) return;
    const struct account *account = a->account;
    bool mine = a->credited && account != NULL && !account->adopting;
    if (!mine || !correct_need(a, need_blocks) || !set_ids(a, job->resume)) {
        jobs_give_back(j, a->key.attempt);
        return;
    }
    struct wire_message m = {.command = WIRE_JOB, .job = *job};
    m.job.pipeline = account->pipeline;
    m.job.epoch = account->epoch;
    attempt_log(LOG_INFO, "sent", a, "", ""); // before the head can tell of it
    if (!j->options.send(j->options.arg, &account->head, &m)) {
        jobs_give_back(j, a->key.attempt);
        return;
    }
    a->plain = !job->stream;
    a->queued_ms = j->now_ms - (int64_t) job->queued_ms;
    attempt_set_state(a, AT_HEAD);
}

void jobs_refuse(struct jobs *j, uint64_t attempt, const struct error *why, bool retryable,
                 const uint8_t *result, size_t n_result)
{
    struct attempt *a = attempts_find(j, attempt);
    if (a == NULL || a->state != CLAIMED) return;
    attempt_give_credit_back(a);
    attempt_refuse(a, why, retryable, result, n_result);
}

void jobs_give_back(struct jobs *j, uint64_t attempt)
{
    struct attempt *a = attempts_find(j, attempt);
    if (a == NULL || a->state != CLAIMED) return;
    attempt_give_credit_back(a);
    attempt_end(a, NACK);
}

void jobs_cancel(struct jobs *j, uint64_t attempt, enum wire_reason reason)
{
    struct attempt *a = attempts_find(j, attempt);
    if (a == NULL || !attempt_is_active(a)) return;
    if (a->state == AT_HEAD) { // a RESULT is the answer; its credit comes back from the head
        if (a->given_up_ms == 0) a->given_up_ms = j->now_ms;
        a->reason = reason;
        say_cancel(a, reason);
    } else {
        attempt_give_credit_back(a);
        attempt_end(a, NACK); // Redis knows why it ends
    }
}

void jobs_forget(struct jobs *j, uint64_t attempt)
{
    struct attempt *a = attempts_find(j, attempt);
    if (a == NULL || !attempt_is_active(a)) return;
    attempt_log(LOG_WARN, "attempt_lost", a, "", "stale");
    bool adopting = a->account != NULL && a->account->adopting;
    if (a->state == AT_HEAD && adopting) { // it counts in the head's books until it ends there
        jobs_cancel(j, attempt, WIRE_REASON_CANCELLED);
        return;
    }
    if (a->state == AT_HEAD) {
        say_cancel(a, WIRE_REASON_CANCELLED);
    } else {
        attempt_give_credit_back(a);
    }
    attempt_drop(a);
}

// --- leases

static void on_renewed(void *arg, const struct queue_reply *r)
{
    struct jobs *j = arg;
    if (r->error.status != OK) return; // the next one, or the next connection
    for (size_t i = 0; i < r->n; i++) {
        const struct queue_verdict *v = &r->verdicts[i];
        struct attempt *a = attempts_find(j, v->attempt);
        if (a == NULL) continue;
        if (!a->need_known) {
            a->need_known = true;
            a->need_blocks = v->need_blocks;
            a->steps = v->need_blocks * KV_BLOCK_ROWS;
            if (a->counted) {
                a->account->used_blocks += v->need_blocks;
                a->account->n_unknown--;
            }
        }
        if (v->word == QUEUE_STALE) jobs_forget(j, v->attempt);
        if (v->word == QUEUE_CANCEL) jobs_cancel(j, v->attempt, WIRE_REASON_CANCELLED);
        if (v->word == QUEUE_EXPIRED) jobs_cancel(j, v->attempt, WIRE_REASON_EXPIRED);
    }
    for (int i = 0; i < j->n_accounts; i++) jobs_settle(j, &j->accounts[i]);
}

void jobs_renew(struct jobs *j)
{
    struct queue_attempt names[RENEW_MOST];
    size_t n = 0;
    j->renewed_ms = j->now_ms;
    for (int b = 0; b < ATTEMPT_BUCKETS; b++) {
        for (const struct attempt *a = j->buckets[b]; a != NULL; a = a->next) {
            if (a->state == ENDING || a->state == GONE || a->foreign) continue;
            names[n++] = attempt_name(a);
            if (n < RENEW_MOST) continue;
            queue_renew(j->options.queue, LEASE_MS, names, n, on_renewed, j);
            n = 0;
        }
    }
    if (n > 0) queue_renew(j->options.queue, LEASE_MS, names, n, on_renewed, j);
}

// --- the queue's events and time

void jobs_ready(struct jobs *j, int64_t now_ms)
{
    j->now_ms = now_ms;
    jobs_renew(j);
    attempts_each(j, wait_anew);
    attempts_each(j, try_again);
}

// Each attempt once in CHECKPOINT_MS, a part of them a tick: all at once would keep an urgent job's
// calls waiting in Redis.
static void save_some(struct jobs *j)
{
    int64_t n = (j->now_ms - j->saved_ms) * ATTEMPT_BUCKETS / CHECKPOINT_MS;
    if (n < 1) return;
    if (n > ATTEMPT_BUCKETS) n = ATTEMPT_BUCKETS;
    j->saved_ms = j->now_ms;
    for (int i = 0; i < (int) n; i++) {
        attempts_in(j, j->saved_bucket, attempt_save);
        j->saved_bucket = (j->saved_bucket + 1) % ATTEMPT_BUCKETS;
    }
}

void jobs_tick(struct jobs *j, int64_t now_ms)
{
    j->now_ms = now_ms;
    if (!queue_ready(j->options.queue)) return;
    if (now_ms - j->renewed_ms >= LEASE_MS / 3) jobs_renew(j);
    save_some(j);
    if (now_ms - j->retried_ms >= RETRY_MS) {
        j->retried_ms = now_ms;
        attempts_each(j, try_again);
    }
}

static void release(struct attempt *a)
{
    if (a->state == CLAIMED) jobs_give_back(a->jobs, a->key.attempt);
}

void jobs_release(struct jobs *j) { attempts_each(j, release); }

// --- for metrics

const struct histogram *jobs_done_times(const struct jobs *j) { return &j->done_times; }

void jobs_each_credit(const struct jobs *j,
                      void (*fn)(void *arg, int model, uint64_t pipeline, uint64_t slots,
                                 uint64_t blocks), void *arg)
{
    for (int i = 0; i < j->n_accounts; i++) {
        const struct account *a = &j->accounts[i];
        if (a->epoch == 0 || a->adopting) continue;
        fn(arg, a->model, a->pipeline, credit_slots(&a->credit), credit_blocks(&a->credit));
    }
}

// --- for dispatch

int jobs_n_active(const struct jobs *j) { return j->n_active; }

void jobs_each_active(const struct jobs *j,
                      void (*fn)(void *arg, const char *tenant, uint64_t need_blocks), void *arg)
{
    for (int b = 0; b < ATTEMPT_BUCKETS; b++) {
        for (const struct attempt *a = j->buckets[b]; a != NULL; a = a->next) {
            if (attempt_is_active(a)) fn(arg, a->key.tenant, a->need_blocks);
        }
    }
}

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
    attempts_free(j);
    free(j);
}
