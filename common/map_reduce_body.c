#include "common/map_reduce_body.h"

#include "common/body_json.h"

#include <stdio.h>
#include <string.h>

#define XXH_STATIC_LINKING_ONLY // the state on the stack
#include <xxhash.h>

static enum status bad(struct error *e, const char *field, const char *must)
{
    return error_set(e, ERR_INPUT, "bad_body", "%s must be %s", field, must);
}

// A field that is there and not null, else NULL.
static json_t *get(const json_t *object, const char *field)
{
    json_t *value = json_object_get(object, field);
    return value == NULL || json_is_null(value) ? NULL : value;
}

// --- places

// A place's name and its end, if there is one at `at`; NULL: none.
static const char *place_at(const char *at, const char *end, const char *name)
{
    size_t n = strlen(name);
    if ((size_t) (end - at) < n + 2 || at[0] != '{' || at[n + 1] != '}') return NULL;
    return memcmp(at + 1, name, n) == 0 ? at + n + 2 : NULL;
}

static const char *text_place(const struct map_reduce_request *r)
{
    return strcmp(r->name, "map") == 0 ? "chunk" : "results";
}

static int count_places(const char *text, size_t n, const char *name)
{
    int found = 0;
    for (const char *at = text, *end = text + n; at < end;) {
        const char *behind = place_at(at, end, name);
        if (behind != NULL) found++;
        at = behind != NULL ? behind : at + 1;
    }
    return found;
}

static void put_number(struct buffer *to, int number)
{
    char digits[16];
    int n = snprintf(digits, sizeof digits, "%d", number);
    buffer_append(to, digits, (size_t) n);
}

static void expand(struct buffer *to, const char *text, size_t n, const char *name,
                   const struct map_reduce_fill *f)
{
    const char *end = text + n, *from = text;
    for (const char *at = text; at < end;) {
        const char *whole = place_at(at, end, name), *index = place_at(at, end, "index"),
                   *count = place_at(at, end, "count");
        const char *behind = whole != NULL ? whole : index != NULL ? index : count;
        if (behind == NULL) {
            at++;
            continue;
        }
        buffer_append(to, from, (size_t) (at - from));
        if (whole != NULL) buffer_append(to, f->text, f->n);
        else put_number(to, index != NULL ? f->index : f->count);
        from = at = behind;
    }
    buffer_append(to, from, (size_t) (end - from));
}

// --- the texts of a request: the prompt, or the messages' contents, whole or in parts

typedef enum status visit_text(void *arg, json_t *text, struct error *e);

static enum status each_text(const struct map_reduce_request *r, const json_t *fields,
                             visit_text *visit, void *arg, struct error *e)
{
    size_t i, k;
    json_t *message, *part, *prompt = get(fields, "prompt");
    if (r->op == JOB_COMPLETION) return visit(arg, prompt, e);
    json_array_foreach(get(fields, "messages"), i, message) {
        json_t *content = json_object_get(message, "content");
        if (json_is_string(content)) try(visit(arg, content, e));
        json_array_foreach(content, k, part) {
            json_t *text = json_object_get(part, "text");
            if (json_is_string(text)) try(visit(arg, text, e));
        }
    }
    return OK;
}

struct filling {
    const char *name;
    const struct map_reduce_fill *fill;
};

static enum status fill_text(void *arg, json_t *text, struct error *e)
{
    const struct filling *f = arg;
    struct buffer to;
    buffer_init(&to, JOB_MESSAGE_MAX);
    expand(&to, json_string_value(text), json_string_length(text), f->name, f->fill);
    enum status status = buffer_check(&to, "the request", e);
    const char *filled = to.n > 0 ? (const char *) to.data : "";
    if (status == OK && json_string_setn_nocheck(text, filled, to.n) != 0) {
        status = error_set(e, ERR_NOMEM, "no_memory", "no memory for a request");
    }
    buffer_deinit(&to);
    return status;
}

static int dump(const char *bytes, size_t n, void *to)
{
    return buffer_append(to, bytes, n) == OK ? 0 : -1;
}

enum status map_reduce_fill(const struct map_reduce_request *r, const struct map_reduce_fill *f,
                            struct buffer *to, struct error *e)
{
    struct filling filling = {text_place(r), f};
    json_t *fields = json_deep_copy(r->fields);
    if (fields == NULL) return error_set(e, ERR_NOMEM, "no_memory", "no memory for a request");
    enum status status = each_text(r, fields, fill_text, &filling, e);
    if (status == OK && json_dump_callback(fields, dump, to, JSON_COMPACT) != 0 &&
        to->status == OK) {
        status = error_set(e, ERR_NOMEM, "no_memory", "no memory for a request");
    }
    json_decref(fields);
    return status != OK ? status : buffer_check(to, "the request", e);
}

// --- parsing

struct places {
    const char *name;
    int texts, numbers;
};

static enum status look_for_places(void *arg, json_t *text, struct error *e)
{
    struct places *p = arg;
    const char *at = json_string_value(text);
    size_t n = json_string_length(text);
    (void) e;
    p->texts += count_places(at, n, p->name);
    p->numbers += count_places(at, n, "index") + count_places(at, n, "count");
    return OK;
}

static enum status get_integer(int *to, const json_t *object, const char *field, int least,
                               int most, struct error *e)
{
    const json_t *value = get(object, field);
    if (value == NULL) return OK;
    json_int_t n = json_integer_value(value);
    if (!json_is_integer(value)) return bad(e, field, "an integer");
    if (n < least || n > most) {
        return error_set(e, ERR_INPUT, "bad_body", "%s must be from %d to %d, not %lld", field,
                         least, most, (long long) n);
    }
    *to = (int) n;
    return OK;
}

// The request as the body of a job, to hear what is wrong with it.
static enum status try_request(struct map_reduce_request *r, struct error *e)
{
    const struct map_reduce_fill fill = {.text = "x", .n = 1, .index = 1, .count = 1};
    struct job job = job_default();
    struct job_body body = {0};
    struct buffer text;
    buffer_init(&text, JOB_BODY_MAX);
    enum status status = map_reduce_fill(r, &fill, &text, e);
    job.op = r->op;
    job.body_form = JOB_BODY_JSON;
    job.body = (struct job_text){(const char *) text.data, text.n};
    if (status == OK) status = job_body_parse(&body, &job, "", e);
    r->max_tokens = body.max_tokens;
    job_body_deinit(&body);
    buffer_deinit(&text);
    return status;
}

static enum status check_request(struct map_reduce_request *r, struct error *e)
{
    json_t *messages = get(r->fields, "messages"), *prompt = get(r->fields, "prompt");
    if (!json_is_object(r->fields)) return bad(e, "it", "an object");
    if ((messages != NULL) == (prompt != NULL)) return bad(e, "it", "with messages or a prompt");
    if (prompt != NULL && !json_is_string(prompt)) return bad(e, "prompt", "a string");
    r->op = messages != NULL ? JOB_CHAT : JOB_COMPLETION;
    struct places p = {.name = text_place(r)};
    if (messages == NULL || json_is_array(messages)) {
        try(each_text(r, r->fields, look_for_places, &p, e));
        if (p.texts == 0) {
            return error_set(e, ERR_INPUT, "bad_body", "no text of it holds {%s}", p.name);
        }
    }
    r->numbered = p.numbers > 0;
    return try_request(r, e);
}

static enum status get_request(struct map_reduce_request *r, const json_t *root, const char *name,
                               struct error *e)
{
    *r = (struct map_reduce_request){.name = name, .fields = get(root, name)};
    if (r->fields == NULL) return OK;
    enum status status = check_request(r, e);
    if (status != OK) error_prefix(e, "%s", name);
    return status;
}

static enum status check_text(const json_t *text, const char *field, struct error *e)
{
    if (!json_is_string(text)) return bad(e, field, "a string");
    return json_string_length(text) > 0 ? OK : bad(e, field, "not empty");
}

static enum status get_document(struct map_reduce_body *b, struct error *e)
{
    const json_t *document = get(b->root, "document");
    size_t n = json_array_size(document);
    if (document == NULL) return error_set(e, ERR_INPUT, "bad_body", "document is missing");
    b->n_texts = 1;
    if (json_is_string(document)) return check_text(document, "document", e);
    if (!json_is_array(document) || n == 0) return bad(e, "document", "a text or a list of texts");
    if (n > MAP_CHUNKS_MAX) {
        return error_set(e, ERR_LIMIT, "too_large", "document has %zu texts; at most %d are "
                         "allowed", n, MAP_CHUNKS_MAX);
    }
    for (size_t i = 0; i < n; i++) {
        char field[40];
        snprintf(field, sizeof field, "document[%zu]", i);
        try(check_text(json_array_get(document, i), field, e));
    }
    b->n_texts = (int) n;
    return OK;
}

static enum status get_separator(struct map_reduce_body *b, struct error *e)
{
    const json_t *value = get(b->root, "separator");
    b->separator = "\n\n";
    b->separator_bytes = 2;
    if (value == NULL) return OK;
    if (!json_is_string(value) || json_string_length(value) > MAP_SEPARATOR_MAX) {
        return error_set(e, ERR_INPUT, "bad_body", "separator must be a string of at most %d "
                         "bytes", MAP_SEPARATOR_MAX);
    }
    b->separator = json_string_value(value);
    b->separator_bytes = json_string_length(value);
    return OK;
}

// Logprobs are of one answer's tokens, and a part of a document is no answer.
static enum status refuse_logprobs(const struct map_reduce_body *b, struct error *e)
{
    const json_t *value = get(b->map.fields, "logprobs");
    if (value == NULL || json_is_false(value)) return OK;
    return error_set(e, ERR_UNSUPPORTED, "unsupported", "map: logprobs is not supported; leave it "
                     "out");
}

// Fields of a request that stand beside map and reduce would be of no effect.
static enum status refuse_strays(const struct map_reduce_body *b, struct error *e)
{
    static const char *const strays[] = {"messages", "prompt", "tokens", "max_tokens",
                                         "max_completion_tokens", "temperature"};
    for (size_t i = 0; i < sizeof strays / sizeof *strays; i++) {
        if (get(b->root, strays[i]) == NULL) continue;
        return error_set(e, ERR_INPUT, "bad_body", "%s belongs into map or reduce", strays[i]);
    }
    return OK;
}

static enum status read_root(struct map_reduce_body *b, const struct job *job, struct error *e)
{
    if (job->body_form == JOB_BODY_JSON) {
        return body_json_parse(&b->root, job->body.at, job->body.n, e);
    }
    if (job->body_form == JOB_BODY_NONE) {
        return error_set(e, ERR_INPUT, "bad_body", "there is no body");
    }
    struct mp_cursor cursor = mp_cursor(job->body.at, job->body.n);
    int budget = JOB_BODY_VALUES_MAX;
    return body_json_convert(&b->root, &cursor, "body", &budget, e);
}

enum status map_reduce_body_parse(struct map_reduce_body *b, const struct job *job,
                                  struct error *e)
{
    *b = (struct map_reduce_body){.overlap_tokens = -1};
    if (strlen(job->id) > MAP_PARENT_ID_MAX) {
        return error_set(e, ERR_INPUT, "bad_job", "the id of a map_reduce job has at most %d "
                         "characters, since its children's ids are made of it; this one has %zu",
                         MAP_PARENT_ID_MAX, strlen(job->id));
    }
    try(read_root(b, job, e));
    try(refuse_strays(b, e));
    try(get_document(b, e));
    try(get_integer(&b->chunk_tokens, b->root, "chunk_tokens", MAP_CHUNK_TOKENS_MIN, CONTEXT_MAX,
                    e));
    try(get_integer(&b->overlap_tokens, b->root, "overlap_tokens", 0, CONTEXT_MAX, e));
    if (b->chunk_tokens > 0 && b->overlap_tokens >= (b->chunk_tokens + 1) / 2) {
        return error_set(e, ERR_INPUT, "bad_body", "overlap_tokens is %d, but must be less than "
                         "half of chunk_tokens, which is %d", b->overlap_tokens, b->chunk_tokens);
    }
    try(get_separator(b, e));
    try(get_request(&b->map, b->root, "map", e));
    if (b->map.fields == NULL) return error_set(e, ERR_INPUT, "bad_body", "map is missing");
    try(refuse_logprobs(b, e));
    return get_request(&b->reduce, b->root, "reduce", e);
}

void map_reduce_body_deinit(struct map_reduce_body *b)
{
    json_decref(b->root);
    *b = (struct map_reduce_body){0};
}

const char *map_reduce_text(const struct map_reduce_body *b, int i, size_t *n)
{
    const json_t *document = get(b->root, "document");
    const json_t *text = json_is_array(document) ? json_array_get(document, (size_t) i) : document;
    *n = json_string_length(text);
    return json_string_value(text);
}

// --- hash

static int hash_piece(const char *bytes, size_t n, void *hash)
{
    return XXH3_128bits_update(hash, bytes, n) == XXH_OK ? 0 : -1;
}

// Objects end by themselves, as strings in JSON do: no lengths are needed.
enum status map_reduce_body_hash(const struct map_reduce_body *b, const struct job *job,
                                 char hash[JOB_HASH_SIZE], struct error *e)
{
    static const char *const fields[] = {"document",       "map",      "reduce",  "chunk_tokens",
                                         "overlap_tokens", "separator"};
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    hash_piece(job_op_name(job->op), strlen(job_op_name(job->op)) + 1, &state);
    hash_piece(job->model, strlen(job->model) + 1, &state);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const json_t *value = get(b->root, fields[i]);
        if (value == NULL) continue;
        hash_piece(fields[i], strlen(fields[i]) + 1, &state);
        if (json_dump_callback(value, hash_piece, &state,
                               JSON_SORT_KEYS | JSON_COMPACT | JSON_ENCODE_ANY) != 0) {
            return error_set(e, ERR_NOMEM, "no_memory", "no memory to hash the body");
        }
    }
    XXH128_hash_t h = XXH3_128bits_digest(&state);
    snprintf(hash, JOB_HASH_SIZE, "%016llx%016llx", (unsigned long long) h.high64,
             (unsigned long long) h.low64);
    return OK;
}
