// penstock pause, resume, drain: whether jobs are started, of a queue, of a tenant, in a pipeline.
#include "broker/queue_admin.h"
#include "common/clock.h"
#include "common/limits.h"
#include "tools/commands.h"
#include "tools/fleet_view.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK_MS = 100 };

struct asked {
    struct queue_flags queue;
    const char *tenant;   // NULL: the queue
    const char *pipeline; // [MODEL/]N; NULL: none
    char model[JOB_MODEL_MAX + 1];
    uint64_t number; // of the pipeline
    char name[JOB_MODEL_MAX + 40];
    double timeout;
    bool json;
};

static enum status read_flags(struct asked *a, struct options *o, int argc, char **argv,
                              struct error *e)
{
    try(options_parse(o, argc, argv, e));
    if (a->tenant != NULL) try(redis_name_check("tenant", a->tenant, TENANT_MAX, e));
    if (a->pipeline == NULL) return OK;
    if (a->tenant != NULL) {
        return error_set(e, ERR_INPUT, "bad_usage", "--tenant or --pipeline, not both");
    }
    const char *slash = strrchr(a->pipeline, '/');
    const char *digits = slash != NULL ? slash + 1 : a->pipeline;
    size_t n = slash != NULL ? (size_t) (slash - a->pipeline) : 0;
    a->number = strtoull(digits, NULL, 10);
    if (digits[0] == '\0' || digits[strspn(digits, "0123456789")] != '\0' || a->number == 0 ||
        strlen(digits) > 15 || n >= sizeof a->model || (slash != NULL && n == 0)) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--pipeline wants [MODEL/]NUMBER, as penstock fleet shows them, not "
                         "\"%s\"", a->pipeline);
    }
    memcpy(a->model, a->pipeline, n);
    return OK;
}

static const char *name_of(struct asked *a)
{
    if (a->pipeline == NULL) return a->tenant != NULL ? a->tenant : "the queue";
    snprintf(a->name, sizeof a->name, "pipeline %s/%" PRIu64, a->model, a->number);
    return a->name;
}

// --- pipelines, as the leader last told of them

// NULL: it is not there. Without a model it is that of the only one.
static json_t *find_pipeline(const json_t *record, struct asked *a)
{
    const json_t *models = json_object_get(record, "models");
    size_t i, k;
    json_t *m, *p;
    if (a->model[0] == '\0' && json_array_size(models) == 1) {
        snprintf(a->model, sizeof a->model, "%s", fleet_text(json_array_get(models, 0), "name"));
    }
    json_array_foreach(models, i, m) {
        if (strcmp(fleet_text(m, "name"), a->model) != 0) continue;
        json_array_foreach(json_object_get(m, "pipelines"), k, p) {
            if ((uint64_t) fleet_number(p, "id") == a->number) return p;
        }
    }
    return NULL;
}

// *told: the present leader has said something; *held: how many jobs the pipeline holds, -1 if it
// may take more.
static enum status look(struct queue_sync *q, struct asked *a, bool *told, bool *there,
                        json_int_t *held, struct error *e)
{
    struct queue_leader leader;
    json_t *record;
    try(fleet_view(q, &leader, &record, e));
    const json_t *said = json_object_get(record, "leader");
    *told = leader.term != 0 && (json_int_t) leader.term == fleet_number(said, "term");
    const json_t *p = find_pipeline(record, a);
    bool serves = p != NULL && strcmp(fleet_text(p, "state"), "serving") == 0;
    bool paused = json_is_true(json_object_get(p, "paused"));
    *there = p != NULL;
    *held = !serves ? 0 : paused ? fleet_number(p, "running") : -1;
    json_decref(record);
    return OK;
}

static enum status set_pipeline(struct queue_sync *q, struct asked *a, bool pause, struct error *e)
{
    bool told = false, there = false;
    json_int_t held;
    try(look(q, a, &told, &there, &held, e));
    if (a->model[0] == '\0') {
        return error_set(e, ERR_STATE, "which_model",
                         "whose pipeline %" PRIu64 "? --pipeline MODEL/%" PRIu64
                         "; penstock fleet shows them", a->number, a->number);
    }
    if (pause && told && !there) {
        return error_set(e, ERR_STATE, "no_pipeline",
                         "there is no pipeline %" PRIu64 " of %s; penstock fleet shows them",
                         a->number, a->model);
    }
    return queue_admin_pause_pipeline(q, a->model, a->number, pause, e);
}

static enum status set_paused(struct queue_sync *q, struct asked *a, bool pause, struct error *e)
{
    if (a->pipeline != NULL) return set_pipeline(q, a, pause, e);
    return queue_admin_pause(q, a->tenant, pause, e);
}

static int say(const struct options *o, struct asked *a, const char *state)
{
    if (a->json) {
        json_t *all = json_pack("{s:s, s:s?, s:s}", "queue", a->queue.queue, "tenant", a->tenant,
                                "state", state);
        if (a->pipeline != NULL) {
            json_object_set_new(all, "model", json_string(a->model));
            json_object_set_new(all, "pipeline", json_integer((json_int_t) a->number));
        }
        return outcome_json(all, EXIT_DONE);
    }
    fprintf(stderr, "%s: %s is %s\n", o->program, name_of(a), state);
    return EXIT_DONE;
}

static int set(int argc, char **argv, struct options *o, bool pause)
{
    struct asked a = {.queue = queue_flags_default()};
    struct option_spec specs[] = {
        {.name = "tenant", .kind = OPTION_STRING, .value = &a.tenant, .argument = "NAME",
         .help = "Only this tenant's jobs (default: the whole queue)."},
        {.name = "pipeline", .kind = OPTION_STRING, .value = &a.pipeline, .argument = "[MODEL/]N",
         .help = "Only this pipeline (penstock fleet): it gets no jobs, and keeps its weights."},
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "One JSON object on stdout."},
        QUEUE_ONLY_ROWS(a.queue),
    };
    struct error e = {0};
    o->specs = specs;
    o->n_specs = sizeof specs / sizeof *specs;
    if (read_flags(&a, o, argc, argv, &e) != OK) return outcome_usage(o->program, &e);
    if (o->help) return EXIT_DONE;
    struct queue_sync *q;
    if (queue_flags_open(&a.queue, &q, &e) != OK) return outcome_failed(o->program, &e, a.json);
    enum status status = set_paused(q, &a, pause, &e);
    queue_sync_close(&q);
    if (status != OK) return outcome_failed(o->program, &e, a.json);
    return say(o, &a, pause ? "paused" : "resumed");
}

int cmd_pause(int argc, char **argv)
{
    struct options o = {.program = "penstock pause",
                        .usage = "[OPTIONS]",
                        .about = "No job is started any more; what runs goes on, and jobs are "
                                 "still taken in."};
    return set(argc, argv, &o, true);
}

int cmd_resume(int argc, char **argv)
{
    struct options o = {.program = "penstock resume",
                        .usage = "[OPTIONS]",
                        .about = "Jobs are started again after penstock pause or drain."};
    return set(argc, argv, &o, false);
}

// What still runs; of a pipeline, more than none until the leader has said that it is paused.
static enum status count_running(struct queue_sync *q, struct asked *a, uint64_t *running,
                                 struct error *e)
{
    bool told = false, there;
    json_int_t held = -1;
    if (a->pipeline == NULL) return queue_admin_busy(q, a->tenant, running, e);
    try(look(q, a, &told, &there, &held, e));
    *running = !told || held < 0 ? 1 : (uint64_t) held;
    return OK;
}

// Waits until nothing runs; every look is a call of the library.
static enum status wait_idle(struct queue_sync *q, struct asked *a, struct error *e)
{
    int64_t until = a->timeout < 0 ? INT64_MAX : clock_ms() + timeout_ms(a->timeout);
    uint64_t running;
    for (;;) {
        try(count_running(q, a, &running, e));
        if (running == 0) return OK;
        if (clock_ms() >= until) break;
        poll(NULL, 0, LOOK_MS);
    }
    return error_set(e, ERR_TIMEOUT, NULL, "%" PRIu64 " jobs still run; %s stays paused", running,
                     name_of(a));
}

int cmd_drain(int argc, char **argv)
{
    struct asked a = {.queue = queue_flags_default(), .timeout = -1};
    struct option_spec specs[] = {
        {.name = "tenant", .kind = OPTION_STRING, .value = &a.tenant, .argument = "NAME",
         .help = "Only this tenant's jobs (default: the whole queue)."},
        {.name = "pipeline", .kind = OPTION_STRING, .value = &a.pipeline, .argument = "[MODEL/]N",
         .help = "Only this pipeline (penstock fleet): it gets no jobs, and keeps its weights."},
        {.name = "timeout", .kind = OPTION_NUMBER, .value = &a.timeout, .argument = "S",
         .help = "In seconds (default: none).", .least = 0, .most = 1e9},
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "One JSON object on stdout."},
        QUEUE_ONLY_ROWS(a.queue),
    };
    struct options o = {.program = "penstock drain",
                        .usage = "[OPTIONS]",
                        .about = "Pauses, then waits until nothing runs. From then on nothing "
                                 "does until penstock\nresume. Exit status 1: the time was up; "
                                 "it stays paused.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (read_flags(&a, &o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    struct queue_sync *q;
    if (queue_flags_open(&a.queue, &q, &e) != OK) return outcome_failed(o.program, &e, a.json);
    enum status status = set_paused(q, &a, true, &e);
    if (status == OK) status = wait_idle(q, &a, &e);
    queue_sync_close(&q);
    if (status != OK) return outcome_failed(o.program, &e, a.json);
    return say(&o, &a, "drained");
}
