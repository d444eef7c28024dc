#include "tests/sim/sim_lua.h"

#include "broker/queue_lua.h"
#include "common/limits.h"
#include "common/mppack.h"
#include "common/status.h"

#include <hiredis/hiredis.h>
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ARGS_MAX = 32768 };

static struct {
    lua_State *lua;
    struct keys *keys; // of the running call
    int64_t now_ms;
} run;

// --- redis.call

static void push_answer(lua_State *l, const struct answer *a)
{
    switch (a->kind) {
    case ANSWER_NIL: lua_pushboolean(l, 0); return;
    case ANSWER_NUMBER: lua_pushnumber(l, (double) a->number); return;
    case ANSWER_BYTES: lua_pushlstring(l, a->bytes.at, a->bytes.n); return;
    case ANSWER_STATUS:
    case ANSWER_ERROR:
        lua_createtable(l, 0, 1);
        lua_pushlstring(l, a->bytes.at, a->bytes.n);
        lua_setfield(l, -2, a->kind == ANSWER_STATUS ? "ok" : "err");
        return;
    case ANSWER_LIST: break;
    }
    lua_createtable(l, (int) a->n, 0);
    for (size_t i = 0; i < a->n; i++) {
        push_answer(l, &a->parts[i]);
        lua_rawseti(l, -2, (int) i + 1);
    }
}

// Numbers as Redis writes them for its commands: integers as such.
static void convert_argument(lua_State *l, int i)
{
    char digits[40];
    if (lua_type(l, i) != LUA_TNUMBER) return;
    double x = lua_tonumber(l, i);
    if (x == floor(x) && fabs(x) < 1e18) snprintf(digits, sizeof digits, "%lld", (long long) x);
    else snprintf(digits, sizeof digits, "%.17g", x);
    lua_pushstring(l, digits);
    lua_replace(l, i);
}

static int run_command(lua_State *l)
{
    static struct bytes argv[ARGS_MAX];
    int argc = lua_gettop(l);
    check(argc <= ARGS_MAX);
    for (int i = 1; i <= argc; i++) {
        convert_argument(l, i);
        check(lua_type(l, i) == LUA_TSTRING, "an argument of redis.call is no string: %s of %s",
              lua_typename(l, lua_type(l, i)), lua_tostring(l, 1));
        argv[i - 1].at = lua_tolstring(l, i, &argv[i - 1].n);
    }
    struct answer a = keys_run(run.keys, run.now_ms, argv, argc);
    push_answer(l, &a);
    return a.kind == ANSWER_ERROR ? -1 : 1;
}

static int lua_call_command(lua_State *l)
{
    if (run_command(l) < 0) return lua_error(l);
    return 1;
}

static int lua_pcall_command(lua_State *l)
{
    run_command(l);
    return 1;
}

// --- what else Redis gives its functions

static int lua_register_function(lua_State *l)
{
    lua_getfield(l, LUA_REGISTRYINDEX, "functions");
    lua_getfield(l, 1, "function_name");
    lua_getfield(l, 1, "callback");
    lua_settable(l, -3);
    return 0;
}

static void pack_value(lua_State *l, int i, msgpack_packer *to)
{
    size_t n;
    if (lua_type(l, i) == LUA_TBOOLEAN) {
        mppack_bool(to, lua_toboolean(l, i));
    } else if (lua_type(l, i) == LUA_TNUMBER) {
        msgpack_pack_int64(to, (int64_t) lua_tonumber(l, i));
    } else {
        const char *s = lua_tolstring(l, i, &n);
        mppack_str(to, s, n);
    }
}

static int lua_pack(lua_State *l)
{
    struct buffer b;
    buffer_init(&b, WIRE_BODY_MAX);
    msgpack_packer p = mppack_to(&b);
    for (int i = 1; i <= lua_gettop(l); i++) pack_value(l, i, &p);
    lua_pushlstring(l, (const char *) b.data, b.n);
    buffer_deinit(&b);
    return 1;
}

// struct.pack('>I4', n), the only form in use.
static int lua_struct_pack(lua_State *l)
{
    check(strcmp(lua_tostring(l, 1), ">I4") == 0);
    uint32_t x = (uint32_t) lua_tonumber(l, 2);
    char bytes[4] = {(char) (x >> 24), (char) (x >> 16), (char) (x >> 8), (char) x};
    lua_pushlstring(l, bytes, sizeof bytes);
    return 1;
}

static void set_function(lua_State *l, const char *table, const char *name, lua_CFunction fn)
{
    lua_getglobal(l, table);
    if (lua_isnil(l, -1)) {
        lua_pop(l, 1);
        lua_newtable(l);
        lua_pushvalue(l, -1);
        lua_setglobal(l, table);
    }
    lua_pushcfunction(l, fn);
    lua_setfield(l, -2, name);
    lua_pop(l, 1);
}

static void load_library(void)
{
    lua_State *l = run.lua = luaL_newstate();
    luaL_openlibs(l);
    lua_newtable(l);
    lua_setfield(l, LUA_REGISTRYINDEX, "functions");
    set_function(l, "redis", "call", lua_call_command);
    set_function(l, "redis", "pcall", lua_pcall_command);
    set_function(l, "redis", "register_function", lua_register_function);
    set_function(l, "cmsgpack", "pack", lua_pack);
    set_function(l, "struct", "pack", lua_struct_pack);
    const char *text = memchr(queue_lua, '\n', queue_lua_size); // behind #!lua name=...
    size_t n = queue_lua_size - (size_t) (text - (const char *) queue_lua);
    bool good = luaL_loadbuffer(l, text, n, "=library") == 0 && lua_pcall(l, 0, 0, 0) == 0;
    check(good, "the function library: %s", lua_tostring(l, -1));
}

// --- replies

static redisReply *reply_of(int type, const char *at, size_t n)
{
    redisReply *r = calloc(1, sizeof *r);
    check(r != NULL, "no memory for a reply");
    r->type = type;
    if (at == NULL) return r;
    r->str = malloc(n + 1);
    check(r->str != NULL, "no memory for a reply");
    memcpy(r->str, at, n);
    r->str[n] = '\0';
    r->len = n;
    return r;
}

void sim_reply_free(redisReply *r)
{
    for (size_t i = 0; i < r->elements; i++) sim_reply_free(r->element[i]);
    free(r->element);
    free(r->str);
    free(r);
}

redisReply *sim_reply_status(const char *text)
{
    return reply_of(REDIS_REPLY_STATUS, text, strlen(text));
}

redisReply *sim_reply_words(const char *const *words, int n)
{
    redisReply *r = reply_of(REDIS_REPLY_ARRAY, NULL, 0);
    r->element = calloc((size_t) n, sizeof *r->element);
    for (int i = 0; i < n; i++) {
        r->element[r->elements++] = reply_of(REDIS_REPLY_STRING, words[i], strlen(words[i]));
    }
    return r;
}

static redisReply *convert_table(lua_State *l, int i);

// What a function returned, as Redis converts it.
static redisReply *convert(lua_State *l, int i)
{
    size_t n;
    redisReply *r;
    const char *s;
    switch (lua_type(l, i)) {
    case LUA_TSTRING: s = lua_tolstring(l, i, &n); return reply_of(REDIS_REPLY_STRING, s, n);
    case LUA_TNUMBER:
        r = reply_of(REDIS_REPLY_INTEGER, NULL, 0);
        r->integer = (long long) lua_tonumber(l, i);
        return r;
    case LUA_TTABLE: return convert_table(l, i);
    case LUA_TBOOLEAN:
        if (!lua_toboolean(l, i)) break;
        r = reply_of(REDIS_REPLY_INTEGER, NULL, 0);
        r->integer = 1;
        return r;
    default: break;
    }
    return reply_of(REDIS_REPLY_NIL, NULL, 0);
}

static redisReply *convert_table(lua_State *l, int i)
{
    size_t n;
    redisReply *r = NULL;
    for (int k = 0; k < 2 && r == NULL; k++) {
        lua_getfield(l, i, k == 0 ? "err" : "ok");
        if (lua_type(l, -1) == LUA_TSTRING) {
            const char *s = lua_tolstring(l, -1, &n);
            r = reply_of(k == 0 ? REDIS_REPLY_ERROR : REDIS_REPLY_STATUS, s, n);
        }
        lua_pop(l, 1);
    }
    if (r != NULL) return r;
    r = reply_of(REDIS_REPLY_ARRAY, NULL, 0);
    size_t most = lua_objlen(l, i);
    r->element = calloc(most > 0 ? most : 1, sizeof *r->element);
    luaL_checkstack(l, 4, "a reply");
    for (size_t j = 1; j <= most; j++) { // up to the first nil
        lua_rawgeti(l, i, (int) j);
        bool end = lua_isnil(l, -1);
        if (!end) r->element[r->elements++] = convert(l, lua_gettop(l));
        lua_pop(l, 1);
        if (end) break;
    }
    return r;
}

redisReply *sim_lua_call(struct keys *keys, int64_t now_ms, const char *function,
                         const struct bytes *argv, int argc)
{
    if (run.lua == NULL) load_library();
    lua_State *l = run.lua;
    run.keys = keys;
    run.now_ms = now_ms;
    lua_settop(l, 0);
    lua_getfield(l, LUA_REGISTRYINDEX, "functions");
    lua_getfield(l, -1, function);
    if (lua_isnil(l, -1)) {
        const char *text = "ERR Function not found";
        return reply_of(REDIS_REPLY_ERROR, text, strlen(text));
    }
    lua_createtable(l, 1, 0);
    lua_pushlstring(l, argv[0].at, argv[0].n);
    lua_rawseti(l, -2, 1);
    lua_createtable(l, argc - 1, 0);
    for (int i = 1; i < argc; i++) {
        lua_pushlstring(l, argv[i].at, argv[i].n);
        lua_rawseti(l, -2, i);
    }
    bool good = lua_pcall(l, 2, 1, 0) == 0;
    check(good, "%s: %s", function, lua_tostring(l, -1));
    return convert(l, lua_gettop(l));
}
