#include "penstock_client.h"

#include <hiredis/hiredis.h>
#include <msgpack.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { KEY_SIZE = 320, BLOCK_MS = 5000, WORDS_MAX = 12, IO_SECONDS = 30 };
#define ENTRIES_TEXT "1000" // at once
#define HASH_START 0xcbf29ce484222325u

struct penstock {
    redisContext *c;
    char host[256], user[128], password[256];
    int port; // 0: host is the path of a unix socket
    char inbox[KEY_SIZE], log[KEY_SIZE], results[KEY_SIZE], chunks[KEY_SIZE];
    int64_t patience_ms;
    char error[512];
};

// Arguments of a command.
struct words {
    int n;
    const char *at[WORDS_MAX];
    size_t sizes[WORDS_MAX];
};

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void sleep_ms(int64_t ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static enum penstock_code fail(struct penstock *p, enum penstock_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static enum penstock_code fail(struct penstock *p, enum penstock_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(p->error, sizeof p->error, format, args);
    va_end(args);
    return code;
}

static struct words words_of(const char *first, ...)
{
    struct words w = {0};
    va_list args;
    va_start(args, first);
    for (const char *s = first; s != NULL && w.n < WORDS_MAX; s = va_arg(args, const char *)) {
        w.at[w.n] = s;
        w.sizes[w.n++] = strlen(s);
    }
    va_end(args);
    return w;
}

static bool copy(char *to, size_t size, const char *from, size_t n)
{
    if (n >= size) return false;
    memcpy(to, from, n);
    to[n] = 0;
    return true;
}

// --- client

static bool parse_url(struct penstock *p, const char *url)
{
    const char *path = url + 7;
    if (strncmp(url, "unix://", 7) == 0) return copy(p->host, sizeof p->host, path, strlen(path));
    if (strncmp(url, "redis://", 8) != 0) return false;
    const char *host = url + 8, *at = strrchr(host, '@');
    if (at != NULL) {
        const char *colon = memchr(host, ':', (size_t) (at - host));
        if (colon == NULL || !copy(p->user, sizeof p->user, host, (size_t) (colon - host)) ||
            !copy(p->password, sizeof p->password, colon + 1, (size_t) (at - colon - 1))) {
            return false;
        }
        host = at + 1;
    }
    size_t n = strcspn(host, ":/");
    p->port = host[n] == ':' ? atoi(host + n + 1) : 6379;
    return n > 0 && p->port > 0 && p->port < 65536 && copy(p->host, sizeof p->host, host, n);
}

enum penstock_code penstock_open(struct penstock **self, const char *url, const char *queue,
                                 const char *tenant, int64_t patience_ms)
{
    *self = NULL;
    struct penstock *p = calloc(1, sizeof *p);
    if (p == NULL) return PENSTOCK_NOMEM;
    p->patience_ms = patience_ms > 0 ? patience_ms : 60000;
    if (!parse_url(p, url) || strlen(queue) > 64 || strlen(tenant) > 64) {
        free(p);
        return PENSTOCK_INVALID;
    }
    snprintf(p->inbox, KEY_SIZE, "ps:{%s}:in:%s", queue, tenant);
    snprintf(p->log, KEY_SIZE, "ps:{%s}:ev:%s", queue, tenant);
    snprintf(p->results, KEY_SIZE, "ps:{%s}:r:%s:", queue, tenant);
    snprintf(p->chunks, KEY_SIZE, "ps:{%s}:t:%s:", queue, tenant);
    *self = p;
    return PENSTOCK_DONE;
}

static void drop(struct penstock *p)
{
    if (p->c != NULL) redisFree(p->c);
    p->c = NULL;
}

void penstock_close(struct penstock **self)
{
    if (*self == NULL) return;
    drop(*self);
    free(*self);
    *self = NULL;
}

const char *penstock_error(const struct penstock *p) { return p->error; }

// --- one command, until it is answered

static redisReply *log_in(struct penstock *p)
{
    if (p->user[0] != 0) return redisCommand(p->c, "AUTH %s %s", p->user, p->password);
    return redisCommand(p->c, "AUTH %s", p->password);
}

// False: not now, or (*code) not at all.
static bool connected(struct penstock *p, enum penstock_code *code)
{
    if (p->c != NULL) return true;
    const struct timeval limit = {.tv_sec = IO_SECONDS};
    p->c = p->port > 0 ? redisConnectWithTimeout(p->host, p->port, limit)
                       : redisConnectUnixWithTimeout(p->host, limit);
    if (p->c == NULL || p->c->err != 0) {
        fail(p, PENSTOCK_AWAY, "%s", p->c != NULL ? p->c->errstr : "no memory");
        drop(p);
        return false;
    }
    redisSetTimeout(p->c, limit);
    if (p->password[0] == 0) return true;
    redisReply *r = log_in(p);
    if (r != NULL && r->type == REDIS_REPLY_ERROR) *code = fail(p, PENSTOCK_REFUSED, "%s", r->str);
    bool in = r != NULL && r->type != REDIS_REPLY_ERROR;
    if (r != NULL) freeReplyObject(r);
    if (!in) drop(p);
    return in;
}

static bool passes(const redisReply *r)
{
    return strncmp(r->str, "OOM", 3) == 0 || strncmp(r->str, "LOADING", 7) == 0;
}

static enum penstock_code call(struct penstock *p, struct words w, redisReply **reply)
{
    int64_t until = now_ms() + p->patience_ms, delay = 20;
    for (;; delay = delay < 1000 ? delay * 2 : delay) {
        enum penstock_code code = PENSTOCK_DONE;
        redisReply *r = NULL;
        if (connected(p, &code)) {
            r = redisCommandArgv(p->c, w.n, w.at, w.sizes);
            if (r != NULL && r->type != REDIS_REPLY_ERROR) {
                *reply = r;
                return PENSTOCK_DONE;
            }
            fail(p, PENSTOCK_AWAY, "%s", r != NULL ? r->str : p->c->errstr);
            if (r == NULL) drop(p);
        }
        if (r != NULL && !passes(r)) code = PENSTOCK_REFUSED;
        if (r != NULL) freeReplyObject(r);
        if (code != PENSTOCK_DONE) return code;
        if (now_ms() > until) return PENSTOCK_AWAY;
        sleep_ms(delay);
    }
}

// --- messages

static void pack_text(msgpack_packer *k, const char *text, size_t n)
{
    msgpack_pack_str(k, n);
    msgpack_pack_str_body(k, text, n);
}

static void pack_text_field(msgpack_packer *k, const char *name, const char *value)
{
    if (value == NULL) return;
    pack_text(k, name, strlen(name));
    pack_text(k, value, strlen(value));
}

static void pack_int_field(msgpack_packer *k, const char *name, int64_t value)
{
    if (value == 0) return;
    pack_text(k, name, strlen(name));
    msgpack_pack_int64(k, value);
}

static void pack_job(msgpack_packer *k, const struct penstock_job *j)
{
    size_t fields = 3 + (j->body != NULL) + (j->model != NULL) + (j->custom_id != NULL) +
                    (j->batch != NULL) + (j->class != 0) + (j->attempts != 0) + (j->at_ms != 0) +
                    (j->deadline_ms != 0) + (j->ttl_ms != 0) + j->stream;
    msgpack_pack_map(k, fields);
    pack_int_field(k, "v", 1);
    pack_text_field(k, "id", j->id);
    pack_text_field(k, "op", j->op);
    pack_text_field(k, "model", j->model);
    pack_text_field(k, "custom_id", j->custom_id);
    pack_text_field(k, "batch", j->batch);
    pack_int_field(k, "class", j->class);
    pack_int_field(k, "attempts", j->attempts);
    pack_int_field(k, "at", j->at_ms);
    pack_int_field(k, "deadline", j->deadline_ms);
    pack_int_field(k, "ttl", j->ttl_ms);
    if (j->stream) {
        pack_text(k, "stream", 6);
        msgpack_pack_true(k);
    }
    if (j->body != NULL) {
        pack_text(k, "body", 4);
        pack_text(k, j->body, j->body_bytes > 0 ? j->body_bytes : strlen(j->body));
    }
}

// Whether a push that was cut off arrived is unknown: call() makes it again as it was.
static enum penstock_code push(struct penstock *p, const struct penstock_job *job)
{
    msgpack_sbuffer bytes;
    msgpack_packer packer;
    redisReply *r;
    msgpack_sbuffer_init(&bytes);
    msgpack_packer_init(&packer, &bytes, msgpack_sbuffer_write);
    pack_job(&packer, job);
    struct words w = words_of("RPUSH", p->inbox, NULL);
    w.at[w.n] = bytes.data;
    w.sizes[w.n++] = bytes.size;
    enum penstock_code code = call(p, w, &r);
    if (code == PENSTOCK_DONE) freeReplyObject(r);
    msgpack_sbuffer_destroy(&bytes);
    return code;
}

static enum penstock_code make_id(struct penstock *p, char id[PENSTOCK_ID_SIZE])
{
    unsigned char random[16];
    if (getrandom(random, sizeof random, 0) != sizeof random) {
        return fail(p, PENSTOCK_INVALID, "no random bytes");
    }
    for (size_t i = 0; i < sizeof random; i++) snprintf(id + 2 * i, 3, "%02x", random[i]);
    return PENSTOCK_DONE;
}

static enum penstock_code last_event(struct penstock *p, char since[PENSTOCK_ENTRY_SIZE])
{
    redisReply *r;
    enum penstock_code code = call(p, words_of("XREVRANGE", p->log, "+", "-", "COUNT", "1", NULL),
                                   &r);
    if (code != PENSTOCK_DONE) return code;
    snprintf(since, PENSTOCK_ENTRY_SIZE, "%s",
             r->elements > 0 ? r->element[0]->element[0]->str : "0-0");
    freeReplyObject(r);
    return PENSTOCK_DONE;
}

enum penstock_code penstock_enqueue(struct penstock *p, struct penstock_job *job)
{
    enum penstock_code code = job->id[0] == 0 ? make_id(p, job->id) : PENSTOCK_DONE;
    if (code == PENSTOCK_DONE) code = last_event(p, job->since);
    return code == PENSTOCK_DONE ? push(p, job) : code;
}

enum penstock_code penstock_cancel(struct penstock *p, const char *id)
{
    struct penstock_job job = {.op = "cancel"};
    if (!copy(job.id, sizeof job.id, id, strlen(id))) return fail(p, PENSTOCK_INVALID, "bad id");
    return push(p, &job);
}

// --- results

void penstock_result_free(struct penstock_result *r)
{
    free(r->text);
    free(r->tokens);
    free(r->raw);
    *r = (struct penstock_result){0};
}

static bool named(const msgpack_object_kv *pair, const char *name)
{
    const msgpack_object_str *s = &pair->key.via.str;
    return pair->key.type == MSGPACK_OBJECT_STR && s->size == strlen(name) &&
           memcmp(s->ptr, name, s->size) == 0;
}

// What is longer than its room is cut: text for people, or of a later version.
static void read_text(const msgpack_object *o, char *to, size_t size)
{
    if (o->type != MSGPACK_OBJECT_STR) return;
    size_t n = o->via.str.size < size ? o->via.str.size : size - 1;
    copy(to, size, o->via.str.ptr, n);
}

static bool read_whole_text(const msgpack_object *o, struct penstock_result *r)
{
    if (o->type != MSGPACK_OBJECT_STR) return true;
    r->text_bytes = o->via.str.size;
    r->text = malloc(r->text_bytes + 1);
    return r->text != NULL && copy(r->text, r->text_bytes + 1, o->via.str.ptr, r->text_bytes);
}

static bool read_tokens(const msgpack_object *o, struct penstock_result *r)
{
    if (o->type != MSGPACK_OBJECT_ARRAY) return true;
    r->n_tokens = o->via.array.size;
    r->tokens = calloc(r->n_tokens + 1, sizeof *r->tokens);
    for (size_t i = 0; r->tokens != NULL && i < r->n_tokens; i++) {
        r->tokens[i] = (int32_t) o->via.array.ptr[i].via.i64;
    }
    return r->tokens != NULL;
}

static void read_error(const msgpack_object *o, struct penstock_result *r)
{
    for (uint32_t i = 0; o->type == MSGPACK_OBJECT_MAP && i < o->via.map.size; i++) {
        const msgpack_object_kv *pair = &o->via.map.ptr[i];
        if (named(pair, "code")) read_text(&pair->val, r->error_code, sizeof r->error_code);
        if (named(pair, "message")) {
            read_text(&pair->val, r->error_message, sizeof r->error_message);
        }
        if (named(pair, "retryable")) {
            r->retryable = pair->val.type == MSGPACK_OBJECT_BOOLEAN && pair->val.via.boolean;
        }
    }
}

// Fields that are not known are left to `raw`.
static bool read_map(const msgpack_object *o, struct penstock_result *r)
{
    bool fits = true;
    for (uint32_t i = 0; i < o->via.map.size; i++) {
        const msgpack_object_kv *pair = &o->via.map.ptr[i];
        const msgpack_object *value = &pair->val;
        if (named(pair, "status")) read_text(value, r->status, sizeof r->status);
        if (named(pair, "finish_reason")) {
            read_text(value, r->finish_reason, sizeof r->finish_reason);
        }
        if (named(pair, "custom_id")) read_text(value, r->custom_id, sizeof r->custom_id);
        if (named(pair, "text")) fits = fits && read_whole_text(value, r);
        if (named(pair, "tokens")) fits = fits && read_tokens(value, r);
        if (named(pair, "error")) read_error(value, r);
    }
    return fits;
}

static enum penstock_code read_result(struct penstock *p, const redisReply *reply,
                                      struct penstock_result *r)
{
    *r = (struct penstock_result){0};
    if (reply->type != REDIS_REPLY_STRING) return PENSTOCK_NONE;
    msgpack_unpacked u;
    msgpack_unpacked_init(&u);
    size_t off = 0, n = (size_t) reply->len;
    enum penstock_code code = PENSTOCK_DONE;
    if (msgpack_unpack_next(&u, reply->str, n, &off) != MSGPACK_UNPACK_SUCCESS ||
        u.data.type != MSGPACK_OBJECT_MAP) {
        code = fail(p, PENSTOCK_INVALID, "the result is no msgpack map");
    } else {
        r->raw = malloc(n);
        r->raw_bytes = n;
        if (r->raw != NULL) memcpy(r->raw, reply->str, n);
        if (r->raw == NULL || !read_map(&u.data, r)) code = fail(p, PENSTOCK_NOMEM, "no memory");
    }
    msgpack_unpacked_destroy(&u);
    if (code != PENSTOCK_DONE) penstock_result_free(r);
    return code;
}

enum penstock_code penstock_result(struct penstock *p, const char *id, struct penstock_result *r)
{
    char key[KEY_SIZE + PENSTOCK_ID_SIZE];
    redisReply *reply;
    *r = (struct penstock_result){0};
    snprintf(key, sizeof key, "%s%s", p->results, id);
    enum penstock_code code = call(p, words_of("GET", key, NULL), &reply);
    if (code != PENSTOCK_DONE) return code;
    code = read_result(p, reply, r);
    freeReplyObject(reply);
    return code;
}

static void failed(struct penstock_result *r, const char *code, const char *message)
{
    *r = (struct penstock_result){.status = "error"};
    snprintf(r->error_code, sizeof r->error_code, "%s", code);
    snprintf(r->error_message, sizeof r->error_message, "%s", message);
}

// The result that belongs to an event of the job.
static enum penstock_code ended_by(struct penstock *p, const char *id, const char *event,
                                   struct penstock_result *r)
{
    if (strcmp(event, "id_conflict") == 0) {
        failed(r, "id_conflict", "the id belongs to another job");
        return PENSTOCK_DONE;
    }
    enum penstock_code code = penstock_result(p, id, r);
    if (code != PENSTOCK_NONE) return code;
    failed(r, "result_gone", "the job has ended; its result has expired");
    return PENSTOCK_DONE;
}

// --- events

static const redisReply *field(const redisReply *entry, const char *name)
{
    const redisReply *pairs = entry->element[1];
    for (size_t i = 0; i + 1 < pairs->elements; i += 2) {
        if (strcmp(pairs->element[i]->str, name) == 0) return pairs->element[i + 1];
    }
    return NULL;
}

// The event's name if it ends a wait for `id`; else NULL.
static const char *ends(const redisReply *entry, const char *id)
{
    static const char *const ENDS[] = {"done", "failed", "cancelled", "expired", "id_conflict"};
    const redisReply *job = field(entry, "id"), *event = field(entry, "event");
    if (job == NULL || event == NULL || strcmp(job->str, id) != 0) return NULL;
    for (size_t i = 0; i < sizeof ENDS / sizeof *ENDS; i++) {
        if (strcmp(event->str, ENDS[i]) == 0) return ENDS[i];
    }
    return NULL;
}

static bool later(const char *a, const char *b)
{
    char *x, *y;
    unsigned long long ms_a = strtoull(a, &x, 10), ms_b = strtoull(b, &y, 10);
    if (ms_a != ms_b) return ms_a > ms_b;
    return *x == '-' && *y == '-' && strtoull(x + 1, NULL, 10) > strtoull(y + 1, NULL, 10);
}

// The new entries of a stream within an XREAD's reply; moves `at` behind them. NULL: none.
static const redisReply *entries_of(const redisReply *r, const char *key,
                                    char at[PENSTOCK_ENTRY_SIZE])
{
    for (size_t i = 0; r->type == REDIS_REPLY_ARRAY && i < r->elements; i++) {
        const redisReply *entries = r->element[i]->element[1];
        if (strcmp(r->element[i]->element[0]->str, key) != 0 || entries->elements == 0) continue;
        snprintf(at, PENSTOCK_ENTRY_SIZE, "%s",
                 entries->element[entries->elements - 1]->element[0]->str);
        return entries;
    }
    return NULL;
}

// Whether the log may have dropped entries behind `since` before they were read.
static enum penstock_code look_for_gap(struct penstock *p, const char *since, bool *gap)
{
    redisReply *r;
    enum penstock_code code = call(p, words_of("XRANGE", p->log, "-", "+", "COUNT", "1", NULL), &r);
    if (code != PENSTOCK_DONE) return code;
    *gap = r->elements == 0 || later(r->element[0]->element[0]->str, since);
    freeReplyObject(r);
    return PENSTOCK_DONE;
}

// What a wait has seen of its job.
struct follow {
    const char *id;
    int64_t until; // < 0: none
    char since[PENSTOCK_ENTRY_SIZE], at[PENSTOCK_ENTRY_SIZE];
    penstock_piece_fn *piece; // NULL: no streaming
    void *arg;
    size_t skip; // bytes of text that are not given
    size_t have; // bytes of text that came
    uint64_t hash; // of these
};

// FNV-1a, to compare what came with the result without keeping it.
static uint64_t hash_more(uint64_t hash, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char) bytes[i]) * 0x100000001b3;
    return hash;
}

static void give(struct follow *f, const char *bytes, size_t n)
{
    size_t hidden = f->skip > f->have ? f->skip - f->have : 0;
    f->hash = hash_more(f->hash, bytes, n);
    f->have += n;
    if (n > hidden) f->piece(f->arg, bytes + hidden, n - hidden);
}

// Chunks are placed by their offsets; what lies behind a gap comes from the result.
static void place(struct follow *f, const redisReply *chunk)
{
    const redisReply *offset = field(chunk, "offset"), *bytes = field(chunk, "bytes");
    if (offset == NULL || bytes == NULL) return;
    size_t from = strtoull(offset->str, NULL, 10), n = (size_t) bytes->len;
    if (from > f->have || from + n <= f->have) return;
    give(f, bytes->str + (f->have - from), from + n - f->have);
}

static enum penstock_code turn(struct penstock *p, struct follow *f, struct penstock_result *r)
{
    char key[KEY_SIZE + PENSTOCK_ID_SIZE], block[24], since[PENSTOCK_ENTRY_SIZE];
    int64_t left = f->until < 0 ? BLOCK_MS : f->until - now_ms();
    if (left <= 0) return fail(p, PENSTOCK_TIMEOUT, "the job has not ended in time");
    snprintf(key, sizeof key, "%s%s", p->chunks, f->id);
    snprintf(block, sizeof block, "%d", (int) (left < BLOCK_MS ? left : BLOCK_MS));
    memcpy(since, f->since, sizeof since);
    struct words w = f->piece != NULL
                         ? words_of("XREAD", "COUNT", ENTRIES_TEXT, "BLOCK", block, "STREAMS",
                                    p->log, key, f->since, f->at, NULL)
                         : words_of("XREAD", "COUNT", ENTRIES_TEXT, "BLOCK", block, "STREAMS",
                                    p->log, f->since, NULL);
    redisReply *reply;
    enum penstock_code code = call(p, w, &reply);
    if (code != PENSTOCK_DONE) return code;
    const redisReply *chunks = entries_of(reply, key, f->at);
    const redisReply *events = entries_of(reply, p->log, f->since);
    for (size_t i = 0; chunks != NULL && f->piece != NULL && i < chunks->elements; i++) {
        place(f, chunks->element[i]);
    }
    code = PENSTOCK_NONE;
    for (size_t i = 0; events != NULL && i < events->elements && code == PENSTOCK_NONE; i++) {
        const char *event = ends(events->element[i], f->id);
        if (event != NULL) code = ended_by(p, f->id, event, r);
    }
    bool gap = false;
    if (events != NULL && code == PENSTOCK_NONE) {
        enum penstock_code looked = look_for_gap(p, since, &gap);
        if (looked != PENSTOCK_DONE) code = looked;
    }
    freeReplyObject(reply);
    return gap ? penstock_result(p, f->id, r) : code;
}

// What is missing at the end. A job that was not done may have streamed more than it has.
static enum penstock_code finish(struct penstock *p, struct follow *f,
                                 const struct penstock_result *r)
{
    bool done = strcmp(r->status, "ok") == 0;
    if (r->text_bytes < f->have && !done) return PENSTOCK_DONE;
    if (r->text_bytes < f->have || f->hash != hash_more(HASH_START, r->text, f->have)) {
        return fail(p, PENSTOCK_DIFFERS, "the streamed text is not the result's");
    }
    if (r->text_bytes > f->have) give(f, r->text + f->have, r->text_bytes - f->have);
    return PENSTOCK_DONE;
}

static enum penstock_code follow(struct penstock *p, const struct penstock_job *job,
                                 int64_t timeout_ms, size_t skip, penstock_piece_fn *piece,
                                 void *arg, struct penstock_result *r)
{
    struct follow f = {.id = job->id, .at = "0-0", .piece = piece, .arg = arg, .skip = skip,
                       .hash = HASH_START,
                       .until = timeout_ms < 0 ? -1 : now_ms() + timeout_ms};
    enum penstock_code code = PENSTOCK_NONE;
    *r = (struct penstock_result){0};
    memcpy(f.since, job->since, sizeof f.since);
    if (f.since[0] == 0) { // before the look, so that nothing falls between
        code = last_event(p, f.since);
        if (code == PENSTOCK_DONE) code = penstock_result(p, f.id, r);
    }
    while (code == PENSTOCK_NONE) code = turn(p, &f, r);
    return code == PENSTOCK_DONE && piece != NULL ? finish(p, &f, r) : code;
}

enum penstock_code penstock_wait(struct penstock *p, const struct penstock_job *job,
                                 int64_t timeout_ms, struct penstock_result *r)
{
    return follow(p, job, timeout_ms, 0, NULL, NULL, r);
}

enum penstock_code penstock_stream(struct penstock *p, const struct penstock_job *job,
                                   int64_t timeout_ms, size_t offset, penstock_piece_fn *piece,
                                   void *arg, struct penstock_result *r)
{
    return follow(p, job, timeout_ms, offset, piece, arg, r);
}

// --- many

struct bulk {
    size_t n, window;
    char (*open)[PENSTOCK_ID_SIZE]; // (window) the first n are in the queue
    char since[PENSTOCK_ENTRY_SIZE];
    penstock_ended_fn *ended;
    void *arg;
};

static enum penstock_code fill(struct penstock *p, struct bulk *b, penstock_next_fn *next,
                               bool *more)
{
    while (*more && b->n < b->window) {
        struct penstock_job job = {0};
        *more = next(b->arg, &job);
        if (!*more) break;
        enum penstock_code code = job.id[0] == 0 ? make_id(p, job.id) : PENSTOCK_DONE;
        if (code == PENSTOCK_DONE) code = push(p, &job);
        if (code != PENSTOCK_DONE) return code;
        memcpy(b->open[b->n++], job.id, PENSTOCK_ID_SIZE);
    }
    return PENSTOCK_DONE;
}

// Ends open[i] if there is a result by now (event NULL), or as the event says.
static enum penstock_code end_one(struct penstock *p, struct bulk *b, size_t i, const char *event)
{
    struct penstock_result r;
    enum penstock_code code = event != NULL ? ended_by(p, b->open[i], event, &r)
                                            : penstock_result(p, b->open[i], &r);
    if (code == PENSTOCK_NONE) return PENSTOCK_DONE;
    if (code != PENSTOCK_DONE) return code;
    b->ended(b->arg, b->open[i], &r);
    penstock_result_free(&r);
    memcpy(b->open[i], b->open[--b->n], PENSTOCK_ID_SIZE);
    return PENSTOCK_DONE;
}

static enum penstock_code end_some(struct penstock *p, struct bulk *b, const redisReply *events)
{
    for (size_t e = 0; e < events->elements; e++) {
        for (size_t i = 0; i < b->n; i++) {
            const char *event = ends(events->element[e], b->open[i]);
            if (event == NULL) continue;
            enum penstock_code code = end_one(p, b, i, event);
            if (code != PENSTOCK_DONE) return code;
            break;
        }
    }
    return PENSTOCK_DONE;
}

static enum penstock_code bulk_turn(struct penstock *p, struct bulk *b)
{
    char since[PENSTOCK_ENTRY_SIZE];
    redisReply *reply;
    bool gap = false;
    memcpy(since, b->since, sizeof since);
    enum penstock_code code = call(p, words_of("XREAD", "COUNT", ENTRIES_TEXT, "BLOCK", "5000",
                                               "STREAMS", p->log, since, NULL), &reply);
    if (code != PENSTOCK_DONE) return code;
    const redisReply *events = entries_of(reply, p->log, b->since);
    if (events != NULL) code = end_some(p, b, events);
    if (events != NULL && code == PENSTOCK_DONE) code = look_for_gap(p, since, &gap);
    freeReplyObject(reply);
    for (size_t i = b->n; gap && i-- > 0 && code == PENSTOCK_DONE;) code = end_one(p, b, i, NULL);
    return code;
}

enum penstock_code penstock_bulk(struct penstock *p, size_t window, penstock_next_fn *next,
                                 penstock_ended_fn *ended, void *arg)
{
    if (window == 0) return fail(p, PENSTOCK_INVALID, "a window of no jobs");
    struct bulk b = {.window = window, .ended = ended, .arg = arg,
                     .open = calloc(window, PENSTOCK_ID_SIZE)};
    if (b.open == NULL) return fail(p, PENSTOCK_NOMEM, "no memory");
    bool more = true;
    enum penstock_code code = last_event(p, b.since);
    while (code == PENSTOCK_DONE && (more || b.n > 0)) {
        code = fill(p, &b, next, &more);
        if (code == PENSTOCK_DONE && b.n > 0) code = bulk_turn(p, &b);
    }
    free(b.open);
    return code;
}
