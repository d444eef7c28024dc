#include "tools/show_job.h"

#include "broker/queue_admin.h"
#include "tools/commands.h"
#include "tools/outcome.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VALUE_SIZE = 512 };

enum kind { TEXT, NUMBER, TIME, WAIT };

// What the library says of a job, in the order in which people are told.
static const struct field {
    const char *name;  // in Redis
    const char *json;  // its name for programs
    const char *words; // for people
    enum kind kind;
} FIELDS[] = {
    {"state", "state", "state", TEXT},
    {"waits", "waits_for", "waits for", WAIT},
    {"code", "code", "why it failed last", TEXT},
    {"text", "message", "", TEXT},
    {"class", "class", "class", NUMBER},
    {"starts", "attempts", "attempts", NUMBER},
    {"max", "max_attempts", "failures allowed", NUMBER},
    {"fails", "fails", "failures", NUMBER},
    {"lost", "lost", "groups lost with it", NUMBER},
    {"poison", "poison", "poison: runs alone", NUMBER},
    {"owner", "owner", "last owner", TEXT},
    {"attempt", "attempt", "last attempt's token", NUMBER},
    {"prompt", "prompt", "tokens of prompt", NUMBER},
    {"most", "max_tokens", "most tokens of output", NUMBER},
    {"need", "need_blocks", "KV blocks", NUMBER},
    {"checkpoint", "checkpoint", "tokens saved", NUMBER},
    {"shown", "streamed_bytes", "bytes of text streamed", NUMBER},
    {"bytes", "bytes", "bytes of the message", NUMBER},
    {"admitted", "admitted_ms", "admitted", TIME},
    {"started", "started_ms", "started last", TIME},
    {"due", "due_ms", "waits until", TIME},
    {"lease", "lease_ms", "lease ends", TIME},
    {"deadline", "deadline_ms", "deadline", TIME},
    {"ended", "ended_ms", "ended", TIME},
    {"dead", "dead_ms", "dead letter since", TIME},
    {"until", "kept_until_ms", "kept until", TIME},
    {"parent", "parent", "a child of", TEXT},
    {"level", "level", "of its level", NUMBER},
    {"split", "levels", "levels of children so far", NUMBER},
    {"n1", "children_1", "children of level 1", NUMBER},
    {"n2", "children_2", "children of level 2", NUMBER},
    {"n3", "children_3", "children of level 3", NUMBER},
    {"n4", "children_4", "children of level 4", NUMBER},
    {"n5", "children_5", "children of level 5", NUMBER},
    {"n6", "children_6", "children of level 6", NUMBER},
    {"n7", "children_7", "children of level 7", NUMBER},
    {"n8", "children_8", "children of level 8", NUMBER},
    {"open", "open_children", "children that have not ended well", NUMBER},
    {"custom", "custom_id", "custom id", TEXT},
    {"batch", "batch", "batch", TEXT},
    {"paused", "paused", "paused", NUMBER},
    {"ahead", "ahead", "ready jobs ahead of it", NUMBER},
    {"waiting", "waiting", "ready jobs of its class and tenant", NUMBER},
    {"before", "ready_before_class", "ready jobs of classes before its own", NUMBER},
};
enum { N_FIELDS = sizeof FIELDS / sizeof *FIELDS };

// What a job can wait for, in words.
static const struct wait {
    const char *word, *sentence;
} WAITS[] = {
    {"at", "the time that it was given (at)"},
    {"backoff", "a while before it is tried again"},
    {"children", "the jobs that it was split into (ID-m<level>-1, ...)"},
    {"join", "the broker to split it, or to take on what its children made"},
    {"queue_paused", "penstock resume: the queue is paused"},
    {"tenant_paused", "penstock resume --tenant: its tenant is paused"},
    {"budget_jobs", "other jobs of its tenant to end: its budget of jobs is used up"},
    {"budget_tokens", "other jobs of its tenant to end: its budget of tokens is used up"},
    {"no_broker", "a broker: none leads"},
    {"no_pipeline", "a pipeline: none takes jobs of its model (penstock fleet)"},
    {"alone", "its turn, and until nothing else runs: it was running when groups were lost"},
    {"turn", "its turn, and room in a pipeline"},
};

static const char *wait_words(const char *word)
{
    for (size_t i = 0; i < sizeof WAITS / sizeof *WAITS; i++) {
        if (strcmp(word, WAITS[i].word) == 0) return WAITS[i].sentence;
    }
    return word;
}

struct job_record {
    bool known[N_FIELDS];
    char values[N_FIELDS][VALUE_SIZE];
};

static void keep(void *arg, const char *name, const char *value)
{
    struct job_record *r = arg;
    for (int i = 0; i < N_FIELDS; i++) {
        if (strcmp(name, FIELDS[i].name) != 0) continue;
        r->known[i] = true;
        snprintf(r->values[i], VALUE_SIZE, "%s", value);
    }
}

static int64_t number_of(const struct job_record *r, int i)
{
    int64_t n = strtoll(r->values[i], NULL, 10);
    bool ids = strcmp(FIELDS[i].name, "checkpoint") == 0;
    return ids ? n / (int64_t) sizeof(int32_t) : n;
}

static void print_time(int64_t ms)
{
    char text[32];
    time_t seconds = (time_t) (ms / 1000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    printf("%s.%03dZ", text, (int) (ms % 1000));
}

static void print_field(const struct job_record *r, int i)
{
    printf("%-36s ", FIELDS[i].words);
    if (FIELDS[i].kind == TEXT) fputs(r->values[i], stdout);
    if (FIELDS[i].kind == WAIT) fputs(wait_words(r->values[i]), stdout);
    if (FIELDS[i].kind == NUMBER) printf("%" PRId64, number_of(r, i));
    if (FIELDS[i].kind == TIME) print_time(number_of(r, i));
    putchar('\n');
}

static int show_json(const struct job_record *r, const char *tenant, const char *id)
{
    json_t *o = json_pack("{s:s, s:s}", "tenant", tenant, "id", id);
    for (int i = 0; i < N_FIELDS; i++) {
        if (!r->known[i]) continue;
        bool text = FIELDS[i].kind == TEXT || FIELDS[i].kind == WAIT;
        json_t *value = text ? json_string(r->values[i])
                             : json_integer((json_int_t) number_of(r, i));
        json_object_set_new(o, FIELDS[i].json, value != NULL ? value : json_null());
    }
    return outcome_json(o, EXIT_DONE);
}

int show_job(const char *program, struct queue_sync *q, const char *tenant, const char *id,
             bool json)
{
    struct job_record *r = calloc(1, sizeof *r);
    struct error e = {0};
    int status = EXIT_DONE;
    if (r == NULL) {
        error_set(&e, ERR_NOMEM, NULL, "no memory for a job's record");
        return outcome_failed(program, &e, json);
    }
    enum status asked = queue_admin_show(q, tenant, id, keep, r, &e);
    if (asked != OK) status = outcome_failed(program, &e, json);
    else if (json) status = show_json(r, tenant, id);
    for (int i = 0; asked == OK && !json && i < N_FIELDS; i++) {
        if (r->known[i]) print_field(r, i);
    }
    free(r);
    return status;
}
