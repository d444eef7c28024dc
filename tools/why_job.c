#include "tools/why_job.h"

#include "common/status.h"
#include "common/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { QUOTE_BYTES = 200 };

// At most so many bytes of the text, and no part of a character.
static int whole(const char *text, size_t most)
{
    return (int) utf8_valid_prefix(text, strnlen(text, most));
}

void why_keep(void *fields, const char *name, const char *value)
{
    struct why_fields *f = fields;
    if (f->n == WHY_FIELDS_MAX) return;
    snprintf(f->at[f->n].name, sizeof f->at[0].name, "%s", name);
    snprintf(f->at[f->n].value, sizeof f->at[0].value, "%.*s",
             whole(value, sizeof f->at[0].value - 1), value);
    f->n++;
}

// Of several, the last one counts. "" where there is none.
static const char *text_of(const struct why_fields *f, const char *name)
{
    for (int i = f->n - 1; i >= 0; i--) {
        if (strcmp(f->at[i].name, name) == 0) return f->at[i].value;
    }
    return "";
}

static int64_t number_of(const struct why_fields *f, const char *name)
{
    const char *text = text_of(f, name);
    return text[0] != '\0' ? strtoll(text, NULL, 10) : WHY_UNKNOWN;
}

// --- the fleet

static bool is(const json_t *object, const char *name, const char *text)
{
    const char *is = json_string_value(json_object_get(object, name));
    return is != NULL && strcmp(is, text) == 0;
}

static const json_t *head_of(const json_t *model, json_int_t pipeline)
{
    size_t i;
    json_t *group;
    json_array_foreach(json_object_get(model, "groups"), i, group) {
        const json_t *of = json_object_get(group, "pipeline"), *stage = json_object_get(group,
                                                                                        "stage");
        bool first = json_is_integer(stage) && json_integer_value(stage) == 0;
        if (first && json_is_integer(of) && json_integer_value(of) == pipeline) return group;
    }
    return NULL;
}

static int64_t count_of(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

// Blocks without a slot to use them are of no help.
static bool better(const struct why_room *than, int64_t free_blocks, int64_t free_slots)
{
    if ((free_slots > 0) != (than->free_slots > 0)) return free_slots > 0;
    return free_blocks > than->free_blocks;
}

// A head that has told nothing yet has all that the plan gives it.
static void add_pipeline(struct why_room *room, const json_t *model, const json_t *pipeline)
{
    const json_t *plan = json_object_get(model, "plan");
    const json_t *head = head_of(model, count_of(pipeline, "id"));
    const json_t *figures = json_object_get(head, "figures"), *kv = json_object_get(figures, "kv");
    const json_t *tokens = json_object_get(figures, "tokens");
    bool told = json_is_object(kv);
    int64_t blocks = told ? count_of(kv, "blocks") : count_of(plan, "kv_blocks");
    int64_t reserved = told ? count_of(kv, "reserved") : 0;
    int64_t running = told ? count_of(figures, "running") : 0;
    int64_t slots = told ? count_of(figures, "slots") : count_of(plan, "slots");
    room->n_pipelines++;
    room->running += running;
    room->total_blocks += blocks;
    room->reserved_blocks += reserved;
    room->tokens_per_s += json_number_value(json_object_get(tokens, "decode_per_s"));
    if (blocks > room->all_blocks) room->all_blocks = blocks;
    if (json_is_true(json_object_get(pipeline, "paused"))) {
        room->n_paused++;
        return;
    }
    bool first = room->n_pipelines - room->n_paused == 1;
    if (first || better(room, blocks - reserved, slots - running)) {
        room->free_blocks = blocks - reserved;
        room->free_slots = slots - running;
    }
}

static void look_at_fleet(struct why_room *room, const json_t *fleet, const char *name)
{
    size_t i, k;
    json_t *model, *pipeline;
    *room = (struct why_room){0};
    json_array_foreach(json_object_get(fleet, "models"), i, model) {
        if (!is(model, "name", name)) continue;
        json_array_foreach(json_object_get(model, "pipelines"), k, pipeline) {
            if (is(pipeline, "state", "serving")) add_pipeline(room, model, pipeline);
        }
    }
}

// --- the sentence

static void add(struct why *why, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(struct why *why, const char *format, ...)
{
    size_t n = strlen(why->sentence);
    va_list args;
    va_start(args, format);
    vsnprintf(why->sentence + n, sizeof why->sentence - n, format, args);
    va_end(args);
}

static void add_ordinal(struct why *why, int64_t n)
{
    bool teen = n % 100 >= 11 && n % 100 <= 13;
    const char *end = teen ? "th" : n % 10 == 1 ? "st" : n % 10 == 2 ? "nd" : n % 10 == 3 ? "rd"
                                                                                          : "th";
    add(why, "%" PRId64 "%s", n, end);
}

static void add_time(struct why *why, int64_t ms)
{
    char text[32];
    time_t seconds = (time_t) (ms / 1000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    add(why, "%s", text);
}

static void add_span(struct why *why, double seconds)
{
    if (seconds < 120) add(why, "%.0f s", seconds);
    else if (seconds < 2 * 3600) add(why, "%.0f min", seconds / 60);
    else add(why, "%.1f h", seconds / 3600);
}

static void add_bounded(struct why *why, const char *before, const char *text)
{
    if (text[0] != '\0') add(why, "%s%.*s", before, whole(text, QUOTE_BYTES), text);
}

// The tokens of output that come before it, at the rate that is measured: of the jobs that go
// first, and of those that must end to make room for it, which are half done on average.
static double estimate(const struct why *why, const struct why_fields *f)
{
    const struct why_room *room = &why->room;
    double mean = strtod(text_of(f, "mean"), NULL), first = (double) number_of(f, "first");
    double lacks = (double) (why->need_blocks - room->free_blocks);
    if (first <= 0 && lacks <= 0 && room->free_slots > 0) return 0;
    if (room->tokens_per_s <= 0) return WHY_UNKNOWN;
    double part = room->reserved_blocks > 0 ? lacks / (double) room->reserved_blocks : 0;
    if (part < 0) part = 0;
    if (part > 1) part = 1;
    if (part <= 0 && room->free_slots < 1 && room->running > 0) part = 1 / (double) room->running;
    double tokens = first * mean + (double) room->running * mean / 2 * part;
    return tokens / room->tokens_per_s;
}

static void tell_turn(struct why *why, const struct why_fields *f)
{
    const struct why_room *room = &why->room;
    add(why, "needs %" PRId64 " KV blocks, ", why->need_blocks);
    if (room->n_pipelines == 0) {
        add(why, "what is free is not known");
    } else if (why->need_blocks > room->all_blocks) {
        add(why, "but no pipeline that serves has more than %" PRId64, room->all_blocks);
    } else {
        add(why, "%" PRId64 " free", room->free_blocks);
        if (room->n_pipelines - room->n_paused > 1) {
            add(why, " in the best of %d pipelines", room->n_pipelines - room->n_paused);
        }
        if (room->free_slots < 1) add(why, " and no slot");
    }
    if (strcmp(why->waits, "alone") == 0) {
        add(why, "; waits for a pipeline where nothing runs, as groups were lost that ran it");
    }
    add(why, "; ");
    add_ordinal(why, why->position);
    add(why, " of its tenant in class %" PRId64, why->class);
    why->seconds = room->n_pipelines > 0 && why->need_blocks <= room->all_blocks
                       ? estimate(why, f) : WHY_UNKNOWN;
    if (why->seconds < 0) {
        add(why, "; for how long is unknown");
    } else {
        add(why, "; about ");
        add_span(why, why->seconds);
    }
}

static const struct {
    const char *waits, *sentence;
} PLAIN[] = {
    {"children", "waits for the jobs that it was split into"},
    {"join", "waits for the broker to split it, or to take on what its children made"},
    {"queue_paused", "the queue is paused (penstock resume)"},
    {"tenant_paused", "its tenant is paused (penstock resume --tenant)"},
    {"no_broker", "no broker leads"},
    {"budget_jobs", "its tenant's budget of jobs is used up: others of it must end"},
    {"budget_tokens", "its tenant's budget of tokens is used up: others of it must end"},
};

static void tell_due(struct why *why, const struct why_fields *f)
{
    int64_t due = number_of(f, "due"), now = number_of(f, "now");
    bool backoff = strcmp(why->waits, "backoff") == 0;
    if (backoff) {
        add(why, "failed %s of %s times", text_of(f, "fails"), text_of(f, "max"));
        add_bounded(why, " (", text_of(f, "code"));
        add_bounded(why, ": ", text_of(f, "text"));
        add(why, text_of(f, "code")[0] != '\0' ? "), again at " : ", again at ");
    } else {
        add(why, "scheduled at ");
    }
    add_time(why, due);
    why->seconds = due > now ? (double) (due - now) / 1000 : 0;
    add(why, ", in ");
    add_span(why, why->seconds);
}

static void tell_waiting(struct why *why, const struct why_fields *f)
{
    const char *model = text_of(f, "model");
    for (size_t i = 0; i < sizeof PLAIN / sizeof *PLAIN; i++) {
        if (strcmp(why->waits, PLAIN[i].waits) == 0) add(why, "%s", PLAIN[i].sentence);
    }
    if (strcmp(why->waits, "no_pipeline") == 0 && why->room.n_paused > 0) {
        add(why, "all pipelines of its model %s are paused (penstock resume --pipeline)", model);
    } else if (strcmp(why->waits, "no_pipeline") == 0) {
        add(why, "no pipeline serves its model %s (penstock fleet)", model);
    }
    if (number_of(f, "due") >= 0) tell_due(why, f);
    if (why->sentence[0] == '\0') tell_turn(why, f);
}

static void tell_running(struct why *why, const struct why_fields *f)
{
    int64_t started = number_of(f, "started"), now = number_of(f, "now");
    int64_t n = number_of(f, "checkpoint") / (int64_t) sizeof(int32_t);
    add(why, "runs at %s, attempt %s, for ", text_of(f, "owner"), text_of(f, "starts"));
    add_span(why, now > started && started > 0 ? (double) (now - started) / 1000 : 0);
    add(why, ": %" PRId64 " of at most %s tokens saved", n > 0 ? n : 0, text_of(f, "most"));
    if (number_of(f, "cancel") >= 0) add(why, "; it is being cancelled");
}

static void tell_ended(struct why *why, const struct why_fields *f)
{
    add(why, "ended: %s", why->state);
    if (number_of(f, "ended") > 0) {
        add(why, " at ");
        add_time(why, number_of(f, "ended"));
    }
    add_bounded(why, ", ", text_of(f, "code"));
    add_bounded(why, ": ", text_of(f, "text"));
}

static void tell_message(struct why *why, const struct why_fields *f)
{
    const char *inbox = text_of(f, "inbox");
    if (strcmp(why->state, "taken") == 0) {
        add(why, "taken from the inbox, and not admitted yet");
        return;
    }
    why->position = number_of(f, "position");
    add(why, "in the inbox, ");
    add_ordinal(why, why->position);
    add(why, " of %s", inbox);
    if (strcmp(why->waits, "no_broker") == 0) add(why, ": no broker leads");
    if (strcmp(why->waits, "no_tenant") == 0) {
        add(why, ": there is no such tenant (penstock tenant add)");
    }
    if (strcmp(why->waits, "bytes") == 0) {
        add(why, ": nothing is taken in, as %s of %s bytes of its tenant are used",
            text_of(f, "bytes_used"), text_of(f, "bytes_budget"));
    }
}

static void tell_unknown(struct why *why, const struct why_fields *f, const char *tenant,
                         const char *id)
{
    int64_t inbox = number_of(f, "inbox");
    add(why, "nothing is known of %s: no job of the tenant %s has this id, or it ended and its "
             "record has expired", id, tenant);
    if (strcmp(why->waits, "no_tenant") == 0) add(why, "; there is no such tenant");
    if (inbox > 0) {
        add(why, "; %" PRId64 " messages wait in the inbox, and it is not among the first", inbox);
    }
}

bool why_tell(struct why *why, const struct why_fields *f, const char *tenant, const char *id,
              const json_t *fleet)
{
    const char *state = text_of(f, "state"), *place = text_of(f, "place");
    bool recorded = state[0] != '\0', found = recorded || place[0] != '\0';
    *why = (struct why){.seconds = WHY_UNKNOWN, .position = WHY_UNKNOWN,
                        .need_blocks = number_of(f, "need"), .class = number_of(f, "class")};
    snprintf(why->state, sizeof why->state, "%s", recorded ? state : found ? place : "unknown");
    snprintf(why->waits, sizeof why->waits, "%s", text_of(f, "waits"));
    look_at_fleet(&why->room, fleet, text_of(f, "model"));
    if (number_of(f, "ahead") >= 0) why->position = number_of(f, "ahead") + 1;
    bool waits = strcmp(state, "queued") == 0 || strcmp(state, "waiting") == 0;
    if (!found) tell_unknown(why, f, tenant, id);
    else if (!recorded) tell_message(why, f);
    else if (waits) tell_waiting(why, f);
    else if (strcmp(state, "running") == 0) tell_running(why, f);
    else tell_ended(why, f);
    return found;
}

static json_t *known(int64_t n) { return n >= 0 ? json_integer((json_int_t) n) : json_null(); }

json_t *why_json(const struct why *why, const char *tenant, const char *id)
{
    const struct why_room *room = &why->room;
    bool waits = why->waits[0] != '\0', turn = room->n_pipelines > room->n_paused;
    bool timed = why->seconds >= 0;
    return json_pack("{s:s,s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:s}", "tenant", tenant, "id", id,
                     "state", why->state, "waits_for",
                     waits ? json_string(why->waits) : json_null(), "class", known(why->class),
                     "position", known(why->position), "need_blocks", known(why->need_blocks),
                     "free_blocks", turn ? known(room->free_blocks) : json_null(), "free_slots",
                     turn ? known(room->free_slots) : json_null(), "seconds",
                     timed ? json_real(round(why->seconds * 10) / 10) : json_null(), "sentence",
                     why->sentence);
}
