#include "broker/attempts.h"

#include "common/result.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PAUSE_MS = 1000, // after the head refused a job for want of credit
    IDS_FIRST = 64,
};

// --- checkpoints

// A reader waits for it: at once, not at the next checkpoint.
static void publish_text(struct attempt *a)
{
    if (a->text.n > 0 && !a->mute) attempt_save(a);
}

static void on_saved(void *arg, const struct queue_reply *r)
{
    struct attempt *a = arg;
    a->saving = false;
    if (r->error.status == OK && (r->word == QUEUE_OK || r->word == QUEUE_GAP)) {
        a->n_saved = (int) (r->number / sizeof *a->ids);
        a->stuck = r->word == QUEUE_GAP && a->n_saved < a->first_id;
    }
    if (a->state == GONE) {
        attempt_drop(a);
    } else if (r->error.status == OK && r->word == QUEUE_STALE) {
        jobs_forget(a->jobs, a->key.attempt);
    }
}

static void on_streamed(void *arg, const struct queue_reply *r)
{
    struct attempt *a = arg;
    bool told = r->error.status == OK && (r->word == QUEUE_OK || r->word == QUEUE_GAP);
    if (!told || a->state == GONE) {
        on_saved(arg, r);
        return;
    }
    bool more = pending_text_shown(&a->text, r->shown, &a->jobs->text_bytes);
    a->mute = !more && r->word == QUEUE_OK;
    on_saved(arg, r);
    if (more) publish_text(a); // what came meanwhile
}

void attempt_save(struct attempt *a)
{
    int end_id = a->first_id + a->n_ids;
    bool text = a->text.n > 0 && !a->mute;
    if (a->state != AT_HEAD || a->saving || a->stuck || (a->n_saved >= end_id && !text)) return;
    int from = a->n_saved > a->first_id ? a->n_saved : a->first_id;
    size_t n = from < end_id ? (size_t) (end_id - from) * sizeof *a->ids : 0;
    const uint8_t *ids = n > 0 ? (const uint8_t *) (a->ids + (from - a->first_id)) : NULL;
    struct queue *q = a->jobs->options.queue;
    struct queue_attempt name = attempt_name(a);
    struct queue_text more = {a->text.offset, a->text.bytes, a->text.n};
    uint64_t offset = (uint64_t) from * sizeof *a->ids;
    enum status status = text ? queue_stream(q, &name, offset, ids, n, &more, on_streamed, a)
                              : queue_checkpoint(q, &name, offset, ids, n, on_saved, a);
    a->saving = status == OK;
}

// Ids of a later offset than is known here were lost on the way, or told to another broker. False:
// they are not here.
static bool take_ids(struct attempt *a, const struct wire_tokens *t)
{
    int n = wire_ids_count(t->ids);
    if (a->n_ids == 0 && a->n_saved == 0) a->first_id = t->offset;
    if (t->offset < a->first_id) { // all of it again
        a->first_id = t->offset;
        a->n_ids = 0;
        a->stuck = false;
    }
    int known = a->first_id + a->n_ids - t->offset; // of these ids
    if (known < 0) return false;
    if (known >= n) return true;
    int wanted = t->offset + n - a->first_id;
    if (wanted > CONTEXT_MAX) return false;
    if (wanted > a->room) {
        int room = wanted > 2 * a->room ? wanted : 2 * a->room;
        if (room < IDS_FIRST) room = IDS_FIRST;
        int32_t *ids = realloc(a->ids, (size_t) room * sizeof *ids);
        if (ids == NULL) return false; // no checkpoint, then
        a->ids = ids;
        a->room = room;
    }
    memcpy(a->ids + a->n_ids, (const char *) t->ids.at + (size_t) known * sizeof *a->ids,
           (size_t) (n - known) * sizeof *a->ids);
    a->n_ids = wanted;
    return true;
}

static void on_tokens(struct jobs *j, const struct wire_tokens *t)
{
    struct attempt *a = attempts_find_key(j, &t->key);
    if (a == NULL || a->state != AT_HEAD || !take_ids(a, t)) return;
    if (t->text.n == 0 || a->plain) return; // nobody asked for a plain job's text
    if (t->text_offset == 0) a->mute = false;
    bool taken = pending_text_add(&a->text, (uint64_t) t->text_offset, t->text.at, t->text.n,
                                  &j->text_bytes);
    if (!taken) attempt_log(LOG_DEBUG, "stream_behind", a, "", "");
    publish_text(a);
}

// --- results

static void say_committed(struct jobs *j, const struct peer *to, const struct job_key *key,
                          enum wire_outcome outcome)
{
    struct wire_message m = {.command = WIRE_COMMITTED};
    m.committed.key = *key;
    m.committed.outcome = outcome;
    j->options.send(j->options.arg, to, &m);
}

// Redis did not take the result: the head sends it again, if it still can.
static void result_again(struct attempt *a)
{
    if (a->foreign) attempt_drop(a);
    else if (a->account == NULL) attempt_end(a, NACK_LOST);
    else attempt_set_state(a, AT_HEAD);
}

static void on_stored(void *arg, const struct queue_reply *r)
{
    struct attempt *a = arg;
    struct jobs *j = a->jobs;
    a->open = false;
    if (r->error.status != OK) {
        if (r->error.status != ERR_ABORTED && r->error.status != ERR_UNAVAILABLE) {
            attempt_log(LOG_ERROR, "result_refused", a, r->error.text, r->error.code);
        }
        result_again(a);
        return;
    }
    enum wire_outcome outcome = r->word == QUEUE_STALE     ? WIRE_OUTCOME_STALE
                                : r->word == QUEUE_UNKNOWN ? WIRE_OUTCOME_UNKNOWN
                                                           : WIRE_OUTCOME_OK;
    attempt_log(LOG_INFO, "result", a, queue_word_name(r->word), a->why.code);
    if (r->word == QUEUE_OK && a->why.code[0] == '\0' && a->queued_ms != 0) {
        int64_t ms = j->now_ms - a->queued_ms;
        histogram_add(&j->done_times, ms > 0 ? (uint64_t) ms * 1000 : 0);
    }
    say_committed(j, &a->from, &a->key, outcome);
    attempt_drop(a);
    j->options.freed(j->options.arg);
}

static enum status read_result(struct result *r, const struct attempt *a,
                               const struct wire_bytes *bytes, struct error *e)
{
    try(result_decode(r, bytes->at, bytes->n, e));
    if (strcmp(r->id, a->key.id) == 0) return OK;
    return error_set(e, ERR_INPUT, "bad_result", "the head sent the result of another job");
}

// What of the result's text may not be published yet. A result that is nearly as large as a call
// may be goes alone: readers take the rest of the text from it.
static struct queue_text last_text(const struct attempt *a, const struct result *r, size_t n_result)
{
    uint64_t from = a->text.offset;
    bool none = a->plain || r->text == NULL || from >= r->text_bytes;
    if (none || n_result + (r->text_bytes - from) > (size_t) WIRE_BODY_MAX) {
        return (struct queue_text){0};
    }
    return (struct queue_text){from, r->text + from, r->text_bytes - (size_t) from};
}

static enum status store(struct attempt *a, const struct wire_bytes *bytes)
{
    struct queue *q = a->jobs->options.queue;
    struct queue_attempt name = attempt_name(a);
    struct result result;
    struct error e = {0};
    struct queue_outcome o = {QUEUE_END_DONE, bytes->at, bytes->n, .text = {.offset = 0}};
    struct queue_failure f = {.retryable = true, .result = bytes->at, .n_result = bytes->n};
    bool readable = read_result(&result, a, bytes, &e) == OK;
    bool failed = !readable || result.status == RESULT_ERROR;
    if (readable && failed) {
        error_set(&e, ERR_STATE, result.error.code, "%s", result.error.message);
        f.retryable = result.error.retryable;
    }
    if (!readable) f.n_result = 0;
    if (readable && result.status == RESULT_CANCELLED) o.end = QUEUE_END_CANCELLED;
    if (readable && result.status == RESULT_EXPIRED) o.end = QUEUE_END_EXPIRED;
    if (readable) o.text = last_text(a, &result, bytes->n);
    result_deinit(&result); // its text is in `bytes`
    if (!failed) return queue_done(q, &name, &o, on_stored, a);
    a->why = e;
    f.code = attempt_code(a->why.code);
    f.text = a->why.text;
    return queue_fail(q, &name, &f, on_stored, a);
}

static void on_result(struct jobs *j, const struct peer *from, const struct wire_result *m)
{
    struct attempt *a = attempts_find_key(j, &m->key);
    if (a != NULL) a->over = true;
    if (!queue_ready(j->options.queue)) return; // the head keeps it and sends it again
    if (a == NULL) {
        enum status status = attempts_insert(j, &m->key, REPORTED, false, &a);
        if (status == ERR_INPUT) say_committed(j, from, &m->key, WIRE_OUTCOME_UNKNOWN);
        if (status != OK) return;
        attempt_set_account(a, jobs_headed_by(j, from));
        a->foreign = true; // of a former head, or of an earlier broker's time
        a->need_known = true;
    } else if (a->state != AT_HEAD) {
        return; // under way, or cancelled: the next time tells
    }
    attempt_set_state(a, REPORTED);
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
    struct attempt *a = attempts_find_key(j, &m->key);
    if (a == NULL || a->state != AT_HEAD) return;
    attempt_give_credit_back(a);
    attempt_log(LOG_WARN, "refused_by_head", a, m->message, m->code);
    for (size_t i = 0; i < sizeof innocent / sizeof *innocent; i++) {
        if (strcmp(m->code, innocent[i]) != 0) continue;
        if (a->account != NULL) a->account->resume_ms = j->now_ms + PAUSE_MS;
        attempt_end(a, NACK);
        return;
    }
    struct error why;
    bool retryable = true;
    for (size_t i = 0; i < sizeof final / sizeof *final; i++) {
        if (strcmp(m->code, final[i]) == 0) retryable = false;
    }
    error_set(&why, ERR_STATE, m->code, "the head refused the job: %s", m->message);
    attempt_refuse(a, &why, retryable, NULL, 0);
}

// --- credit

static void count_one(struct attempt *a)
{
    struct account *account = a->account;
    if (a->state != AT_HEAD || a->over) return;
    a->counted = a->credited = true;
    account->used_slots++;
    if (a->need_known) account->used_blocks += a->need_blocks;
    else account->n_unknown++;
}

static void on_credit(struct jobs *j, const struct wire_credit *c)
{
    struct account *account = jobs_account(j, c->epoch);
    if (account == NULL || c->pipeline != account->pipeline) return;
    if (!account->adopting) {
        uint64_t before = credit_slots(&account->credit);
        credit_grant(&account->credit, c->slots, c->blocks);
        if (credit_slots(&account->credit) > before) j->options.freed(j->options.arg);
        return;
    }
    if (!account->listed) return;
    if (!account->snapped) {
        account->snapped = true;
        credit_grant(&account->snap, c->slots, c->blocks);
        attempts_of(j, account, count_one);
    }
    account->latest_slots = c->slots;
    account->latest_blocks = c->blocks;
    jobs_settle(j, account);
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
