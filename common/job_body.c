#include "common/body_json.h"
#include "common/job.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_STATIC_LINKING_ONLY // the state on the stack
#include <xxhash.h>

// Fields that ask for something Penstock does not do, unless they ask for nothing.
static const char *const refused[] = {
    "tools",         "functions",      "response_format",    "logit_bias",
    "suffix",        "echo",           "audio",              "prompt_logprobs",
    "min_tokens",    "bad_words",      "guided_json",        "guided_regex",
    "guided_choice", "guided_grammar", "structured_outputs", "use_beam_search",
    "prompt_embeds",
};

static const char *const known[] = {
    "messages",    "prompt",   "tokens",            "max_tokens",         "max_completion_tokens",
    "temperature", "top_p",    "top_k",             "min_p",              "repetition_penalty",
    "stop",        "seed",     "presence_penalty",  "frequency_penalty",  "stop_token_ids",
    "logprobs",    "n",        "top_logprobs",      "best_of",            "ignore_eos",
};

static enum status bad(struct error *e, const char *field, const char *must)
{
    return error_set(e, ERR_INPUT, "bad_body", "%s must be %s", field, must);
}

// A field that is there and not null, else NULL.
static json_t *get(const json_t *root, const char *field)
{
    json_t *value = json_object_get(root, field);
    return value == NULL || json_is_null(value) ? NULL : value;
}

// --- scalars; a field that is absent leaves *to as it is

static enum status get_integer(int64_t *to, const json_t *root, const char *field, int64_t least,
                               int64_t most, struct error *e)
{
    const json_t *value = get(root, field);
    if (value == NULL) return OK;
    if (!json_is_integer(value)) return bad(e, field, "an integer");
    int64_t n = json_integer_value(value);
    if (n < least || n > most)
        return error_set(e, ERR_INPUT, "bad_body", "%s must be from %lld to %lld, not %lld", field,
                         (long long) least, (long long) most, (long long) n);
    *to = n;
    return OK;
}

// Bounds are sampling_check's.
static enum status get_float(float *to, const json_t *root, const char *field, struct error *e)
{
    const json_t *value = get(root, field);
    if (value == NULL) return OK;
    if (!json_is_number(value)) return bad(e, field, "a number");
    double number = json_number_value(value);
    if (fabs(number) > FLT_MAX)
        return error_set(e, ERR_INPUT, "bad_sampling", "%s is out of bounds: %g", field, number);
    *to = (float) number;
    return OK;
}

static enum status get_bool(bool *to, const json_t *root, const char *field, struct error *e)
{
    const json_t *value = get(root, field);
    if (value == NULL) return OK;
    if (!json_is_boolean(value)) return bad(e, field, "a boolean");
    *to = json_is_true(value);
    return OK;
}

// --- what Penstock does not do

// Null, false, zero, an empty string, list or object ask for nothing.
static bool asks_for_nothing(const json_t *value)
{
    if (json_is_string(value)) return json_string_length(value) == 0;
    if (json_is_number(value)) return json_number_value(value) == 0;
    return json_is_false(value) || (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

static bool is_plain_text(const json_t *format)
{
    const char *type = json_string_value(json_object_get(format, "type"));
    return type != NULL && strcmp(type, "text") == 0;
}

static enum status refuse_unsupported(const json_t *root, struct error *e)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const json_t *value = get(root, refused[i]);
        if (value == NULL || asks_for_nothing(value)) continue;
        if (strcmp(refused[i], "response_format") == 0 && is_plain_text(value)) continue;
        return error_set(e, ERR_UNSUPPORTED, "unsupported", "%s is not supported; leave it out",
                         refused[i]);
    }
    static const char *const counts[] = {"n", "best_of"};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        int64_t n = 1;
        try(get_integer(&n, root, counts[i], 1, INT32_MAX, e));
        if (n > 1)
            return error_set(e, ERR_UNSUPPORTED, "unsupported",
                             "%s = %lld is not supported; enqueue one job for each answer",
                             counts[i], (long long) n);
    }
    return OK;
}

// --- messages, prompt, ids

// Room for n ids; frees what was there.
static enum status make_ids(struct job_body *body, const char *field, size_t n, struct error *e)
{
    free(body->ids);
    body->ids = NULL;
    body->n_ids = 0;
    if (n == 0) return bad(e, field, "a list of at least one id");
    if (n > CONTEXT_MAX)
        return error_set(e, ERR_LIMIT, "too_large", "%s has %zu ids; at most %d are allowed", field,
                         n, CONTEXT_MAX);
    body->ids = malloc(n * sizeof *body->ids);
    if (body->ids == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for %zu ids", n);
    return OK;
}

static enum status bad_id(struct error *e, const char *field, size_t i)
{
    return error_set(e, ERR_INPUT, "bad_body", "%s[%zu] must be an id from 0 to %d", field, i,
                     MODEL_VOCAB_MAX - 1);
}

// Ids straight from msgpack: a value of one byte must not become a JSON value each.
static enum status take_ids(struct job_body *body, const char *field, struct mp_cursor cursor,
                            struct error *e)
{
    struct mp_value list, id;
    check(mp_take(&cursor, &list), "walked");
    try(make_ids(body, field, list.n, e));
    for (size_t i = 0; i < list.n; i++) {
        check(mp_take(&cursor, &id), "walked");
        if (id.type != MP_UINT || id.uint >= MODEL_VOCAB_MAX) return bad_id(e, field, i);
        body->ids[i] = (int32_t) id.uint;
    }
    body->n_ids = (int) list.n;
    return OK;
}

static enum status get_id(int32_t *to, const json_t *value, const char *field, size_t i,
                          struct error *e)
{
    json_int_t id = json_integer_value(value);
    if (!json_is_integer(value) || id < 0 || id >= MODEL_VOCAB_MAX) return bad_id(e, field, i);
    *to = (int32_t) id;
    return OK;
}

static enum status get_ids(struct job_body *body, const char *field, const json_t *list,
                           struct error *e)
{
    size_t n = json_array_size(list);
    try(make_ids(body, field, n, e));
    for (size_t i = 0; i < n; i++)
        try(get_id(&body->ids[i], json_array_get(list, i), field, i, e));
    body->n_ids = (int) n;
    return OK;
}

static enum status get_messages(struct job_body *body, struct error *e)
{
    json_t *messages = get(body->root, "messages");
    if (messages == NULL) return error_set(e, ERR_INPUT, "bad_body", "messages is missing");
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return bad(e, "messages", "a list of at least one message");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        if (json_is_object(json_array_get(messages, i))) continue;
        return error_set(e, ERR_INPUT, "bad_body", "messages[%zu] must be an object", i);
    }
    body->messages = messages;
    return OK;
}

static enum status get_prompt(struct job_body *body, struct error *e)
{
    if (body->ids != NULL) return OK;
    json_t *prompt = get(body->root, "prompt");
    if (prompt == NULL) return error_set(e, ERR_INPUT, "bad_body", "prompt is missing");
    if (json_is_string(prompt)) {
        body->prompt = json_string_value(prompt);
        body->prompt_bytes = json_string_length(prompt);
        return OK;
    }
    if (!json_is_array(prompt)) return bad(e, "prompt", "a string or a list of ids");
    const json_t *first = json_array_get(prompt, 0);
    if (json_is_string(first) || json_is_array(first))
        return error_set(e, ERR_UNSUPPORTED, "unsupported",
                         "prompt is a list of prompts; enqueue one job for each");
    return get_ids(body, "prompt", prompt, e);
}

static enum status get_tokens(struct job_body *body, struct error *e)
{
    if (body->ids != NULL) return OK;
    json_t *tokens = get(body->root, "tokens");
    if (tokens == NULL) return error_set(e, ERR_INPUT, "bad_body", "tokens is missing");
    if (!json_is_array(tokens)) return bad(e, "tokens", "a list of ids");
    return get_ids(body, "tokens", tokens, e);
}

// --- limits, sampling, stop rules

static enum status get_max_tokens(struct job_body *body, struct error *e)
{
    int64_t old_name = 0, new_name = 0;
    try(get_integer(&old_name, body->root, "max_tokens", 1, CONTEXT_MAX, e));
    try(get_integer(&new_name, body->root, "max_completion_tokens", 1, CONTEXT_MAX, e));
    if (old_name != 0 && new_name != 0 && old_name != new_name)
        return error_set(e, ERR_INPUT, "bad_body",
                         "max_tokens is %lld but max_completion_tokens is %lld; give one of them",
                         (long long) old_name, (long long) new_name);
    body->max_tokens = (int) (new_name != 0 ? new_name : old_name);
    return OK;
}

// chat: a boolean with top_logprobs; the others: a count, or the same as chat.
static enum status get_logprobs(struct job_body *body, enum job_op op, struct error *e)
{
    const json_t *logprobs = get(body->root, "logprobs");
    bool count = logprobs != NULL && json_is_integer(logprobs);
    int64_t n = 0, top = -1;
    if (logprobs != NULL && !json_is_boolean(logprobs) && !(count && op != JOB_CHAT))
        return bad(e, "logprobs", op == JOB_CHAT ? "a boolean" : "an integer or a boolean");
    if (count) try(get_integer(&n, body->root, "logprobs", 0, LOGPROBS_MAX, e));
    try(get_integer(&top, body->root, "top_logprobs", 0, LOGPROBS_MAX, e));
    bool wanted = count || json_is_true(logprobs);
    if (top > 0 && !wanted) return bad(e, "logprobs", "true where top_logprobs is given");
    if (wanted) body->sampling.n_logprobs = (int32_t) (top > n ? top : n);
    return OK;
}

static enum status get_sampling(struct job_body *body, const struct job *job, const char *tenant,
                                struct error *e)
{
    struct sampling *s = &body->sampling;
    *s = sampling_default();
    s->temperature = 1; // OpenAI's default
    try(get_float(&s->temperature, body->root, "temperature", e));
    try(get_float(&s->top_p, body->root, "top_p", e));
    try(get_float(&s->min_p, body->root, "min_p", e));
    try(get_float(&s->repetition_penalty, body->root, "repetition_penalty", e));
    try(get_float(&s->presence_penalty, body->root, "presence_penalty", e));
    try(get_float(&s->frequency_penalty, body->root, "frequency_penalty", e));
    int64_t top_k = 0, seed = 0;
    try(get_integer(&top_k, body->root, "top_k", -1, TOP_K_MAX, e));
    s->top_k = top_k < 0 ? 0 : (int32_t) top_k; // -1 means off, too
    try(get_logprobs(body, job->op, e));
    try(get_integer(&seed, body->root, "seed", INT64_MIN, INT64_MAX, e));
    body->seed_given = get(body->root, "seed") != NULL;
    s->seed = body->seed_given ? (uint64_t) seed : job_seed(tenant, job->id);
    return sampling_check(s, e);
}

static enum status add_stop(struct job_body *body, const json_t *stop, struct error *e)
{
    if (!json_is_string(stop)) return bad(e, "stop", "a string or a list of strings");
    size_t n = json_string_length(stop);
    if (n == 0 || n > STOP_STRING_BYTES_MAX)
        return error_set(e, ERR_INPUT, "bad_body",
                         "a stop string has %zu bytes; 1 to %d are allowed", n,
                         STOP_STRING_BYTES_MAX);
    body->stops[body->n_stops] = json_string_value(stop);
    body->stop_bytes[body->n_stops++] = n;
    return OK;
}

static enum status get_stops(struct job_body *body, struct error *e)
{
    const json_t *stop = get(body->root, "stop");
    if (stop == NULL) return OK;
    if (!json_is_array(stop)) return add_stop(body, stop, e);
    if (json_array_size(stop) > STOP_STRINGS_MAX)
        return error_set(e, ERR_INPUT, "bad_body", "stop has %zu strings; at most %d are allowed",
                         json_array_size(stop), STOP_STRINGS_MAX);
    for (size_t i = 0; i < json_array_size(stop); i++)
        try(add_stop(body, json_array_get(stop, i), e));
    return OK;
}

static enum status get_stop_ids(struct job_body *body, struct error *e)
{
    const json_t *list = get(body->root, "stop_token_ids");
    if (list == NULL) return OK;
    if (!json_is_array(list)) return bad(e, "stop_token_ids", "a list of ids");
    size_t n = json_array_size(list);
    if (n > STOP_IDS_MAX)
        return error_set(e, ERR_INPUT, "bad_body",
                         "stop_token_ids has %zu ids; at most %d are allowed", n, STOP_IDS_MAX);
    for (size_t i = 0; i < n; i++)
        try(get_id(&body->stop_ids[i], json_array_get(list, i), "stop_token_ids", i, e));
    body->n_stop_ids = (int) n;
    return OK;
}

// --- the whole

// The field that holds the op's ids, if it can hold ids.
static bool is_ids_field(enum job_op op, const struct mp_value *key)
{
    return (op == JOB_TOKENS && mp_is(key, "tokens")) ||
           (op == JOB_COMPLETION && mp_is(key, "prompt"));
}

// True if the next value is a list whose first element is a number.
static bool is_id_list(struct mp_cursor cursor)
{
    struct mp_value list, first;
    return mp_take(&cursor, &list) && list.type == MP_ARRAY && list.n > 0 &&
           mp_take(&cursor, &first) && first.type == MP_UINT;
}

// The name of a field that is looked at, or NULL.
static const char *field_of(const struct mp_value *key)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (mp_is(key, known[i])) return known[i];
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (mp_is(key, refused[i])) return refused[i];
    return NULL;
}

// Ids, and fields that nobody looks at, are not converted.
static enum status convert_map(struct job_body *body, const struct job *job, struct error *e)
{
    struct mp_cursor cursor = mp_cursor(job->body.at, job->body.n);
    struct mp_value map;
    int budget = JOB_BODY_VALUES_MAX;
    body->root = json_object();
    if (body->root == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for a body");
    check(mp_take(&cursor, &map) && map.type == MP_MAP, "walked");
    for (size_t i = 0; i < map.n; i++) {
        struct mp_value key;
        check(mp_take(&cursor, &key), "walked");
        if (is_ids_field(job->op, &key) && is_id_list(cursor)) {
            try(take_ids(body, job->op == JOB_TOKENS ? "tokens" : "prompt", cursor, e));
            check(mp_skip(&cursor), "walked");
            continue;
        }
        const char *field = field_of(&key);
        struct mp_cursor inside = cursor;
        struct mp_value value;
        check(mp_take(&inside, &value), "walked");
        if (field == NULL) {
            check(mp_skip(&cursor), "walked");
            continue;
        }
        if (value.type == MP_FLOAT && !isfinite(value.real))
            return error_set(e, ERR_INPUT, "bad_sampling", "%s is not a finite number", field);
        json_t *converted;
        try(body_json_convert(&converted, &cursor, field, &budget, e));
        if (json_object_set_new(body->root, field, converted) != 0)
            return error_set(e, ERR_NOMEM, "no_memory", "no memory for %s", field);
    }
    return OK;
}

enum status job_body_parse(struct job_body *body, const struct job *job, const char *tenant,
                           struct error *e)
{
    *body = (struct job_body){0};
    switch (job->body_form) {
    case JOB_BODY_NONE: return error_set(e, ERR_INPUT, "bad_body", "there is no body");
    case JOB_BODY_MAP: try(convert_map(body, job, e)); break;
    case JOB_BODY_JSON: try(body_json_parse(&body->root, job->body.at, job->body.n, e)); break;
    }
    switch (job->op) {
    case JOB_CHAT: try(get_messages(body, e)); break;
    case JOB_COMPLETION: try(get_prompt(body, e)); break;
    case JOB_TOKENS: try(get_tokens(body, e)); break;
    case JOB_MAP_REDUCE: // see map_reduce_body.h
    case JOB_CANCEL: return error_set(e, ERR_INPUT, "bad_body", "a %s has no such body",
                                      job_op_name(job->op));
    }
    try(refuse_unsupported(body->root, e));
    try(get_max_tokens(body, e));
    try(get_sampling(body, job, tenant, e));
    try(get_stops(body, e));
    try(get_stop_ids(body, e));
    return get_bool(&body->ignore_eos, body->root, "ignore_eos", e);
}

void job_body_deinit(struct job_body *body)
{
    free(body->ids);
    json_decref(body->root);
    *body = (struct job_body){0};
}

// --- seed and hash

uint64_t job_seed(const char *tenant, const char *id)
{
    char both[TENANT_MAX + JOB_ID_MAX + 2];
    size_t n_tenant = strnlen(tenant, TENANT_MAX), n_id = strnlen(id, JOB_ID_MAX);
    memcpy(both, tenant, n_tenant);
    both[n_tenant] = '\0';
    memcpy(both + n_tenant + 1, id, n_id);
    return XXH3_64bits(both, n_tenant + 1 + n_id);
}

static int hash_chunk(const char *bytes, size_t n, void *hash)
{
    return XXH3_128bits_update(hash, bytes, n) == XXH_OK ? 0 : -1;
}

// A length goes before bytes, so that no two lists of fields read alike.
static void hash_bytes(XXH3_state_t *hash, const void *bytes, size_t n)
{
    uint64_t length = n;
    hash_chunk((const char *) &length, sizeof length, hash);
    if (n > 0) hash_chunk(bytes, n, hash);
}

static void hash_limits(XXH3_state_t *hash, const struct job_body *body)
{
    struct sampling s = body->sampling;
    if (!body->seed_given) s.seed = 0;
    const float floats[] = {s.temperature,        s.top_p,            s.min_p,
                            s.repetition_penalty, s.presence_penalty, s.frequency_penalty};
    const int64_t integers[] = {s.top_k,          s.n_logprobs,     (int64_t) s.seed,
                                body->seed_given, body->max_tokens, body->ignore_eos,
                                body->n_stops};
    hash_bytes(hash, floats, sizeof floats);
    hash_bytes(hash, integers, sizeof integers);
}

enum status job_body_hash(const struct job *job, const struct job_body *body,
                          char hash[JOB_HASH_SIZE], struct error *e)
{
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    hash_bytes(&state, job_op_name(job->op), strlen(job_op_name(job->op)));
    hash_bytes(&state, job->model, strlen(job->model));
    // An array ends by itself: no length is needed.
    if (body->messages != NULL &&
        json_dump_callback(body->messages, hash_chunk, &state, JSON_SORT_KEYS | JSON_COMPACT) != 0)
        return error_set(e, ERR_NOMEM, "no_memory", "no memory to hash the messages");
    hash_bytes(&state, body->prompt, body->prompt_bytes);
    hash_bytes(&state, body->ids, (size_t) body->n_ids * sizeof *body->ids);
    hash_limits(&state, body);
    for (int i = 0; i < body->n_stops; i++) hash_bytes(&state, body->stops[i], body->stop_bytes[i]);
    hash_bytes(&state, body->stop_ids, (size_t) body->n_stop_ids * sizeof *body->stop_ids);
    XXH128_hash_t h = XXH3_128bits_digest(&state);
    snprintf(hash, JOB_HASH_SIZE, "%016llx%016llx", (unsigned long long) h.high64,
             (unsigned long long) h.low64);
    return OK;
}
