#include "tests/sim/sim_keys.h"

#include "common/status.h"
#include "tests/sim/sim_dict.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { ERROR_SIZE = 256 };

struct text { // owned bytes
    size_t n;
    char at[];
};

struct member {
    double score;
    struct text *name;
};

enum type { STRING, HASH, ZSET, LIST, STREAM };

struct value {
    enum type type;
    int64_t ends_ms;       // 0: never
    struct text *string;
    struct dict hash;      // HASH: of texts; ZSET: of members, which `sorted` orders
    struct member **sorted;
    size_t n_sorted, room;
    struct text **items;   // LIST: from `head` on; STREAM: the fields of all entries, flat
    size_t head, n_items;
    size_t *sizes;         // STREAM: fields of each entry
    size_t n_entries;
};

struct keys {
    struct dict all;
    int64_t now_ms;
    const struct bytes *argv;
    int argc;
    char error[ERROR_SIZE], number[32];
    struct answer *parts; // of the last answer
    size_t n_parts, room;
};

// --- memory

static struct text *text_of(struct bytes b)
{
    struct text *t = malloc(sizeof *t + b.n + 1);
    check(t != NULL, "no memory for %zu bytes", b.n);
    t->n = b.n;
    memcpy(t->at, b.at, b.n);
    t->at[b.n] = '\0';
    return t;
}

static void free_member(void *arg)
{
    struct member *m = arg;
    free(m->name);
    free(m);
}

static void free_value(void *arg)
{
    struct value *v = arg;
    free(v->string);
    dict_free(&v->hash, v->type == ZSET ? free_member : free);
    for (size_t i = v->head; i < v->n_items; i++) free(v->items[i]);
    free(v->sorted);
    free(v->items);
    free(v->sizes);
    free(v);
}

static void *grown(void *at, size_t n, size_t size)
{
    // Room doubles whenever n is a power of two.
    if (n > 0 && (n & (n - 1)) != 0) return at;
    at = realloc(at, (n > 0 ? 2 * n : 1) * size);
    check(at != NULL, "no memory for a list");
    return at;
}

// --- answers

static struct answer nil(void) { return (struct answer){.kind = ANSWER_NIL}; }
static struct answer ok(void) { return (struct answer){.kind = ANSWER_STATUS, .bytes = {"OK", 2}}; }

static struct answer number(int64_t n)
{
    return (struct answer){.kind = ANSWER_NUMBER, .number = n};
}

static struct answer whole(const struct text *t)
{
    if (t == NULL) return nil();
    return (struct answer){.kind = ANSWER_BYTES, .bytes = {t->at, t->n}};
}

static struct answer bytes_answer(const char *at, size_t n)
{
    return (struct answer){.kind = ANSWER_BYTES, .bytes = {at, n}};
}

__attribute__((format(printf, 2, 3))) static struct answer error(struct keys *k,
                                                                 const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(k->error, sizeof k->error, format, args);
    va_end(args);
    return (struct answer){.kind = ANSWER_ERROR, .bytes = {k->error, strlen(k->error)}};
}

static void add_part(struct keys *k, struct answer a)
{
    if (k->n_parts == k->room) {
        k->room = k->room > 0 ? 2 * k->room : 64;
        k->parts = realloc(k->parts, k->room * sizeof *k->parts);
        check(k->parts != NULL, "no memory for an answer");
    }
    k->parts[k->n_parts++] = a;
}

static struct answer list(struct keys *k)
{
    return (struct answer){.kind = ANSWER_LIST, .n = k->n_parts, .parts = k->parts};
}

// --- arguments and values

static bool is(struct bytes b, const char *word)
{
    return b.n == strlen(word) && strncasecmp(b.at, word, b.n) == 0;
}

static int64_t integer(struct bytes b)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%.*s", (int) (b.n < 31 ? b.n : 31), b.at);
    return strtoll(digits, NULL, 10);
}

static double real(struct bytes b)
{
    char digits[64];
    snprintf(digits, sizeof digits, "%.*s", (int) (b.n < 63 ? b.n : 63), b.at);
    return strtod(digits, NULL);
}

static void drop(struct keys *k, struct bytes key)
{
    struct value *v = dict_remove(&k->all, key);
    if (v != NULL) free_value(v);
}

static struct value *find(struct keys *k, struct bytes key)
{
    struct dict_entry *e = dict_find(&k->all, key);
    struct value *v = e != NULL ? e->value : NULL;
    if (v == NULL || v->ends_ms == 0 || v->ends_ms > k->now_ms) return v;
    drop(k, key);
    return NULL;
}

static struct value *find_or_make(struct keys *k, struct bytes key, enum type type)
{
    struct value *v = find(k, key);
    if (v != NULL) {
        check(v->type == type, "a key of another type");
        return v;
    }
    v = calloc(1, sizeof *v);
    check(v != NULL, "no memory for a key");
    v->type = type;
    dict_add(&k->all, key)->value = v;
    return v;
}

// A key without contents is none.
static void settle(struct keys *k, struct bytes key, const struct value *v)
{
    bool empty = (v->type == HASH && v->hash.n == 0) || (v->type == ZSET && v->n_sorted == 0) ||
                 (v->type == LIST && v->head == v->n_items);
    if (empty) drop(k, key);
}

// --- strings

static void set_string(struct value *v, struct bytes b)
{
    free(v->string);
    v->string = text_of(b);
}

static struct answer cmd_set(struct keys *k)
{
    struct value *v = find_or_make(k, k->argv[1], STRING);
    set_string(v, k->argv[2]);
    v->ends_ms = k->argc == 5 && is(k->argv[3], "PX") ? k->now_ms + integer(k->argv[4]) : 0;
    return ok();
}

static struct answer cmd_get(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    return v != NULL ? whole(v->string) : nil();
}

static struct answer cmd_incrby(struct keys *k)
{
    struct value *v = find_or_make(k, k->argv[1], STRING);
    int64_t by = k->argc > 2 ? integer(k->argv[2]) : 1, n = by;
    if (v->string != NULL) n += integer((struct bytes){v->string->at, v->string->n});
    int size = snprintf(k->number, sizeof k->number, "%lld", (long long) n);
    set_string(v, (struct bytes){k->number, (size_t) size});
    return number(n);
}

static struct answer cmd_append(struct keys *k)
{
    struct value *v = find_or_make(k, k->argv[1], STRING);
    size_t n = v->string != NULL ? v->string->n : 0;
    struct text *t = realloc(v->string, sizeof *t + n + k->argv[2].n + 1);
    check(t != NULL, "no memory to append");
    memcpy(t->at + n, k->argv[2].at, k->argv[2].n);
    t->n = n + k->argv[2].n;
    t->at[t->n] = '\0';
    v->string = t;
    return number((int64_t) t->n);
}

static struct answer cmd_strlen(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    return number(v != NULL && v->string != NULL ? (int64_t) v->string->n : 0);
}

// --- keys

static struct answer cmd_exists(struct keys *k) { return number(find(k, k->argv[1]) != NULL); }

static struct answer cmd_del(struct keys *k)
{
    int n = 0;
    for (int i = 1; i < k->argc; i++) {
        if (find(k, k->argv[i]) == NULL) continue;
        drop(k, k->argv[i]);
        n++;
    }
    return number(n);
}

static struct answer cmd_pexpire(struct keys *k)
{
    struct value *v = find(k, k->argv[1]);
    if (v == NULL) return number(0);
    v->ends_ms = k->now_ms + integer(k->argv[2]);
    return number(1);
}

static struct answer cmd_pttl(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    if (v == NULL) return number(-2);
    return number(v->ends_ms == 0 ? -1 : v->ends_ms - k->now_ms);
}

static struct answer cmd_time(struct keys *k)
{
    static char parts[2][32];
    for (int i = 0; i < 2; i++) {
        int64_t n = i == 0 ? k->now_ms / 1000 : k->now_ms % 1000 * 1000;
        int size = snprintf(parts[i], sizeof parts[i], "%lld", (long long) n);
        add_part(k, bytes_answer(parts[i], (size_t) size));
    }
    return list(k);
}

// --- hashes

static struct text *field(struct keys *k, struct bytes key, struct bytes name)
{
    const struct value *v = find(k, key);
    struct dict_entry *e = v != NULL ? dict_find(&v->hash, name) : NULL;
    return e != NULL ? e->value : NULL;
}

static bool set_field(struct value *v, struct bytes name, struct bytes to)
{
    struct dict_entry *e = dict_find(&v->hash, name);
    bool fresh = e == NULL;
    if (fresh) e = dict_add(&v->hash, name);
    struct text *t = text_of(to);
    free(e->value);
    e->value = t;
    return fresh;
}

static struct answer cmd_hset(struct keys *k)
{
    struct value *v = find_or_make(k, k->argv[1], HASH);
    int n = 0;
    for (int i = 2; i + 1 < k->argc; i += 2) n += set_field(v, k->argv[i], k->argv[i + 1]);
    return number(n);
}

static struct answer cmd_hsetnx(struct keys *k)
{
    if (field(k, k->argv[1], k->argv[2]) != NULL) return number(0);
    set_field(find_or_make(k, k->argv[1], HASH), k->argv[2], k->argv[3]);
    return number(1);
}

static struct answer cmd_hget(struct keys *k) { return whole(field(k, k->argv[1], k->argv[2])); }

static struct answer cmd_hmget(struct keys *k)
{
    for (int i = 2; i < k->argc; i++) add_part(k, whole(field(k, k->argv[1], k->argv[i])));
    return list(k);
}

static struct answer fields(struct keys *k, bool values)
{
    const struct value *v = find(k, k->argv[1]);
    for (size_t i = 0; v != NULL && i < v->hash.n_buckets; i++) {
        for (struct dict_entry *e = v->hash.buckets[i]; e != NULL; e = e->next) {
            add_part(k, bytes_answer(e->key, e->n));
            if (values) add_part(k, whole(e->value));
        }
    }
    return list(k);
}

static struct answer cmd_hgetall(struct keys *k) { return fields(k, true); }
static struct answer cmd_hkeys(struct keys *k) { return fields(k, false); }

static struct answer cmd_hlen(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    return number(v != NULL ? (int64_t) v->hash.n : 0);
}

static struct answer cmd_hstrlen(struct keys *k)
{
    const struct text *t = field(k, k->argv[1], k->argv[2]);
    return number(t != NULL ? (int64_t) t->n : 0);
}

static struct answer cmd_hexists(struct keys *k)
{
    return number(field(k, k->argv[1], k->argv[2]) != NULL);
}

static struct answer cmd_hincrby(struct keys *k)
{
    const struct text *t = field(k, k->argv[1], k->argv[2]);
    int64_t n = integer(k->argv[3]) + (t != NULL ? integer((struct bytes){t->at, t->n}) : 0);
    int size = snprintf(k->number, sizeof k->number, "%lld", (long long) n);
    set_field(find_or_make(k, k->argv[1], HASH), k->argv[2],
              (struct bytes){k->number, (size_t) size});
    return number(n);
}

static struct answer cmd_hdel(struct keys *k)
{
    struct value *v = find(k, k->argv[1]);
    int n = 0;
    if (v == NULL) return number(0);
    for (int i = 2; i < k->argc; i++) {
        void *t = dict_remove(&v->hash, k->argv[i]);
        n += t != NULL;
        free(t);
    }
    settle(k, k->argv[1], v);
    return number(n);
}

// --- sorted sets

static bool goes_before(const struct member *m, double score, struct bytes name)
{
    if (m->score != score) return m->score < score;
    size_t n = m->name->n < name.n ? m->name->n : name.n;
    int order = memcmp(m->name->at, name.at, n);
    return order < 0 || (order == 0 && m->name->n < name.n);
}

static size_t rank_of(const struct value *v, double score, struct bytes name)
{
    size_t low = 0, high = v->n_sorted;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (goes_before(v->sorted[middle], score, name)) low = middle + 1;
        else high = middle;
    }
    return low;
}

static bool take_member(struct value *v, struct bytes name)
{
    struct member *m = dict_remove(&v->hash, name);
    if (m == NULL) return false;
    size_t i = rank_of(v, m->score, name);
    v->n_sorted--;
    memmove(v->sorted + i, v->sorted + i + 1, (v->n_sorted - i) * sizeof *v->sorted);
    free_member(m);
    return true;
}

static struct answer cmd_zadd(struct keys *k)
{
    struct value *v = find_or_make(k, k->argv[1], ZSET);
    double score = real(k->argv[2]);
    bool there = take_member(v, k->argv[3]);
    struct member *m = malloc(sizeof *m);
    check(m != NULL, "no memory for a member");
    *m = (struct member){score, text_of(k->argv[3])};
    size_t i = rank_of(v, score, k->argv[3]);
    if (v->n_sorted == v->room) {
        v->room = v->room > 0 ? 2 * v->room : 8;
        v->sorted = realloc(v->sorted, v->room * sizeof *v->sorted);
        check(v->sorted != NULL, "no memory for a sorted set");
    }
    memmove(v->sorted + i + 1, v->sorted + i, (v->n_sorted - i) * sizeof *v->sorted);
    v->sorted[i] = m;
    v->n_sorted++;
    dict_add(&v->hash, k->argv[3])->value = m;
    return number(!there);
}

static const struct member *member(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    const struct dict_entry *e = v != NULL ? dict_find(&v->hash, k->argv[2]) : NULL;
    return e != NULL ? e->value : NULL;
}

static struct answer cmd_zscore(struct keys *k)
{
    const struct member *m = member(k);
    if (m == NULL) return nil();
    int n = snprintf(k->number, sizeof k->number, "%.17g", m->score);
    return bytes_answer(k->number, (size_t) n);
}

static struct answer cmd_zrank(struct keys *k)
{
    const struct member *m = member(k);
    if (m == NULL) return nil();
    return number((int64_t) rank_of(find(k, k->argv[1]), m->score, k->argv[2]));
}

static struct answer cmd_zcard(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    return number(v != NULL ? (int64_t) v->n_sorted : 0);
}

static struct answer cmd_zrem(struct keys *k)
{
    struct value *v = find(k, k->argv[1]);
    int n = 0;
    if (v == NULL) return number(0);
    for (int i = 2; i < k->argc; i++) n += take_member(v, k->argv[i]);
    settle(k, k->argv[1], v);
    return number(n);
}

struct bound {
    double score;
    bool open; // not that score itself
};

static struct bound bound_of(struct bytes b)
{
    bool open = b.n > 0 && b.at[0] == '(';
    if (open) b = (struct bytes){b.at + 1, b.n - 1};
    return (struct bound){real(b), open};
}

// key first last, or key least most BYSCORE [LIMIT offset n]
static struct answer cmd_zrange(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    if (v == NULL) return list(k);
    if (k->argc == 4) {
        int64_t n = (int64_t) v->n_sorted, from = integer(k->argv[2]), to = integer(k->argv[3]);
        if (from < 0) from += n;
        if (to < 0) to += n;
        for (int64_t i = from < 0 ? 0 : from; i <= to && i < n; i++) {
            add_part(k, whole(v->sorted[i]->name));
        }
        return list(k);
    }
    if (!is(k->argv[4], "BYSCORE")) return error(k, "ERR ZRANGE in another form");
    struct bound least = bound_of(k->argv[2]), most = bound_of(k->argv[3]);
    int64_t skip = k->argc > 6 ? integer(k->argv[6]) : 0;
    int64_t left = k->argc > 7 ? integer(k->argv[7]) : INT64_MAX;
    size_t i = rank_of(v, least.score, (struct bytes){"", 0});
    for (; i < v->n_sorted && left > 0; i++) {
        const struct member *m = v->sorted[i];
        if (least.open && m->score == least.score) continue;
        if (m->score > most.score || (most.open && m->score == most.score)) break;
        if (skip-- > 0) continue;
        add_part(k, whole(m->name));
        left--;
    }
    return list(k);
}

// --- lists and streams

static struct answer cmd_rpush(struct keys *k)
{
    struct value *v = find_or_make(k, k->argv[1], LIST);
    for (int i = 2; i < k->argc; i++) {
        v->items = grown(v->items, v->n_items, sizeof *v->items);
        v->items[v->n_items++] = text_of(k->argv[i]);
    }
    return number((int64_t) (v->n_items - v->head));
}

static struct answer cmd_lindex(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    size_t i = (size_t) integer(k->argv[2]);
    return v != NULL && v->head + i < v->n_items ? whole(v->items[v->head + i]) : nil();
}

static struct answer cmd_llen(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    return number(v != NULL ? (int64_t) (v->n_items - v->head) : 0);
}

// Only from the head, as queues do.
static struct answer cmd_ltrim(struct keys *k)
{
    struct value *v = find(k, k->argv[1]);
    int64_t n = integer(k->argv[2]);
    if (v == NULL) return ok();
    for (; n > 0 && v->head < v->n_items; n--) free(v->items[v->head++]);
    settle(k, k->argv[1], v);
    return ok();
}

// key MAXLEN ~ n * field value...
static struct answer cmd_xadd(struct keys *k)
{
    struct value *v = find_or_make(k, k->argv[1], STREAM);
    int i = 2;
    while (i < k->argc && !is(k->argv[i], "*")) i++;
    v->sizes = grown(v->sizes, v->n_entries, sizeof *v->sizes);
    v->sizes[v->n_entries++] = (size_t) (k->argc - i - 1);
    for (i++; i < k->argc; i++) {
        v->items = grown(v->items, v->n_items, sizeof *v->items);
        v->items[v->n_items++] = text_of(k->argv[i]);
    }
    return bytes_answer("0-1", 3);
}

// All of it; each entry as its id and its fields.
static struct answer cmd_xrange(struct keys *k)
{
    const struct value *v = find(k, k->argv[1]);
    size_t n_entries = v != NULL ? v->n_entries : 0, n_items = v != NULL ? v->n_items : 0;
    // Parts of parts lie behind the parts of the list.
    for (size_t i = 0; i < 3 * n_entries + n_items; i++) add_part(k, nil());
    struct answer *entries = k->parts, *pairs = entries + n_entries;
    struct answer *items = pairs + 2 * n_entries;
    for (size_t i = 0, at = 0; i < n_entries; i++) {
        for (size_t j = 0; j < v->sizes[i]; j++) items[at + j] = whole(v->items[at + j]);
        pairs[2 * i] = bytes_answer("0-1", 3);
        pairs[2 * i + 1] = (struct answer){
            .kind = ANSWER_LIST, .n = v->sizes[i], .parts = items + at};
        entries[i] = (struct answer){.kind = ANSWER_LIST, .n = 2, .parts = pairs + 2 * i};
        at += v->sizes[i];
    }
    return (struct answer){.kind = ANSWER_LIST, .n = n_entries, .parts = entries};
}

// --- all

static const struct {
    const char *name;
    int least; // arguments, with the name
    struct answer (*run)(struct keys *k);
} commands[] = {
    {"SET", 3, cmd_set}, {"GET", 2, cmd_get}, {"INCR", 2, cmd_incrby}, {"INCRBY", 3, cmd_incrby},
    {"APPEND", 3, cmd_append}, {"STRLEN", 2, cmd_strlen}, {"EXISTS", 2, cmd_exists},
    {"DEL", 2, cmd_del}, {"PEXPIRE", 3, cmd_pexpire}, {"PTTL", 2, cmd_pttl},
    {"TIME", 1, cmd_time}, {"HSET", 4, cmd_hset}, {"HSETNX", 4, cmd_hsetnx},
    {"HGET", 3, cmd_hget}, {"HMGET", 3, cmd_hmget}, {"HGETALL", 2, cmd_hgetall},
    {"HKEYS", 2, cmd_hkeys}, {"HLEN", 2, cmd_hlen}, {"HSTRLEN", 3, cmd_hstrlen},
    {"HEXISTS", 3, cmd_hexists}, {"HINCRBY", 4, cmd_hincrby}, {"HDEL", 3, cmd_hdel},
    {"ZADD", 4, cmd_zadd}, {"ZSCORE", 3, cmd_zscore}, {"ZRANK", 3, cmd_zrank},
    {"ZCARD", 2, cmd_zcard}, {"ZREM", 3, cmd_zrem}, {"ZRANGE", 4, cmd_zrange},
    {"RPUSH", 3, cmd_rpush}, {"LINDEX", 3, cmd_lindex}, {"LLEN", 2, cmd_llen},
    {"LTRIM", 4, cmd_ltrim}, {"XADD", 4, cmd_xadd}, {"XRANGE", 4, cmd_xrange},
};

struct answer keys_run(struct keys *k, int64_t now_ms, const struct bytes *argv, int argc)
{
    k->now_ms = now_ms;
    k->argv = argv;
    k->argc = argc;
    k->n_parts = 0;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (argc >= commands[i].least && is(argv[0], commands[i].name)) return commands[i].run(k);
    }
    return error(k, "ERR the simulated Redis does not know '%.*s' with %d arguments",
                 (int) argv[0].n, argv[0].at, argc - 1);
}

struct keys *keys_create(void)
{
    struct keys *k = calloc(1, sizeof *k);
    check(k != NULL, "no memory for keys");
    return k;
}

void keys_destroy(struct keys **keys)
{
    struct keys *k = *keys;
    if (k == NULL) return;
    *keys = NULL;
    dict_free(&k->all, free_value);
    free(k->parts);
    free(k);
}
