#include "tests/support/queue_library.h"

#include "broker/queue_lua.h"
#include "tests/support/redis.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>

enum { ARGS_MAX = 64 };

struct redisContext *library_redis;
char library_tag[32];

static struct test_redis server;
static char text[LIBRARY_TEXT_SIZE];

// --- asking

static void show(const redisReply *r, char **at, char *end)
{
    if (*at >= end) return;
    size_t room = (size_t) (end - *at);
    int n = 0;
    switch (r->type) {
    case REDIS_REPLY_INTEGER: n = snprintf(*at, room, "%lld", r->integer); break;
    case REDIS_REPLY_NIL: n = snprintf(*at, room, "nil"); break;
    case REDIS_REPLY_ERROR:
        n = snprintf(*at, room, "!%.*s", (int) strcspn(r->str, " "), r->str);
        break;
    case REDIS_REPLY_ARRAY:
        *(*at)++ = '[';
        for (size_t i = 0; i < r->elements; i++) {
            if (i > 0) *(*at)++ = ' ';
            show(r->element[i], at, end);
        }
        n = snprintf(*at, room > 1 ? (size_t) (end - *at) : 0, "]");
        break;
    default: n = snprintf(*at, room, "%s", r->str); break;
    }
    *at += n;
}

static const char *ask(int n, const char **args, const size_t *sizes)
{
    redisReply *r = redisCommandArgv(library_redis, n, args, sizes);
    assert_non_null(r);
    char *at = text;
    memset(text, 0, sizeof text);
    show(r, &at, text + sizeof text - 2);
    freeReplyObject(r);
    return text;
}

// Any command; %T in a word stands for the keys' common beginning.
const char *library_command(const char *first, ...)
{
    const char *args[ARGS_MAX];
    char words[ARGS_MAX][96];
    int n = 0;
    va_list list;
    va_start(list, first);
    for (const char *word = first; word != NULL; word = va_arg(list, const char *), n++) {
        if (strncmp(word, "%T", 2) == 0) {
            snprintf(words[n], sizeof words[n], "ps:{%s}:%s", library_tag, word + 2);
            word = words[n];
        }
        args[n] = word;
    }
    va_end(list);
    return ask(n, args, NULL);
}

// FCALL with the queue's key.
const char *library_fcall(const char *name, ...)
{
    const char *args[ARGS_MAX] = {"FCALL", name, "1"};
    char key[64];
    int n = 4;
    snprintf(key, sizeof key, "ps:{%s}:term", library_tag);
    args[3] = key;
    va_list list;
    va_start(list, name);
    for (const char *word; (word = va_arg(list, const char *)) != NULL;) args[n++] = word;
    va_end(list);
    return ask(n, args, NULL);
}

// The headers without how long they have waited.
const char *library_without_last(const char *reply)
{
    static char got[LIBRARY_TEXT_SIZE];
    char *to = got;
    for (const char *at = reply; *at != '\0'; at++) {
        if (*at == ']' && at > reply && at[-1] != ']' && at[-1] != '[') {
            while (to > got && to[-1] != ' ') to--;
            to--;
        }
        *to++ = *at;
    }
    *to = '\0';
    return got;
}

const char *admit(const char *seq, const char *id, const char *hash)
{
    return call("admit", "1", "default", seq, id, "0", hash, "3", "100", "20", "0", "0", "60000",
                "3", "0", "", "", "m");
}

static void load_library(void)
{
    redisReply *r = redisCommand(library_redis, "FUNCTION LOAD REPLACE %b", queue_lua,
                                 queue_lua_size);
    assert_non_null(r);
    assert_string_equal(r->str, "penstock_v1");
    freeReplyObject(r);
}

int library_start(void **state)
{
    (void) state;
    test_redis_start(&server, NULL);
    library_redis = test_redis_connect(&server);
    load_library();
    return 0;
}

int library_stop(void **state)
{
    (void) state;
    redisFree(library_redis);
    test_redis_stop(&server);
    return 0;
}

// A queue of its own for each test, with term 1.
int library_new_queue(void **state)
{
    (void) state;
    static int n;
    snprintf(library_tag, sizeof library_tag, "q%d", n++);
    expect("[lead 1 b-1 3600000]", "lead", "b-1", "3600000", "0");
    return 0;
}

// Pushes and admits job `id` as sequence number `seq`.
void make_job(const char *seq, const char *id)
{
    cmd("RPUSH", "%Tin:default", id);
    call("take", "1", "default", "1", "1000", "1000");
    assert_string_equal(admit(seq, id, "hash"), "ok");
}

// And claims it as attempt `attempt`.
void make_running(const char *seq, const char *id, const char *attempt)
{
    make_job(seq, id);
    char wanted[64];
    snprintf(wanted, sizeof wanted, "[[ok default %s %s %s", id, attempt, seq);
    const char *got = call("claim", "1", "30000", "1000", seq, "group", "default", id);
    assert_memory_equal(got, wanted, strlen(wanted));
}

// As if the time had come for a member of an index.
void make_due(const char *index, const char *member)
{
    char key[32];
    snprintf(key, sizeof key, "%%T%s", index);
    expect_cmd("1", "ZADD", key, "XX", "CH", "1", member);
}

const char *state_of(const char *id)
{
    char key[96];
    snprintf(key, sizeof key, "%%Tj:default:%s", id);
    return cmd("HGET", key, "state");
}

// The event after `n` others, without its id: "id event attempt".
void expect_event(int n, const char *wanted)
{
    char key[64];
    snprintf(key, sizeof key, "ps:{%s}:ev:default", library_tag);
    redisReply *r = redisCommand(library_redis, "XRANGE %s - +", key);
    assert_non_null(r);
    assert_in_range(r->elements, (size_t) n + 1, (size_t) n + 1);
    const redisReply *e = r->element[n]->element[1];
    char got[256];
    snprintf(got, sizeof got, "%s %s %s", e->element[1]->str, e->element[3]->str,
             e->element[5]->str);
    freeReplyObject(r);
    assert_string_equal(got, wanted);
}

// Nothing but the listed keys' kinds may be left of a job.
void expect_clean(void)
{
    expect_cmd("0", "HLEN", "%Traw");
    expect_cmd("0", "EXISTS", "%Ttaken", "%Trdy:0:default:m", "%Tdly", "%Tls", "%Texp", "%Tdead");
}
