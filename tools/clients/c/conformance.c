// What `penstock conformance producer` talks to: wishes as JSON lines in, replies out. Needs
// jansson besides what the client needs.
#include "penstock_client.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { JOBS_MAX = 256 };

static struct penstock *client;
static struct penstock_job jobs[JOBS_MAX]; // enqueued: id and since
static size_t n_jobs;

static const char *text_of(const json_t *o, const char *name)
{
    return json_string_value(json_object_get(o, name));
}

static int64_t int_of(const json_t *o, const char *name)
{
    return json_integer_value(json_object_get(o, name));
}

static const struct penstock_job *job_of(const json_t *wish)
{
    static struct penstock_job other;
    const char *id = text_of(wish, "id");
    for (size_t i = n_jobs; i-- > 0;) {
        if (strcmp(jobs[i].id, id) == 0) return &jobs[i];
    }
    other = (struct penstock_job){0};
    snprintf(other.id, sizeof other.id, "%s", id);
    return &other;
}

static json_t *failure(enum penstock_code code)
{
    if (code == PENSTOCK_TIMEOUT) return json_pack("{s:b}", "timeout", 1);
    return json_pack("{s:s}", "failure", penstock_error(client));
}

static json_t *shown(const char *id, struct penstock_result *r)
{
    json_t *o = json_pack("{s:s, s:s, s:s%, s:s, s:s, s:s*}", "id", id, "status", r->status, "text",
                          r->text != NULL ? r->text : "", r->text_bytes, "finish_reason",
                          r->finish_reason, "custom_id", r->custom_id, "error",
                          r->error_code[0] != 0 ? r->error_code : NULL);
    penstock_result_free(r);
    return o;
}

static json_t *enqueue(const json_t *wish)
{
    const json_t *fields = json_object_get(wish, "fields");
    char *body = json_dumps(json_object_get(wish, "body"), JSON_COMPACT);
    struct penstock_job job = {
        .op = text_of(wish, "op"), .body = body, .model = text_of(fields, "model"),
        .custom_id = text_of(fields, "custom_id"), .batch = text_of(fields, "batch"),
        .class = (int) int_of(fields, "class"), .attempts = (int) int_of(fields, "attempts"),
        .at_ms = int_of(fields, "at"), .deadline_ms = int_of(fields, "deadline"),
        .ttl_ms = int_of(fields, "ttl"), .stream = json_is_true(json_object_get(fields, "stream"))};
    if (text_of(wish, "id") != NULL) snprintf(job.id, sizeof job.id, "%s", text_of(wish, "id"));
    enum penstock_code code = penstock_enqueue(client, &job);
    free(body);
    if (code != PENSTOCK_DONE) return failure(code);
    if (n_jobs < JOBS_MAX) jobs[n_jobs++] = job;
    return json_pack("{s:s}", "id", job.id);
}

static json_t *wait_for(const json_t *wish)
{
    struct penstock_result r;
    enum penstock_code code = penstock_wait(client, job_of(wish), int_of(wish, "timeout") * 1000,
                                            &r);
    return code == PENSTOCK_DONE ? shown(text_of(wish, "id"), &r) : failure(code);
}

static json_t *look(const json_t *wish)
{
    struct penstock_result r;
    enum penstock_code code = penstock_result(client, text_of(wish, "id"), &r);
    if (code == PENSTOCK_NONE) {
        return json_pack("{s:s, s:n}", "id", text_of(wish, "id"), "status");
    }
    return code == PENSTOCK_DONE ? shown(text_of(wish, "id"), &r) : failure(code);
}

struct pieces {
    char *text;
    size_t n, count;
};

static void add_piece(void *arg, const char *bytes, size_t n)
{
    struct pieces *p = arg;
    char *more = realloc(p->text, p->n + n);
    if (more == NULL) return;
    memcpy(more + p->n, bytes, n);
    *p = (struct pieces){more, p->n + n, p->count + 1};
}

static json_t *stream(const json_t *wish)
{
    struct penstock_result r;
    struct pieces p = {0};
    enum penstock_code code = penstock_stream(client, job_of(wish), int_of(wish, "timeout") * 1000,
                                              (size_t) int_of(wish, "offset"), add_piece, &p, &r);
    json_t *reply = code != PENSTOCK_DONE
                        ? failure(code)
                        : json_pack("{s:s, s:s%, s:I}", "id", text_of(wish, "id"), "text",
                                    p.n > 0 ? p.text : "", p.n, "pieces", (json_int_t) p.count);
    penstock_result_free(&r);
    free(p.text);
    return reply;
}

static json_t *cancel(const json_t *wish)
{
    enum penstock_code code = penstock_cancel(client, text_of(wish, "id"));
    return code == PENSTOCK_DONE ? json_pack("{s:s}", "id", text_of(wish, "id")) : failure(code);
}

struct many {
    const char *prefix;
    int64_t i, n;
    char body[256];
    json_t *results;
};

static bool next_job(void *arg, struct penstock_job *job)
{
    struct many *m = arg;
    if (m->i == m->n) return false;
    *job = (struct penstock_job){.op = "completion", .body = m->body};
    snprintf(job->id, sizeof job->id, "%s-%d", m->prefix, (int) m->i++);
    snprintf(m->body, sizeof m->body, "{\"prompt\": \"%s\", \"max_tokens\": 16}", job->id);
    return true;
}

static void on_end(void *arg, const char *id, const struct penstock_result *r)
{
    struct many *m = arg;
    json_t *text = r->error_code[0] != 0 ? json_string(r->error_code)
                                         : json_stringn(r->text, r->text_bytes);
    json_object_set_new(m->results, id, text);
}

static json_t *bulk(const json_t *wish)
{
    struct many m = {.prefix = text_of(wish, "prefix"), .n = int_of(wish, "n"),
                     .results = json_object()};
    enum penstock_code code = penstock_bulk(client, (size_t) int_of(wish, "window"), next_job,
                                            on_end, &m);
    if (code == PENSTOCK_DONE) return json_pack("{s:o}", "results", m.results);
    json_decref(m.results);
    return failure(code);
}

static const struct {
    const char *name;
    json_t *(*run)(const json_t *wish);
} WISHES[] = {{"enqueue", enqueue}, {"wait", wait_for}, {"result", look}, {"stream", stream},
              {"cancel", cancel},   {"bulk", bulk}};

static json_t *grant(const json_t *wish)
{
    const char *name = text_of(wish, "do");
    for (size_t i = 0; name != NULL && i < sizeof WISHES / sizeof *WISHES; i++) {
        if (strcmp(WISHES[i].name, name) == 0) return WISHES[i].run(wish);
    }
    return json_pack("{s:b}", "unsupported", 1);
}

int main(void)
{
    const char *url = getenv("PENSTOCK_REDIS"), *queue = getenv("PENSTOCK_QUEUE"),
               *tenant = getenv("PENSTOCK_TENANT");
    if (url == NULL || queue == NULL || tenant == NULL ||
        penstock_open(&client, url, queue, tenant, 0) != PENSTOCK_DONE) {
        fputs("PENSTOCK_REDIS, PENSTOCK_QUEUE, PENSTOCK_TENANT: one is missing or wrong\n", stderr);
        return 2;
    }
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, stdin) > 0) {
        json_t *wish = json_loads(line, 0, NULL), *reply = grant(wish);
        json_dumpf(reply, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(reply);
        json_decref(wish);
    }
    free(line);
    penstock_close(&client);
    return 0;
}
