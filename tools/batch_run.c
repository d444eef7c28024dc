#include "tools/batch_run.h"

#include "common/clock.h"
#include "common/result.h"
#include "tools/batch_line.h"
#include "tools/batch_output.h"
#include "tools/custom_ids.h"
#include "tools/progress.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    EVENT_MS = 250,   // how long to wait for the next event: so soon a stop is noticed
    RETRY_MS = 250,   // between tries while Redis is away or full
    LOOK_MS = 10000,  // results are looked for so often, should an event have been missed
    EVENTS_MAX = 1000,
};

enum flight_state { FREE, TO_PUSH, IN_QUEUE, ENDED };

// A line between its reading and its answer.
struct flight {
    enum flight_state state;
    bool conflict;
    struct batch_line line;
};

struct batch {
    const struct batch_options *o;
    struct queue_sync *q;
    struct batch_counts *counts;
    struct batch_input in;
    struct batch_output out, errors;
    struct batch_answered answered;
    struct custom_ids custom_ids;
    struct progress progress;
    struct flight *flights; // (window)
    int n_open;             // flights that are not FREE
    bool read_all;
    bool own_id; // the batch id follows from the content: no other job can have our ids
    bool away;   // Redis is, and it was said
    char last_event[QUEUE_EVENT_ID_MAX];
    int64_t looked_ms;
};

// --- answers

static void count(struct batch *b)
{
    b->counts->done = b->out.n_lines;
    b->counts->failed = b->errors.n_lines;
}

static enum status refuse(struct batch *b, const struct batch_line *line, const char *code,
                          const char *message, struct error *e)
{
    enum status status = batch_output_append(&b->errors, batch_refusal(line, code, message), e);
    count(b);
    return status;
}

static enum status answer(struct batch *b, const struct batch_line *line, const uint8_t *bytes,
                          size_t n, struct error *e)
{
    struct result r;
    struct error bad = {0};
    enum status status;
    if (result_decode(&r, bytes, n, &bad) != OK) {
        status = refuse(b, line, bad.code, bad.text, e);
    } else if (r.status != RESULT_OK) {
        const char *code = r.error.code[0] != '\0' ? r.error.code : result_status_name(r.status);
        status = refuse(b, line, code, r.error.message, e);
    } else {
        status = batch_output_append(&b->out, batch_answer(line, &r), e);
        b->counts->tokens += r.usage.completion;
        count(b);
    }
    result_deinit(&r);
    return status;
}

static void land(struct batch *b, struct flight *f)
{
    batch_line_deinit(&f->line);
    *f = (struct flight){.state = FREE};
    b->n_open--;
}

// --- from the input to the queue

// Parses the input's present line. *flies: it is to be asked; else it was answered before or is
// now.
static enum status prepare(struct batch *b, struct batch_line *line, bool *flies, struct error *e)
{
    struct error bad = {0};
    bool is_new = true, before = batch_is_answered(&b->answered, b->in.number);
    enum status status = batch_line_parse(line, b->in.text, b->in.n, b->counts->batch_id,
                                          b->in.number, &bad);
    *flies = false;
    if (b->in.too_long) {
        status = error_set(&bad, ERR_LIMIT, "too_large", "the line has more than %lld bytes",
                           JOB_MESSAGE_MAX);
    }
    // The first line with an id has it, answered or not.
    if (line->custom_id[0] != '\0') {
        try(custom_ids_add(&b->custom_ids, line->custom_id, &is_new, e));
    }
    if (before) return OK;
    if (status != OK) return refuse(b, line, bad.code, bad.text, e);
    if (!is_new) {
        return refuse(b, line, "duplicate_custom_id", "an earlier line has the same custom_id", e);
    }
    *flies = true;
    return OK;
}

static enum status fill(struct batch *b, struct error *e)
{
    for (int i = 0; i < b->o->window && !b->read_all && *b->o->stop == 0;) {
        struct flight *f = &b->flights[i];
        enum status status;
        bool flies = false;
        if (f->state != FREE) {
            i++;
            continue;
        }
        if (!batch_input_next(&b->in, &status, e)) {
            b->read_all = true;
            return status;
        }
        status = prepare(b, &f->line, &flies, e);
        if (flies) {
            f->state = TO_PUSH;
            b->n_open++;
        } else {
            batch_line_deinit(&f->line);
        }
        try(status);
    }
    return OK;
}

// Whether to go on and try again: Redis is away, or full until jobs end.
static bool passes(struct batch *b, enum status status, const struct error *e)
{
    if (status != ERR_UNAVAILABLE && status != ERR_LIMIT) return false;
    if (!b->away) progress_note(&b->progress, "waiting: %s", e->text);
    b->away = true;
    return true;
}

static enum status push(struct batch *b, struct error *e)
{
    struct queue_bytes messages[BATCH_WINDOW_MAX];
    struct flight *whose[BATCH_WINDOW_MAX];
    size_t n = 0, n_pushed = 0;
    for (int i = 0; i < b->o->window; i++) {
        struct flight *f = &b->flights[i];
        if (f->state != TO_PUSH) continue;
        messages[n] = (struct queue_bytes){f->line.message.data, f->line.message.n};
        whose[n++] = f;
    }
    if (n == 0) return OK;
    enum status status = queue_sync_push_many(b->q, b->o->tenant, messages, n, &n_pushed, e);
    for (size_t i = 0; i < n_pushed; i++) {
        whose[i]->state = IN_QUEUE;
        buffer_deinit(&whose[i]->line.message);
    }
    return status;
}

// --- from the queue to the files

// A push whose outcome was unknown may have arrived: its event counts, too.
static bool on_event(void *arg, const struct queue_event *event)
{
    struct batch *b = arg;
    int64_t number = batch_job_number(event->id, b->counts->batch_id);
    for (int i = 0; number > 0 && i < b->o->window; i++) {
        struct flight *f = &b->flights[i];
        if (f->state == FREE || f->line.number != number) continue;
        f->state = ENDED;
        f->conflict = strcmp(event->event, "id_conflict") == 0;
        break;
    }
    return true;
}

static enum status wait_for_events(struct batch *b, struct error *e)
{
    enum status status = queue_sync_events(b->q, b->o->tenant, b->last_event, EVENTS_MAX, EVENT_MS,
                                           on_event, b, e);
    return status == ERR_TIMEOUT ? OK : status;
}

static enum status land_one(struct batch *b, struct flight *f, const uint8_t *bytes, size_t n,
                            struct error *e)
{
    enum status status = OK;
    if (f->conflict) {
        status = refuse(b, &f->line, "id_conflict",
                        "another request was sent under this batch id and line before", e);
    } else if (bytes != NULL) {
        status = answer(b, &f->line, bytes, n, e);
    } else if (f->state == ENDED) {
        status = refuse(b, &f->line, "result_gone", "the job has ended and its result has expired",
                        e);
    } else {
        return OK; // looked for, and still on its way
    }
    if (status == OK) land(b, f);
    return status;
}

// Fetches and writes the results of what has ended. `look`: of all that is in the queue.
static enum status collect(struct batch *b, bool look, struct error *e)
{
    const char *ids[BATCH_WINDOW_MAX];
    struct flight *whose[BATCH_WINDOW_MAX];
    uint8_t *bytes[BATCH_WINDOW_MAX];
    size_t sizes[BATCH_WINDOW_MAX];
    size_t n = 0;
    for (int i = 0; i < b->o->window; i++) {
        struct flight *f = &b->flights[i];
        if (f->state != ENDED && !(look && f->state == IN_QUEUE)) continue;
        whose[n] = f;
        ids[n++] = f->line.job_id;
    }
    if (n == 0) return OK;
    try(queue_sync_get_many(b->q, b->o->tenant, ids, n, bytes, sizes, e));
    enum status status = OK;
    for (size_t i = 0; i < n; i++) {
        if (status == OK) status = land_one(b, whose[i], bytes[i], sizes[i], e);
        free(bytes[i]);
    }
    return status;
}

// Events may be trimmed before they are read. Not under an id that the user gave: there a result
// may belong to an older request, until the conflict is told.
static bool time_to_look(struct batch *b)
{
    if (!b->own_id || clock_ms() < b->looked_ms + LOOK_MS) return false;
    b->looked_ms = clock_ms();
    return true;
}

static enum status turn(struct batch *b, struct error *e)
{
    // Before the first push, so that no event is missed.
    if (b->last_event[0] == '\0') {
        char last[QUEUE_EVENT_ID_MAX];
        try(queue_sync_last_event(b->q, b->o->tenant, last, e));
        memcpy(b->last_event, last, sizeof last);
    }
    try(push(b, e));
    try(wait_for_events(b, e));
    b->away = false;
    return collect(b, time_to_look(b), e);
}

static enum status run(struct batch *b, struct error *e)
{
    while (*b->o->stop == 0) {
        try(fill(b, e));
        progress_update(&b->progress, b->counts->done, b->counts->failed, b->counts->tokens, false);
        if (b->read_all && b->n_open == 0) return OK;
        enum status status = turn(b, e);
        if (status == OK) continue;
        if (!passes(b, status, e)) return status;
        // Jobs go on ending while there is no room for more.
        if (status == ERR_LIMIT && wait_for_events(b, e) == OK) collect(b, false, e);
        poll(NULL, 0, RETRY_MS);
    }
    return error_set(e, ERR_ABORTED, NULL, "interrupted; run it again to go on");
}

// --- all of it

static enum status open_files(struct batch *b, struct error *e)
{
    try(batch_output_open(&b->out, b->o->out, b->counts->batch_id, &b->answered, e));
    try(batch_output_open(&b->errors, b->o->errors, b->counts->batch_id, &b->answered, e));
    count(b);
    return batch_input_open(&b->in, b->o->in, e);
}

static enum status close_files(struct batch *b, struct error *e)
{
    enum status out = batch_output_close(&b->out, e);
    enum status errors = batch_output_close(&b->errors, out == OK ? e : NULL);
    batch_input_close(&b->in);
    free(b->answered.bits);
    return out != OK ? out : errors;
}

static enum status run_opened(struct batch *b, struct error *e)
{
    b->flights = calloc((size_t) b->o->window, sizeof *b->flights);
    if (b->flights == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the window");
    progress_init(&b->progress, b->counts->total, b->counts->done + b->counts->failed);
    enum status status = run(b, e);
    progress_update(&b->progress, b->counts->done, b->counts->failed, b->counts->tokens, true);
    for (int i = 0; i < b->o->window; i++) {
        if (b->flights[i].state != FREE) batch_line_deinit(&b->flights[i].line);
    }
    free(b->flights);
    custom_ids_deinit(&b->custom_ids);
    return status;
}

enum status batch_run(const struct batch_options *o, struct queue_sync *q,
                      struct batch_counts *counts, struct error *e)
{
    struct batch b = {.o = o, .q = q, .counts = counts, .own_id = o->batch_id == NULL,
                      .out.fd = -1, .errors.fd = -1, .looked_ms = clock_ms()};
    *counts = (struct batch_counts){0};
    check(o->window >= 1 && o->window <= BATCH_WINDOW_MAX);
    if (o->batch_id != NULL) try(redis_name_check("batch id", o->batch_id, BATCH_ID_MAX, e));
    try(batch_input_survey(o->in, counts->batch_id, &counts->total, e));
    if (o->batch_id != NULL) snprintf(counts->batch_id, BATCH_ID_SIZE, "%s", o->batch_id);
    enum status status = open_files(&b, e);
    if (status == OK) status = run_opened(&b, e);
    enum status closed = close_files(&b, status == OK ? e : NULL);
    return status != OK ? status : closed;
}
