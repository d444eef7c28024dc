#include "common/job.h"

#include "common/mppack.h"
#include "common/mpwalk.h"

#include <string.h>

#define TIME_MS_MAX 253402300799999ll // the end of the year 9999

enum { JOB_VERSION = 1 };

static const char *const op_names[] = {"chat", "completion", "tokens", "map_reduce", "cancel"};
enum { N_OPS = sizeof op_names / sizeof op_names[0] };

const char *job_op_name(enum job_op op)
{
    return op_names[op];
}

bool job_id_ok(const char *id, size_t n)
{
    if (n < 1 || n > JOB_ID_MAX) return false;
    for (size_t i = 0; i < n; i++) {
        char c = id[i];
        if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && !(c >= '0' && c <= '9') &&
            c != '_' && c != '-')
            return false;
    }
    return true;
}

struct job job_default(void)
{
    return (struct job){.ttl_ms = RESULT_TTL_MS, .attempts = JOB_ATTEMPTS_DEFAULT};
}

// --- decoding

enum job_field {
    FIELD_V, FIELD_ID, FIELD_OP, FIELD_BODY, FIELD_MODEL, FIELD_CLASS, FIELD_AT, FIELD_DEADLINE,
    FIELD_TTL, FIELD_ATTEMPTS, FIELD_STREAM, FIELD_CUSTOM_ID, FIELD_BATCH, FIELD_META, N_FIELDS
};

static const char *const field_names[] = {
    "v",   "id",       "op",     "body",      "model", "class", "at", "deadline",
    "ttl", "attempts", "stream", "custom_id", "batch", "meta",
};
_Static_assert(sizeof field_names / sizeof field_names[0] == N_FIELDS, "a name a field");

static enum job_field field_of(const struct mp_value *key)
{
    int f = 0;
    while (f < N_FIELDS && !mp_is(key, field_names[f])) f++;
    return (enum job_field) f;
}

static enum status wrong_type(enum job_field f, const char *must, const struct mp_value *v,
                              struct error *e)
{
    return error_set(e, ERR_INPUT, "bad_job", "%s must be %s, not %s", field_names[f], must,
                     mp_type_name(v->type));
}

static enum status take_integer(int64_t *to, enum job_field f, const struct mp_value *v,
                                int64_t least, int64_t most, struct error *e)
{
    if (v->type != MP_UINT && v->type != MP_INT) return wrong_type(f, "an integer", v, e);
    if (v->type == MP_INT || v->uint < (uint64_t) least || v->uint > (uint64_t) most)
        return error_set(e, ERR_INPUT, "bad_job", "%s must be from %lld to %lld", field_names[f],
                         (long long) least, (long long) most);
    *to = (int64_t) v->uint;
    return OK;
}

static enum status take_int(int *to, enum job_field f, const struct mp_value *v, int least,
                            int most, struct error *e)
{
    int64_t wide = 0;
    try(take_integer(&wide, f, v, least, most, e));
    *to = (int) wide;
    return OK;
}

static enum status take_text(char *to, enum job_field f, const struct mp_value *v, size_t most,
                             struct error *e)
{
    if (v->type != MP_STR) return wrong_type(f, "a str", v, e);
    if (v->n > most)
        return error_set(e, ERR_INPUT, "bad_job", "%s has %zu bytes; at most %zu are allowed",
                         field_names[f], v->n, most);
    if (memchr(v->at, '\0', v->n) != NULL)
        return error_set(e, ERR_INPUT, "bad_job", "%s holds a zero byte", field_names[f]);
    memcpy(to, v->at, v->n);
    to[v->n] = '\0';
    return OK;
}

static enum status take_id(struct job *job, const struct mp_value *v, struct error *e)
{
    if (v->type != MP_STR) return wrong_type(FIELD_ID, "a str", v, e);
    if (!job_id_ok(v->at, v->n))
        return error_set(e, ERR_INPUT, "bad_job", "id must be 1 to %d characters of [A-Za-z0-9_-]",
                         JOB_ID_MAX);
    memcpy(job->id, v->at, v->n);
    job->id[v->n] = '\0';
    return OK;
}

// A batch is a name in Redis, as an id is.
static enum status take_batch(struct job *job, const struct mp_value *v, struct error *e)
{
    try(take_text(job->batch, FIELD_BATCH, v, JOB_BATCH_MAX, e));
    if (v->n == 0 || job_id_ok(v->at, v->n)) return OK;
    return error_set(e, ERR_INPUT, "bad_job",
                     "batch must be at most %d characters of [A-Za-z0-9_-]", JOB_BATCH_MAX);
}

static enum status take_op(enum job_op *op, const struct mp_value *v, struct error *e)
{
    if (v->type != MP_STR) return wrong_type(FIELD_OP, "a str", v, e);
    for (int i = 0; i < N_OPS; i++) {
        if (!mp_is(v, op_names[i])) continue;
        *op = (enum job_op) i;
        return OK;
    }
    return error_set(e, ERR_INPUT, "bad_job",
                     "op must be chat, completion, tokens, map_reduce or cancel");
}

// `start` is where the body's own encoding begins; the cursor stands behind its head.
static enum status take_body(struct job *job, const struct mp_value *v, const uint8_t *start,
                             const struct mp_cursor *cursor, struct error *e)
{
    if (v->type == MP_MAP) {
        struct mp_cursor end = {start, cursor->end};
        check(mp_skip(&end), "walked");
        job->body_form = JOB_BODY_MAP;
        job->body = (struct job_text){(const char *) start, (size_t) (end.at - start)};
    } else if (v->type == MP_STR || v->type == MP_BIN) {
        job->body_form = JOB_BODY_JSON;
        job->body = (struct job_text){v->at, v->n};
    } else {
        return wrong_type(FIELD_BODY, "a map, or JSON as str or bin", v, e);
    }
    if (job->body.n > JOB_BODY_MAX)
        return error_set(e, ERR_LIMIT, "too_large", "body has %zu bytes; at most %lld are allowed",
                         job->body.n, JOB_BODY_MAX);
    return OK;
}

static enum status take_meta(struct job *job, const struct mp_value *v, struct mp_cursor cursor,
                             struct error *e)
{
    if (v->type != MP_MAP) return wrong_type(FIELD_META, "a map", v, e);
    if (v->n > JOB_META_MAX)
        return error_set(e, ERR_INPUT, "bad_job", "meta has %zu pairs; at most %d are allowed",
                         v->n, JOB_META_MAX);
    for (size_t i = 0; i < v->n; i++) {
        struct mp_value key, value;
        check(mp_take(&cursor, &key) && mp_take(&cursor, &value), "walked");
        if (value.type != MP_STR)
            return error_set(e, ERR_INPUT, "bad_job", "meta's values must be str, not %s",
                             mp_type_name(value.type));
        job->meta[i].key = (struct job_text){key.at, key.n};
        job->meta[i].value = (struct job_text){value.at, value.n};
    }
    job->n_meta = (int) v->n;
    return OK;
}

static enum status take_field(struct job *job, enum job_field f, const struct mp_value *v,
                              const uint8_t *start, const struct mp_cursor *cursor, struct error *e)
{
    int version = 0;
    switch (f) {
    case FIELD_V: return take_int(&version, f, v, JOB_VERSION, JOB_VERSION, e);
    case FIELD_ID: return take_id(job, v, e);
    case FIELD_OP: return take_op(&job->op, v, e);
    case FIELD_BODY: return take_body(job, v, start, cursor, e);
    case FIELD_MODEL: return take_text(job->model, f, v, JOB_MODEL_MAX, e);
    case FIELD_CLASS: return take_int(&job->class, f, v, 0, JOB_CLASSES - 1, e);
    case FIELD_AT: return take_integer(&job->at_ms, f, v, 0, TIME_MS_MAX, e);
    case FIELD_DEADLINE: return take_integer(&job->deadline_ms, f, v, 1, TIME_MS_MAX, e);
    case FIELD_TTL: return take_integer(&job->ttl_ms, f, v, 1, JOB_TTL_MAX_MS, e);
    case FIELD_ATTEMPTS: return take_int(&job->attempts, f, v, 1, JOB_ATTEMPTS_MAX, e);
    case FIELD_STREAM:
        if (v->type != MP_BOOL) return wrong_type(f, "a boolean", v, e);
        job->stream = v->boolean;
        return OK;
    case FIELD_CUSTOM_ID: return take_text(job->custom_id, f, v, JOB_CUSTOM_ID_MAX, e);
    case FIELD_BATCH: return take_batch(job, v, e);
    case FIELD_META: return take_meta(job, v, *cursor, e);
    case N_FIELDS: return OK;
    }
    return OK;
}

static enum status check_required(unsigned seen, enum job_op op, struct error *e)
{
    for (int f = FIELD_V; f <= FIELD_BODY; f++) {
        if ((seen & 1u << f) || (f == FIELD_BODY && op == JOB_CANCEL)) continue;
        return error_set(e, ERR_INPUT, "bad_job", "%s is missing", field_names[f]);
    }
    return OK;
}

enum status job_decode(struct job *job, const void *data, size_t n, struct error *e)
{
    *job = job_default();
    if (n > JOB_MESSAGE_MAX)
        return error_set(e, ERR_LIMIT, "too_large",
                         "the message has %zu bytes; at most %lld are allowed", n, JOB_MESSAGE_MAX);
    try(mpwalk(data, n, e));
    struct mp_cursor cursor = mp_cursor(data, n);
    struct mp_value map;
    check(mp_take(&cursor, &map), "walked");
    if (map.type != MP_MAP)
        return error_set(e, ERR_INPUT, "bad_job", "a job is a map, not %s", mp_type_name(map.type));
    unsigned seen = 0;
    for (size_t i = 0; i < map.n; i++) {
        struct mp_value key, value;
        check(mp_take(&cursor, &key), "walked");
        const uint8_t *start = cursor.at;
        struct mp_cursor inside = cursor;
        check(mp_skip(&cursor) && mp_take(&inside, &value), "walked");
        enum job_field f = field_of(&key);
        if (value.type == MP_NIL || f == N_FIELDS) continue;
        seen |= 1u << f;
        try(take_field(job, f, &value, start, &inside, e));
    }
    return check_required(seen, job->op, e);
}

bool job_id_peek(const void *data, size_t n, char id[JOB_ID_MAX + 1], enum job_op *op)
{
    struct mp_cursor cursor = mp_cursor(data, n);
    struct mp_value map, key, value;
    bool found = false;
    if (op != NULL) *op = JOB_CHAT;
    if (!mp_take(&cursor, &map) || map.type != MP_MAP) return false;
    for (size_t i = 0; i < map.n && mp_take(&cursor, &key); i++) {
        struct mp_cursor inside = cursor;
        if (!mp_take(&inside, &value)) break;
        if (!found && mp_is(&key, "id") && value.type == MP_STR && job_id_ok(value.at, value.n)) {
            memcpy(id, value.at, value.n);
            id[value.n] = '\0';
            found = true;
        }
        enum job_op named = JOB_CHAT;
        if (op != NULL && mp_is(&key, "op") && take_op(&named, &value, NULL) == OK) *op = named;
        if (!mp_skip(&cursor)) break;
    }
    return found;
}

// --- encoding

static int put_integer(msgpack_packer *p, enum job_field f, int64_t value, int64_t absent)
{
    if (value == absent) return 0;
    if (p != NULL) {
        mppack_text(p, field_names[f]);
        msgpack_pack_int64(p, value);
    }
    return 1;
}

static int put_text(msgpack_packer *p, enum job_field f, const char *text)
{
    if (text[0] == '\0') return 0;
    if (p != NULL) {
        mppack_text(p, field_names[f]);
        mppack_text(p, text);
    }
    return 1;
}

static int put_meta(msgpack_packer *p, const struct job *job)
{
    if (job->n_meta == 0) return 0;
    if (p != NULL) {
        mppack_text(p, field_names[FIELD_META]);
        msgpack_pack_map(p, (size_t) job->n_meta);
        for (int i = 0; i < job->n_meta; i++) {
            mppack_str(p, job->meta[i].key.at, job->meta[i].key.n);
            mppack_str(p, job->meta[i].value.at, job->meta[i].value.n);
        }
    }
    return 1;
}

// Writes the fields but the body; returns how many. p NULL: only counts them.
static int put_fields(msgpack_packer *p, const struct job *job)
{
    int n = put_integer(p, FIELD_V, JOB_VERSION, 0);
    n += put_text(p, FIELD_ID, job->id);
    n += put_text(p, FIELD_OP, job_op_name(job->op));
    n += put_text(p, FIELD_MODEL, job->model);
    n += put_integer(p, FIELD_CLASS, job->class, 0);
    n += put_integer(p, FIELD_AT, job->at_ms, 0);
    n += put_integer(p, FIELD_DEADLINE, job->deadline_ms, 0);
    n += put_integer(p, FIELD_TTL, job->ttl_ms, RESULT_TTL_MS);
    n += put_integer(p, FIELD_ATTEMPTS, job->attempts, JOB_ATTEMPTS_DEFAULT);
    if (job->stream) {
        n++;
        if (p != NULL) {
            mppack_text(p, field_names[FIELD_STREAM]);
            msgpack_pack_true(p);
        }
    }
    n += put_text(p, FIELD_CUSTOM_ID, job->custom_id);
    n += put_text(p, FIELD_BATCH, job->batch);
    return n + put_meta(p, job);
}

enum status job_encode(const struct job *job, struct buffer *to, struct error *e)
{
    check(to->status == OK, "a buffer that failed");
    if (job->n_meta < 0 || job->n_meta > JOB_META_MAX)
        return error_set(e, ERR_INPUT, "bad_job", "meta has %d pairs; at most %d are allowed",
                         job->n_meta, JOB_META_MAX);
    size_t start = to->n;
    msgpack_packer p = mppack_to(to);
    bool body = job->body_form != JOB_BODY_NONE;
    msgpack_pack_map(&p, (size_t) (put_fields(NULL, job) + body));
    put_fields(&p, job);
    if (body) {
        mppack_text(&p, field_names[FIELD_BODY]);
        if (job->body_form == JOB_BODY_MAP) buffer_append(to, job->body.at, job->body.n);
        else mppack_str(&p, job->body.at, job->body.n);
    }
    try(buffer_check(to, "the job", e));
    // What a broker would refuse is not written.
    struct job back;
    enum status status = job_decode(&back, to->data + start, to->n - start, e);
    if (status != OK) to->n = start;
    return status;
}
