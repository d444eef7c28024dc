// Checks of streamed text: chunks are published by hand while the job is held back.
#include "tools/conformance_checks.h"

#include "common/clock.h"
#include "tools/conformance_server.h"

#include <hiredis/hiredis.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { ID_SIZE = JOB_ID_MAX + 1, READ_MS = 3000 };

// Characters of two to four bytes, next to each other, so that most places are within one.
#define PROMPT "\xc3\xa4\xc3\xb6\xc3\xbc\xe6\xbc\xa2\xe5\xad\x97 streams \xf0\x9f\x99\x82!"
static const char TEXT[] = "re: " PROMPT; // as it is answered
enum { TEXT_BYTES = sizeof TEXT - 1 };

// Enqueues it, and says the wish.
static enum status begin(struct conformance *c, const char *id, int offset, struct error *e)
{
    char told[ID_SIZE];
    c->broker.hold_runs = true;
    try(conformance_enqueue(c, id, PROMPT, json_pack("{s:b}", "stream", 1), told, e));
    try(conformance_step(c, e));
    json_t *wish = conformance_wish("stream", id, c->timeout_s);
    if (offset > 0) json_object_set_new(wish, "offset", json_integer(offset));
    return conformance_say(c, wish, e);
}

static enum status publish(struct conformance *c, const char *id, int attempt, size_t from,
                           size_t to, struct error *e)
{
    char entry[CONFORMANCE_ENTRY_SIZE];
    return conformance_broker_publish(&c->broker, id, attempt, from, TEXT + from, to - from, entry,
                                      e);
}

// Publishes it and waits until the program asks for what follows it. Programs that read in another
// way are given some time.
static enum status publish_and_see(struct conformance *c, const char *id, size_t from, size_t to,
                                   struct error *e)
{
    redisContext *watch;
    char key[256], entry[CONFORMANCE_ENTRY_SIZE] = "";
    snprintf(key, sizeof key, "ps:{%s}:t:%s:%s\"", c->broker.queue, c->broker.tenant, id);
    try(conformance_server_watch(c->url, &watch, e));
    enum status status =
        conformance_broker_publish(&c->broker, id, 1, from, TEXT + from, to - from, entry, e);
    if (status == OK) conformance_server_saw(watch, key, entry, READ_MS);
    redisFree(watch);
    return status;
}

static enum status end(struct conformance *c, bool any, json_t **reply, struct error *e)
{
    c->broker.hold_runs = false;
    return conformance_listen(c, any, reply, e);
}

static enum status end_with(struct conformance *c, const char *text, struct error *e)
{
    json_t *reply;
    try(end(c, false, &reply, e));
    enum status status = conformance_expect(reply, "text", text, e);
    json_decref(reply);
    return status;
}

enum status conformance_stream_comes(struct conformance *c, struct error *e)
{
    const char *id = "c-stream";
    json_t *reply;
    try(begin(c, id, 0, e));
    try(publish_and_see(c, id, 0, 5, e));
    for (size_t i = 5; i < TEXT_BYTES; i++) try(publish(c, id, 1, i, i + 1, e));
    try(end(c, false, &reply, e));
    enum status status = conformance_expect(reply, "text", TEXT, e);
    const json_t *pieces = json_object_get(reply, "pieces");
    if (status == OK && json_is_integer(pieces) && json_integer_value(pieces) < 2) {
        status = conformance_wrong(e, "nothing was given before the job's end");
    }
    json_decref(reply);
    return status;
}

enum status conformance_stream_overlap(struct conformance *c, struct error *e)
{
    const char *id = "c-stream-overlap";
    try(begin(c, id, 0, e));
    try(publish(c, id, 1, 0, 9, e));
    try(publish(c, id, 1, 9, 15, e));
    try(publish(c, id, 2, 7, 20, e)); // some of it is new
    try(publish(c, id, 2, 7, 12, e)); // none
    try(publish(c, id, 3, 0, TEXT_BYTES, e));
    return end_with(c, TEXT, e);
}

enum status conformance_stream_gap(struct conformance *c, struct error *e)
{
    const char *id = "c-stream-gap";
    try(begin(c, id, 0, e));
    try(publish(c, id, 1, 0, 9, e));
    try(publish(c, id, 1, 15, 20, e));
    return end_with(c, TEXT, e);
}

enum status conformance_stream_rest(struct conformance *c, struct error *e)
{
    const char *id = "c-stream-rest";
    try(begin(c, id, 0, e));
    try(publish_and_see(c, id, 0, 11, e));
    return end_with(c, TEXT, e);
}

enum status conformance_stream_offset(struct conformance *c, struct error *e)
{
    const char *id = "c-stream-offset";
    try(begin(c, id, 10, e));
    try(publish(c, id, 1, 0, 7, e));
    try(publish(c, id, 1, 7, 15, e));
    return end_with(c, TEXT + 10, e);
}

enum status conformance_stream_long_ago(struct conformance *c, struct error *e)
{
    const char *id = "c-stream-long-ago";
    char told[ID_SIZE];
    c->broker.hold_runs = true;
    try(conformance_enqueue(c, id, PROMPT, json_pack("{s:b}", "stream", 1), told, e));
    try(conformance_step(c, e));
    try(publish(c, id, 1, 0, 11, e));
    c->broker.hold_runs = false;
    try(conformance_step(c, e));
    try(conformance_trim(c, 0, e));
    try(conformance_restart(c, e));
    try(conformance_say(c, conformance_wish("stream", id, c->timeout_s), e));
    return end_with(c, TEXT, e);
}

// Text that was given can't be taken back: so the program says that something is wrong, unless it
// gave the result's text alone.
enum status conformance_stream_differs(struct conformance *c, struct error *e)
{
    const char *id = "c-stream-differs";
    char entry[CONFORMANCE_ENTRY_SIZE];
    json_t *reply;
    try(begin(c, id, 0, e));
    try(conformance_broker_publish(&c->broker, id, 1, 0, "no: ", 4, entry, e));
    try(end(c, true, &reply, e));
    enum status status = OK;
    if (json_object_get(reply, "failure") == NULL) {
        status = conformance_expect(reply, "text", TEXT, e);
    }
    json_decref(reply);
    return status;
}

enum status conformance_stream_cut_off(struct conformance *c, struct error *e)
{
    const char *id = "c-stream-cut";
    try(begin(c, id, 0, e));
    try(publish_and_see(c, id, 0, 11, e));
    try(conformance_cut(c, e));
    try(publish_and_see(c, id, 11, 17, e));
    try(conformance_cut(c, e));
    return end_with(c, TEXT, e);
}

// Another producer cancels the job; what was streamed until then is all there is.
enum status conformance_stream_cancel(struct conformance *c, struct error *e)
{
    const char *id = "c-stream-cancel";
    try(begin(c, id, 0, e));
    try(publish_and_see(c, id, 0, 10, e));
    try(conformance_broker_cancel(&c->broker, id, e));
    json_t *reply;
    try(conformance_listen(c, false, &reply, e));
    enum status status = conformance_expect(reply, "text", "re: \xc3\xa4\xc3\xb6\xc3\xbc", e);
    json_decref(reply);
    c->broker.hold_runs = false;
    return status;
}
