#include "tools/batch_line.h"

#include "common/clock.h"
#include "common/job.h"
#include "common/mpwalk.h"
#include "tools/job_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void batch_job_id(char job_id[JOB_ID_MAX + 1], const char *batch_id, int64_t number)
{
    snprintf(job_id, JOB_ID_MAX + 1, "%s-%" PRId64, batch_id, number);
}

int64_t batch_job_number(const char *job_id, const char *batch_id)
{
    size_t n = strlen(batch_id);
    char *end, again[JOB_ID_MAX + 1];
    if (strncmp(job_id, batch_id, n) != 0 || job_id[n] != '-') return 0;
    int64_t number = strtoll(job_id + n + 1, &end, 10);
    if (number <= 0 || *end != '\0') return 0;
    batch_job_id(again, batch_id, number);
    return strcmp(again, job_id) == 0 ? number : 0;
}

// --- the request

static enum status bad(struct error *e, const char *key, const char *must)
{
    return error_set(e, ERR_INPUT, "bad_line", "%s must be %s", key, must);
}

static enum status get_custom_id(struct batch_line *to, const json_t *object, struct error *e)
{
    const json_t *id = json_object_get(object, "custom_id");
    size_t n = json_string_length(id);
    if (!json_is_string(id) || n == 0 || n > JOB_CUSTOM_ID_MAX) {
        return bad(e, "custom_id", "a string of 1 to 512 bytes");
    }
    memcpy(to->custom_id, json_string_value(id), n + 1);
    return OK;
}

static enum status get_url(struct batch_line *to, struct job *job, const json_t *object,
                           struct error *e)
{
    static const struct {
        const char *url;
        enum job_op op;
    } known[] = {{"/v1/chat/completions", JOB_CHAT},
                 {"/v1/completions", JOB_COMPLETION},
                 {"/v1/map_reduce", JOB_MAP_REDUCE}};
    const char *method = json_string_value(json_object_get(object, "method"));
    const char *url = json_string_value(json_object_get(object, "url"));
    if (method == NULL || strcmp(method, "POST") != 0) return bad(e, "method", "POST");
    for (size_t i = 0; url != NULL && i < sizeof known / sizeof *known; i++) {
        if (strcmp(url, known[i].url) != 0) continue;
        job->op = known[i].op;
        to->chat = job->op != JOB_COMPLETION; // what a document makes is told as a chat's answer
        return OK;
    }
    return bad(e, "url", "/v1/chat/completions, /v1/completions or /v1/map_reduce");
}

static enum status encode(struct batch_line *to, struct job *job, const json_t *body,
                          const char *batch_id, struct error *e)
{
    char *text = json_dumps(body, JSON_COMPACT);
    if (text == NULL) return error_set(e, ERR_NOMEM, NULL, "no memory for a body");
    memcpy(job->id, to->job_id, sizeof job->id);
    memcpy(job->custom_id, to->custom_id, sizeof job->custom_id);
    snprintf(job->batch, sizeof job->batch, "%s", batch_id);
    job->body_form = JOB_BODY_JSON;
    job->body = (struct job_text){text, strlen(text)};
    enum status status = job_encode(job, &to->message, e);
    free(text);
    return status;
}

static enum status read_request(struct batch_line *to, const json_t *object, const char *batch_id,
                                struct error *e)
{
    struct job job = job_default();
    const json_t *body = json_object_get(object, "body");
    try(get_custom_id(to, object, e));
    try(get_url(to, &job, object, e));
    if (!json_is_object(body)) return bad(e, "body", "an object");
    const char *model = json_string_value(json_object_get(body, "model"));
    snprintf(to->model, sizeof to->model, "%s", model != NULL ? model : "");
    return encode(to, &job, body, batch_id, e);
}

enum status batch_line_parse(struct batch_line *to, const char *text, size_t n,
                             const char *batch_id, int64_t number, struct error *e)
{
    json_t *object;
    *to = (struct batch_line){.number = number};
    buffer_init(&to->message, JOB_MESSAGE_MAX);
    batch_job_id(to->job_id, batch_id, number);
    try(json_parse_object(&object, text, n, e));
    enum status status = read_request(to, object, batch_id, e);
    json_decref(object);
    return status;
}

void batch_line_deinit(struct batch_line *line) { buffer_deinit(&line->message); }

// --- log-probabilities, as OpenAI has them

// A token's bytes as text; what is no UTF-8 becomes U+FFFD.
static json_t *token_text(const struct result_token *t)
{
    static const char REPLACEMENT[] = "\xef\xbf\xbd";
    char id[32];
    if (t->bytes == NULL) {
        snprintf(id, sizeof id, "token_id:%d", (int) t->id);
        return json_string(id);
    }
    struct buffer text;
    buffer_init(&text, 3 * t->n_bytes + 1);
    for (size_t at = 0; at < t->n_bytes;) {
        size_t good = utf8_valid_prefix(t->bytes + at, t->n_bytes - at);
        buffer_append(&text, t->bytes + at, good);
        at += good;
        if (at < t->n_bytes) {
            buffer_append(&text, REPLACEMENT, 3);
            at++;
        }
    }
    json_t *string = json_stringn((const char *) text.data, text.n);
    if (string == NULL) string = json_string(""); // no bytes at all
    buffer_deinit(&text);
    return string;
}

// JSON has no infinity: as OpenAI, a token that cannot come has -9999.
static json_t *logprob_value(const struct result_token *t)
{
    return json_real(isfinite(t->logprob) ? (double) t->logprob : -9999.0);
}

static json_t *chat_token(const struct result_token *t)
{
    json_t *bytes = t->bytes != NULL ? json_array() : json_null();
    for (size_t i = 0; t->bytes != NULL && i < t->n_bytes; i++) {
        json_array_append_new(bytes, json_integer((unsigned char) t->bytes[i]));
    }
    return json_pack("{s:o, s:o, s:o}", "token", token_text(t), "logprob", logprob_value(t),
                     "bytes", bytes);
}

static json_t *chat_logprobs(const struct result *r)
{
    json_t *content = json_array();
    for (int i = 0; i < r->n_logprobs; i++) {
        const struct result_logprob *l = &r->logprobs[i];
        json_t *token = chat_token(&l->chosen), *top = json_array();
        for (int k = 0; k < l->n_top; k++) json_array_append_new(top, chat_token(&l->top[k]));
        json_object_set_new(token, "top_logprobs", top);
        json_array_append_new(content, token);
    }
    return json_pack("{s:o, s:n}", "content", content, "refusal");
}

static json_t *text_logprobs(const struct result *r)
{
    json_t *tokens = json_array(), *values = json_array(), *tops = json_array();
    for (int i = 0; i < r->n_logprobs; i++) {
        const struct result_logprob *l = &r->logprobs[i];
        json_t *top = json_object();
        for (int k = 0; k < l->n_top; k++) {
            json_t *name = token_text(&l->top[k]);
            json_object_set_new(top, json_string_value(name), logprob_value(&l->top[k]));
            json_decref(name);
        }
        json_array_append_new(tokens, token_text(&l->chosen));
        json_array_append_new(values, logprob_value(&l->chosen));
        json_array_append_new(tops, top);
    }
    return json_pack("{s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", values, "top_logprobs",
                     tops);
}

// --- the answer

static json_t *choice_of(const struct batch_line *line, const struct result *r)
{
    json_t *text = r->text == NULL       ? json_null()
                   : r->text_bytes == 0 ? json_string("")
                                         : json_stringn(r->text, r->text_bytes);
    json_t *logprobs = r->n_logprobs == 0 ? json_null()
                       : line->chat       ? chat_logprobs(r)
                                          : text_logprobs(r);
    const char *finish = result_finish_name(r->finish_reason);
    json_t *choice = json_pack("{s:i, s:s?, s:o}", "index", 0, "finish_reason", finish, "logprobs",
                               logprobs);
    if (line->chat) {
        json_object_set_new(choice, "message", json_pack("{s:s, s:o}", "role", "assistant",
                                                         "content", text));
    } else {
        json_object_set_new(choice, "text", text);
    }
    if (r->text != NULL) return choice;
    // Without a tokenizer the ids are the answer.
    json_t *ids = json_array();
    for (int i = 0; i < r->n_tokens; i++) json_array_append_new(ids, json_integer(r->tokens[i]));
    json_object_set_new(choice, "token_ids", ids);
    return choice;
}

static json_t *body_of(const struct batch_line *line, const struct result *r)
{
    char id[JOB_ID_MAX + 16];
    snprintf(id, sizeof id, "%s-%s", line->chat ? "chatcmpl" : "cmpl", line->job_id);
    const char *model = line->model[0] != '\0'       ? line->model
                        : r->engine.model[0] != '\0' ? r->engine.model
                                                     : "penstock";
    json_t *usage = json_pack("{s:i, s:i, s:i, s:{s:i}}", "prompt_tokens", r->usage.prompt,
                              "completion_tokens", r->usage.completion, "total_tokens",
                              r->usage.prompt + r->usage.completion, "prompt_tokens_details",
                              "cached_tokens", r->usage.cached);
    return json_pack("{s:s, s:s, s:I, s:s, s:[o], s:o}", "id", id, "object",
                     line->chat ? "chat.completion" : "text_completion", "created",
                     (json_int_t) (clock_wall_ms() / 1000), "model", model, "choices",
                     choice_of(line, r), "usage", usage);
}

json_t *batch_answer(const struct batch_line *line, const struct result *r)
{
    return json_pack("{s:s, s:s, s:{s:i, s:s, s:o}, s:n}", "id", line->job_id, "custom_id",
                     line->custom_id, "response", "status_code", 200, "request_id", line->job_id,
                     "body", body_of(line, r), "error");
}

json_t *batch_refusal(const struct batch_line *line, const char *code, const char *message)
{
    json_t *sentence = json_string(message);
    if (sentence == NULL) sentence = json_string("the message is not UTF-8");
    return json_pack("{s:s, s:s?, s:n, s:{s:s, s:o}}", "id", line->job_id, "custom_id",
                     line->custom_id[0] != '\0' ? line->custom_id : NULL, "response", "error",
                     "code", code, "message", sentence);
}
