#include "tools/job_json.h"

#include <string.h>

enum status json_parse_object(json_t **object, const char *text, size_t n, struct error *e)
{
    json_error_t bad;
    *object = json_loadb(text, n, JSON_REJECT_DUPLICATES, &bad);
    if (*object == NULL) {
        return error_set(e, ERR_INPUT, "bad_json", "not JSON: line %d, column %d: %s", bad.line,
                         bad.column, bad.text);
    }
    if (json_is_object(*object)) return OK;
    json_decref(*object);
    *object = NULL;
    return error_set(e, ERR_INPUT, "bad_json", "not a JSON object");
}

// A body alone has none of these.
static bool is_job(const json_t *object)
{
    return json_object_get(object, "body") != NULL || json_object_get(object, "op") != NULL;
}

json_t *job_json_body(json_t *object)
{
    if (!is_job(object)) return object;
    json_t *body = json_object_get(object, "body");
    return json_is_object(body) ? body : NULL;
}

static enum status bad(struct error *e, const char *key, const char *must)
{
    return error_set(e, ERR_INPUT, "bad_job", "%s must be %s", key, must);
}

// A key that is there and not null.
static const json_t *get(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static enum status get_text(char *to, size_t size, const json_t *object, const char *key,
                            struct error *e)
{
    const json_t *value = get(object, key);
    if (value == NULL) return OK;
    if (!json_is_string(value)) return bad(e, key, "a string");
    size_t n = json_string_length(value);
    if (n >= size) {
        return error_set(e, ERR_INPUT, "bad_job", "%s has %zu bytes; at most %zu are allowed", key,
                         n, size - 1);
    }
    memcpy(to, json_string_value(value), n + 1);
    return OK;
}

static enum status get_integer(int64_t *to, int64_t most, const json_t *object, const char *key,
                               struct error *e)
{
    const json_t *value = get(object, key);
    if (value == NULL) return OK;
    json_int_t n = json_integer_value(value);
    if (!json_is_integer(value) || n < 0 || n > most) {
        return bad(e, key, "a whole number in its bounds");
    }
    *to = n;
    return OK;
}

static enum status get_int(int *to, const json_t *object, const char *key, struct error *e)
{
    int64_t wide = *to;
    try(get_integer(&wide, INT32_MAX, object, key, e));
    *to = (int) wide;
    return OK;
}

static enum status get_op(struct job *job, const json_t *object, const json_t *body,
                          struct error *e)
{
    const json_t *op = is_job(object) ? get(object, "op") : NULL;
    for (enum job_op i = JOB_CHAT; op != NULL && i < JOB_CANCEL; i++) {
        job->op = i;
        if (json_is_string(op) && strcmp(json_string_value(op), job_op_name(i)) == 0) return OK;
    }
    if (op != NULL) return bad(e, "op", "chat, completion, tokens or map_reduce");
    if (get(body, "document") != NULL) job->op = JOB_MAP_REDUCE;
    else if (get(body, "messages") != NULL) job->op = JOB_CHAT;
    else if (get(body, "prompt") != NULL) job->op = JOB_COMPLETION;
    else if (get(body, "tokens") != NULL) job->op = JOB_TOKENS;
    else return error_set(e, ERR_INPUT, "bad_job",
                          "there are no messages, prompt, tokens or document");
    return OK;
}

static enum status get_meta(struct job *job, json_t *object, struct error *e)
{
    json_t *meta = json_object_get(object, "meta"), *value;
    const char *key;
    if (meta == NULL || json_is_null(meta)) return OK;
    if (!json_is_object(meta) || json_object_size(meta) > JOB_META_MAX) {
        return bad(e, "meta", "an object of few strings");
    }
    json_object_foreach(meta, key, value) {
        if (!json_is_string(value)) return bad(e, "meta", "an object of few strings");
        job->meta[job->n_meta].key = (struct job_text){key, strlen(key)};
        job->meta[job->n_meta++].value =
            (struct job_text){json_string_value(value), json_string_length(value)};
    }
    return OK;
}

static enum status get_fields(struct job *job, json_t *object, struct error *e)
{
    const json_t *stream = get(object, "stream");
    try(get_text(job->id, sizeof job->id, object, "id", e));
    try(get_text(job->model, sizeof job->model, object, "model", e));
    try(get_text(job->custom_id, sizeof job->custom_id, object, "custom_id", e));
    try(get_text(job->batch, sizeof job->batch, object, "batch", e));
    try(get_int(&job->class, object, "class", e));
    try(get_int(&job->attempts, object, "attempts", e));
    try(get_integer(&job->at_ms, INT64_MAX, object, "at", e));
    try(get_integer(&job->deadline_ms, INT64_MAX, object, "deadline", e));
    try(get_integer(&job->ttl_ms, INT64_MAX, object, "ttl", e));
    if (stream != NULL && !json_is_boolean(stream)) return bad(e, "stream", "true or false");
    job->stream = json_is_true(stream);
    return get_meta(job, object, e);
}

enum status job_from_json(struct job *job, json_t *object, char **body_text, struct error *e)
{
    const json_t *body = job_json_body(object);
    *job = job_default();
    *body_text = NULL;
    if (body == NULL) return bad(e, "body", "an object");
    try(get_op(job, object, body, e));
    if (is_job(object)) try(get_fields(job, object, e));
    *body_text = json_dumps(body, JSON_COMPACT);
    if (*body_text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for the body");
    job->body_form = JOB_BODY_JSON;
    job->body = (struct job_text){*body_text, strlen(*body_text)};
    return OK;
}
