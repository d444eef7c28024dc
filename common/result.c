#include "common/result.h"

#include "common/schema.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

enum { RESULT_VERSION = 1 };

static const char *const status_names[] = {"ok", "error", "cancelled", "expired", NULL};
static const char *const finish_names[] = {"none", "stop", "length", NULL};

const char *result_status_name(enum result_status status)
{
    return status_names[status];
}

const char *result_finish_name(enum result_finish finish)
{
    return finish == RESULT_NO_FINISH ? NULL : finish_names[finish];
}

// --- the format

#define TOKEN_FIELDS(s, t)                                                                         \
    INT("id", s, t id, MODEL_VOCAB_MAX - 1), FLOAT("logprob", s, t logprob),                       \
        BORROWED("bytes", SCHEMA_BIN, s, t bytes, t n_bytes, SCHEMA_OPTIONAL)

static const struct schema_field top_fields[] = {TOKEN_FIELDS(result_token, )};
static const struct schema top = SCHEMA_FIELDS(top_fields);

static const struct schema_field logprob_fields[] = {
    TOKEN_FIELDS(result_logprob, chosen.),
    LIST("top", result_logprob, top, n_top, LOGPROBS_MAX, result_token, &top, SCHEMA_OPTIONAL),
};
static const struct schema logprob = SCHEMA_FIELDS(logprob_fields);

static const struct schema_field usage_fields[] = {
    INT("prompt", result, usage.prompt, INT32_MAX), // of several requests for some jobs
    INT("cached", result, usage.cached, INT32_MAX),
    INT("completion", result, usage.completion, INT32_MAX),
};
static const struct schema usage = SCHEMA_FIELDS(usage_fields);

static const struct schema_field timing_fields[] = {
    U64("queued", result, timing.queued_ms),
    U64("prefill", result, timing.prefill_ms),
    U64("decode", result, timing.decode_ms),
};
static const struct schema timing = SCHEMA_FIELDS(timing_fields);

static const struct schema_field engine_fields[] = {
    TEXT("version", result, engine.version, SCHEMA_OPTIONAL),
    TEXT("model", result, engine.model, SCHEMA_OPTIONAL),
    TEXT("plan", result, engine.plan, SCHEMA_OPTIONAL),
};
static const struct schema engine = SCHEMA_FIELDS(engine_fields);

static const struct schema_field error_fields[] = {
    TEXT("code", result, error.code),
    TEXT("message", result, error.message, SCHEMA_OPTIONAL),
    BOOL("retryable", result, error.retryable),
};
static const struct schema error = SCHEMA_FIELDS(error_fields);

// Maps whose members have offsets in struct result itself.
#define INSIDE(name, fields) {name, SCHEMA_SUB, .sub = fields}

static const struct schema_field result_fields[] = {
    {"v", SCHEMA_CONST, .most = RESULT_VERSION},
    ID("id", result, id),
    TEXT("custom_id", result, custom_id, SCHEMA_OPTIONAL),
    ENUM("status", result, status, status_names),
    ENUM("finish_reason", result, finish_reason, finish_names, SCHEMA_OPTIONAL),
    BORROWED("text", SCHEMA_STR, result, text, text_bytes, SCHEMA_OPTIONAL),
    {"tokens", SCHEMA_INT_LIST, SCHEMA_AT(result, tokens), SCHEMA_COUNT(result, n_tokens),
     .most = CONTEXT_MAX},
    LIST("logprobs", result, logprobs, n_logprobs, CONTEXT_MAX, result_logprob, &logprob,
         SCHEMA_OPTIONAL),
    INT("max_tokens", result, max_tokens, CONTEXT_MAX, SCHEMA_OPTIONAL),
    INSIDE("usage", &usage),
    INSIDE("timing", &timing),
    INT("attempts", result, attempts, INT32_MAX),
    INT("resumed", result, resumed, CONTEXT_MAX),
    INSIDE("engine", &engine),
    {"error", SCHEMA_SUB, SCHEMA_COUNT(result, error.code), SCHEMA_OPTIONAL, .sub = &error},
};
static const struct schema format = SCHEMA_FIELDS(result_fields);

enum status result_encode(const struct result *r, struct buffer *to, struct error *e)
{
    try(schema_encode(&format, r, to, "bad_result", e));
    return buffer_check(to, "the result", e);
}

enum status result_decode(struct result *r, const void *data, size_t n, struct error *e)
{
    memset(r, 0, sizeof *r);
    return schema_decode(&format, r, data, n, &r->storage, "bad_result", e);
}

void result_deinit(struct result *r)
{
    schema_release(&r->storage);
}

static void add_tokens(int *to, uint64_t more)
{
    uint64_t room = (uint64_t) (INT32_MAX - *to);
    *to += (int) (more < room ? more : room);
}

void result_add_usage(struct result *r, uint64_t prompt, uint64_t cached, uint64_t completion)
{
    add_tokens(&r->usage.prompt, prompt);
    add_tokens(&r->usage.cached, cached);
    add_tokens(&r->usage.completion, completion);
}

// --- as JSON

static json_t *text_or_null(const char *text)
{
    return text == NULL || text[0] == '\0' ? json_null() : json_string(text);
}

// JSON has no infinity: a token that could not have been chosen has none.
static json_t *number_or_null(float number)
{
    return isfinite(number) ? json_real((double) number) : json_null();
}

static json_t *token_json(const struct result_token *t)
{
    json_t *bytes = t->bytes == NULL ? json_null() : json_array();
    for (size_t i = 0; t->bytes != NULL && i < t->n_bytes; i++)
        json_array_append_new(bytes, json_integer((unsigned char) t->bytes[i]));
    return json_pack("{s:i, s:o, s:o}", "id", t->id, "logprob", number_or_null(t->logprob), "bytes",
                     bytes);
}

static json_t *logprobs_json(const struct result *r)
{
    if (r->n_logprobs == 0) return json_null();
    json_t *list = json_array();
    for (int i = 0; i < r->n_logprobs; i++) {
        const struct result_logprob *l = &r->logprobs[i];
        json_t *one = token_json(&l->chosen), *rivals = json_array();
        for (int k = 0; k < l->n_top; k++) json_array_append_new(rivals, token_json(&l->top[k]));
        json_object_set_new(one, "top", rivals);
        json_array_append_new(list, one);
    }
    return list;
}

static json_t *tokens_json(const struct result *r)
{
    json_t *list = json_array();
    for (int i = 0; i < r->n_tokens; i++) json_array_append_new(list, json_integer(r->tokens[i]));
    return list;
}

static json_t *error_json(const struct result *r)
{
    if (r->error.code[0] == '\0') return json_null();
    return json_pack("{s:s, s:s, s:b}", "code", r->error.code, "message", r->error.message,
                     "retryable", r->error.retryable);
}

json_t *result_to_json(const struct result *r)
{
    const char *finish = result_finish_name(r->finish_reason);
    json_t *text = r->text == NULL ? json_null() : json_stringn(r->text, r->text_bytes);
    return json_pack(
        "{s:i, s:s, s:o, s:s, s:o, s:o, s:o, s:o, s:i, s:{s:i, s:i, s:i}, s:{s:I, s:I, s:I}, s:i,"
        " s:i, s:{s:o, s:o, s:o}, s:o}",
        "v", RESULT_VERSION, "id", r->id, "custom_id", text_or_null(r->custom_id), "status",
        result_status_name(r->status), "finish_reason", text_or_null(finish), "text", text,
        "tokens", tokens_json(r), "logprobs", logprobs_json(r), "max_tokens", r->max_tokens,
        "usage", "prompt", r->usage.prompt, "cached", r->usage.cached, "completion",
        r->usage.completion, "timing", "queued", (json_int_t) r->timing.queued_ms, "prefill",
        (json_int_t) r->timing.prefill_ms, "decode", (json_int_t) r->timing.decode_ms, "attempts",
        r->attempts, "resumed", r->resumed, "engine", "version", text_or_null(r->engine.version),
        "model", text_or_null(r->engine.model), "plan", text_or_null(r->engine.plan), "error",
        error_json(r));
}
