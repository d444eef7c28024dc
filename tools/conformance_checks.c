#include "tools/conformance_checks.h"

#include "broker/redis.h"

#include <hiredis/hiredis.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BIG_BYTES = 1 << 20 };

// --- the checks

static enum status message(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    json_t *fields = json_pack("{s:i, s:s, s:b}", "class", 1, "custom_id", "mine: \xc3\xbc",
                               "stream", 1);
    try(conformance_enqueue(c, "c-message", "hello", fields, id, e));
    try(conformance_step(c, e));
    try(conformance_came(c, id, "hello", e));
    const struct seen *s = conformance_last(&c->broker, id);
    if (s->op != JOB_CHAT) return conformance_wrong(e, "the op came as %s", job_op_name(s->op));
    if (s->class != 1 || !s->stream) {
        return conformance_wrong(e, "class or stream did not come as given");
    }
    if (strcmp(s->custom_id, "mine: \xc3\xbc") != 0) {
        return conformance_wrong(e, "custom_id came as \"%.80s\"", s->custom_id);
    }
    return OK;
}

static enum status text_of_all_kinds(struct conformance *c, struct error *e)
{
    static const char TEXT[] = "Gr\xc3\xb6\xc3\x9f" "e \xe6\xbc\xa2\xe5\xad\x97 "
                               "\xf0\x9f\x99\x82 \"q\" back\\slash, tab\t, line\nend %s $(x) `y`";
    char id[JOB_ID_MAX + 1], answer[sizeof TEXT + 8];
    snprintf(answer, sizeof answer, "re: %s", TEXT);
    try(conformance_enqueue(c, "c-text", TEXT, NULL, id, e));
    try(conformance_step(c, e));
    try(conformance_came(c, id, TEXT, e));
    return conformance_result_is(c, "wait", id, "ok", answer, NULL, e);
}

static enum status ids_made(struct conformance *c, struct error *e)
{
    char a[JOB_ID_MAX + 1], b[JOB_ID_MAX + 1];
    try(conformance_enqueue(c, NULL, "one", NULL, a, e));
    try(conformance_enqueue(c, NULL, "two", NULL, b, e));
    try(conformance_step(c, e));
    if (strcmp(a, b) == 0) return conformance_wrong(e, "two jobs got the same id");
    try(conformance_came(c, a, "one", e));
    return conformance_came(c, b, "two", e);
}

// All is over before the program is asked to wait: only the event from before the push helps.
static enum status end_before_wait(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    try(conformance_enqueue(c, "c-early", "early", NULL, id, e));
    try(conformance_step(c, e));
    return conformance_result_is(c, "wait", id, "ok", "re: early", NULL, e);
}

// The program of an earlier run enqueued it, and the log holds its event no more.
static enum status end_long_ago(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    try(conformance_enqueue(c, "c-long-ago", "long ago", NULL, id, e));
    try(conformance_step(c, e));
    try(conformance_trim(c, 0, e));
    try(conformance_restart(c, e));
    return conformance_result_is(c, "wait", id, "ok", "re: long ago", NULL, e);
}

// While the program was busy elsewhere, so many jobs ended that the event is gone.
static enum status event_dropped(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1], other[JOB_ID_MAX + 1];
    try(conformance_enqueue(c, "c-dropped", "dropped", NULL, id, e));
    try(conformance_step(c, e));
    try(conformance_enqueue(c, "c-newer", "newer", NULL, other, e));
    try(conformance_step(c, e));
    try(conformance_trim(c, 1, e));
    return conformance_result_is(c, "wait", id, "ok", "re: dropped", NULL, e);
}

static enum status end_after_wait(struct conformance *c, struct error *e)
{
    try(conformance_wait_early(c, "c-late", "late", e));
    return conformance_wait_ends(c, "re: late", e);
}

static enum status wait_in_vain(struct conformance *c, struct error *e)
{
    json_t *reply;
    try(conformance_ask(c, conformance_wish("wait", "c-nobody", 1), &reply, e));
    bool timeout = json_is_true(json_object_get(reply, "timeout"));
    json_decref(reply);
    return timeout ? OK : conformance_wrong(e, "waiting for a job that never was did not time out");
}

// Every answer holds fields of a later version.
static enum status unknown_fields(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    try(conformance_enqueue(c, "c-unknown", "unknown", NULL, id, e));
    try(conformance_step(c, e));
    return conformance_result_is(c, "result", id, "ok", "re: unknown", NULL, e);
}

static enum status no_result(struct conformance *c, struct error *e)
{
    json_t *reply;
    try(conformance_ask(c, conformance_wish("result", "c-nobody", 1), &reply, e));
    bool none = json_is_null(json_object_get(reply, "status"));
    json_decref(reply);
    return none ? OK : conformance_wrong(e, "a job that never was has a status");
}

static enum status duplicate(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    for (int i = 0; i < 2; i++) {
        try(conformance_enqueue(c, "c-twice", "twice", NULL, id, e));
        try(conformance_result_is(c, "wait", id, "ok", "re: twice", NULL, e));
    }
    const struct seen *seen = conformance_first(&c->broker, id);
    int runs = seen != NULL ? seen->runs : 0;
    return runs == 1 ? OK : conformance_wrong(e, "the job ran %d times", runs);
}

static enum status conflict(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    try(conformance_enqueue(c, "c-mine", "mine", NULL, id, e));
    try(conformance_step(c, e));
    try(conformance_enqueue(c, "c-mine", "something else", NULL, id, e));
    try(conformance_result_is(c, "wait", id, NULL, NULL, "id_conflict", e));
    return conformance_result_is(c, "result", id, "ok", "re: mine", NULL, e);
}

static enum status failure(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    try(conformance_enqueue(c, "c-fail", "fail", NULL, id, e));
    return conformance_result_is(c, "wait", id, "error", NULL, "told_to_fail", e);
}

static enum status cancel(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1];
    json_t *reply;
    c->broker.hold_runs = true;
    try(conformance_enqueue(c, "c-cancel", "never mind", NULL, id, e));
    try(conformance_ask(c, conformance_wish("cancel", id, 1), &reply, e));
    json_decref(reply);
    enum status status = conformance_result_is(c, "wait", id, "cancelled", NULL, NULL, e);
    c->broker.hold_runs = false;
    return status;
}

static enum status big(struct conformance *c, struct error *e)
{
    char id[JOB_ID_MAX + 1], *text = malloc(BIG_BYTES + 8);
    if (text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a big body");
    memcpy(text, "re: ", 4);
    memset(text + 4, 'x', BIG_BYTES);
    text[BIG_BYTES + 4] = 0;
    enum status status = conformance_enqueue(c, "c-big", text + 4, NULL, id, e);
    if (status == OK) status = conformance_step(c, e);
    if (status == OK) status = conformance_came(c, id, text + 4, e);
    if (status == OK) status = conformance_result_is(c, "wait", id, "ok", text, NULL, e);
    free(text);
    return status;
}

const struct conformance_check CONFORMANCE_CHECKS[] = {
    {"message", "a message decodes by the schema, its fields as given", message},
    {"text", "text of all kinds arrives and comes back unchanged", text_of_all_kinds},
    {"ids", "ids that are made up are valid and differ", ids_made},
    {"end-before-wait", "an end before wait is called is not missed", end_before_wait},
    {"end-after-wait", "wait lasts until the job has ended", end_after_wait},
    {"end-long-ago", "of a job of an earlier process the result is looked for", end_long_ago},
    {"event-dropped", "where the log may have dropped the event, too", event_dropped},
    {"timeout", "wait ends in time where nothing comes", wait_in_vain},
    {"unknown-fields", "unknown fields of a result are ignored", unknown_fields},
    {"no-result", "where there is no result, that is said", no_result},
    {"duplicate", "the same id and body again is the same job", duplicate},
    {"conflict", "the same id with another body is an id_conflict", conflict},
    {"failure", "the error code of a failed job is told", failure},
    {"cancel", "a cancelled job ends as cancelled", cancel},
    {"big", "a body of 1 MiB arrives, and its answer", big},
    {"push-cut-off", "a push that was cut off is made again with the same id",
     conformance_push_cut_off},
    {"push-arrived", "also if it had arrived: only its answer was lost", conformance_push_arrived},
    {"push-full", "a push that a full Redis refused is made again", conformance_push_full},
    {"wait-cut-off", "wait goes on after the connection was lost", conformance_wait_cut_off},
    {"bulk", "bulk keeps to its window, and fills it", conformance_bulk},
    {"bulk-cut-off", "bulk goes on after the connection was lost", conformance_bulk_cut_off},
    {"stream", "text is given as it comes, in whole characters", conformance_stream_comes},
    {"stream-overlap", "what a later attempt says again is given once", conformance_stream_overlap},
    {"stream-gap", "what lies behind a gap waits for the result", conformance_stream_gap},
    {"stream-rest", "what was not streamed comes from the result", conformance_stream_rest},
    {"stream-offset", "from an offset on, only what follows is given", conformance_stream_offset},
    {"stream-long-ago", "a stream that has ended long ago is given whole",
     conformance_stream_long_ago},
    {"stream-differs", "a stream that is not the result's is no answer",
     conformance_stream_differs},
    {"stream-cut-off", "a stream goes on where the connection was lost",
     conformance_stream_cut_off},
    {"stream-cancel", "a stream ends with its job, done or not", conformance_stream_cancel},
};
const int CONFORMANCE_N_CHECKS = sizeof CONFORMANCE_CHECKS / sizeof *CONFORMANCE_CHECKS;
