// penstock enqueue: one job into the queue, from flags or from JSON on stdin.
#include "common/clock.h"
#include "common/map_reduce_body.h"
#include "common/sampling.h"
#include "tools/commands.h"
#include "tools/document_body.h"
#include "tools/engine_options.h"
#include "tools/job_json.h"
#include "tools/outcome.h"
#include "tools/queue_options.h"
#include "tools/show_result.h"
#include "tools/show_stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { PUSHES = 5, ID_BYTES = 16 };

struct asked {
    struct queue_flags queue;
    struct document_flags document;
    const char *prompt, *message, *system, *tokens;
    const char *id, *model, *custom_id;
    int64_t class, attempts;
    bool chat, stream, wait, json;
    double timeout, delay, deadline, ttl; // seconds; negative: not given
    // Of the body; only those given count.
    int64_t max_tokens, top_k, seed, logprobs;
    double temperature, top_p, min_p, repetition, presence, frequency;
    const char *stop;
    bool ignore_eos;
};

// --- the body

static enum status read_stdin(char **text, size_t *n, struct error *e)
{
    *n = 0;
    *text = malloc(JOB_MESSAGE_MAX + 1);
    if (*text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the job");
    *n = fread(*text, 1, JOB_MESSAGE_MAX + 1, stdin);
    if (ferror(stdin)) return error_set(e, ERR_IO, NULL, "cannot read: %m");
    if (*n <= (size_t) JOB_MESSAGE_MAX) return OK;
    return error_set(e, ERR_LIMIT, "too_large", "more than %lld bytes", JOB_MESSAGE_MAX);
}

static enum status body_of_ids(const char *path, json_t **object, struct error *e)
{
    struct token_ids ids = {0};
    enum status status = read_tokens_file(path, &ids, e);
    json_t *list = json_array();
    for (int i = 0; i < ids.n; i++) json_array_append_new(list, json_integer(ids.ids[i]));
    free(ids.ids);
    *object = json_pack("{s:o}", "tokens", list);
    return status;
}

static enum status body_of_text(const struct asked *a, json_t **object, struct error *e)
{
    const char *text = a->message != NULL ? a->message : a->prompt;
    bool chat = a->message != NULL || a->chat || a->system != NULL;
    if (!chat) {
        *object = json_pack("{s:s}", "prompt", text);
    } else if (a->system == NULL) {
        *object = json_pack("{s:[{s:s, s:s}]}", "messages", "role", "user", "content", text);
    } else {
        *object = json_pack("{s:[{s:s, s:s}, {s:s, s:s}]}", "messages", "role", "system", "content",
                            a->system, "role", "user", "content", text);
    }
    if (*object != NULL) return OK;
    return error_set(e, ERR_INPUT, "bad_body", "the text is not UTF-8");
}

static enum status read_object(const struct asked *a, json_t **object, struct error *e)
{
    char *text;
    size_t n;
    if (a->prompt != NULL || a->message != NULL) return body_of_text(a, object, e);
    if (a->tokens != NULL) return body_of_ids(a->tokens, object, e);
    if (a->document.document != NULL) return document_body(&a->document, object, e);
    enum status status = read_stdin(&text, &n, e);
    if (status == OK && n == 0) {
        status = error_set(e, ERR_INPUT, "bad_json", "nothing is there; give --prompt TEXT, or a "
                           "JSON object");
    }
    if (status == OK) status = json_parse_object(object, text, n, e);
    if (status != OK) error_prefix(e, "standard input");
    free(text);
    return status;
}

// A flag of the body: the field has its name, with underscores.
static enum status set_field(json_t *body, const struct option_spec *s, struct error *e)
{
    char key[32];
    size_t n = strlen(s->name);
    if (strcmp(s->name, "logprobs") == 0 && json_object_get(body, "messages") != NULL) {
        json_object_set_new(body, "logprobs", json_true()); // as chat has it
        json_object_set_new(body, "top_logprobs", json_integer(*(const int64_t *) s->value));
        return OK;
    }
    for (size_t i = 0; i <= n; i++) key[i] = s->name[i] == '-' ? '_' : s->name[i];
    json_t *value = s->kind == OPTION_INT      ? json_integer(*(const int64_t *) s->value)
                    : s->kind == OPTION_NUMBER ? json_real(*(const double *) s->value)
                    : s->kind == OPTION_FLAG   ? json_boolean(*(const bool *) s->value)
                                               : json_string(*(const char **) s->value);
    if (json_object_set_new(body, key, value) == 0) return OK;
    return error_set(e, ERR_INPUT, "bad_body", "--%s is not UTF-8", s->name);
}

// Those that were given; of a document they are for both of its requests.
static enum status set_fields(json_t *body, const struct option_spec *specs, int n_specs,
                              struct error *e)
{
    bool document = json_object_get(body, "document") != NULL;
    json_t *requests[] = {document ? json_object_get(body, "map") : body,
                          document ? json_object_get(body, "reduce") : NULL};
    for (int i = 0; i < n_specs; i++) {
        for (int r = 0; r < 2 && specs[i].given; r++) {
            if (json_is_object(requests[r])) try(set_field(requests[r], &specs[i], e));
        }
    }
    return OK;
}

// --- the job

static enum status set_text(char *to, size_t size, const char *what, const char *text,
                            struct error *e)
{
    if (text == NULL) return OK;
    if (strlen(text) >= size) {
        return error_set(e, ERR_INPUT, "bad_job", "--%s is longer than %zu bytes", what, size - 1);
    }
    memcpy(to, text, strlen(text) + 1);
    return OK;
}

static enum status make_id(char id[JOB_ID_MAX + 1], struct error *e)
{
    uint8_t random[ID_BYTES];
    if (getrandom(random, sizeof random, 0) != (ssize_t) sizeof random) {
        return error_set(e, ERR_IO, NULL, "no random numbers for an id: %m");
    }
    for (int i = 0; i < ID_BYTES; i++) snprintf(id + 2 * i, 3, "%02x", random[i]);
    return OK;
}

// What the broker would refuse is told here already.
static enum status check_body(const struct job *job, const char *tenant, struct error *e)
{
    if (job->op == JOB_MAP_REDUCE) {
        struct map_reduce_body document;
        enum status status = map_reduce_body_parse(&document, job, e);
        map_reduce_body_deinit(&document);
        return status;
    }
    struct job_body body;
    enum status status = job_body_parse(&body, job, tenant, e);
    job_body_deinit(&body);
    return status;
}

// The schema has points in time, people have seconds from now.
static void set_times(struct job *job, const struct asked *a)
{
    int64_t now_ms = clock_wall_ms();
    if (a->delay >= 0) job->at_ms = now_ms + (int64_t) (a->delay * 1000);
    if (a->deadline >= 0) job->deadline_ms = now_ms + (int64_t) (a->deadline * 1000);
    if (a->ttl >= 0) job->ttl_ms = (int64_t) (a->ttl * 1000);
}

static enum status encode(const struct asked *a, json_t *object, struct job *job,
                          struct buffer *message, struct error *e)
{
    char *body;
    enum status status = job_from_json(job, object, &body, e);
    if (status == OK) status = set_text(job->id, sizeof job->id, "id", a->id, e);
    if (status == OK) status = set_text(job->model, sizeof job->model, "model", a->model, e);
    if (status == OK) {
        status = set_text(job->custom_id, sizeof job->custom_id, "custom-id", a->custom_id, e);
    }
    if (a->class >= 0) job->class = (int) a->class;
    if (a->attempts > 0) job->attempts = (int) a->attempts;
    if (a->stream) job->stream = true;
    set_times(job, a);
    if (status == OK && job->id[0] == '\0') status = make_id(job->id, e);
    if (status == OK) status = job_encode(job, message, e);
    if (status == OK) status = check_body(job, a->queue.tenant, e);
    free(body);
    return status;
}

// --- to the queue

// A push whose outcome is unknown is made again: the id tells duplicates.
static enum status push(struct queue_sync *q, const char *tenant, const struct buffer *message,
                        struct error *e)
{
    enum status status = ERR_UNAVAILABLE;
    for (int i = 0; i < PUSHES && status == ERR_UNAVAILABLE; i++) {
        status = queue_sync_push(q, tenant, message->data, message->n, e);
    }
    return status;
}

// Waits for the end and shows it; before: event id of before the push.
static int await(const struct asked *a, const char *program, struct queue_sync *q, const char *id,
                 const char *before)
{
    struct error e = {0};
    uint8_t *bytes = NULL;
    size_t n = 0;
    int64_t most_ms = timeout_ms(a->timeout);
    if (a->stream && !a->json) {
        return show_stream(program, q, a->queue.tenant, id, before, 0, most_ms);
    }
    enum status status = queue_sync_wait(q, a->queue.tenant, id, before, most_ms, &bytes, &n, &e);
    int exit = status == OK ? show_result(program, bytes, n, a->json)
                            : outcome_failed(program, &e, a->json);
    free(bytes);
    return exit;
}

static int say_id(const struct asked *a, const char *id)
{
    if (a->json) {
        return outcome_json(json_pack("{s:s, s:s, s:s}", "id", id, "queue", a->queue.queue,
                                      "tenant", a->queue.tenant), EXIT_DONE);
    }
    puts(id);
    return EXIT_DONE;
}

static int send(const struct asked *a, const char *program, const struct job *job,
                const struct buffer *message)
{
    struct error e = {0};
    struct queue_sync *q;
    char before[QUEUE_EVENT_ID_MAX];
    if (queue_flags_open(&a->queue, &q, &e) != OK) return outcome_failed(program, &e, a->json);
    enum status status = OK;
    if (a->wait) status = queue_sync_last_event(q, a->queue.tenant, before, &e);
    if (status == OK) status = push(q, a->queue.tenant, message, &e);
    int exit = status != OK ? outcome_failed(program, &e, a->json)
               : a->wait    ? await(a, program, q, job->id, before)
                            : say_id(a, job->id);
    queue_sync_close(&q);
    return exit;
}

static int run(const struct asked *a, const char *program, const struct option_spec *body_specs,
               int n_body_specs)
{
    struct error e = {0};
    struct job job;
    struct buffer message;
    json_t *object = NULL;
    buffer_init(&message, JOB_MESSAGE_MAX);
    enum status status = read_object(a, &object, &e);
    json_t *body = object != NULL ? job_json_body(object) : NULL;
    if (status == OK && body != NULL) status = set_fields(body, body_specs, n_body_specs, &e);
    if (status == OK) status = encode(a, object, &job, &message, &e);
    int exit = status == OK ? send(a, program, &job, &message)
                            : outcome_failed(program, &e, a->json);
    buffer_deinit(&message);
    json_decref(object);
    return exit;
}

static enum status check_flags(const struct asked *a, struct error *e)
{
    int sources = (a->prompt != NULL) + (a->message != NULL) + (a->tokens != NULL) +
                  (a->document.document != NULL);
    if (sources > 1) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "give one of --prompt, --message, --tokens, --document");
    }
    try(document_flags_check(&a->document, e));
    if ((a->chat || a->system != NULL) && a->prompt == NULL && a->message == NULL) {
        return error_set(e, ERR_INPUT, "bad_usage",
                         "--chat and --system want --prompt or --message");
    }
    return OK;
}

int cmd_enqueue(int argc, char **argv)
{
    struct asked a = {.queue = queue_flags_default(), .class = -1, .timeout = -1,
                      .delay = -1, .deadline = -1, .ttl = -1,
                      .document = document_flags_default()};
    enum { FIRST_OF_BODY = 5, N_OF_BODY = 12 };
    struct option_spec specs[] = {
        {.name = "prompt", .kind = OPTION_STRING, .value = &a.prompt, .argument = "TEXT",
         .help = "Text to be continued."},
        {.name = "chat", .kind = OPTION_FLAG, .value = &a.chat,
         .help = "The prompt is a message to be answered."},
        {.name = "message", .kind = OPTION_STRING, .value = &a.message, .argument = "TEXT",
         .help = "Short for --chat --prompt TEXT."},
        {.name = "system", .kind = OPTION_STRING, .value = &a.system, .argument = "TEXT",
         .help = "System message before it."},
        {.name = "tokens", .kind = OPTION_STRING, .value = &a.tokens, .argument = "FILE",
         .help = "Token ids to be continued, between white space (- is stdin)."},
        // Of the body:
        {.name = "max-tokens", .kind = OPTION_INT, .value = &a.max_tokens, .argument = "N",
         .help = "Tokens to generate at most.", .least = 1, .most = CONTEXT_MAX},
        {.name = "temperature", .kind = OPTION_NUMBER, .value = &a.temperature, .argument = "T",
         .help = "0 is greedy (default 1)."},
        {.name = "top-p", .kind = OPTION_NUMBER, .value = &a.top_p, .argument = "P",
         .help = "Keeps the likeliest tokens of this mass."},
        {.name = "top-k", .kind = OPTION_INT, .value = &a.top_k, .argument = "K",
         .help = "Keeps the K likeliest tokens."},
        {.name = "min-p", .kind = OPTION_NUMBER, .value = &a.min_p, .argument = "P",
         .help = "Keeps tokens of this share of the likeliest's mass."},
        {.name = "repetition-penalty", .kind = OPTION_NUMBER, .value = &a.repetition,
         .argument = "X", .help = "Of tokens that prompt or output hold."},
        {.name = "presence-penalty", .kind = OPTION_NUMBER, .value = &a.presence, .argument = "X",
         .help = "Of tokens that the output holds."},
        {.name = "frequency-penalty", .kind = OPTION_NUMBER, .value = &a.frequency, .argument = "X",
         .help = "The same for each time."},
        {.name = "seed", .kind = OPTION_INT, .value = &a.seed, .argument = "N",
         .help = "Of the random numbers (default: follows from the id)."},
        {.name = "logprobs", .kind = OPTION_INT, .value = &a.logprobs, .argument = "N",
         .help = "Log-probabilities of the N likeliest tokens, too.", .least = 0,
         .most = LOGPROBS_MAX},
        {.name = "stop", .kind = OPTION_STRING, .value = &a.stop, .argument = "TEXT",
         .help = "Ends before this text."},
        {.name = "ignore-eos", .kind = OPTION_FLAG, .value = &a.ignore_eos,
         .help = "Goes on to --max-tokens."},
        // Of the job:
        {.name = "id", .kind = OPTION_STRING, .value = &a.id, .argument = "ID",
         .help = "Of the job: the same again is a duplicate (default: made here)."},
        {.name = "model", .kind = OPTION_STRING, .value = &a.model, .argument = "NAME",
         .help = "One that is served (default: the broker's first)."},
        {.name = "custom-id", .kind = OPTION_STRING, .value = &a.custom_id, .argument = "TEXT",
         .help = "Comes back with the result."},
        {.name = "class", .kind = OPTION_INT, .value = &a.class, .argument = "N",
         .help = "Priority, 0 first (default 0).", .least = 0, .most = JOB_CLASSES - 1},
        {.name = "attempts", .kind = OPTION_INT, .value = &a.attempts, .argument = "N",
         .help = "Failures after which it is given up (default 5).", .least = 1,
         .most = JOB_ATTEMPTS_MAX},
        {.name = "delay", .kind = OPTION_NUMBER, .value = &a.delay, .argument = "S",
         .help = "Seconds from now before which it does not run.", .least = 0, .most = 1e9},
        {.name = "deadline", .kind = OPTION_NUMBER, .value = &a.deadline, .argument = "S",
         .help = "Seconds from now at which it ends with what it has (default: none).",
         .least = 0, .most = 1e9},
        {.name = "ttl", .kind = OPTION_NUMBER, .value = &a.ttl, .argument = "S",
         .help = "Life of its result, in seconds (default: a day).", .least = 0.001,
         .most = JOB_TTL_MAX_MS / 1e3},
        {.name = "stream", .kind = OPTION_FLAG, .value = &a.stream,
         .help = "Its text can be read as it comes; with --wait it is printed so."},
        {.name = "wait", .kind = OPTION_FLAG, .value = &a.wait,
         .help = "Waits, and prints the result instead of the id."},
        {.name = "timeout", .kind = OPTION_NUMBER, .value = &a.timeout, .argument = "S",
         .help = "Of --wait, in seconds (default: none).", .least = 0, .most = 1e9},
        {.name = "json", .kind = OPTION_FLAG, .value = &a.json,
         .help = "One JSON object on stdout."},
        DOCUMENT_FLAG_ROWS(a.document),
        QUEUE_FLAG_ROWS(a.queue),
    };
    struct options o = {.program = "penstock enqueue",
                        .usage = "[--prompt TEXT | --message TEXT | --tokens FILE |\n"
                                 "       --document FILE --map TEXT [--reduce TEXT]] [OPTIONS]",
                        .about = "Puts a job into the queue and prints its id. Without a prompt it "
                                 "reads a JSON object from stdin: an OpenAI\nrequest body, or "
                                 "{\"op\", \"body\", \"id\", \"batch\", \"meta\", "
                                 "...} (common/PROTOCOL.md);\nflags win over "
                                 "its fields.",
                        .specs = specs,
                        .n_specs = sizeof specs / sizeof *specs};
    struct error e = {0};
    if (options_parse(&o, argc, argv, &e) != OK) return outcome_usage(o.program, &e);
    if (o.help) return EXIT_DONE;
    if (check_flags(&a, &e) != OK) return outcome_failed(o.program, &e, a.json);
    return run(&a, o.program, specs + FIRST_OF_BODY, N_OF_BODY);
}
