// Runs the function library as Redis does: loads the true text, registers its functions, and calls
// one over the keys. One Lua state for the program, since the functions keep nothing.
#ifndef PENSTOCK_TESTS_SIM_SIM_LUA_H
#define PENSTOCK_TESTS_SIM_SIM_LUA_H

#include "tests/sim/sim_keys.h"

struct redisReply;

// The reply is the caller's, and to be freed with sim_reply_free.
struct redisReply *sim_lua_call(struct keys *keys, int64_t now_ms, const char *function,
                                const struct bytes *argv, int argc);

struct redisReply *sim_reply_words(const char *const *words, int n); // an array of strings
struct redisReply *sim_reply_status(const char *text);
void sim_reply_free(struct redisReply *r);

#endif
